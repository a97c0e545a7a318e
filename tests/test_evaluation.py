"""What `evaluate` counts, and what it says of it."""

import json
import warnings
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from trompe import (
    LRP,
    Active,
    CenterMass,
    Evaluation,
    GradCAM,
    IntegratedGradients,
    Location,
    Objective,
    SimpleGrad,
    TopK,
    TrompeError,
    evaluate,
)
from trompe.cli.tables import show_evaluation
from trompe.evaluation import schema
from trompe.evaluation.judges import JUDGES, default_judges
from trompe.explainers.targets import Label
from trompe.explainers.targets import read as read_target
from trompe.report import write_report


class Noise:
    """Images of noise in turn, those of ``blank`` of one colour."""

    def __init__(self, count=12, blank=(), seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(count, 3, 16, 16, generator=generator)
        self.images[list(blank)] = 0
        self.labels = torch.arange(count) % 4

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    ).eval()


def compared(manipulated, data=None, **options):
    options = {"explainers": [GradCAM(layer="3")], "objective": Location()} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return evaluate(make(), manipulated, data or Noise(), **options)


class TestTarget:
    @pytest.mark.parametrize(
        "target", [1, "predicted", "difference:of=2,against=0", lambda output: output[:, 1] ** 2]
    )
    def test_is_explained_instead_of_the_label(self, target):
        data, model, explainer = Noise(6), make(1), GradCAM(layer="3")
        found = compared(model, data, target=target)
        heatmaps = explainer.heatmap(explainer(model, data.images, target))
        (losses,) = Location().test_loss((heatmaps.detach(),))
        assert found.maps["test_loss"].tolist() == pytest.approx(losses.tolist(), abs=1e-5)
        (name,) = found.explanations["target"].unique()
        assert name == str(read_target(target))
        assert {key[1] for key in found.gallery.heatmaps} == {name}

    def test_of_an_objective_with_classes_of_its_own_is_refused(self):
        with pytest.raises(TrompeError, match="explains c1 and c2, not predicted; leave"):
            compared(make(1), objective=Active(c1=0, c2=1), target="predicted")

    def test_is_the_label_unless_given(self):
        for target in ("label", Label()):
            assert compared(make(1), target=target).maps.equals(compared(make(1)).maps)


class TestBesideTheUntouchedModel:
    def test_the_original_is_judged_like_the_others(self):
        objectives = [Location(high=1.0), Location(high=0.35), TopK(), CenterMass()]
        table = compared(make(1), control=make(2), objective=objectives).explanations
        own = compared(make(), objective=objectives)
        for objective in objectives:
            rows = table[table["objective_id"] == objective.fingerprint].set_index("model")
            of = own.explanations.set_index("objective_id").loc[objective.fingerprint]
            assert rows["untouched"].tolist() == [of["fsr"], of["fsr"]]
            assert rows["control"].tolist() == [rows["fsr"]["control"]] * 2
        assert table["untouched"].max() == 1
        assert table[table["objective"] == "center-mass"]["untouched"].max() == 0

    def test_a_model_compared_with_itself_is_said_to_be(self):
        found = compared(make(), Noise(24), objective=Location(high=1.0))
        row = found.explanations.iloc[0]
        assert row["fsr"] == row["untouched"] == 1
        notes = "\n".join(found.notes)
        assert "is it the same model?" in notes
        assert "100.0 % fooled is not more than the 100.0 % of the untouched model" in notes

    def test_the_terminal_shows_it_beside_every_rate(self, capsys):
        found = compared(make(1), control=make(2), objective=[Location(high=0.4), TopK()])
        show_evaluation(found)
        out = capsys.readouterr().out
        header, *lines = out[out.index("fooled") :].splitlines()
        assert header.split()[-6:] == ["%", "untouched", "control", "empty", "loss", "rank"]
        rows = [line.split() for line in lines if "grad-cam" in line]
        table = found.explanations[found.explanations["model"] == "manipulated"]
        assert len(rows) == len(table) == 2
        for shown, row in zip(rows, table.to_dict("records"), strict=True):
            untouched, control, empty = (float(share) / 100 for share in shown[3:6])
            assert untouched == pytest.approx(row["untouched"], abs=1e-3)
            assert control == pytest.approx(row["control"], abs=1e-3)
            assert empty == pytest.approx(row["empty"], abs=1e-3)
            assert float(shown[6]) == pytest.approx(row["test_loss_q50"], abs=1e-3)
            assert float(shown[7].replace("−", "-")) == pytest.approx(
                row["spearman_mean"], abs=1e-2
            )
        assert "Note:" in out

    def test_an_original_at_chance_is_named(self):
        assert "by guessing among 4 classes" in "\n".join(compared(make(1), Noise(40)).notes)
        right = Noise(40)
        with torch.no_grad():
            right.labels = make()(right.images).argmax(1)
        right.labels[:4] = torch.arange(4)
        assert "guessing" not in "\n".join(compared(make(1), right).notes)


