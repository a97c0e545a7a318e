"""Labelled images: folders, parquet files, datasets of the hub, the embedded set, pairs."""

from trompe.data.dataset import ImageDataset
from trompe.data.load import load_data
from trompe.data.pairs import Pairs
from trompe.data.shapes import SHAPES_PREPROCESSING, Shapes

__all__ = ["SHAPES_PREPROCESSING", "ImageDataset", "Pairs", "Shapes", "load_data"]
