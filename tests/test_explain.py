"""`trompe explain`: what is written, and that nothing is mixed up."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from trompe import LRP, GradCAM, load_model
from trompe.explain import Photographs
from trompe.explainers.targets import Difference
from trompe.report import overlay

EXPLAIN = ("explain", "--model", "embedded", "--device", "cpu", "--quiet")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images of several forms in a folder with a folder in it."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    sizes = {"a.png": (120, 80), "b.jpg": (70, 150), "more/a.png": (64, 64)}
    for name, size in sizes.items():
        noise = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    return folder


def test_the_table_says_what_was_seen_and_where(trompe, photos, tmp_path):
    code, _, err = trompe(
        *(*EXPLAIN, "--images", photos, "--out", tmp_path / "maps"),
        *("--explainer", "grad-cam", "--explainer", "simple-grad"),
    )
    assert code == 0, err
    table = pd.read_csv(tmp_path / "maps" / "images.csv")
    assert len(table) == 3 * 2
    assert table.set_index("explainer")["layer"].to_dict() == {
        "grad-cam": "stage3",
        "simple-grad": "input",
    }
    model, preprocessing = load_model("embedded")
    data = Photographs([photos], preprocessing)
    assert set(table["path"]) == {str(path) for path in photos.rglob("*.*g")}
    with torch.no_grad():
        shares = model(torch.stack([data[i][0] for i in range(3)])).softmax(1)
    by_path = table.set_index("path")
    for row in range(3):
        of = by_path.loc[str(data.path(row))]
        assert (of["predicted"] == int(shares[row].argmax())).all()
        assert of["probability"].to_numpy() == pytest.approx(float(shares[row].max()), abs=1e-4)
    with safe_open(tmp_path / "maps" / "maps.safetensors", "pt") as file:
        names = json.loads(file.metadata()["files"])
        assert file.get_tensor("classes").tolist() == shares.argmax(1).tolist()
    assert names == list(dict.fromkeys(table["name"]))
    assert len(set(names)) == 3
    written = [tmp_path / "maps" / f"{name}.grad-cam.overlay.png" for name in names]
    assert all(path.is_file() for path in written)


def test_any_target_is_explained(trompe, photos, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def margin(output):\n    return output[:, 0] - output.mean(1)\n"
    )
    model, preprocessing = load_model("embedded")
    data = Photographs([photos], preprocessing)
    images = torch.stack([data[i][0] for i in range(3)])
    words = (*EXPLAIN, "--images", photos, "--explainer", "lrp", "--explainer", "grad-cam")
    for number, (text, target, shown) in enumerate(
        [
            ("2", 2, 2),
            ("difference:of=3,against=1", Difference(3, 1), "difference:of=3,against=1"),
            (f"{tmp_path / 'mine.py'}:margin", lambda y: y[:, 0] - y.mean(1), "margin"),
        ]
    ):
        out = tmp_path / str(number)
        code, _, err = trompe(*words, "--target", text, "--check", "--out", out)
        assert code == 0, err
        assert pd.read_csv(out / "images.csv")["explained"].tolist() == [shown] * 6
        with safe_open(out / "maps.safetensors", "pt") as file:
            assert ("classes" in file.keys()) == (text == "2")  # noqa: SIM118 (no mapping)
            for explainer in (LRP(), GradCAM()):
                maps = explainer(model, images, target).detach()
                torch.testing.assert_close(
                    file.get_tensor(explainer.name), maps, rtol=1e-4, atol=1e-5
                )
        code, _, err = trompe(*words, "--target", "predicted", "--out", out)
        assert code == 2
        assert "choose another directory" in err
    for wrong, said in (
        (("--target", "cat"), "There is no target 'cat'"),
        (("--target", "8"), "Class 8 is out of range"),
        (("--target", "label"), "give a class, predicted or"),
        (("--target", "2", "--classes", "3"), "both say what is explained"),
        (("--target", f"{tmp_path / 'mine.py'}:gap"), "names no class or function"),
    ):
        code, _, err = trompe(*words, *wrong, "--out", tmp_path / "wrong")
        assert code == 2
        assert said in err


def test_overlays_have_the_size_of_the_photograph(trompe, photos, tmp_path):
    code, _, err = trompe(*EXPLAIN, "--images", photos / "a.png", "--out", tmp_path / "maps")
    assert code == 0, err
    drawn = np.asarray(Image.open(tmp_path / "maps" / "a.grad-cam.overlay.png"))
    photo = np.asarray(Image.open(photos / "a.png"))
    assert drawn.shape == photo.shape == (80, 120, 3)
    model, preprocessing = load_model("embedded")
    image = Photographs([photos / "a.png"], preprocessing)[0][0][None]
    with torch.no_grad():
        heat = GradCAM().heatmap(GradCAM()(model, image))[0].numpy()
    side = round(80 * preprocessing.crop / preprocessing.resize)
    top, left = (80 - side) // 2, (120 - side) // 2
    seen = (slice(top, top + side), slice(left, left + side))
    assert np.array_equal(drawn[seen], overlay(photo[seen], heat))
    unseen = np.ones((80, 120), dtype=bool)
    unseen[seen] = False
    assert np.array_equal(drawn[unseen], photo[unseen])


def test_maps_of_two_models_are_not_mixed(trompe, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = ("--images", photos / "a.png")
    assert trompe(*EXPLAIN, *images)[0] == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.png")}
    assert before
    for other in (("--weights", "random"), ("--explainer", "lrp"), ("--classes", 2)):
        code, _, err = trompe(*EXPLAIN, *images, *other)
        assert code == 2
        assert "choose another directory" in err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.png")} == before
    assert trompe(*EXPLAIN, *images, "--batch-size", 4)[0] == 0
    weights = tmp_path / "other.pth"
    for seed in (1, 2):
        torch.save(load_model("embedded", weights="random", seed=seed).model.state_dict(), weights)
        code, _, err = trompe(*EXPLAIN, *images, "--weights", weights, "--out", "same")
        assert code == (0 if seed == 1 else 2)
    assert "other weights" in err


def test_what_can_not_be_read_is_named_in_full(trompe, photos, tmp_path):
    broken = tmp_path / "photos" / "deep" / "cut.png"
    broken.parent.mkdir(parents=True)
    broken.write_bytes((photos / "a.png").read_bytes()[:900])
    Image.open(photos / "a.png").save(tmp_path / "photos" / "whole.png")
    words = (*EXPLAIN, "--images", tmp_path / "photos", "--out", tmp_path / "maps")
    code, _, err = trompe(*words)
    assert code == 2
    assert str(broken) in err
    assert "corrupt" in err
    assert not (tmp_path / "maps" / "images.csv").exists()
    code, _, err = trompe(*words, "--corrupt", "skip")
    assert code == 0
    assert str(broken) in err
    assert "left out" in err
    (row,) = pd.read_csv(tmp_path / "maps" / "images.csv").to_dict("records")
    assert row["path"] == str(tmp_path / "photos" / "whole.png")
    (tmp_path / "photos" / "whole.png").unlink()
    code, _, err = trompe(*words, "--corrupt", "skip")
    assert code == 2
    assert str(broken) in err
