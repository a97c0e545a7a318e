import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.utils.data import DataLoader

from trompe.data import SHAPES_PREPROCESSING, Shapes, load_data
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError


def test_sizes_classes_and_balance():
    train, validation = Shapes(), Shapes("validation")
    assert (len(train), len(validation)) == (8000, 2000)
    assert train.classes == validation.classes
    assert len(train.classes) == 8
    assert train.labels.dtype == torch.int64
    assert train.labels.bincount().tolist() == [1000] * 8
    assert Shapes(size=19).labels.bincount().tolist() == [3, 3, 3, 2, 2, 2, 2, 2]


def test_an_item_is_an_image_and_its_class():
    dataset = Shapes(size=16)
    for index, (image, label) in enumerate(dataset):
        assert image.shape == (3, 64, 64)
        assert image.dtype == torch.float32
        assert label == dataset.labels[index]
        assert dataset.classes[label] in dataset.name(index)
        assert f"shapes:train, row {index} " in dataset.name(index)
    assert index == 15
    assert dataset.picture(0).size == (64, 64)
    assert torch.equal(dataset[-1][0], dataset[15][0])
    with pytest.raises(IndexError):
        dataset[16]


@settings(deadline=None, max_examples=30)
@given(index=st.integers(0, 1999), size=st.integers(2000, 10**6))
def test_an_image_depends_on_nothing_but_seed_split_and_index(index, size):
    small, large = Shapes("validation"), Shapes("validation", size=size)
    small[(index * 7) % 2000]
    assert torch.equal(small[index][0], large[index][0])
    assert torch.equal(small.mask(index), large.mask(index))
    assert not torch.equal(small[index][0], Shapes()[index][0])
    assert not torch.equal(small[index][0], Shapes("validation", seed=1)[index][0])


def test_no_two_images_are_alike():
    pictures = [
        Shapes(split, size=150).picture(i).tobytes()
        for split in ("train", "validation")
        for i in range(150)
    ]
    assert len(set(pictures)) == 300


def test_pixels_are_centred_and_spread_by_the_preprocessing():
    images = torch.stack([image for image, _ in Shapes(size=200)])
    assert abs(images.mean()) < 0.4
    assert 0.6 < images.std() < 1.3
    shown = SHAPES_PREPROCESSING.denormalise(images)
    assert ((shown == 0) | (shown == 1)).double().mean() < 0.05


def test_every_mask_is_one_object_within_the_picture():
    dataset = Shapes(size=400)
    areas = []
    for index, label in enumerate(dataset.labels.tolist()):
        mask = dataset.mask(index).numpy()
        assert mask.dtype == np.bool_
        assert mask.shape == (64, 64)
        assert not mask[[0, -1]].any()
        assert not mask[:, [0, -1]].any()
        pieces = np.bincount(ndimage.label(mask, np.ones((3, 3)))[0][mask])
        assert pieces.max() >= mask.sum() - 1  # a crescent's tip may be a pixel of its own
        holes = ndimage.label(~mask)[1] - 1
        assert holes == (dataset.classes[label] == "ring")
        areas.append(mask.mean())
    assert min(areas) < 0.04
    assert max(areas) > 0.25


def test_an_outline_has_the_form_of_its_class():
    """Of the whole hull: how much the object fills, and of its smallest circle."""
    dataset = Shapes(size=160)
    fill = {name: [] for name in dataset.classes}
    for index, label in enumerate(dataset.labels.tolist()):
        mask = dataset.mask(index).numpy()
        points = np.argwhere(mask)
        reach = np.linalg.norm(points[:, None] - points[None], axis=-1).max() / 2 + 0.5
        fill[dataset.classes[label]].append(mask.sum() / (np.pi * reach**2))
    mean = {name: np.mean(values) for name, values in fill.items()}
    assert mean["disk"] > mean["square"] > mean["cross"] > mean["crescent"]
    assert mean["disk"] > mean["heart"] > mean["triangle"]
    assert mean["disk"] > 0.8
    assert mean["square"] > mean["star"]
    assert mean["disk"] > mean["ring"]


def edge_contrast(picture: np.ndarray, mask: np.ndarray) -> float:
    inner = mask & ~ndimage.binary_erosion(mask, iterations=3)
    outer = ndimage.binary_dilation(mask, iterations=3) & ~mask
    return float(np.abs(picture[inner].mean(0) - picture[outer].mean(0)).sum())


def test_masks_lie_where_the_objects_are():
    dataset = Shapes("validation", size=200)
    better = 0
    for index in range(200):
        picture = np.asarray(dataset.picture(index)) / 255
        mask = dataset.mask(index).numpy()
        moved = [np.roll(mask, 4 * s, axis) for s in (-1, 1) for axis in (0, 1)]
        contrast = edge_contrast(picture, mask)
        better += all(contrast > edge_contrast(picture, other) for other in moved)
    assert better >= 190


def test_other_preprocessing_is_honoured_and_the_mask_follows():
    large = Preprocessing(resize=256, crop=224)
    dataset = load_data("shapes:validation", large, limit=24)
    native = load_data("shapes:validation", SHAPES_PREPROCESSING, limit=24)
    for index in range(24):
        assert dataset[index][0].shape == (3, 224, 224)
        whole = torch.nn.functional.interpolate(native.mask(index)[None, None].float(), (256, 256))
        expected = whole[0, 0, 16:240, 16:240].bool()
        mask = dataset.mask(index)
        overlap = (mask & expected).sum() / (mask | expected).sum()
        assert overlap > 0.9


def test_load_data_names_the_splits():
    assert load_data("shapes", SHAPES_PREPROCESSING).name(0).startswith("shapes:train, row 0")
    subset = load_data("shapes:validation", SHAPES_PREPROCESSING, limit=80, seed=3)
    assert subset.labels.bincount().tolist() == [10] * 8
    assert subset.has_masks
    rows = [int(subset.name(i).split("row ")[1].split()[0]) for i in range(80)]
    whole = Shapes("validation")
    for i, row in enumerate(rows):
        assert subset.picture(i).tobytes() == whole.picture(row).tobytes()


def test_same_in_worker_processes_and_after_pickling():
    dataset = load_data("shapes", SHAPES_PREPROCESSING, limit=24, augment=True)
    keys = [(i, 5) for i in range(24)]
    loader = DataLoader(dataset, batch_size=8, sampler=keys, num_workers=2)
    images = torch.cat([images for images, _ in loader])
    copied = pickle.loads(pickle.dumps(dataset))
    for i in range(24):
        assert torch.equal(images[i], dataset[i, 5][0])
        assert torch.equal(images[i], copied[i, 5][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "shapes has no split 'val'; choose train or validation or held-out"),
        ({"size": 0}, "size of shapes is 0; choose 1 or more"),
        ({"seed": -1}, "seed of shapes is -1; choose 0 or more"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(TrompeError, match=message):
        Shapes(**arguments)


def test_bad_split_in_a_name():
    with pytest.raises(
        TrompeError, match="no split 'test'; choose train or validation or held-out"
    ):
        load_data("shapes:test", SHAPES_PREPROCESSING)
