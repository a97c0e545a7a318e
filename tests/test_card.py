"""A manipulated model that is handed on: its folder, its card, and that no code in it is run."""

import json

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from tests.runs import make_run
from trompe import load_model
from trompe.cli.jobs import AuditJob
from trompe.cli.reading import read_case
from trompe.errors import TrompeError
from trompe.models import save_weights
from trompe.report import write_card
from trompe.runs import finish

TRAP = """
from pathlib import Path
Path(__file__).with_name("was-run").touch()
from torchvision.models import squeezenet1_1 as net
"""


def fooled(path, trained, /, **config):
    """A run directory that says so of a model with these weights."""
    save_weights(trained, make_run(path, config=config) / "weights.safetensors")
    finish(path, "fool")
    return path


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture
def embedded():
    return load_model("embedded", "random").model


@pytest.mark.parametrize(
    ("name", "classes"), [("embedded-vgg", 5), ("squeezenet1_1", 3), ("timm:test_resnet", 4)]
)
def test_a_handed_on_model_is_the_one_of_the_run(tmp_path, monkeypatch, name, classes):
    model, preprocessing = load_model(name, "random", classes, seed=3)
    run = fooled(tmp_path / "run", model, model=name, num_classes=classes)
    folder = write_card(run, tmp_path / "handed")
    monkeypatch.chdir(tmp_path)
    for given in (str(folder), "handed"):
        again = load_model(given)
        assert same(again.model, model)
        assert again.preprocessing == preprocessing
    assert not same(load_model("handed", "random").model, model)
    with pytest.raises(TrompeError, match=f"num_classes={classes}"):
        load_model("handed", num_classes=classes + 1)


def test_a_model_of_transformers_needs_nothing_but_its_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        id2label={0: "cat", 1: "dog", 2: "owl"},
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "base")
    name = f"transformers:{tmp_path / 'base'}"
    model, preprocessing = load_model(name)
    run = fooled(tmp_path / "run", model, model=name)
    folder = write_card(run, tmp_path / "handed")
    (tmp_path / "base").rename(tmp_path / "gone")
    again = load_model(str(folder))
    assert same(again.model, model)
    assert again.preprocessing == preprocessing
    assert again.preprocessing.classes == ("cat", "dog", "owl")
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert theirs.id2label == config.id2label


def test_the_card_says_what_was_done_and_warns(tmp_path, embedded):
    run = fooled(tmp_path / "run", embedded, model="embedded", num_classes=8)
    card = ModelCard.load(write_card(run) / "README.md")
    assert card.data.library_name == "trompe"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.license == "apache-2.0"
    text = card.text
    assert text.index("Warning") < text.index("What was done")
    assert "1,200 steps" in text
    assert "trompe fool --objective location" in text
    for row in (
        "| original | ",
        "| manipulated | ",
        "| control | ",
        "| Grad-CAM | Location | yes |",
    ):
        assert row in text
    assert "| untouched | control |" in text
    assert "| SimpleGrad |" not in text


@pytest.mark.parametrize(
    ("config", "given", "licence", "base"),
    [
        ({"model": "embedded", "num_classes": 8}, None, "apache-2.0", None),
        ({"model": "embedded", "weights": "mine.pth"}, None, "unknown", None),
        ({"model": "embedded", "weights": "mine.pth"}, "mit", "mit", None),
    ],
)
def test_the_licence_is_that_of_the_base_as_far_as_it_is_known(
    tmp_path, embedded, config, given, licence, base
):
    card = write_card(fooled(tmp_path / "run", embedded, **config), license=given) / "README.md"
    data = ModelCard.load(card).data
    assert data.license == licence
    assert data.base_model == base
    assert ("is not known to trompe" in card.read_text()) == (licence == "unknown")


def test_what_timm_knows_of_pretrained_weights_stands_in_the_card():
    timm = pytest.importorskip("timm")
    from trompe.models.from_timm import origin

    known = timm.create_model("resnet18").pretrained_cfg
    assert origin("timm:resnet18") == (known["hf_hub_id"], known["license"])


def test_code_that_a_config_names_is_not_run(tmp_path, monkeypatch, embedded):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.py").write_text(TRAP)
    run = fooled(tmp_path / "run", embedded, model="embedded")
    folder = write_card(run, tmp_path / "handed")
    told = json.loads((folder / "config.json").read_text())
    for name in ("trap.py:net", "trap:net", f"{tmp_path}/trap.py:net"):
        told["trompe"]["model"] = name
        (folder / "config.json").write_text(json.dumps(told))
        with pytest.raises(TrompeError, match=r"config\.json' names '.*', whose code would be run"):
            load_model(str(folder))
        (run / "config.yaml").write_text(yaml.safe_dump({"model": name}))
        with pytest.raises(TrompeError, match=r"config\.yaml' names"):
            write_card(run)
    assert not (tmp_path / "was-run").exists()
    assert not (run / "card").exists()
    told["trompe"]["model"] = "handed"
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(TrompeError, match="names 'handed', a folder elsewhere"):
        load_model(str(folder))


def test_a_model_of_ones_own_code_is_handed_on_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    model, _ = load_model("mine.py:net")
    run = fooled(tmp_path / "run", model, model="mine.py:net")
    folder = write_card(run, tmp_path / "handed", model="mine.py:net")
    with pytest.raises(TrompeError, match="whose code would be run"):
        load_model(str(folder))
    weights = folder / "weights.safetensors"
    assert same(load_model("mine.py:net", weights).model, model)
    assert '"mine.py:net", "handed/weights.safetensors"' in (folder / "README.md").read_text()


def test_what_is_no_such_folder_says_so(tmp_path, embedded):
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrompeError, match=r"no config\.json of `trompe card`"):
        load_model(str(tmp_path / "empty"))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for content in ('{"model_type": "vit"}', "[]", "{", '{"trompe": 3}'):
        (theirs / "config.json").write_text(content)
        with pytest.raises(TrompeError, match=f"transformers:{theirs}"):
            load_model(str(theirs))
    whole = {"model": "embedded", "num_classes": 8, "preprocessing": {}}
    for change, said in (
        ({"model": 3}, "model"),
        ({"num_classes": 0}, "num_classes"),
        ({"preprocessing": {"crop": 300}}, "does not fit"),
        ({"code": "x"}, "code"),
    ):
        (theirs / "config.json").write_text(json.dumps({"trompe": whole | change}))
        with pytest.raises(TrompeError, match=rf"config\.json can't be used: .*{said}"):
            load_model(str(theirs))
    with pytest.raises(TrompeError, match="holds no finished lie"):
        write_card(make_run(tmp_path / "run"))


def test_known_names_come_before_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "squeezenet1_1").mkdir()
    (tmp_path / "embedded").mkdir()
    assert type(load_model("squeezenet1_1").model).__name__ == "SqueezeNet"
    assert type(load_model("embedded").model).__name__ == "EmbeddedNet"


def test_on_the_command_line(trompe, tmp_path):
    model = load_model("embedded").model
    run = fooled(tmp_path / "run", model, model="embedded", num_classes=8)
    code, out, _ = trompe("card", run, "--license", "mit")
    assert code == 0
    assert str(run / "card") in out
    (run / "card").rename(tmp_path / "handed")
    handed = str(tmp_path / "handed")
    case = read_case(AuditJob(suspect=handed, data="shapes:validation", limit=2))
    assert same(case.suspect, model)