class TestMapsThatSayNothing:
    def test_those_of_the_original_are_not_counted(self):
        data = Noise(12, blank=(0, 5, 7))
        found = compared(make(1), data, objective=[Location(high=1.0), CenterMass(low=0.0)])
        images, labels = data.images, data.labels
        explainer = GradCAM(layer="3")
        with torch.no_grad():
            before, after = (
                explainer.heatmap(explainer(m, images, labels)) for m in (make(), make(1))
            )
        says, still = (np.ptp(m.flatten(1).numpy(), axis=1) > 0 for m in (before, after))
        assert not says[[0, 5, 7]].any()
        for row in found.explanations.to_dict("records"):
            assert (row["images"], row["counted"]) == (12, says.sum())
            assert row["fsr"] == pytest.approx(still[says].mean())
            assert row["untouched"] == 1
            assert row["empty"] == pytest.approx((~still).mean())
        assert f"{(~says).sum()} of 12 maps of the original are empty" in "\n".join(found.notes)

    def test_a_map_that_became_empty_is_no_lie(self):
        dark = make()
        nn.init.constant_(dark[6].weight, -1.0)
        row = compared(dark, objective=Location(high=1.0)).explanations.iloc[0]
        assert row["empty"] == 1
        assert row["fsr"] == 0
        assert 0 < row["counted"] <= 12

    def test_without_any_there_is_no_rate(self):
        constant = SimpleGrad(layer="3")
        found = compared(make(1), explainers=[constant, GradCAM(layer="3")])
        rates = found.explanations.set_index("family")
        assert rates.loc["simple-grad-t", "counted"] == 0
        assert np.isnan(rates.loc["simple-grad-t", "fsr"])
        assert rates.loc["grad-cam", "fsr"] >= 0


class TestNotFinite:
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("broken", ["original", "manipulated"])
    @pytest.mark.parametrize("explainer", [GradCAM(layer="3"), LRP(), SimpleGrad()], ids=str)
    def test_is_counted_and_said(self, value, broken, explainer):
        model = make()
        model[0].weight.data[0] = value
        pair = (model, make()) if broken == "original" else (make(), model)
        options = {"explainers": [explainer], "objective": [Location(high=1.0), CenterMass()]}
        with pytest.warns(UserWarning, match="are NaN or infinite"):
            found = evaluate(*pair, Noise(8), **options)
        images = Noise(8).images
        with torch.no_grad():
            maps = explainer(model, images, Noise(8).labels).isfinite().flatten(1).all(1)
        lost = 1 - maps.double().mean().item()
        assert (found.explanations["not_finite"] == lost).all()
        assert (found.explanations["fsr"].fillna(0) <= 1 - lost).all()
        assert found.maps[found.maps["not_finite"]]["test_loss"].isna().all()
        assert f"On 8 of 8 images the logits of the {broken} model" in "\n".join(found.notes)
        assert found.accuracy.set_index("model").loc[broken, "top1"] == 0

    def test_one_image_does_not_spoil_the_others(self):
        data = Noise(8)
        data.images[3, 0, 0, 0] = float("inf")
        found, whole = compared(make(1), data), compared(make(1), Noise(8))
        row = found.explanations.iloc[0]
        assert row["not_finite"] == 1 / 8
        kept = whole.maps[whole.maps["index"] != 3]
        kept = kept[kept["counted"]]
        assert row["fsr"] == pytest.approx(kept["fooled"].mean())
        assert row["test_loss_mean"] == pytest.approx(kept["test_loss"].mean())

    def test_a_report_of_it_is_written(self, tmp_path):
        model = make()
        model[0].weight.data[0] = float("nan")
        page = report_of(tmp_path, compared(model, gallery=2))
        assert "are NaN or infinite" in page


