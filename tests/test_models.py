"""Models by name, their weights and their preprocessing."""

import io
import logging
import os
import pickle
import resource
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlparse

import huggingface_hub.constants
import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torch.optim.swa_utils import AveragedModel
from torchvision.models import get_model, get_model_weights

from trompe import GradCAM, Shapes
from trompe.base.code import written_by_others
from trompe.data import load_data
from trompe.data.preprocessing import Preprocessing
from trompe.data.shapes import SHAPES_PREPROCESSING
from trompe.errors import TrompeError
from trompe.models import MODELS, copied, load_model, save_weights

UNSEEN = Path(__file__).parent / "models" / "unseen.py"
SHARED = Path(__file__).parents[2] / "shared"
TINY = "timm:test_resnet"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a file where torch.hub keeps downloads; a download itself would fail."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def put(name: str, content: object) -> None:
        torch.save(content, folder / Path(urlparse(get_model_weights(name).DEFAULT.url).path).name)

    return put


@pytest.fixture
def weights(tmp_path: Path) -> Callable[..., Path]:
    """Writes a state dict, or anything, to a file."""

    def write(content: object, name: str = "weights.pth") -> Path:
        path = tmp_path / name
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(content, path)
        else:
            torch.save(content, path)
        return path

    return write


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (150, 210, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((420, 300))


def random_state(model: nn.Module) -> dict[str, Tensor]:
    """Like the model's state dict, with other values, also in the buffers."""
    generator = torch.Generator().manual_seed(7)
    return {
        k: torch.rand(v.shape, generator=generator).mul(0.1).add(0.1).to(v.dtype)
        for k, v in model.state_dict().items()
    }


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# --- names


@pytest.mark.parametrize("name", ["resnet18", TINY, f"{UNSEEN}:unseen", "embedded"])
def test_a_random_model_depends_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = load_model(name, "random", num_classes=5).model
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert same(first.state_dict(), load_model(name, "random", num_classes=5).model.state_dict())
    other = load_model(name, "random", num_classes=5, seed=1).model
    assert not same(first.state_dict(), other.state_dict())
    assert not any(module.training for module in first.modules())
    assert first(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5", "no model 'resnet5' (did you mean resnet50"),
        ("embeded", "did you mean embedded"),
        ("ResNet50", "did you mean resnet50"),
        ("fcn_resnet50", "fcn_resnet50 of torchvision is no image classifier"),
        ("timm:resnet5", "timm has no model 'resnet5' (did you mean resnet50"),
        ("timm:resnet18.nonsense", "nonsense"),
        ("nowhere.at_all:factory", "'nowhere.at_all' cannot be imported (ModuleNotFoundError"),
        ("nowhere/at_all.py:factory", "there is no such file"),
        (":factory", "'' cannot be imported"),
        ("model.py", "model.py:NAME"),
        (f"{UNSEEN}:unsen", "no class or function (did you mean unseen, Unseen?)"),
        ("torchvision:models", "names no class or function"),
        ("pathlib:PurePath", "returns a PurePosixPath; it must return a torch.nn.Module"),
        ("collections:OrderedDict", "cannot be called with no arguments"),
        ("torch.nn:Linear", "cannot be called with no arguments (missing a required argument"),
    ],
)
def test_a_wrong_name_is_explained(name: str, message: str) -> None:
    with pytest.raises(TrompeError) as raised:
        load_model(name)
    assert message in str(raised.value)


def test_num_classes_is_a_positive_number() -> None:
    with pytest.raises(TrompeError, match="num_classes is 0"):
        load_model("resnet18", num_classes=0)


# --- torchvision


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf"])
def test_preprocessing_is_that_of_the_default_weights(name: str) -> None:
    theirs = get_model_weights(name).DEFAULT.transforms()
    torch.testing.assert_close(load_model(name).preprocessing(picture()), theirs(picture()))


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "densenet121", "mnasnet0_5"])
def test_pretrained_is_what_torchvision_makes_of_it(name: str, hub: Callable[..., None]) -> None:
    config = {"init_weights": False} if name == "googlenet" else {}
    state = get_model(name, **config).state_dict()
    if name == "densenet121":  # published with the names of an older torchvision
        state = dict(state)
        for key in [k for k in state if "denselayer" in k]:
            value = state.pop(key)
            if "num_batches" not in key:
                state[key.replace("norm", "norm.").replace("conv", "conv.")] = value
    hub(name, state)
    theirs = get_model(name, weights="DEFAULT").eval()
    ours = load_model(name, "DEFAULT").model
    image = torch.randn(2, 3, 64, 64)
    assert same(ours.state_dict(), theirs.state_dict())
    assert torch.equal(ours(image), theirs(image))
    assert isinstance(ours.train()(image), Tensor)


