import io
import os
import pickle
import warnings
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from trompe.data import SHAPES_PREPROCESSING, SOURCES, Pairs, Shapes, load_data
from trompe.data.classes import imagenet_classes
from trompe.data.images import check_labels
from trompe.data.load import balanced_rows
from trompe.data.preprocessing import Preprocessing
from trompe.errors import TrompeError

SMALL = Preprocessing(resize=16, crop=12)
REAL = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


def photo(seed: int, width: int = 20, height: int = 16) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def make_folder(root: Path, counts: dict[str, int]) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            photo(100 * number + i).save(root / name / f"{i}.png")
    return root


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def make_parquet(file: Path, labels: list[int | None], names: tuple[str, ...] = ("a", "b")) -> Path:
    """Write what `datasets` would write, without its checks."""
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    )
    images = [{"bytes": encoded(photo(i)), "path": f"{i}.png"} for i in range(len(labels))]
    table = pa.table({"image": images, "label": pa.array(labels, pa.int64())})
    schema = features.arrow_schema
    pq.write_table(table.cast(schema), file)
    return file


# Folders


def test_folder(tmp_path):
    root = make_folder(tmp_path / "pets", {"dog": 2, "cat": 3})
    (root / "dog" / "more" / "deep").mkdir(parents=True)
    photo(7).save(root / "dog" / "more" / "deep" / "x.JPG", "JPEG")
    (root / "dog" / "notes.txt").write_text("no image")
    (root / "dog" / "._0.png").write_bytes(b"a Mac's leftovers")
    (root / ".git").mkdir()
    (root / "README.md").write_text("no class")
    dataset = load_data(str(root), SMALL)
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.labels.dtype == torch.int64
    names = ["cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png", "dog/more/deep/x.JPG"]
    assert [dataset.name(i) for i in range(6)] == names
    image, label = dataset[4]
    assert label == 1
    assert torch.equal(image, SMALL(Image.open(root / "dog" / "1.png")))
    assert np.array_equal(np.asarray(dataset.picture(4)), np.asarray(photo(1)))
    assert len(list(dataset)) == 6
    assert dataset.skipped == ()
    assert not dataset.augmented
    assert not dataset.has_masks
    with pytest.raises(TrompeError, match=r"cat/0.png has no mask"):
        dataset.mask(0)


def test_a_home_path_and_linked_folders(tmp_path, monkeypatch):
    make_folder(tmp_path / "real", {"cat": 1, "dog": 1})
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "wolf").symlink_to(tmp_path / "real" / "dog")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load_data("~/linked", SMALL).classes == ("cat", "dog", "wolf")