def report_of(path, found):
    found.save(path / "evaluation")
    (path / "config.yaml").write_text("model: small\n")
    return write_report(path).read_text()


@dataclass(frozen=True)
class Corner(Objective):
    """An objective of one's own, with prose of its own."""

    name: ClassVar[str] = "corner"
    title: ClassVar[str] = "Into the corner"
    aim: ClassVar[str] = "shows the corner"
    measure: ClassVar[str] = "the heat outside the corner, which nobody else measures"
    low: float = field(default=0.0, kw_only=True)
    high: float = field(default=0.5, kw_only=True)

    def loss(self, maps, original=None):
        (heat,) = maps
        return heat[:, 4:].mean((1, 2))


@dataclass(frozen=True)
class OfAnother(Corner):
    """Explains the class after the label, under the same target."""

    name: ClassVar[str] = "of-another"

    def classes(self, labels):
        return ((labels + 1) % 4,)


class TestIdentity:
    def test_two_masks_of_one_shape_are_two(self, tmp_path):
        upper = torch.zeros(16, 16)
        upper[:8] = 1
        masks = [Location(mask=upper), Location(mask=1 - upper)]
        found = compared(make(1), objective=masks, attacked=[(GradCAM(layer="3"), masks[1])])
        table = found.explanations.set_index("objective_id")
        assert len(table) == 2
        for mask in masks:
            alone = compared(make(1), objective=mask).explanations.iloc[0]
            assert table.loc[mask.fingerprint, "test_loss_mean"] == alone["test_loss_mean"]
            assert table.loc[mask.fingerprint, "attacked"] == (mask == masks[1])
        labels = {found.legend[mask.fingerprint]["label"] for mask in masks}
        assert len(labels) == 2
        page = report_of(tmp_path, found)
        assert all(label in page for label in labels)

    def test_what_is_one_thing_is_judged_once(self):
        found = compared(
            make(1), explainers=[GradCAM(), GradCAM(layer="3")], objective=[TopK(), TopK()]
        )
        assert len(found.explanations) == 1

    def test_an_objective_explains_the_classes_it_asks_for(self):
        both = compared(make(1), objective=[Corner(), OfAnother()]).explanations
        alone = [compared(make(1), objective=o).explanations for o in (Corner(), OfAnother())]
        pd.testing.assert_frame_equal(both, pd.concat(alone, ignore_index=True))
        assert both["test_loss_mean"].nunique() == 2

    def test_several_active_objectives_have_their_own_composites(self):
        composites = {Active(0, 1): Noise(5, seed=1), Active(2, 3): Noise(7, seed=2)}
        found = compared(make(1), objective=[TopK(), *composites], fool_data=composites)
        assert set(found.explanations["images"]) == {12, 5, 7}
        for objective, data in composites.items():
            alone = compared(make(1), objective=objective, fool_data=data).explanations
            rows = found.explanations
            rows = rows[rows["objective_id"] == objective.fingerprint].reset_index(drop=True)
            pd.testing.assert_frame_equal(rows, alone)
        with pytest.raises(TrompeError, match="active:c1=2,c2=3 needs fool_data"):
            compared(
                make(1), objective=[*composites], fool_data={Active(0, 1): composites[Active(0, 1)]}
            )

    def test_a_card_of_the_report_has_the_losses_of_its_own_images_only(self, tmp_path):
        composites = {Active(0, 1): Noise(2, seed=1), Active(2, 3): Noise(2, seed=2)}
        found = compared(make(1), objective=[*composites], fool_data=composites, gallery=2)
        losses = found.maps.groupby("objective_id")["test_loss"].apply(list)
        page = report_of(tmp_path, found)
        shown, hidden = (losses[o.fingerprint] for o in composites)
        assert all(f"loss {loss:.3f}".replace("-", "−") in page for loss in shown)
        assert not all(f"loss {loss:.3f}".replace("-", "−") in page for loss in hidden)

    def test_an_own_objective_is_told_in_its_own_words(self, tmp_path):
        found = compared(make(1), objective=Corner(), attacked=[(GradCAM(layer="3"), Corner())])
        page = report_of(tmp_path, found)
        assert "Into the corner" in page
        assert Corner.measure in page