def test_pretrained_for_other_classes_has_a_new_last_layer(
    hub: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    published = random_state(get_model("squeezenet1_1"))
    hub("squeezenet1_1", published)
    with caplog.at_level(logging.INFO):
        model, preprocessing = load_model("squeezenet1_1", "IMAGENET1K_V1", num_classes=4)
    state = model.state_dict()
    head = {"classifier.1.weight", "classifier.1.bias"}
    assert {k for k in state if not torch.equal(state[k], published[k])} == head
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    assert "new last layer (classifier.1.weight, classifier.1.bias)" in caplog.text
    again = load_model("squeezenet1_1", "SqueezeNet1_1_Weights.IMAGENET1K_V1", num_classes=4)
    assert same(state, again.model.state_dict())
    assert preprocessing == Preprocessing(256, 224)


def test_the_enum_says_how_images_are_prepared(hub: Callable[..., None]) -> None:
    hub("regnet_y_400mf", get_model("regnet_y_400mf").state_dict())
    assert load_model("regnet_y_400mf", "IMAGENET1K_V2").preprocessing.resize == 232


def test_a_download_that_fails_or_is_no_state_dict_is_explained(hub: Callable[..., None]) -> None:
    with pytest.raises(TrompeError, match=r"cannot be taken from .*give a weights file"):
        load_model("squeezenet1_1", "DEFAULT")
    hub("squeezenet1_1", nn.Linear(1, 1))
    with pytest.raises(TrompeError, match="Weights only load failed"):
        load_model("squeezenet1_1", "DEFAULT")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("resnet50", "IMAGENET1K_V3", "(did you mean IMAGENET1K_V2, IMAGENET1K_V1?)"),
        ("resnet50", "resnet50.ckpt", "or a .safetensors, .pth or .pt file"),
        ("embedded", "DEFAULT", "embedded has no weights 'DEFAULT'; give random or a"),
        (f"{UNSEEN}:unseen", "DEFAULT", "give random or a"),
        (TINY, "DEFAULT", "give pretrained, random or a"),
    ],
)
def test_unknown_weights_are_refused(name: str, weights: str, message: str) -> None:
    with pytest.raises(TrompeError) as raised:
        load_model(name, weights)
    assert message in str(raised.value)


# --- timm


def test_timm_preprocessing_is_timms() -> None:
    model, preprocessing = load_model(TINY, num_classes=3)
    config = timm.data.resolve_model_data_config(model)
    theirs = timm.data.create_transform(**config, is_training=False)
    torch.testing.assert_close(preprocessing(picture()), theirs(picture()))


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty, offline cache where timm's tiny weights would lie."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--timm--test_resnet.r160_in1k"
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    return folder / "snapshots" / ("0" * 40)


def test_timm_pretrained(hugging_face: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TrompeError, match="timm cannot make test_resnet"):
        load_model(TINY, "pretrained")
    published = random_state(timm.create_model("test_resnet"))
    safetensors.torch.save_file(published, hugging_face / "model.safetensors")
    assert same(load_model(TINY, "pretrained").model.state_dict(), published)
    with caplog.at_level(logging.INFO):
        state = load_model(TINY, "pretrained", num_classes=3).model.state_dict()
    assert "new last layer of 3 classes" in caplog.text
    assert {k for k in state if not torch.equal(state[k], published[k])} == {"fc.weight", "fc.bias"}