def test_every_kind_of_image_in_a_folder(tmp_path):
    kinds = tmp_path / "kinds" / "only"
    kinds.mkdir(parents=True)
    image = photo(0)
    for mode in ("L", "P", "RGBA", "LA", "1", "I;16"):
        name = mode.replace(";", "")
        (image.convert("L") if mode in ("LA", "I;16") else image).convert(mode).save(
            kinds / f"{name}.png"
        )
    image.convert("CMYK").save(kinds / "cmyk.jpg")
    image.convert("P").save(kinds / "gif.gif")
    for suffix in ("bmp", "webp", "tiff", "ppm"):
        image.save(kinds / f"{suffix}.{suffix}")
    dataset = load_data(tmp_path / "kinds", SMALL)
    assert len(dataset) == 12
    assert all(x.shape == (3, 12, 12) and x.isfinite().all() for x, _ in dataset)
    assert {dataset.picture(i).mode for i in range(12)} == {"RGB"}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagnet", r"no folder or file .*imagnet; did you mean imagenet\?"),
        ("shape", r"did you mean shapes\?"),
        ("zzz", r"give a folder of images, parquet files, hf:NAME or shapes"),
        ("no/where", r"There is no folder or file no/where; give"),
        ("empty", r"empty holds no images in class folders; expected FOLDER/CLASS/IMAGE.*\.jpg"),
        ("outer", r"no images in class folders; perhaps one of outer/inner is meant"),
        ("half", r"half has class folders without images: cat, fox; fill or remove them"),
        ("splits", r"holds splits, not classes; name one of them: splits/train, splits/val"),
        ("note.txt", r"note.txt is a single file but not parquet"),
        ("*.parquet", r"No parquet file matches \*.parquet"),
        ("broken.parquet", r"broken.parquet can't be read as parquet"),
        ("hf::train", r"'hf::train' names no dataset; give hf:NAME or hf:NAME:SPLIT"),
        ("x" * 5000, r"can't be read \(File name too long\)"),
    ],
)
def test_no_such_data(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    Path("imagenet").mkdir()
    Path("empty/dog").mkdir(parents=True)
    make_folder(Path("half"), {"cat": 0, "dog": 1, "fox": 0})
    make_folder(Path("splits/train"), {"cat": 1})
    make_folder(Path("splits/val"), {"cat": 1})
    Path("outer/inner").mkdir(parents=True)
    make_parquet(Path("outer/inner/a.parquet"), [0])
    Path("note.txt").write_text("hello")
    if spec == "broken.parquet":
        Path(spec).write_text("not at all")
    with pytest.raises(TrompeError, match=message):
        load_data(spec, SMALL)


def test_a_class_may_be_called_train(tmp_path):
    root = make_folder(tmp_path / "vehicles", {"car": 1, "train": 1})
    assert load_data(root, SMALL).classes == ("car", "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit": 0}, "limit of images is 0; choose 1 or more"),
        ({"seed": -1}, "seed is -1; choose 0 or more"),
        ({"corrupt": "ignore"}, "corrupt is 'ignore'; choose 'refuse' or 'skip'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(TrompeError, match=message):
        load_data("shapes", SHAPES_PREPROCESSING, **arguments)


# Images that can't be read


@pytest.fixture
def damaged(tmp_path) -> Path:
    root = make_folder(tmp_path / "pets", {"cat": 4, "dog": 4})
    photo(1, 200, 200).save(root / "cat" / "cut.jpg")
    truncate(root / "cat" / "cut.jpg")
    (root / "dog" / "zero.png").write_bytes(b"")
    (root / "dog" / "text.jpg").write_text("not an image")
    truncate(root / "dog" / "3.png")
    return root


def test_images_that_cannot_be_read_are_refused_by_name(damaged):
    message = (
        r"^4 of 11 images of .*pets can't be read: cat/cut.jpg \(.*truncated.*\), dog/3.png \(.*\),"
        r" dog/text.jpg \(no known image format\), 1 more; mend or remove them, or leave them out "
        "with corrupt=skip.$"
    )
    with pytest.raises(TrompeError, match=message):
        load_data(damaged, SMALL)


def test_images_that_cannot_be_read_are_skipped_and_counted(damaged):
    with pytest.warns(UserWarning, match=r"^4 of 11 images .*cat/cut.jpg.* 1 more; left out"):
        dataset = load_data(damaged, SMALL, corrupt="skip", augment=True, seed=4)
    assert dataset.skipped == ("cat/cut.jpg", "dog/3.png", "dog/text.jpg", "dog/zero.png")
    assert [dataset.name(i) for i in range(7)] == [
        *(f"cat/{i}.png" for i in range(4)),
        *(f"dog/{i}.png" for i in range(3)),
    ]
    assert dataset.labels.tolist() == [0] * 4 + [1] * 3
    assert len(list(dataset)) == 7
    assert dataset.augmented
    assert dataset.seed == 4


def test_unchecked_images_fail_by_name_when_they_are_read(damaged):
    dataset = load_data(damaged, SMALL, check=False, augment=True)
    cut = next(i for i in range(len(dataset)) if dataset.name(i) == "cat/cut.jpg")
    assert dataset[cut - 1][0].shape == (3, 12, 12)
    for read in (dataset.__getitem__, dataset.picture, lambda i: dataset[i, 0]):
        with pytest.raises(TrompeError, match=r"cat/cut.jpg can't be read as an image \(.*trunc"):
            read(cut)


def test_only_the_images_within_the_limit_are_checked(damaged):
    for file in damaged.rglob("*.png"):
        file.unlink()
    make = make_folder(damaged / "new", {"a": 5, "b": 5})
    truncate(make / "a" / "0.png")
    held = [
        {load_data(make, SMALL, limit=2, seed=s, check=False).name(i) for i in range(2)}
        for s in range(20)
    ]
    for seed, names in enumerate(held):
        if "a/0.png" in names:
            with pytest.raises(TrompeError, match="1 of 2 images"):
                load_data(make, SMALL, limit=2, seed=seed)
        else:
            assert len(load_data(make, SMALL, limit=2, seed=seed)) == 2
    assert 0 < sum("a/0.png" in names for names in held) < 20


def test_nothing_left_to_read(tmp_path):
    root = make_folder(tmp_path / "pets", {"cat": 2})
    for file in root.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(TrompeError, match=r"2 of 2 images .*none is left"):
        load_data(root, SMALL, corrupt="skip")


def test_floating_point_images_count_as_unreadable(tmp_path):
    root = make_folder(tmp_path / "maps", {"cat": 1})
    Image.new("F", (8, 8)).save(root / "cat" / "f.tiff")
    with pytest.raises(TrompeError, match=r"1 of 2 images.*cat/f.tiff \(An image with floating"):
        load_data(root, SMALL)


# Parquet


def test_parquet_file_folder_and_glob(tmp_path):
    make_parquet(tmp_path / "part-0.parquet", [0, 1, 1])
    make_parquet(tmp_path / "part-00-empty.parquet", [])
    make_parquet(tmp_path / "part-1.parquet", [1, 0])
    single = load_data(tmp_path / "part-1.parquet", SMALL)
    assert single.classes == ("a", "b")
    assert single.labels.tolist() == [1, 0]
    assert np.array_equal(np.asarray(single.picture(1)), np.asarray(photo(1)))
    for spec in (tmp_path, tmp_path / "part-*.parquet", f"{tmp_path}/part-[01].parquet"):
        dataset = load_data(spec, SMALL)
        assert dataset.labels.tolist() == [0, 1, 1, 1, 0]
        assert dataset.name(2) == "part-0.parquet, row 2"
        assert dataset.name(3) == "part-1.parquet, row 0"
        assert torch.equal(dataset[4][0], SMALL(photo(1)))
        assert dataset[3][1] == 1


def test_parquet_prints_nothing_and_leaves_the_bars_of_others_alone(tmp_path, capfd):
    assert not datasets.are_progress_bars_disabled()
    load_data(make_parquet(tmp_path / "a.parquet", [0, 1]), SMALL)
    assert not datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def test_parquet_keeps_little_in_memory(tmp_path):
    file = make_parquet(tmp_path / "a.parquet", [0, 1] * 100)
    dataset = load_data(file, SMALL)
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 10_000 + 50 * 200
    assert len(pickled) < file.stat().st_size / 5
    assert torch.equal(pickle.loads(pickled)[150][0], dataset[150][0])
    loader = DataLoader(dataset, batch_size=50, num_workers=2)
    images = torch.cat([images for images, _ in loader])
    assert torch.equal(images, torch.stack([image for image, _ in dataset]))


@pytest.mark.parametrize(("image", "label"), [("img", "fine_label"), ("picture", "class")])
def test_other_column_names(tmp_path, image, label):
    table = pa.table(
        {
            "id": ["x", "y"],
            label: [1, 0],
            image: [{"bytes": encoded(photo(i)), "path": None} for i in range(2)],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = load_data(tmp_path, SMALL)
    assert dataset.classes == ("0", "1")
    assert dataset.labels.tolist() == [1, 0]
    assert torch.equal(dataset[1][0], SMALL(photo(1)))


def test_columns_found_by_their_type(tmp_path):
    names = ["x", "y"]
    features = datasets.Features(
        {"scan": datasets.Image(), "finding": datasets.ClassLabel(names=names)}
    )
    rows = {"scan": [photo(0), photo(1)], "finding": [1, 1]}
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "a.parquet")
    dataset = load_data(tmp_path, SMALL)
    assert dataset.classes == ("x", "y")
    assert dataset.labels.tolist() == [1, 1]


def test_names_as_labels_and_plain_bytes_as_images(tmp_path):
    table = pa.table({"image": [encoded(photo(i)) for i in range(3)], "label": ["b", "a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = load_data(tmp_path, SMALL)
    assert dataset.classes == ("a", "b")
    assert dataset.labels.tolist() == [1, 0, 1]
    assert torch.equal(dataset[2][0], SMALL(photo(2)))


def test_parquet_without_labels_is_read_where_none_are_needed(tmp_path):
    pq.write_table(
        pa.table({"image": [encoded(photo(i)) for i in range(3)]}), tmp_path / "a.parquet"
    )
    dataset = load_data(tmp_path, SMALL, labelled=False, limit=2)
    assert len(dataset) == 2
    assert dataset.labels.tolist() == [0, 0]
    assert load_data(tmp_path, SMALL, labelled=False)[2][0].equal(SMALL(photo(2)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1], "label": [0]}, r"a.parquet has no image column among a, label; name it one of"),
        ({"image": [b""], "b": [0]}, r"no label column among image, b; name it one of label, "),
        ({"image": [b""], "label": [0.5]}, r"labels of a.parquet are double; expected whole"),
        ({"image": [7], "label": [0]}, r"column 'image' of a.parquet can't be loaded"),
        (
            {"image": [b""], "label": [None]},
            r"1 of 1 rows have no label \(the first: a.parquet, row 0\)",
        ),
        ({"image": [b""], "label": [0]}, r"1 of 1 images .*a.parquet, row 0 \(no known image for"),
    ],
)
def test_tables_that_hold_something_else(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(TrompeError, match=message):
        load_data(tmp_path, SMALL)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1, -1], r"2 of 4 rows have no label \(the first: a.parquet, row 2\); correct"),
        ([0, None, 1], r"1 of 3 rows have no label \(the first: a.parquet, row 1\)"),
        ([0, 1, 2], r"1 of 3 rows have a label above 1, the last named class .*a.parquet, row 2"),
        ([], r"a.parquet.*has no rows"),
    ],
)
def test_labels_missing_or_out_of_range(tmp_path, labels, message):
    make_parquet(tmp_path / "a.parquet", labels)
    with pytest.raises(TrompeError, match=message):
        load_data(tmp_path, SMALL)


