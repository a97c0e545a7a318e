"""Models of transformers: tiny ones of several families, saved and loaded by their folder."""

import json
import logging
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoModelForImageClassification,
    BeitImageProcessor,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    DeiTConfig,
    DeiTForImageClassification,
    DeiTImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from trompe import (
    LRP,
    GradCAM,
    Location,
    Recording,
    Shapes,
    SimpleGrad,
    TrompeError,
    fool,
    load_model,
)
from trompe.explainers.targets import Difference
from trompe.models.call import class_count, logits_of

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 24, "image_size": 32, "patch_size": 8}
NAMES = dict(enumerate(Shapes("train", 1).classes))
CONFIGS = {
    "vit": (ViTForImageClassification, ViTConfig, SIZES),
    "deit": (DeiTForImageClassification, DeiTConfig, SIZES),
    "swin": (
        SwinForImageClassification,
        SwinConfig,
        {
            **{"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1]},
            **{"num_heads": [2, 2], "window_size": 4},
        },
    ),
    "convnext": (
        ConvNextForImageClassification,
        ConvNextConfig,
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    ),
    "resnet": (
        ResNetForImageClassification,
        ResNetConfig,
        {
            **{"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
            **{"layer_type": "basic", "downsample_in_first_stage": False},
        },
    ),
}
SQUARE = {"size": {"height": 32, "width": 32}}


def made(family, **options):
    model, kind, sizes = CONFIGS[family]
    torch.manual_seed(0)
    config = kind(**sizes, id2label=NAMES, label2id={v: k for k, v in NAMES.items()}, **options)
    return model(config).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a tiny model, by its family."""
    root = tmp_path_factory.mktemp("models")
    for family in CONFIGS:
        made(family).save_pretrained(root / family)
        ViTImageProcessor(**SQUARE).save_pretrained(root / family)
    return root


def images(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", CONFIGS)
def test_a_saved_model_is_loaded_and_explained(family, saved):
    model, preprocessing = load_model(f"transformers:{saved / family}")
    theirs = AutoModelForImageClassification.from_pretrained(saved / family).eval()
    x = images()
    assert torch.equal(logits_of(model(x)), theirs(x).logits)
    assert not model.training
    assert preprocessing.classes == tuple(NAMES.values())
    assert (preprocessing.resize, preprocessing.crop) == (32, 32)
    assert class_count(model, x[0]) == 8
    for explainer in (SimpleGrad(), GradCAM(), LRP(layer=None)):
        for target in (2, Difference(3, 1)):
            maps = explainer(model, x, target)
            assert maps.isfinite().all()
            assert maps.std((1, 2)).min() > 0
            assert maps.requires_grad


def test_weights_are_read_or_random(saved, tmp_path):
    name = f"transformers:{saved / 'vit'}"
    own = load_model(name).model.state_dict()
    first, same = (load_model(name, "random", seed=3).model.state_dict() for _ in range(2))
    assert all(torch.equal(own[key], value) for key, value in made("vit").state_dict().items())
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not all(torch.equal(first[key], own[key]) for key in first)
    assert load_model(name, "pretrained").model.state_dict().keys() == own.keys()
    half = {key: value.half() for key, value in own.items()}
    save_file(half, tmp_path / "half.safetensors")
    made("vit").half().save_pretrained(tmp_path / "half")
    for model in (
        load_model(name, tmp_path / "half.safetensors").model,
        load_model(f"transformers:{tmp_path / 'half'}").model,
    ):
        assert all(p.dtype == torch.float32 for p in model.parameters())
        assert all(torch.equal(v, half[k].float()) for k, v in model.state_dict().items())


def test_another_number_of_classes_has_a_new_last_layer(saved):
    name = f"transformers:{saved / 'swin'}"
    own = load_model(name).model.state_dict()
    model, preprocessing = load_model(name, num_classes=3)
    assert logits_of(model(images())).shape == (2, 3)
    assert preprocessing.classes == ()
    for key, value in model.state_dict().items():
        assert key.startswith("classifier") or torch.equal(value, own[key])
    assert load_model(name, num_classes=8).preprocessing.classes == tuple(NAMES.values())


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (ConvNextImageProcessor(size={"shortest_edge": 56}), (64, 56, "bicubic", 0.5)),
        (
            BeitImageProcessor(
                size={"shortest_edge": 40},
                crop_size={"height": 32, "width": 32},
                do_center_crop=True,
                resample=2,
            ),
            (40, 32, "bilinear", 0.5),
        ),
        (ConvNextImageProcessor(size={"shortest_edge": 56}, do_rescale=False), None),
    ],
    ids=["share", "edge", "not rescaled"],
)
def test_preprocessing_is_that_of_the_image_processor(processor, expected, saved, tmp_path, caplog):
    made("convnext").save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = Image.fromarray(
        np.random.default_rng(0).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    ).resize((96, 64), Image.Resampling.BICUBIC)
    with caplog.at_level(logging.WARNING):
        preprocessing = load_model(f"transformers:{tmp_path}").preprocessing
    assert not caplog.records
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    ours = preprocessing(picture)
    assert (ours - theirs).abs().mean() < 0.02 * theirs.std()
    if expected:
        found = (preprocessing.resize, preprocessing.crop, preprocessing.interpolation)
        assert (*found, preprocessing.mean[0]) == expected


@pytest.mark.parametrize(
    "processor",
    [
        ViTImageProcessor(**SQUARE),
        DeiTImageProcessor(size={"height": 40, "width": 40}, crop_size={"height": 32, "width": 32}),
    ],
    ids=["square", "cut"],
)
def test_an_image_processor_that_squeezes_images_is_said(processor, tmp_path, caplog):
    made("vit").save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        preprocessing = load_model(f"transformers:{tmp_path}").preprocessing
    assert preprocessing.crop == 32
    assert "its image processor frames or scales images in another way" in caplog.text


def test_without_an_image_processor_the_size_is_the_models(tmp_path, caplog):
    made("vit").save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        preprocessing = load_model(f"transformers:{tmp_path}").preprocessing
    assert preprocessing.crop == 32
    assert "has no image processor" in caplog.text


class TestRefused:
    def said(self, name, *options, **more):
        with pytest.raises(TrompeError) as error:
            load_model(f"transformers:{name}", *options, **more)
        assert str(error.value).count(". ") == 0
        return str(error.value)

    def test_what_is_not_there(self, tmp_path):
        assert "can't make an image classifier" in self.said(tmp_path / "none")
        assert "folder written by save_pretrained" in self.said(tmp_path)

    def test_weights_that_are_no_safetensors(self, saved, tmp_path):
        model = made("vit")
        model.config.save_pretrained(tmp_path)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        assert "model.safetensors" in self.said(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"no weights")
        assert "with weights in safetensors" in self.said(tmp_path)

    def test_other_weights(self, saved):
        said = self.said(saved / "vit", "IMAGENET1K_V1")
        assert "has no weights 'IMAGENET1K_V1'; give pretrained, random or a .safetensors" in said

    def test_what_is_no_image_classifier(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
        assert "can't make an image classifier" in self.said(tmp_path, "random")
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine"}))
        assert "can't make an image classifier" in self.said(tmp_path, "random")

    def test_code_beside_the_weights(self, tmp_path):
        (tmp_path / "mine.py").write_text("raise SystemExit('run')\n")
        auto = {"AutoConfig": "mine.Config", "AutoModelForImageClassification": "mine.Model"}
        config = {"model_type": "mine", "auto_map": auto}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert "can't make an image classifier" in self.said(tmp_path)

    def test_a_backbone_without_a_last_layer(self, tmp_path):
        ViTModel(ViTConfig(**SIZES), add_pooling_layer=False).save_pretrained(tmp_path)
        assert "num_classes / --num-classes to train a new last layer" in self.said(tmp_path)
        model = load_model(f"transformers:{tmp_path}", num_classes=3).model
        assert logits_of(model(images())).shape == (2, 3)

    def test_a_name_while_offline(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "can't make an image classifier of 'nobody/nothing'" in self.said("nobody/nothing")

    def test_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        monkeypatch.delitem(sys.modules, "trompe.models.from_transformers", raising=False)
        monkeypatch.delattr("trompe.models.from_transformers", raising=False)
        assert "pip install 'trompe[transformers]'" in self.said("google/vit-base-patch16-224")


def test_fool_and_evaluate(saved):
    model, preprocessing = load_model(f"transformers:{saved / 'convnext'}")
    data = Shapes("train", 16, preprocessing)
    result = fool(
        model,
        data,
        explainer="grad-cam",
        objective=Location(),
        lr=1e-3,
        steps=2,
        batch_size=4,
        eval_data=data,
    )
    assert result.evaluation.explanations["counted"].max() > 0
    with Recording(result.model, "grad-cam") as forward:
        assert forward(images()).shape == (2, 8)


def test_on_the_command_line(saved, trompe, tmp_path):
    model = ("--model", f"transformers:{saved / 'convnext'}", "--device", "cpu", "--quiet")
    data = ("--data", "shapes:train", "--limit", 16)
    run = tmp_path / "run"
    for words in (
        ("fool", *model, *data, "--steps", 2, "--batch-size", 4, "--lr", 1e-3, "--out", run),
        ("evaluate", *model, *data, "--manipulated", run, "--explainer", "grad-cam"),
        ("audit", run, *data, "--device", "cpu", "--quiet", "--explainer", "grad-cam"),
    ):
        code, _, err = trompe(*words, *(() if "--out" in words else ("--out", tmp_path / words[0])))
        assert code == 0, err