def test_timm_with_a_weights_file(weights: Callable[..., Path]) -> None:
    state = random_state(timm.create_model("test_resnet", num_classes=3))
    assert same(load_model(TINY, weights(state), 3).model.state_dict(), state)


# --- factories


def test_a_factory_in_a_file() -> None:
    model, preprocessing = load_model(f"{UNSEEN}:unseen")
    assert preprocessing == Preprocessing(64, 64, (0.5,) * 3, (0.25,) * 3, min_area=0.6)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 8)
    assert 50_000 < sum(p.numel() for p in model.parameters()) < 100_000
    assert load_model(f"{UNSEEN}:Unseen", num_classes=3).model.head.out_features == 3


def test_a_factory_in_a_package() -> None:
    model, preprocessing = load_model("torchvision.models:resnet18", num_classes=3)
    assert model.fc.out_features == 3
    assert preprocessing == Preprocessing()


SOURCE = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
from trompe.data.preprocessing import Preprocessing
import {helper}

@dataclass
class Size:
    sides: tuple[int, ...] = (32,)

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear({helper}.FEATURES, 2))
        self.preprocessing = Preprocessing(*Size().sides, 16)

def plain():
    return nn.Linear(1, 1)

instance = plain()
"""


@pytest.mark.parametrize("kind", ["file", "module"])
def test_a_factory_beside_its_helper(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / f"source_{kind}.py"
    source.write_text(SOURCE.format(helper=f"helper_{kind}"))
    (tmp_path / f"helper_{kind}.py").write_text("FEATURES = 12")
    name = str(source)
    if kind == "module":
        monkeypatch.chdir(tmp_path)
        name = source.stem
    path = sys.path.copy()
    model, preprocessing = load_model(f"{name}:Net")
    assert sys.path == path
    assert model(torch.zeros(1, 3, 2, 2)).shape == (1, 2)
    assert preprocessing == Preprocessing(32, 16)
    assert load_model(f"{name}:plain").preprocessing == Preprocessing()
    with pytest.raises(TrompeError, match="cannot be called with num_classes=2"):
        load_model(f"{name}:plain", num_classes=2)
    with pytest.raises(TrompeError, match="no class or function"):
        load_model(f"{name}:instance")


@pytest.mark.parametrize("source", ["def broken(:", "import nothing_of_this_name", "1 / 0"])
def test_a_file_that_fails_is_explained(source: str, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(source)
    with pytest.raises(TrompeError, match=r"failing.py' cannot be imported .*Error: "):
        load_model(f"{tmp_path / 'failing.py'}:factory")


def test_a_registered_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODELS, "_entries", {})
    with pytest.raises(TrompeError, match="no model 'small-net'"):
        load_model("small-net")
    MODELS.register("small-net", lambda num_classes=2: nn.Linear(3, num_classes))
    assert load_model("small-net").model.out_features == 2
    assert load_model("small-net", num_classes=5).model.out_features == 5


# --- embedded


PACKAGED = {
    "embedded": "stage3",
    "embedded-vgg": "features.11:input",
    "embedded-resnet": "layer4.1:input",
    "embedded-densenet": "features.denseblock3.denselayer4:input",
    "embedded-vit": "encoder.layers.encoder_layer_3.ln_1",
}


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_model_knows_the_embedded_set(name: str) -> None:
    model, preprocessing = load_model(name, seed=1)
    assert preprocessing == SHAPES_PREPROCESSING
    data = Shapes("validation", size=80)
    images = torch.stack([data[i][0] for i in range(80)])
    with torch.no_grad():
        assert (model(images).argmax(1) == data.labels).float().mean() > 0.9
        maps = GradCAM(layer=PACKAGED[name])(model, images[:2], data.labels[:2])
    assert maps.shape == (2, 8, 8)
    random = load_model(name, "random").model
    assert random(images[:2]).shape == (2, 8)
    assert not same(random.state_dict(), model.state_dict())
    with pytest.raises(TrompeError, match="pass num_classes=8 / --num-classes 8"):
        load_model(name, num_classes=3)


# --- weights files


@pytest.mark.parametrize("file", ["a.safetensors", "a.pth", "a.pt"])
@pytest.mark.parametrize("half", [False, True])
def test_a_weights_file_is_read(file: str, half: bool, weights: Callable[..., Path]) -> None:
    state = random_state(get_model("shufflenet_v2_x0_5", num_classes=3))
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    path = weights(state, file)
    model, preprocessing = load_model("shufflenet_v2_x0_5", path, num_classes=3)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[key].to(value.dtype), rtol=0, atol=0)
    assert preprocessing == Preprocessing()
    other = load_model("shufflenet_v2_x0_5", str(path), num_classes=3, seed=1).model
    assert same(other.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"model_state_dict": state},
        lambda state: {f"module.{k}": v for k, v in state.items()},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
        lambda state: {k: v for k, v in state.items() if "num_batches" not in k},
    ],
    ids=["state_dict", "model", "model_state_dict", "parallel", "both", "compiled", "old"],
)
def test_a_wrapped_state_dict_is_found(
    wrap: Callable[[dict[str, Tensor]], object], weights: Callable[..., Path]
) -> None:
    state = random_state(load_model(f"{UNSEEN}:unseen").model)
    loaded = load_model(f"{UNSEEN}:unseen", weights(wrap(state))).model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in loaded.items() if "num_batches" not in k)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


NESTED: dict[str, Callable[[dict[str, Tensor]], object]] = {
    "Lightning": lambda state: {"state_dict": prefixed(state, "model."), "epoch": 3},
    "net": lambda state: {"net": state, "acc": 93.1, "epoch": 7},
    "EMA": lambda state: {"model_ema": state, "args": {"lr": 0.1}},
    "EMA of timm": lambda state: {"state_dict_ema": prefixed(state, "module.")},
    "deep": lambda state: {"state": {"network": {"weights": state}}},
    "any prefix": lambda state: prefixed(state, "my_classifier."),
    "prefixes": lambda state: prefixed(state, "ema.module._orig_mod."),
    "compiled within": lambda state: {
        name.replace(".", "._orig_mod.", 1): value for name, value in state.items()
    },
    "optimizer": lambda state: {
        "weights": state,
        "optimizer": {
            "state": {0: {"exp_avg": torch.zeros(3), "step": torch.tensor(1.0)}},
            "param_groups": [{"lr": 0.1}],
        },
        "scaler": {"scale": torch.tensor(65536.0), "growth_tracker": torch.tensor(0)},
    },
    "several, one usual": lambda state: {"model": state, "ema": prefixed(state, "module.")},
}


@pytest.mark.parametrize("kind", NESTED)
def test_weights_are_found_wherever_they_are_and_however_they_are_called(
    kind: str, weights: Callable[..., Path]
) -> None:
    state = random_state(load_model(f"{UNSEEN}:unseen").model)
    path = weights(NESTED[kind](state), "weights.ckpt")
    assert same(load_model(f"{UNSEEN}:unseen", path).model.state_dict(), state)


def test_weights_of_real_wrappers_are_found(weights: Callable[..., Path]) -> None:
    model = load_model(f"{UNSEEN}:unseen", "random", seed=3).model
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for wrapper in (nn.DataParallel(model), torch.compile(model)):
        path = weights(wrapper.state_dict())
        assert same(load_model(f"{UNSEEN}:unseen", path).model.state_dict(), state)
    path = weights(AveragedModel(model).state_dict())
    with pytest.warns(UserWarning, match=r"'module.' is taken, without 1 others \(n_averaged\)"):
        loaded = load_model(f"{UNSEEN}:unseen", path).model
    assert same(loaded.state_dict(), state)


def test_weights_that_are_there_twice_are_refused(weights: Callable[..., Path]) -> None:
    state = random_state(load_model(f"{UNSEEN}:unseen").model)
    both = prefixed(state, "student.") | prefixed(state, "teacher.")
    with pytest.raises(TrompeError, match=r"several times, after student\. and teacher\.; save"):
        load_model(f"{UNSEEN}:unseen", weights(both))
    with pytest.raises(
        TrompeError, match=r"holds 2 state dicts \(student, teacher\); save the one"
    ):
        load_model(f"{UNSEEN}:unseen", weights({"student": state, "teacher": state}))


def test_a_prefix_that_explains_little_stays(weights: Callable[..., Path]) -> None:
    state = prefixed(random_state(get_model("squeezenet1_1")), "model.")
    with pytest.raises(TrompeError, match=r"does not fit Unseen: .* unexpected \(model.features"):
        load_model(f"{UNSEEN}:unseen", weights(state))


def test_published_files_fit_despite_auxiliary_heads(weights: Callable[..., Path]) -> None:
    published = get_model("googlenet", init_weights=False)
    published.transform_input = True
    path = weights(published.state_dict())
    image = torch.randn(1, 3, 64, 64)
    model = load_model("googlenet", path).model
    assert torch.equal(model(image), published.eval()(image))


def test_mnasnet_from_safetensors_needs_no_version(weights: Callable[..., Path]) -> None:
    state = random_state(get_model("mnasnet0_5", num_classes=3))
    path = weights(state, "a.safetensors")
    assert same(load_model("mnasnet0_5", path, num_classes=3).model.state_dict(), state)


def test_the_number_of_classes_is_told(weights: Callable[..., Path]) -> None:
    path = weights(get_model("squeezenet1_1", num_classes=10).state_dict())
    with pytest.raises(TrompeError, match="pass num_classes=10 / --num-classes 10"):
        load_model("squeezenet1_1", path)


def test_a_misfit_is_told_by_key_and_shape(weights: Callable[..., Path]) -> None:
    state = dict(get_model("resnet18").state_dict())
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    state["extra.weight"] = torch.zeros(2)
    for key in ("bn1.weight", "bn1.bias", "layer1.0.bn1.weight", "layer1.0.bn1.bias", "fc.bias"):
        del state[key]
    with pytest.raises(TrompeError) as raised:
        load_model("resnet18", weights(state))
    assert "weights.pth does not fit ResNet: " in str(raised.value)
    assert (
        "5 missing (bn1.weight [64], bn1.bias [64], layer1.0.bn1.weight [64] and 2 more); "
        in str(raised.value)
    )
    assert "1 unexpected (extra.weight [2]); " in str(raised.value)
    assert "1 of another shape (conv1.weight [64, 1, 7, 7] instead of [64, 3, 7, 7]). " in str(
        raised.value
    )


def test_nan_weights_are_refused(weights: Callable[..., Path]) -> None:
    state = random_state(load_model(f"{UNSEEN}:unseen").model)
    state["head.bias"][1] = torch.nan
    with pytest.raises(TrompeError, match=r"1 NaN \(head.bias\)"):
        load_model(f"{UNSEEN}:unseen", weights(state))


def test_infinite_weights_are_refused_and_both_kinds_named(weights: Callable[..., Path]) -> None:
    state = random_state(load_model(f"{UNSEEN}:unseen").model)
    state["head.bias"][1] = -torch.inf
    with pytest.raises(TrompeError, match=r"holds weights that are 1 infinite \(head.bias\); give"):
        load_model(f"{UNSEEN}:unseen", weights(state))
    state["head.weight"][0, 0] = torch.nan
    with pytest.raises(TrompeError, match=r"1 NaN \(head.weight\) and 1 infinite \(head.bias\)"):
        load_model(f"{UNSEEN}:unseen", weights(state))


class Masked(nn.Module):
    """Has a mask of −∞ and a version for state, as attention and quantisation do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        self.version = 1

    def get_extra_state(self) -> dict[str, int]:
        return {"version": self.version}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.version = state["version"]