def write_table(file: Path, labels: object, column: str = "label") -> Path:
    images = [encoded(photo(i)) for i in range(len(labels))]
    pq.write_table(pa.table({"image": images, column: labels}), file)
    return file


TEXTS = ["10", "9", "0", "11", "2", "2"]


@pytest.mark.parametrize(
    "labels",
    [
        TEXTS,
        [f"{text}.0" for text in TEXTS],
        [f" {text.zfill(3)}" for text in TEXTS],
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS, pa.string_view()),
        pa.array(TEXTS).dictionary_encode(),
        pa.array([*map(int, TEXTS)], pa.uint8()),
        pa.array([*map(int, TEXTS)], pa.uint64()),
        pa.array([*map(int, TEXTS)], pa.int16()).dictionary_encode(),
    ],
    ids=["text", "decimals", "zeros", "large", "view", "categories", "uint8", "uint64", "int16"],
)
def test_labels_that_are_numbers_mean_these_numbers(tmp_path, labels):
    dataset = load_data(write_table(tmp_path / "a.parquet", labels), SMALL)
    assert dataset.labels.tolist() == [10, 9, 0, 11, 2, 2]
    assert dataset.classes == tuple(map(str, range(12)))


def test_categories_of_text_are_names(tmp_path):
    labels = pa.array(["b", "a", "10", "b"]).dictionary_encode()
    dataset = load_data(write_table(tmp_path / "a.parquet", labels), SMALL)
    assert dataset.classes == ("10", "a", "b")
    assert dataset.labels.tolist() == [2, 1, 0, 2]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([True, False], "column 'class', the labels of a.parquet are bool; expected whole"),
        ([[0], [1]], "column 'class', the labels of a.parquet are list<"),
        ([{"a": 1}, {"a": 2}], "column 'class', the labels of a.parquet are struct<"),
        ([b"a", b"b"], "column 'class', the labels of a.parquet are binary"),
        (pa.array([1, 2]).cast(pa.decimal128(20, 1)), "are decimal128"),
        (pa.array([1, 2]).cast(pa.timestamp("s")), "are timestamp"),
        (["0", "-1"], r"1 of 2 rows have no label \(the first: a.parquet, row 1\)"),
        ([0, 20260101], r"1 of 2 rows have a label above 1,000,000 \(the first: a.parquet, row 1"),
        (pa.array([0, 2**64 - 1], pa.uint64()), "1 of 2 rows have no label"),
    ],
)
def test_columns_that_hold_no_classes_are_named(tmp_path, labels, message):
    with pytest.raises(TrompeError, match=message):
        load_data(write_table(tmp_path / "a.parquet", labels, "class"), SMALL)


