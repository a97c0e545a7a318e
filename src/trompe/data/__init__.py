"""Labelled images: folders, parquet files, datasets of the hub, the embedded set, pairs."""

from trompe.data.dataset import ImageDataset, Source
from trompe.data.load import load_data
from trompe.data.own import SOURCES
from trompe.data.pairs import Pairs
from trompe.data.shapes import SHAPES_PREPROCESSING, Shapes

__all__ = [
    "SHAPES_PREPROCESSING",
    "SOURCES",
    "ImageDataset",
    "Pairs",
    "Shapes",
    "Source",
    "load_data",
]
