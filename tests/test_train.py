"""How a base model is trained: sides that grow, BatchNorm that is folded away, a teacher."""

import copy
import itertools
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import vgg11, vgg11_bn

from trompe import load_data, load_model
from trompe.data.shapes import SHAPES_PREPROCESSING
from trompe.errors import TrompeError
from trompe.models import fold_batch_norm
from trompe.models.normalised import Normalised, normalised
from trompe.tuning.job import TrainJob
from trompe.tuning.teacher import distillation, teacher_of
from trompe.tuning.train import Growing, Train, train

HOW = {"batch_size": 16, "device": "cpu", "quiet": True}


@pytest.fixture(scope="module")
def shapes():
    return load_data("shapes:train", SHAPES_PREPROCESSING, limit=48, augment=True, check=False)


def lively(model, seed=0):
    """Random weights and statistics, so that nothing is folded by chance."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(0.05 * torch.randn(tensor.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 2, generator=generator)
    return model.eval()


class TestBatchNormIsFoldedAway:
    def test_torchvisions_vgg_with_it_becomes_the_one_without(self):
        with_it, plain = lively(vgg11_bn(num_classes=10)), vgg11(num_classes=10).eval()
        before = {key: value.clone() for key, value in with_it.state_dict().items()}
        plain.load_state_dict(fold_batch_norm(with_it).state_dict())
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = with_it(images)
            assert torch.allclose(plain(images), expected, rtol=1e-4, atol=1e-4 * expected.std())
        for key, value in with_it.state_dict().items():
            assert torch.equal(value, before[key])

    def test_convolutions_without_a_bias_get_one_and_names_stay(self):
        torch.manual_seed(0)
        layers = {"conv": nn.Conv2d(3, 4, 3, bias=False), "norm": nn.BatchNorm2d(4, affine=False)}
        model = nn.Sequential(OrderedDict({**layers, "act": nn.ReLU(), "last": nn.BatchNorm2d(4)}))
        model.train()(torch.randn(8, 3, 9, 9))
        folded, images = fold_batch_norm(model).eval(), torch.randn(2, 3, 9, 9)
        assert [name for name, _ in folded.named_children()] == ["conv", "act", "last"]
        assert torch.allclose(folded(images), model.eval()(images), atol=1e-6)

    @pytest.mark.parametrize(
        ("layers", "said"),
        [
            ([nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)], "no BatchNorm right after"),
            ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)], "statistics"),
        ],
        ids=["none", "no statistics"],
    )
    def test_what_can_not_be_folded(self, layers, said):
        with pytest.raises(TrompeError, match=said):
            fold_batch_norm(nn.Sequential(*layers))

    def test_in_training_it_is_what_torchvision_puts_there(self, shapes):
        plain, with_it = vgg11(num_classes=8), lively(vgg11_bn(num_classes=8))
        images = torch.stack([shapes[i][0] for i in range(4)])
        with torch.no_grad(), normalised(plain):
            values = with_it.state_dict().values()
            plain.load_state_dict(dict(zip(plain.state_dict(), values, strict=True)))
            assert torch.allclose(plain.eval()(images), with_it(images), rtol=1e-4)
        with torch.no_grad():
            assert torch.allclose(plain(images), with_it(images), rtol=1e-3, atol=1e-6)

    def test_a_network_is_trained_with_it_and_handed_back_without(self, shapes):
        model = load_model("embedded-vgg", "random").model
        trained = train(model, shapes, epochs=2, batch_norm=True, **HOW).model
        assert not any(isinstance(m, Normalised | nn.BatchNorm2d) for m in trained.modules())
        assert [*trained.state_dict()] == [*model.state_dict()]

    @pytest.mark.parametrize(
        ("name", "said"),
        [("embedded-resnet", "has BatchNorm already"), ("embedded-vit", "that have a bias")],
    )
    def test_where_it_can_not_be(self, name, said):
        model = load_model(name).model
        if name == "embedded-vit":
            model.patch_embed = nn.Identity()
            model.conv_proj = nn.Conv2d(3, 4, 8, bias=False)
        with pytest.raises(TrompeError, match=said), normalised(model):
            pass


class TestSides:
    def test_each_takes_its_share_of_the_steps(self, shapes):
        seen = []

        class Looks(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(3, len(shapes.classes))

            def forward(self, images):
                if self.training:
                    seen.append(images.shape[-1])
                return self.head(images.mean((2, 3)))

        train(Looks(), shapes, epochs=3, sides=(16, 32, 64), **HOW)
        assert seen == [16] * 3 + [32] * 3 + [64] * 3

    def test_the_time_left_counts_pixels(self, shapes):
        sides = (16, 32, 64)
        growing = Growing(shapes, sides, Train(epochs=1, batch_size=16), 9)
        done = [growing.work(steps) for steps in range(10)]
        took = [after - before for before, after in itertools.pairwise(done)]
        assert took == [side**2 for side in sides for _ in range(3)]

    def test_an_interrupted_run_goes_on_at_the_side_where_it_was(self, shapes, tmp_path):
        model = load_model("embedded", "random").model
        given = {"epochs": 3, "sides": (16, 32, 64), "checkpoint_every": 1, **HOW}
        whole = train(model, shapes, **given).model

        def stop(_, row):
            if row["step"] == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(model, shapes, **given, run_dir=tmp_path / "run", on_step=stop)
        resumed = train(model, shapes, **given, run_dir=tmp_path / "run").model
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_images_in_memory_have_one_side(self):
        data = torch.utils.data.TensorDataset(torch.rand(16, 3, 16, 16), torch.arange(16) % 8)
        with pytest.raises(TrompeError, match="sides need a data set of load_data"):
            train(load_model("embedded", "random").model, data, epochs=1, sides=(8,), **HOW)


class TestATeacher:
    def test_its_predictions_are_learnt(self, shapes):
        teacher = load_model("embedded").model
        model = load_model("embedded", "random").model
        given = {"epochs": 6, "lr": 5e-3, **HOW}
        images = torch.stack([shapes[i][0] for i in range(48)])

        def apart(student):
            with torch.no_grad():
                said = F.log_softmax(student(images), 1)
                return F.kl_div(said, teacher(images).softmax(1), reduction="batchmean").item()

        taught = train(model, shapes, teacher=teacher, distillation=1.0, **given)
        assert apart(taught.model) < 0.9 * apart(model)
        assert (taught.history["classification"] == 0).all()
        assert (taught.history["distillation"] > 0).all()

    def test_the_loss_is_the_cross_entropy_of_both_predictions(self):
        logits, known = torch.randn(5, 4).double(), torch.randn(5, 4).double()
        expected = -(known.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        assert distillation(logits, known).item() == pytest.approx(expected.item(), rel=1e-6)

    def test_it_gets_images_and_answers_as_it_knows_them(self, shapes):
        """Another normalisation, another size, its classes in another order."""
        known = load_model("embedded")
        order = torch.arange(len(shapes.classes)).flip(0)
        own = copy.copy(shapes)
        own.labels = order[shapes.labels]

        class Shuffled(nn.Module):
            def forward(self, images):
                return known.model(known.preprocessing.normalise(images))[:, order]

        asked = load_model("embedded")._replace(
            model=Shuffled(),
            preprocessing=type(known.preprocessing)(
                resize=64, crop=64, mean=(0,) * 3, std=(1,) * 3
            ),
        )
        teacher = teacher_of(asked, shapes, own)
        images = torch.stack([shapes[i][0] for i in range(4)])
        with torch.no_grad():
            assert torch.allclose(teacher(images), known.model(images), atol=1e-4)
        small = torch.stack([shapes.at(32)[i][0] for i in range(4)])
        assert teacher(small).shape == teacher(images).shape

    def test_from_the_command_line_its_outputs_are_found_by_name(self, tmp_path):
        job = TrainJob(
            model="embedded",
            weights="random",
            data="shapes:train",
            limit=48,
            epochs=0.5,
            teacher="embedded-vgg",
            **HOW,
        )
        assert "distillation" in job.carry_out(tmp_path / "run").history

    def test_a_class_without_an_image_is_said(self, shapes):
        few = shapes.without([i for i, label in enumerate(shapes.labels) if label == 0])
        with pytest.raises(TrompeError, match="no image of it"):
            teacher_of(load_model("embedded"), few, few)