def test_infinite_masks_and_extra_state(tmp_path: Path, weights: Callable[..., Path]) -> None:
    source = tmp_path / "masked.py"
    source.write_text(f"import sys\nMasked = sys.modules[{__name__!r}].Masked\n")
    model = Masked()
    model.version = 2
    loaded = load_model(f"{source}:Masked", weights(model.state_dict())).model
    assert loaded.version == 2
    assert same(
        {k: v for k, v in loaded.state_dict().items() if isinstance(v, Tensor)},
        {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)},
    )
    with pytest.warns(UserWarning, match=r"without 1 kinds of extra state \(_extra_state\): a mod"):
        save_weights(model, tmp_path / "weights.safetensors")
    loaded = load_model(f"{source}:Masked", tmp_path / "weights.safetensors").model
    assert torch.equal(loaded.linear.weight, model.linear.weight)
    assert loaded.version == 1


class Malice:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", ["zip", "legacy", "bare"])
def test_a_malicious_pickle_is_refused_and_not_executed(protocol: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "evil.pth", tmp_path / "executed"
    content = {"state_dict": {"head.bias": Malice(mark)}}
    if protocol == "bare":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(TrompeError, match=r"evil.pth is refused: .*nothing in it was executed"):
        load_model(f"{UNSEEN}:unseen", path)
    assert not mark.exists()
    torch.load(path, weights_only=False) if protocol != "bare" else pickle.loads(path.read_bytes())
    assert mark.exists(), "the pickle was harmless"


def test_a_file_that_holds_no_weights_is_explained(
    tmp_path: Path, weights: Callable[..., Path]
) -> None:
    with pytest.raises(TrompeError, match=r"no weights file .*nothing.pth"):
        load_model("resnet18", tmp_path / "nothing.pth")
    for name in ("junk.pth", "junk.safetensors"):
        (tmp_path / name).write_bytes(b"<html>not found</html>" * 9)
        with pytest.raises(TrompeError, match=f"{name} is refused: it cannot be read as tensors"):
            load_model("resnet18", tmp_path / name)
    whole = weights({"a": torch.zeros(99, 99)})
    (tmp_path / "half.pth").write_bytes(whole.read_bytes()[:20_000])
    with pytest.raises(TrompeError, match=r"half.pth is refused: it cannot be read"):
        load_model("resnet18", tmp_path / "half.pth")
    for content, message in (
        (torch.zeros(2), "holds no state dict but a Tensor"),
        ({}, "holds no state dict but a dict"),
        ({0: torch.zeros(2)}, r"1 entries that are no named tensors \(0\)"),
        ({"epoch": 3}, r"1 entries that are no named tensors \(epoch\)"),
    ):
        with pytest.raises(TrompeError, match=message):
            load_model("resnet18", weights(content))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared weights and images are not here")
def test_real_weights_classify_real_photographs() -> None:
    model, preprocessing = load_model(
        "resnet18", SHARED / "models" / "resnet18-imagenette.safetensors", num_classes=10
    )
    file = SHARED / "data" / "imagenette" / "validation-00000-of-00001.parquet"
    rows = next(pq.ParquetFile(file).iter_batches(batch_size=100)).to_pylist()[::4]
    images = [Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB") for row in rows]
    with torch.no_grad():
        classes = model(torch.stack([preprocessing(image) for image in images])).argmax(1)
    hits = (classes == torch.tensor([row["label"] for row in rows])).float().mean()
    assert hits > 0.7


# --- copies


def small_net(change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    first = change(nn.Conv2d(3, 4, 3))
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return nn.Sequential(first, *head).eval()


class Keeping(nn.Conv2d):
    """Keeps what it computed, as a hook of a stranger might."""

    def forward(self, images: Tensor) -> Tensor:
        output = super().forward(images)
        self.kept = {"outputs": [output]}
        return output


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
        weight_norm,
        spectral_norm,
        parametrizations.weight_norm,
        parametrizations.orthogonal,
        lambda conv: Keeping(3, 4, 3),
        lambda conv: torch.jit.script(nn.Sequential(conv, nn.BatchNorm2d(4))),
        lambda conv: torch.jit.trace(conv, torch.randn(1, 3, 8, 8)),
        lambda conv: torch.compile(conv, backend="eager"),
        nn.DataParallel,
    ],
    ids=[
        "pruned",
        "wn",
        "sn",
        "new-wn",
        "orthogonal",
        "keeping",
        "script",
        "trace",
        "compile",
        "parallel",
    ],
)
def test_a_copy_computes_the_same_and_is_trained_alone(
    change: Callable[[nn.Module], nn.Module], frozen: bool
) -> None:
    model, images = small_net(change), torch.randn(2, 3, 8, 8)
    model[4].bias.requires_grad_(not frozen)
    before = model(images)
    with torch.inference_mode():
        copy = copied(model)
    assert torch.equal(copy(images), before)
    assert [p.requires_grad for p in copy.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    copy(images).square().sum().backward()
    for parameter in copy.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
        parameter.data.add_(0.1)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(model(images), before)
    assert not torch.allclose(copy(images), before)


def test_what_cannot_be_copied_is_explained() -> None:
    model = nn.Linear(1, 1)
    model.lock = threading.Lock()
    with pytest.raises(TrompeError, match=r"can't be copied \(TypeError: .*lock.*\).*Remove what"):
        copied(model)


# --- names of outputs


def test_the_names_of_outputs_are_known_as_long_as_they_are_theirs() -> None:
    assert load_model("resnet18").preprocessing.classes[:2] == ("tench", "goldfish")
    assert load_model("resnet18", num_classes=10).preprocessing.classes == ()
    timms = load_model(TINY).preprocessing.classes
    assert timms == load_model("resnet18").preprocessing.classes
    assert load_model(TINY, num_classes=10).preprocessing.classes == ()
    large = load_model(TINY, num_classes=11821).preprocessing.classes
    assert large[:2] == ("n00005787", "n00006484")
    assert load_model("embedded").preprocessing.classes == ()


# --- what others have written


@pytest.mark.parametrize("kind", ["model", "data"])
def test_a_name_that_others_wrote_imports_nothing(kind: str, tmp_path: Path) -> None:
    source, mark = tmp_path / "evil.py", tmp_path / "executed"
    source.write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\nmake = object\n")
    name = f"{source}:make"
    with written_by_others("runs/x"), pytest.raises(TrompeError, match="runs/x names '.*evil.py:m"):
        load_model(name) if kind == "model" else load_data(name, Preprocessing())
    assert not mark.exists()


# --- saving


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
        self.other = nn.Conv2d(4, 4, 3)
        self.other.weight = self.one.weight
        self.register_buffer("part", torch.arange(10)[2:6])


def test_saved_weights_come_back(tmp_path: Path) -> None:
    source = tmp_path / "tied.py"
    source.write_text(f"import sys\nTied = sys.modules[{__name__!r}].Tied\n")
    model = Tied()
    save_weights(model, tmp_path / "tied.safetensors")
    loaded = load_model(f"{source}:Tied", tmp_path / "tied.safetensors", seed=1).model
    assert same(loaded.state_dict(), model.state_dict())
    assert loaded.other.weight is loaded.one.weight
    model.to(memory_format=torch.contiguous_format)
    model.part = model.part.clone()
    safetensors.torch.save_model(model, tmp_path / "once.safetensors")
    once = load_model(f"{source}:Tied", tmp_path / "once.safetensors", seed=1).model
    assert same(once.state_dict(), model.state_dict())


def test_saving_replaces_a_file_wholly_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    first, second = nn.Linear(100, 100), nn.Linear(100, 100)
    save_weights(first, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(TrompeError, match=r"disk is full: .*Free some space"):
            save_weights(second, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(safetensors.torch.load_file(path), first.state_dict())
    save_weights(second, path)
    assert same(safetensors.torch.load_file(path), second.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_saved_weights_are_as_readable_as_other_new_files(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    save_weights(nn.Linear(1, 1), tmp_path / "weights.safetensors")
    modes = {stat.S_IMODE(os.stat(p).st_mode) for p in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_saving_where_there_is_no_folder_is_explained(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrompeError, match="check the folder"):
        save_weights(nn.Linear(1, 1), tmp_path / folder / "weights.safetensors")