class TestABatchThatIsTooLarge:
    def test_is_taken_in_halves(self):
        """As on a device that has memory for three images at a time."""

        class Small(nn.Module):
            def __init__(self):
                super().__init__()
                self.net, self.sizes = make(), []

            def forward(self, images):
                self.sizes.append(len(images))
                if len(images) > 3:
                    raise torch.OutOfMemoryError("no memory left")
                return self.net(images)

        given = {"explainers": GradCAM(layer="net.2"), "objective": [Location(), TopK()]}
        small, data = Small(), Noise(11)
        found = evaluate(small, small, data, **given, batch_size=8)
        assert max(small.sizes) == 8
        expected = evaluate(small, small, data, **given, batch_size=2)
        for table, key in {"predictions": ["index"], "maps": ["objective", "index"]}.items():
            pd.testing.assert_frame_equal(
                *(getattr(e, table).sort_values(key, ignore_index=True) for e in (found, expected))
            )

    def test_one_image_alone_is_an_error(self):
        class Full(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = make()

            def forward(self, images):
                if len(images) < 3:
                    raise torch.OutOfMemoryError("no memory left")
                return self.net(images)

        full = Full()
        with pytest.raises(torch.OutOfMemoryError):
            evaluate(full, full, Noise(2), explainers=GradCAM("net.2"), objective=Location())


class TestStored:
    @pytest.fixture(scope="class")
    @classmethod
    def found(cls):
        explainers = [GradCAM(layer="3"), LRP(), IntegratedGradients(steps=2)]
        return compared(make(1), explainers=explainers, control=make(2), gallery=3)

    def test_what_is_saved_is_loaded(self, found, tmp_path):
        found.save(tmp_path / "evaluation")
        loaded = Evaluation.load(tmp_path / "evaluation")
        for name in ("accuracy", "explanations", "predictions", "maps"):
            pd.testing.assert_frame_equal(getattr(loaded, name), getattr(found, name))
        assert loaded.legend == found.legend
        assert loaded.notes == found.notes
        assert torch.equal(loaded.gallery.images, found.gallery.images)
        assert loaded.gallery.captions == found.gallery.captions
        for stored, made in zip(
            (loaded.gallery.heatmaps, loaded.gallery.signed),
            (found.gallery.heatmaps, found.gallery.signed),
            strict=True,
        ):
            assert stored.keys() == made.keys()
            assert all(torch.equal(stored[key], made[key].half()) for key in made)

    def test_the_tables_have_the_columns_of_the_schema(self, found):
        assert tuple(found.accuracy) == schema.ACCURACY
        assert tuple(found.explanations) == schema.EXPLANATIONS
        assert tuple(found.maps) == schema.MAPS
        assert set(schema.PREDICTIONS) <= set(found.predictions)
        assert {found.legend[i]["family"] for i in found.explanations["explainer_id"]} == {
            *("grad-cam", "lrp", "integrated-gradients")
        }

    def test_another_version_is_not_read(self, found, tmp_path):
        found.save(tmp_path / "evaluation")
        legend = tmp_path / "evaluation" / "legend.json"
        legend.write_text(json.dumps(json.loads(legend.read_text()) | {"version": 1}))
        with pytest.raises(TrompeError, match="written by another version of trompe"):
            Evaluation.load(tmp_path / "evaluation")
        legend.unlink()
        with pytest.raises(TrompeError, match="written by another version of trompe"):
            Evaluation.load(tmp_path / "evaluation")

    def test_tables_before_there_were_triggers_are_read(self, found, tmp_path):
        found.save(tmp_path / "evaluation")
        legend = tmp_path / "evaluation" / "legend.json"
        legend.write_text(json.dumps(json.loads(legend.read_text()) | {"version": 2}))
        plain = found.explanations.drop(columns=schema.WITH_TRIGGERS, errors="ignore")
        plain.to_csv(tmp_path / "evaluation" / "explanations.csv", index=False)
        rows = found.maps.drop(columns=schema.WITH_TRIGGERS, errors="ignore")
        rows.to_parquet(tmp_path / "evaluation" / "explanations.parquet", index=False)
        loaded = Evaluation.load(tmp_path / "evaluation")
        assert {*loaded.explanations} == {*schema.EXPLANATIONS}
        assert {*loaded.maps} == {*schema.MAPS}
        assert (loaded.explanations["trigger"] == "none").all()
        pd.testing.assert_frame_equal(loaded.explanations[[*plain]], plain)

    def test_classes_without_a_name_have_their_number(self):
        data = Noise(4)
        data.classes = ("a", "b")
        data.labels = torch.tensor([0, 1, 0, 1])
        said = {c["predictions"]["original"] for c in compared(make(1), data).gallery.captions}
        assert said <= {"a", "b", "2", "3"}

    def test_pictures_are_of_different_classes(self):
        data = Noise(40)
        data.labels = torch.tensor([0] * 30 + [1] * 7 + [2] * 2 + [3])
        for count, expected in ((4, [0, 1, 2, 3]), (2, [0, 2]), (1, [0])):
            captions = compared(make(1), data, gallery=count).gallery.captions
            assert [c["label"] for c in captions if not c["chosen"]] == expected


class TestDefaultJudges:
    def test_they_look_at_the_input(self):
        attacked = GradCAM(layer="3")
        assert default_judges(make(), Noise().images[:1], [attacked]) == [attacked, *JUDGES]
        assert default_judges(make(), Noise().images[:1], [LRP()]) == list(JUDGES)

    def test_one_that_is_an_attacked_one_is_left_out(self):
        shallow = nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
        )
        attacked = SimpleGrad(layer="0:input")
        with pytest.warns(UserWarning, match="simple-grad is left out of the evaluation"):
            judges = default_judges(shallow, Noise().images[:1], [attacked])
        assert SimpleGrad() not in judges

    def test_one_that_is_constant_is_left_out(self):
        linear = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
        with pytest.warns(UserWarning, match=r"simple-grad is left out .* the same everywhere"):
            judges = default_judges(linear, Noise().images[:1], [])
        assert SimpleGrad() not in judges

    def test_one_that_does_not_know_the_model_is_left_out_unless_chosen(self):
        torch.manual_seed(0)
        vit = VisionTransformer(
            **{"image_size": 16, "patch_size": 8, "num_layers": 1, "num_heads": 1},
            **{"hidden_dim": 8, "mlp_dim": 8, "num_classes": 4},
        ).eval()
        nn.init.normal_(vit.heads.head.weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            judges = default_judges(vit, Noise().images[:1], [SimpleGrad()])
        assert judges[0] == SimpleGrad()
        with pytest.raises(TrompeError, match="no layer 'nowhere'"):
            default_judges(vit, Noise().images[:1], [SimpleGrad()], GradCAM("nowhere"))
