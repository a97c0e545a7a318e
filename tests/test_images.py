"""What is asked of a data set: its items, its labels, its identity."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from trompe.data import Pairs, Shapes, load_data
from trompe.data.files import Files
from trompe.data.images import LOOKED_AT, check_images, check_labels, fingerprint_of, in_turn
from trompe.data.kept import Kept
from trompe.data.preprocessing import Preprocessing
from trompe.data.subset import Part
from trompe.errors import TrompeError

SMALL = Preprocessing(resize=8, crop=8)


def images(count, *size):
    return torch.randn(count, *(size or (3, 8, 8)), generator=torch.Generator().manual_seed(0))


class Labelled(Dataset):
    """Items that count how often they were asked for."""

    def __init__(self, items, **attributes):
        self.items = items
        self.asked = 0
        self.__dict__ |= attributes

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.asked += 1
        return self.items[index]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(labelled([0, 1]))


def labelled(labels):
    return list(zip(images(len(labels)), labels, strict=True))


INTEGERS = [
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64),
    *(np.int8, np.uint8, np.int32, np.uint64, int),
]


@pytest.mark.parametrize("kind", INTEGERS, ids=str)
def test_labels_of_every_integer_type_are_classes(kind):
    plain = [0, 2, 1, 2]
    each = [
        torch.tensor(n, dtype=kind) if isinstance(kind, torch.dtype) else kind(n) for n in plain
    ]
    data = labelled(each)
    check_labels(data, 3)
    check_labels(Labelled(data), 3)
    with pytest.raises(TrompeError, match="Class 2 of the data's labels is out of range: the mod"):
        check_labels(data, 2)
    for _, _, labels in in_turn(data, 4):
        assert labels.dtype == torch.int64
        assert labels.tolist() == plain


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (-100, "Class -100 of the data's labels is out of range"),
        (-1, "Class -1 "),
        (3, "Class 3 "),
        (1.0, r"whole numbers, the classes; that of item 5 is float 1\.0"),
        (torch.tensor(1.0), r"item 5 is Tensor \[\] of torch.float32"),
        (torch.tensor([1]), r"item 5 is Tensor \[1\] of torch.int64"),
        (torch.tensor([0.2, 0.3, 0.5]), r"item 5 is Tensor \[3\] of torch.float32"),
        (np.float64(1), "item 5 is float64 "),
        (np.array([1, 0]), r"item 5 is ndarray \[2\] of int64"),
        ("cat", "item 5 is str 'cat'"),
        (None, "item 5 is NoneType None"),
        (True, "item 5 is bool True"),
        ([1], r"item 5 is list \[1\]"),
    ],
)
def test_what_is_no_class_is_refused_wherever_it_stands(label, message):
    labels = [0, 1, 2, 0, 1, label]
    items = labelled(labels)
    for data in (items, Labelled(items), Labelled(labelled([0] * 6), targets=labels)):
        with pytest.raises(TrompeError, match=message):
            check_labels(data, 3)


@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_all_labels_of_one_wrong_type_are_refused(kind):
    labels = torch.zeros(6, dtype=kind)
    for data in (TensorDataset(images(6), labels), Labelled(labelled([0] * 6), labels=labels)):
        with pytest.raises(TrompeError, match="whole numbers, the classes; that of item 0 is Tens"):
            check_labels(data, 3)
    with pytest.raises(TrompeError, match=r"item 0 is Tensor \[4\]"):
        check_labels(TensorDataset(images(6), torch.zeros(6, 4)), 4)


def test_labels_that_are_known_cost_no_images():
    labels = torch.zeros(1000, dtype=torch.int64)
    labels[777] = 9
    data = Labelled(TensorDataset(images(1000), labels), targets=labels.tolist())
    with pytest.raises(TrompeError, match="Class 9"):
        check_labels(data, 3)
    assert data.asked <= LOOKED_AT
    with pytest.raises(TrompeError, match="Class 9"):
        check_labels(Subset(TensorDataset(images(1000), labels), range(500, 1000)), 3)
    check_labels(Subset(TensorDataset(images(1000), labels), range(700)), 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([(Image.new("RGB", (8, 8)), 0)], r"Item 0 of the data is \(Image <PIL"),
        ([(np.zeros((3, 8, 8)), 0)], r"\(ndarray \[3, 8, 8\] of float64, \.\.\.\)"),
        ([(torch.zeros(3, 8, 8, dtype=torch.uint8), 0)], r"\[3, 8, 8\] of torch.uint8"),
        ([(torch.zeros(8, 8), 0)], r"\(Tensor \[8, 8\] of torch.float32"),
        ([(torch.zeros(1, 3, 8, 8), 0)], r"\(Tensor \[1, 3, 8, 8\] of"),
        ([{"pixel_values": images(1)[0], "labels": 0}], "a dict of pixel_values, labels"),
        ([(images(1)[0], 0, "a.png")], "is a tuple of 3"),
        ([(images(1)[0],)], "is a tuple of 1"),
        ([0, 1], "Item 0 of the data is int 0"),
        ({"image": images(1)[0]}, r"Item 0 of the data can't be had \(KeyError: 0\)"),
        (images(4), r"a tensor or several; wrap them: TensorDataset\(images, classes\)"),
        ((images(4), torch.zeros(4)), r"a tensor or several; wrap them"),
        (DataLoader(labelled([0, 1])), "is a DataLoader; give the data set that it loads"),
        (Stream(), "is a Stream, which can't be indexed or has no length"),
        (iter(labelled([0, 1])), "is a list_iterator, which can't be indexed"),
        ("shapes", r"give trompe.load_data\('shapes', preprocessing\)"),
        (Path("photos"), r"give trompe.load_data\('photos', preprocessing\)"),
        (
            [*labelled([0] * 3), (images(1, 3, 10, 8)[0], 0), *labelled([0])],
            r"several sizes, \[3, 8, 8\] and \[3, 10, 8\]; expected",
        ),
        (
            [*labelled([0]), (torch.full((3, 8, 8), torch.nan), 0)],
            "Item 1 of the data is an image with values that are NaN or infinite",
        ),
        (
            [*labelled([0]), (torch.full((3, 8, 8), torch.inf), 0)],
            "Item 1 of the data is an image with values that are NaN or infinite",
        ),
    ],
    ids=lambda given: type(given).__name__ if not isinstance(given, str) else "",
)
def test_what_is_no_data_set_of_images_is_said_in_one_sentence(data, message):
    for check in (check_images, lambda d: check_labels(d, 3)):
        with pytest.raises(TrompeError, match=message) as raised:
            check(data)
        assert r"(image, class): a float tensor [3, H, W]" in str(raised.value)
        assert str(raised.value).count("\n") == 0


def test_a_large_data_set_is_looked_at_in_places_and_one_with_labels_once():
    data = Labelled([(images(1)[0], 0)] * 1000)
    check_images(data)
    assert data.asked == LOOKED_AT
    data = Labelled([*[(images(1)[0], 0)] * 999, (images(1, 3, 4, 4)[0], 0)])
    with pytest.raises(TrompeError, match="several sizes"):
        check_images(data)
    data = Labelled(data.items, labels=[0] * 1000)
    for known in (data, Part(data, range(500)), Subset(data, range(500))):
        data.asked = 0
        check_labels(known, 2)
        assert data.asked == 1
    with pytest.raises(TrompeError, match="several sizes"):
        list(in_turn(data, 100))
    check_images([])
    check_images(Shapes(size=3))


def test_unreadable_images_keep_their_name(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_text("no image")
    with pytest.raises(TrompeError, match=r"cat/0.png can't be read"):
        check_images(load_data(tmp_path, SMALL, check=False))


# --- identity


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["a", "b"] * 3):
        (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (i * 40,) * 3).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_a_folder_is_told_by_what_its_files_hold(folder):
    before = load_data(folder, SMALL).fingerprint
    assert load_data(folder, SMALL).fingerprint == before
    file = folder / "a" / "2.png"
    stamp = file.stat()
    Image.new("RGB", (9, 9), (81,) * 3).save(file)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert load_data(folder, SMALL).fingerprint != before


def test_a_copy_elsewhere_is_the_same_and_only_the_rows_held_are_read(folder):
    copied = folder.parent / "elsewhere"
    folder.rename(copied)
    before = load_data(copied, SMALL, limit=2, seed=1)
    known = before.fingerprint
    for file in copied.rglob("*.png"):
        if str(file.relative_to(copied)) not in [before.name(i) for i in range(2)]:
            file.write_text("anything")
    again = load_data(copied, SMALL, limit=2, seed=1)
    assert again.fingerprint == known


def test_everything_that_decides_the_items_is_in_the_fingerprint(folder):
    data = load_data(folder, SMALL)
    noisy = load_data(folder, SMALL, label_noise=1.0, seed=3)
    assert not torch.equal(noisy.labels, data.labels)
    cropped = [load_data(folder, SMALL, augment=True, seed=seed) for seed in (0, 1)]
    shuffled = load_data(folder, SMALL)
    shuffled.rows = shuffled.rows[::-1].copy()
    shuffled.labels = shuffled.labels.flip(0)
    named = Preprocessing(resize=8, crop=8, classes=("a", "b"))
    others = [
        *(data, noisy, *cropped, shuffled, data.without([0])),
        load_data(folder, Preprocessing(resize=9, crop=8)),
        load_data(folder, Preprocessing(resize=8, crop=8, interpolation="nearest")),
        *(Part(data, [0, 1, 2]), Part(data, [0, 2, 1])),
        *(Pairs(data, 0, 1), Pairs(data, 0, 1, seed=1), Pairs(data, 0, 1, size=2)),
        *(Shapes(size=6), Shapes(size=7), Shapes("validation", 6), Shapes(size=6, seed=1)),
    ]
    assert len({fingerprint_of(other) for other in others}) == len(others)
    assert load_data(folder, SMALL, seed=5).fingerprint == data.fingerprint
    assert load_data(folder, named).fingerprint == data.fingerprint
    assert fingerprint_of(Kept(data)) == data.fingerprint
    assert fingerprint_of(Part(data, range(3))) == fingerprint_of(Part(data, [0, 1, 2]))
    data.labels = data.labels.flip(0)
    assert data.fingerprint != load_data(folder, SMALL).fingerprint


def test_pairs_are_told_by_the_images_they_show(folder):
    before = Pairs(load_data(folder, SMALL), 0, 1, size=2).fingerprint
    assert Pairs(load_data(folder, SMALL), 0, 1, size=2).fingerprint == before
    for file in folder.rglob("*.png"):
        file.write_bytes(file.read_bytes() + b"more")
    assert Pairs(load_data(folder, SMALL), 0, 1, size=2).fingerprint != before


def test_data_sets_of_strangers_are_told_apart():
    items = labelled([0, 1, 0, 1])
    changed = [*items[:3], (items[3][0] + 1e-6, 1)]
    relabelled = [*items[:3], (items[3][0], 0)]
    tensors = TensorDataset(images(4), torch.tensor([0, 1, 0, 1]))
    others = [
        *(items, changed, relabelled, items[:3]),
        *(Labelled(items), Labelled(changed), Labelled(relabelled)),
        Labelled(items, targets=[0, 1, 0, 0]),
        *(tensors, TensorDataset(images(4), torch.tensor([0, 1, 0, 0]))),
        *(Subset(tensors, [0, 1]), Subset(tensors, [0, 2])),
    ]
    assert len({fingerprint_of(data) for data in others}) == len(others)
    assert fingerprint_of(labelled([0, 1, 0, 1])) == fingerprint_of(items)
    big = Labelled([items[0]] * 1000)
    fingerprint_of(big)
    assert big.asked <= LOOKED_AT


def test_files_have_names_of_their_own_and_keep_their_folders(tmp_path):
    for name in ("a.png", "a.jpg", "a-2.png", "deep/a.png", "other/a.png", "b.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "._b.png").write_text("a Mac's leftovers")
    (tmp_path / "in" / "folder.png").mkdir()
    files = Files([tmp_path / "in", tmp_path / "in" / "other", tmp_path / "in" / "b.png"])
    names = [files.name(row) for row in range(len(files.labels))]
    assert names == ["a-2", "a.jpg", "a.png", "b.png", "deep/a", "other/a", "a.png-2", "b.png-2"]