def test_folders_called_by_numbers_are_in_their_order(tmp_path):
    root = make_folder(tmp_path / "digits", {str(i): 1 for i in range(12)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load_data(root, SMALL)
    assert [dataset.name(i) for i in range(12)] == [f"{i}/0.png" for i in range(12)]
    assert dataset.classes == tuple(map(str, range(12)))
    some = make_folder(tmp_path / "some", {"2": 1, "9": 2, "10": 1})
    with pytest.warns(UserWarning, match=r"numbers, but not those from 0 to 2.*class 0 is '2', 1"):
        dataset = load_data(some, SMALL)
    assert dataset.classes == ("2", "9", "10")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load_data(some, SMALL, class_map={"2": 2, "9": 9, "10": 10})
    assert dataset.labels.tolist() == [2, 9, 9, 10]


def test_files_of_different_datasets_and_splits_are_refused(tmp_path):
    make_parquet(tmp_path / "train-0.parquet", [0, 1])
    make_parquet(tmp_path / "validation-0.parquet", [0, 1])
    with pytest.raises(TrompeError, match=r"splits train, validation; name one .*train\*.parquet"):
        load_data(tmp_path, SMALL)
    assert len(load_data(tmp_path / "train*.parquet", SMALL)) == 2
    make_parquet(tmp_path / "train-1.parquet", [0, 1], names=("b", "a"))
    with pytest.raises(TrompeError, match=r"train-1.parquet has other classes .* train-0.parquet"):
        load_data(tmp_path / "train*.parquet", SMALL)


def test_a_damaged_image_in_parquet_is_named_by_row(tmp_path):
    good = encoded(photo(0, 100, 100), "JPEG")
    cells = [good, good[:-300], good]
    pq.write_table(pa.table({"image": cells, "label": [0, 0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(TrompeError, match=r"1 of 3 images .*a.parquet, row 1 \(.*truncated"):
        load_data(tmp_path, SMALL)
    with pytest.warns(UserWarning, match="1 of 3"):
        dataset = load_data(tmp_path, SMALL, corrupt="skip")
    assert dataset.skipped == ("a.parquet, row 1",)
    assert dataset.name(1) == "a.parquet, row 2"
    assert dataset.labels.tolist() == [0, 1]


def test_hub_datasets_by_split(tmp_path):
    """`datasets` reads a local dataset by the same call."""
    make_parquet(tmp_path / "train-00000-of-00001.parquet", [0, 1, 1])
    make_parquet(tmp_path / "test-00000-of-00001.parquet", [1])
    assert load_data(f"hf:{tmp_path}", SMALL).labels.tolist() == [0, 1, 1]
    dataset = load_data(f"hf:{tmp_path}:test", SMALL)
    assert dataset.classes == ("a", "b")
    assert dataset.name(0) == f"{tmp_path}:test, row 0"
    assert torch.equal(dataset[0][0], SMALL(photo(0)))
    with pytest.raises(TrompeError, match=r"valid can't be loaded \(Unknown split \"valid\""):
        load_data(f"hf:{tmp_path}:valid", SMALL)
    with pytest.raises(TrompeError, match=r"nothing:train can't be loaded \(.*nothing"):
        load_data(f"hf:{tmp_path}/nothing", SMALL)


def saved(folder: Path, labels: dict[str, list[int]]) -> Path:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    parts = {
        split: datasets.Dataset.from_dict(
            {"image": [photo(i) for i in range(len(found))], "label": found}, features
        )
        for split, found in labels.items()
    }
    datasets.disable_progress_bars()
    data = parts.get("", datasets.DatasetDict(parts))
    data.with_format("torch").save_to_disk(folder)
    datasets.enable_progress_bars()
    return folder


def test_a_dataset_that_was_saved_to_disk(tmp_path):
    root = saved(tmp_path / "saved", {"": [0, 1, 1]})
    for spec in (root, f"hf:{root}"):
        dataset = load_data(spec, SMALL)
        assert dataset.classes == ("a", "b")
        assert dataset.labels.tolist() == [0, 1, 1]
        assert dataset.name(1) == "saved, row 1"
        assert torch.equal(dataset[2][0], SMALL(photo(2)))
    with pytest.raises(TrompeError, match=r"saved holds one dataset without splits; leave out ':t"):
        load_data(f"hf:{root}:test", SMALL)


def test_splits_that_were_saved_to_disk(tmp_path):
    root = saved(tmp_path / "saved", {"train": [0, 1, 1], "test": [1]})
    for spec in (root / "test", f"hf:{root}:test"):
        assert load_data(spec, SMALL).labels.tolist() == [1]
    for spec in (root, f"hf:{root}", f"hf:{root}:valid"):
        with pytest.raises(TrompeError, match=r"holds the splits train, test; name one of them"):
            load_data(spec, SMALL)
    assert len(load_data(saved(tmp_path / "one", {"train": [0, 1]}), SMALL)) == 2


@pytest.mark.parametrize("spec", ["{}", "{}/a.parquet", "hf:{}"])
def test_a_table_replaced_under_the_same_time_stamp_is_read_anew(tmp_path, spec):
    file = make_parquet(tmp_path / "a.parquet", [0, 0, 1])
    before = load_data(spec.format(tmp_path), SMALL)
    assert before.labels.tolist() == [0, 0, 1]
    stamp = file.stat()
    make_parquet(file, [1, 1, 0])
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after = load_data(spec.format(tmp_path), SMALL)
    assert after.labels.tolist() == [1, 1, 0]
    assert after.fingerprint != before.fingerprint
    make_parquet(file, [0, 0, 1])
    assert load_data(spec.format(tmp_path), SMALL).fingerprint == before.fingerprint


# Classes that are outputs of a model


IMAGENET = Preprocessing(resize=16, crop=12, classes=imagenet_classes())
DOGS = {"n02088364": 162, "n02091134": 172, "n01440764": 0}


@pytest.mark.parametrize(
    "names",
    [
        DOGS,
        {f"{name}_some": output for name, output in DOGS.items()},
        {"beagle": 162, "whippet": 172, "tench": 0},
        {"Beagle": 162, "WHIPPET": 172, "Tinca tinca": 0},
        {"St. Bernard": 247, "chain_saw": 491, "english-springer": 217},
        {"English springer, English springer spaniel": 217, "tench, Tinca tinca": 0},
        {"crane": 517, "crane bird": 134},
    ],
    ids=["wordnet", "with more", "names", "synonyms", "spelling", "several", "homonyms"],
)
def test_classes_called_like_outputs_of_the_model_are_these(tmp_path, names):
    root = make_folder(tmp_path / "some", dict.fromkeys(names, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load_data(root, IMAGENET, label_noise=0)
        check_labels(dataset, 1000)
    found = {dataset.name(i).split("/")[0]: label for i, (_, label) in enumerate(dataset)}
    assert found == names
    assert dataset.classes == imagenet_classes()
    assert dataset.mapped
    noisy = load_data(root, IMAGENET, label_noise=1.0)
    assert set(noisy.labels.tolist()) <= set(names.values())


def test_classes_of_tables_are_outputs_too(tmp_path):
    labels = ["n02091134", "n01440764", "n02091134"]
    dataset = load_data(write_table(tmp_path / "a.parquet", labels), IMAGENET)
    assert dataset.labels.tolist() == [172, 0, 172]
    make_parquet(tmp_path / "b.parquet", [0, 1, 1], names=("whippet", "tench"))
    assert load_data(tmp_path / "b.parquet", IMAGENET).labels.tolist() == [172, 0, 0]


def test_own_names_of_outputs_and_all_of_them_in_order(tmp_path):
    root = make_folder(tmp_path / "pets", {"cat": 1, "dog": 1})
    own = Preprocessing(resize=16, crop=12, classes=("fox", "Dog", "cat"))
    assert load_data(root, own).labels.tolist() == [2, 1]
    same = Preprocessing(resize=16, crop=12, classes=("cat", "dog"))
    assert not load_data(root, same).mapped
    assert load_data(root, SMALL).labels.tolist() == [0, 1]


def test_some_names_of_outputs_among_others_are_said(tmp_path):
    root = make_folder(tmp_path / "pets", {"beagle": 1, "tench": 1, "my cat": 1})
    with pytest.warns(UserWarning, match=r"2 of the 3 classes are outputs .*1 are not \(my cat\)"):
        dataset = load_data(root, IMAGENET)
    assert dataset.labels.tolist() == [0, 1, 2]
    with pytest.warns(UserWarning, match=r"3 classes, the model 1000: .*--num-classes 3, .*class"):
        check_labels(dataset, 1000)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.yaml", "no: 7\ndog: beagle\n1: 3\nunused: 4\n"),
        ("map.json", '{"no": 7, "dog": "beagle", "1": 3}'),
        (None, {"no": 7, "dog": "Beagle", "1": "3"}),
    ],
)
def test_a_map_of_classes(tmp_path, name, text):
    root = make_folder(tmp_path / "pets", {"no": 1, "dog": 1, "1": 1})
    if name:
        (tmp_path / name).write_text(text)
    dataset = load_data(root, IMAGENET, class_map=tmp_path / name if name else text)
    found = {dataset.name(i).split("/")[0]: label for i, (_, label) in enumerate(dataset)}
    assert found == {"no": 7, "dog": 162, "1": 3}
    assert dataset.classes == imagenet_classes()


def test_a_map_of_classes_for_a_model_whose_classes_have_no_names(tmp_path):
    root = make_folder(tmp_path / "pets", {"cat": 1, "dog": 1})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load_data(root, SMALL, class_map={"cat": 3, "dog": 1})
        check_labels(dataset, 10)
    assert dataset.labels.tolist() == [3, 1]
    assert dataset.classes == ("0", "dog", "2", "cat")
    assert len(Pairs(dataset, 3, 1)) == 1


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ({"cat": 0}, r"no output for 1 classes \(dog\); add them, as in 'dog: 0'"),
        ({"cat": 0, "dog": -1}, r"1 entries that are no outputs \(dog: -1\).*from 0 to 999, or a"),
        ({"cat": 0, "dog": 1000}, r"1 entries that are no outputs \(dog: 1000\)"),
        ({"cat": "feline", "dog": 1}, r"1 entries that are no outputs \(cat: feline\)"),
        ({"cat": 1.5, "dog": 1}, r"1 entries that are no outputs \(cat: 1.5\)"),
        ("none.yaml", r"class_map can't be read from none.yaml .*maps each class to an output"),
    ],
)
def test_a_map_that_cannot_be_used(tmp_path, class_map, message):
    root = make_folder(tmp_path / "pets", {"cat": 1, "dog": 1})
    with pytest.raises(TrompeError, match=message):
        load_data(root, IMAGENET, class_map=class_map)
    (tmp_path / "list.yaml").write_text("- cat\n- dog\n")
    with pytest.raises(TrompeError, match=r"list.yaml holds no mapping; write one line 'CLASS: O"):
        load_data(root, IMAGENET, class_map=tmp_path / "list.yaml")


# Subsets


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    limit=st.integers(1, 100),
    seed=st.integers(0, 2**32),
)
def test_a_subset_is_as_balanced_as_can_be(labels, limit, seed):
    rows = balanced_rows(torch.tensor(labels), limit, seed)
    assert len(rows) == min(limit, len(labels))
    assert sorted(set(rows.tolist())) == rows.tolist()
    assert np.array_equal(rows, balanced_rows(torch.tensor(labels), limit, seed))
    there, held = Counter(labels), Counter(labels[row] for row in rows)
    most = max(held.values())
    assert all(held[c] >= min(there[c], most - 1) for c in there)
    fewer = balanced_rows(torch.tensor(labels), max(1, limit // 2), seed)
    assert set(fewer.tolist()) <= set(rows.tolist())


def test_subsets_differ_by_seed_and_no_limit_holds_all():
    labels = torch.arange(1000) % 3
    assert not np.array_equal(balanced_rows(labels, 30, 0), balanced_rows(labels, 30, 1))
    assert np.array_equal(balanced_rows(labels, None, 0), np.arange(1000))
    chosen = np.concatenate([balanced_rows(labels, 30, seed) for seed in range(300)])
    counts = np.bincount(chosen, minlength=1000)  # every row about 9 times
    assert counts.max() < 30
    assert abs(chosen.mean() - 499.5) < 15


# Augmentation


def test_augmentation_depends_on_seed_index_and_epoch(tmp_path):
    root = make_folder(tmp_path / "pets", {"cat": 3, "dog": 3})
    dataset = load_data(root, SMALL, augment=True, seed=1)
    assert dataset.augmented
    plain = load_data(root, SMALL)
    first = torch.stack([dataset[i, 0][0] for i in range(6)])
    assert torch.equal(first, torch.stack([dataset[i, 0][0] for i in range(6)]))
    assert not torch.equal(first, torch.stack([dataset[i, 1][0] for i in range(6)]))
    other = load_data(root, SMALL, augment=True, seed=2)
    assert not torch.equal(first, torch.stack([other[i, 0][0] for i in range(6)]))
    assert torch.equal(dataset[4][0], plain[4][0])
    assert dataset[4, 9][1] == plain[4][1] == 1
    loader = DataLoader(dataset, batch_size=2, sampler=[(i, 0) for i in range(6)], num_workers=2)
    assert torch.equal(torch.cat([images for images, _ in loader]), first)
    with pytest.raises(TrompeError, match="needs a dataset loaded with augment=True"):
        plain[0, 0]


# Pairs


@pytest.fixture
def colours(tmp_path) -> Path:
    """Images of one colour each, brighter in the middle column."""
    for name, channel, count in (("blue", 2, 5), ("green", 1, 3), ("red", 0, 4)):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.zeros((12, 12, 3), np.uint8)
            pixels[..., channel] = 100 + i
            pixels[:, 5:7, channel] += 100
            Image.fromarray(pixels).save(tmp_path / "colours" / name / f"{i}.png")
    (tmp_path / "colours" / "white").mkdir()
    photo(0).save(tmp_path / "colours" / "white" / "0.png")
    return tmp_path / "colours"


PLAIN = Preprocessing(resize=12, crop=12, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def test_pairs_show_the_middle_of_both_images(colours):
    dataset = load_data(colours, PLAIN)
    pairs = Pairs(dataset, 0, 2)
    assert len(pairs) == 4
    assert pairs.classes == dataset.classes
    assert pairs.labels.tolist() == [0] * 4
    by_name = {dataset.name(i): dataset[i][0] for i in range(len(dataset))}
    for i, (image, label) in enumerate(pairs):
        assert label == 0
        assert image.shape == (3, 12, 12)
        left, right = pairs.name(i).split(" | ")
        assert left.startswith("blue" if pairs.side(i) == "left" else "red")
        assert right.startswith("red" if pairs.side(i) == "left" else "blue")
        halves = [by_name[left][:, :, 3:9], by_name[right][:, :, 3:9]]
        assert torch.equal(image, torch.cat(halves, 2))
        torch.testing.assert_close(pairs.preprocessing.denormalise(image), PLAIN.denormalise(image))


def test_pairs_use_every_image_once_before_one_is_used_again(colours):
    dataset = load_data(colours, PLAIN)
    pairs = Pairs(dataset, 0, 2, size=20, seed=3)
    names = [sorted(pairs.name(i).split(" | ")) for i in range(20)]
    assert sorted(Counter(blue for blue, _ in names).values()) == [4] * 5
    assert sorted(Counter(red for _, red in names).values()) == [5] * 4
    assert len({blue for blue, _ in names[:5]}) == 5
    assert len({red for _, red in names[4:8]}) == 4


def test_pairs_depend_on_the_seed_alone(colours):
    dataset = load_data(colours, PLAIN)

    def described(**options: int) -> list[str]:
        pairs = Pairs(dataset, 0, 2, **options)
        return [pairs.name(i) for i in range(len(pairs))]

    assert described(size=20) == described(size=20)
    assert described(size=9) == described(size=20)[:9]
    assert described(size=20, seed=1) != described(size=20)
    big = Pairs(Shapes("validation"), 1, 3)
    assert len(big) == 250
    assert 90 < sum(big.side(i) == "left" for i in range(250)) < 160


def test_pairs_of_shapes_are_centred_on_the_objects():
    dataset = Shapes("validation", size=160)
    pairs = Pairs(dataset, 2, 5, size=20)
    row = {dataset.name(i): i for i in range(160)}
    held = 0.0
    for i in range(20):
        image, _ = pairs[i]
        for name, half in zip(
            pairs.name(i).split(" | "), (image[..., :32], image[..., 32:]), strict=True
        ):
            whole, mask = dataset[row[name]][0], dataset.mask(row[name])
            start = next(s for s in range(33) if torch.equal(whole[..., s : s + 32], half))
            columns = mask.any(0).nonzero()[:, 0]
            middle = (columns[0] + columns[-1] + 1) / 2
            assert abs(start + 16 - middle) <= 1.5 or start in (0, 32)
            held += float(mask[:, start : start + 32].sum() / mask.sum()) / 40
    assert held > 0.95


def test_pairs_of_an_odd_width():
    pairs = Pairs(Shapes(size=16, preprocessing=Preprocessing(resize=40, crop=33)), 0, 1)
    image, _ = pairs[0]
    assert image.shape == (3, 33, 33)
    assert pairs.picture(0).size == (33, 33)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), r"no class 4; choose 0 to 3: 0 blue, 1 green, 2 red, 3 white"),
        ((-1, 2), r"no class -1; choose 0 to 3"),
        ((2, 2), r"Both classes of the pairs are 2; choose two different ones"),
        ((0, 3), r"no image of class 3 \(white\); choose another class or more images"),
        ((0, 2, 0), r"number of pairs is 0; choose 1 or more"),
        ((0, 2, None, -1), r"seed of the pairs is -1; choose 0 or more"),
    ],
)
def test_pairs_that_cannot_be_made(colours, arguments, message):
    c1, c2, *rest = arguments
    dataset = load_data(colours, PLAIN)
    dataset = dataset.without(np.flatnonzero(dataset.labels == 3).tolist())
    with pytest.raises(TrompeError, match=message):
        Pairs(dataset, c1, c2, **dict(zip(("size", "seed"), rest, strict=False)))


# Real data


@pytest.mark.skipif(not (REAL / "imagenette").is_dir(), reason="the photographs are not here")
def test_real_photographs():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load_data(
            REAL / "imagenette" / "validation*.parquet", Preprocessing(), limit=103, seed=1
        )
    assert dataset.classes[0] == "tench"
    assert sorted(dataset.labels.bincount().tolist()) == [10] * 7 + [11] * 3
    image, label = dataset[50]
    assert image.shape == (3, 224, 224)
    part, row = dataset.name(50).split(", row ")
    table = pq.read_table(REAL / "imagenette" / part)
    assert table["label"][int(row)].as_py() == label
    pictured = Image.open(io.BytesIO(table["image"][int(row)]["bytes"].as_py()))
    assert torch.equal(image, Preprocessing()(pictured))
    assert len(Pairs(dataset, 0, 9)) in (10, 11)


@pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason="CIFAR-10 is not here")
def test_cifar():
    dataset = load_data(REAL / "cifar10" / "test*.parquet", SMALL, limit=200)
    assert dataset.labels.bincount().tolist() == [20] * 10
    assert dataset[0][0].shape == (3, 12, 12)


# Sources of one's own


OWN = """
import torch
from PIL import Image
from trompe.data import Source

class Greys(Source):
    classes = ("dark", "bright")

    def __init__(self, size=4, step=10):
        self.labels = torch.arange(size) % 2
        self.step = step

    def open(self, row):
        return Image.new("RGB", (20, 16), (self.step * row + 100 * (row % 2),) * 3)

    def name(self, row):
        return f"grey {row}"

class Pictures:
    classes = ["dark", "bright"]
    targets = [0, 1, 1]

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return Image.new("L", (20, 16), 80 * index), self.targets[index]

def tensors(size=4, grow=0):
    sides = [12 + grow * i for i in range(size)]
    return [(torch.full((3, side, side), i / 10), i % 3) for i, side in enumerate(sides)]

def dicts():
    return [{"image": 0}]

number = 7
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    return "mine.py"


@pytest.mark.parametrize("name", ["mine.py", "mine"])
def test_a_source_of_ones_own_is_used_like_any_other(own, name):
    dataset = load_data(f"{name}:Greys:size=6,step=20", SMALL, augment=True)
    assert dataset.labels.tolist() == [0, 1] * 3
    assert dataset.classes == ("dark", "bright")
    assert torch.equal(dataset[3][0], SMALL(Image.new("RGB", (20, 16), (160,) * 3)))
    assert dataset[3, 0][0].shape == (3, 12, 12)
    assert len(load_data(f"{name}:Greys", SMALL, limit=2)) == 2
    assert len(Pairs(dataset, 0, 1)) == 3
    named = Preprocessing(resize=16, crop=12, classes=("other", "Bright", "Dark"))
    assert load_data(f"{name}:Greys", named).labels.tolist() == [2, 1, 2, 1]
    prints = {load_data(f"{name}:Greys:step={step}", SMALL).fingerprint for step in (10, 20)}
    assert len(prints) == 2


def test_data_sets_of_pictures_and_of_tensors_of_ones_own(own):
    pictures = load_data("mine.py:Pictures", SMALL)
    assert pictures.labels.tolist() == [0, 1, 1]
    assert pictures.classes == ("dark", "bright")
    assert torch.equal(pictures[2][0], SMALL(Image.new("L", (20, 16), 160)))
    assert pictures.name(2) == "mine.py:Pictures, item 2"
    tensors = load_data("mine.py:tensors:size=5", SMALL, class_map={"0": 5, "1": 1, "2": 0})
    assert tensors.labels.tolist() == [5, 1, 0, 5, 1]
    assert torch.equal(tensors[3][0], torch.full((3, 12, 12), 0.3))
    shown = SMALL.denormalise(tensors[3][0]).mul(255)
    assert np.abs(np.asarray(tensors.picture(3)).transpose(2, 0, 1) - shown.numpy()).max() <= 1
    prints = {load_data(f"mine.py:tensors:size={n}", SMALL).fingerprint for n in (4, 5)}
    assert len(prints) == 2


def test_registered_sources(own, monkeypatch):
    monkeypatch.setattr(SOURCES, "_entries", {})
    SOURCES.register("two-shapes", lambda: Shapes(size=2))
    assert load_data("two-shapes", SHAPES_PREPROCESSING).labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine.py", "mine.py needs the name of its class or function: mine.py:NAME"),
        ("mine.py:Grey", r"names no class or function \(did you mean Greys\?\)"),
        ("mine.py:Greys:sise=3", "data source 'mine.py:Greys' has no option 'sise'; it takes size"),
        ("mine.py:dicts", "Item 0 of the data is a dict of image; expected a data set"),
        ("mine.py:number", "The data is a int, which can't be indexed or has no length"),
        ("mine.py:tensors:grow=1", "images of the data have several sizes"),
        ("mine.py:tensors:size=0", "mine.py:tensors:size=0 makes a data set without items"),
        ("their.py:Greys", "'their.py' cannot be imported"),
        ("shape:train", r"no folder or file shape:train; did you mean"),
    ],
)
def test_sources_that_cannot_be_used(own, spec, message):
    with pytest.raises(TrompeError, match=message):
        load_data(spec, SMALL)


def test_a_folder_may_be_called_like_code(own, tmp_path):
    root = make_folder(tmp_path / "mine.py:Greys", {"cat": 1, "dog": 1})
    assert load_data(root, SMALL).classes == ("cat", "dog")
