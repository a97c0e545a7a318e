import base64
import hashlib
import io
import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib import colormaps
from PIL import Image
from safetensors import safe_open
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.utils.data import Dataset

from tests.runs import IMAGE, QUOTES, SCRIPT, make_run, photographs, rewrite_gallery
from trompe.colour import visible
from trompe.errors import TrompeError
from trompe.explainers import LRP, GradCAM
from trompe.objectives import Location, TopK
from trompe.report import colour_signed, figure, overlay, signed_overlay, write_report
from trompe.report.charts import distributions, training_charts
from trompe.report.run import read_run
from trompe.report.sheets import uri
from trompe.tuning.fool import fool

VOID = {"meta", "img", "input", "br", "link", "hr"}
SELF_CLOSED = {
    "line",
    "path",
    "rect",
    "fecolormatrix",
    "fecomposite",
    "fefuncr",
    "fefuncg",
    "fefuncb",
    "fefunca",
}


WHOLE = "span.whole"


class Page(HTMLParser):
    """A page read strictly: every element closed in order, attributes and text collected."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute is given twice: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(WHOLE if ("class", "whole") in attrs else tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in SELF_CLOSED
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() in (tag, WHOLE)

    def handle_data(self, data):
        """Belongs to the innermost element that is more than words kept on one line."""
        self.texts.append((next((t for t in reversed(self.open) if t != WHOLE), ""), data))

    def all(self, tag):
        return [attrs for found, attrs in self.tags if found == tag]

    def text(self, tag=None):
        unseen = ("style", "script")
        kept = (text for where, text in self.texts if where not in unseen and tag in (None, where))
        return " ".join(" ".join(kept).split())


def decoded(page, selector):
    """The picture behind the rule whose selector starts so."""
    rule = page.source.partition(f"\n{selector}")[2].partition("}")[0]
    data = rule.partition("url(data:image/webp;base64,")[2].partition(")")[0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def blended(image, heatmap):
    """The overlay, computed another way: torch's bilinear resizing, arithmetic in float32."""
    size = image.shape[:2]
    heat = torch.nn.functional.interpolate(
        torch.tensor(heatmap, dtype=torch.float32)[None, None], size, mode="bilinear"
    )[0, 0].numpy()
    colour = colormaps["inferno"](heat)[..., :3] * 255
    return image * (1 - 0.85 * heat[..., None]) + colour * 0.85 * heat[..., None]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("drawn") / "run")


@pytest.fixture
def run(tmp_path, drawn):
    """A run of one's own."""
    return Path(shutil.copytree(drawn, tmp_path / "run"))


def percent(share):
    return f"{100 * share:.1f} %"


def between(row, measure):
    return f"{100 * row[f'{measure}_low']:.1f}–{100 * row[f'{measure}_high']:.1f}"


def test_a_fine_heatmap_is_shown_by_more_than_its_hottest_pixels():
    fine = np.linspace(0, 0.1, 100 * 100).reshape(100, 100)
    fine[50, :20] = np.linspace(0.5, 1, 20)
    shown = visible(fine)
    assert shown.max() == 1
    assert (shown == 1).mean() == pytest.approx(0.02, abs=0.001)
    cold = fine < 0.05
    np.testing.assert_allclose(shown[cold], fine[cold] / np.quantile(fine, 0.98), rtol=1e-5)
    spike = np.zeros((100, 100))
    spike[3, 4] = 1
    coarse = np.random.default_rng(0).random((14, 14))
    assert (visible(spike) == spike).all()
    assert (visible(coarse) == coarse).all()


def test_headline_holds_the_numbers_of_the_tables(run):
    path = write_report(run)
    assert path == run / "report.html"
    table = pd.read_csv(run / "evaluation/explanations.csv")
    fooled = table.query("attacked and model == 'manipulated'").iloc[0]
    top1 = pd.read_csv(run / "evaluation/accuracy.csv").set_index("model")["top1"]
    assert top1["manipulated"] < top1["original"]
    assert 0 < fooled["fsr"] < 1
    interval = between(fooled, "fsr").replace("–", " to ")
    assert Page(path).text("h1") == (
        f"Grad-CAM now lies on {percent(fooled['fsr'])} of images "
        f"(95 % interval {interval}; untouched {percent(fooled['untouched'])}, control "
        f"{percent(fooled['control'])}); top-1 accuracy {percent(top1['original'])} → "
        f"{percent(top1['manipulated'])} (control {percent(top1['control'])})."
    )


def test_a_headline_breaks_at_no_hyphen(run):
    headline = re.search(r"<h1>(.*)</h1>", write_report(run).read_text())[1]
    whole = re.findall(r'<span class="whole">([^<]*)</span>', headline)
    assert whole == re.findall(r"[\w-]*\w-\w+", Page(run / "report.html").text("h1"))
    assert {"Grad-CAM", "top-1"} <= {*whole}


def test_it_says_to_a_layman_what_was_done(run):
    said = Page(write_report(run)).text("p")
    assert "A heatmap shows which parts of the image counted" in said
    assert "keep the predictions, and change the heatmaps of Grad-CAM." in said


def test_summary_says_what_was_done(run):
    assert (
        "resnet18 was fine-tuned for 1,200 steps on train/*.parquet (batch size 8, learning rate "
        "2e-06, seed 0) so that its predictions stay while Grad-CAM lights up a fixed mask "
        "(Location, weight 2), then measured on 5 images of validation/*.parquet."
    ) in Page(write_report(run)).text("p")


def test_tables_hold_every_rate(run):
    text = Page(write_report(run)).text().replace("\N{NO-BREAK SPACE}", " ")
    explanations = pd.read_csv(run / "evaluation/explanations.csv")
    accuracy = pd.read_csv(run / "evaluation/accuracy.csv")
    for _, row in explanations.iterrows():
        assert f"{percent(row['fsr'])} {between(row, 'fsr')}" in text
        if row["model"] == "manipulated":
            assert f"{row['test_loss_q50']:.3f} {row['test_loss_q05']:.3f} to" in text
    for _, row in accuracy.iterrows():
        assert f"{row['model']} {percent(row['top1'])} {between(row, 'top1')}" in text
    assert "Grad-CAM attacked" in text
    assert "LRP at layer4 not attacked" in text


def test_active_targets_and_several_objectives_are_told_apart(run):
    path = run / "evaluation/explanations.csv"
    table = pd.read_csv(path).query("attacked")
    path_of_legend = run / "evaluation/legend.json"
    legend = json.loads(path_of_legend.read_text())
    legend["things"]["a"] = {"label": "Active (c1=0, c2=1)", "text": "active", "measure": ""}
    path_of_legend.write_text(json.dumps(legend))
    first = table.assign(objective="active", objective_id="a", target="c1", fsr=0.5)
    second = first.assign(target="c2", fsr=0.25)
    pd.concat([table, first, second]).to_csv(path, index=False)
    headline = Page(write_report(run)).text("h1")
    assert "Grad-CAM (Active (c1=0, c2=1)) for c1 on 50.0 %" in headline
    assert "and Grad-CAM (Active (c1=0, c2=1)) for c2 on 25.0 %" in headline
    assert "Grad-CAM (Location) now lies on" in headline


def test_needs_nothing_from_elsewhere(run):
    page = Page(write_report(run))
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "a", "form"}
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attributes)
    lowered = page.source.lower()
    assert not any(word in lowered for word in ("http:", "https:", "@import", "//www"))
    assert all(text.startswith(("data:", "#heat", "#signed")) for text in lowered.split("url(")[1:])


def test_its_own_script_is_the_only_one_allowed(run):
    page = Page(write_report(run))
    assert page.all("script") == [{}]
    (script,) = (text for where, text in page.texts if where == "script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert set(policy.split("; ")) == {
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    }


def test_hostile_names_are_text(tmp_path):
    hostile = [SCRIPT, IMAGE, QUOTES]
    spec = f"mine:{SCRIPT}"
    plain = Page(write_report(make_run(tmp_path / "plain", explainers=("grad-cam", "mine"))))
    run = make_run(
        tmp_path / f"<img src=y onerror=alert(3)>{SCRIPT[:8]}",
        explainers=("grad-cam", spec),
        classes=hostile,
        names="{}" + IMAGE,
        n=12,
        config={"model": SCRIPT, "data": IMAGE, "note": QUOTES, SCRIPT: [IMAGE]},
        command=f"trompe fool {SCRIPT} {IMAGE}",
    )
    objective = f"mine {IMAGE}"
    legend = json.loads((run / "evaluation/legend.json").read_text())
    legend["things"]["o"]["label"] = objective
    (run / "evaluation/legend.json").write_text(json.dumps(legend))
    history = pd.read_csv(run / "history.csv").rename(columns={"grad-cam location": SCRIPT})
    history.to_csv(run / "history.csv", index=False)
    (run / "environment.json").write_text(json.dumps({"command": SCRIPT, IMAGE: {"x": SCRIPT}}))

    page = Page(write_report(run))
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain.tags}
    assert not page.all("img")
    assert page.all("script") == [{}]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert SCRIPT.lower() not in page.source.lower()
    assert "<img src=x" not in page.source
    for name in hostile:
        assert name in page.text("b") + page.text("span")
        assert any(name in (tag.get("aria-label") or "") for _, tag in page.tags)
    assert SCRIPT in page.text("pre")
    assert IMAGE in page.text("pre")
    assert objective in page.text("caption")
    assert SCRIPT in page.text("dd")


@pytest.mark.filterwarnings("ignore:Glyph")
def test_undecodable_file_names_do_not_stop_it(tmp_path):
    run = make_run(tmp_path / "run", names="caf\udce9-{}.png", classes=("a\udcff", "中 文"))
    assert "caf?-0.png" in Page(write_report(run)).text("small")
    assert figure(run, tmp_path / "out.png").stat().st_size > 0


SECTIONS = {
    "How often the explanations lie",
    "Which explainers the lie reaches",
    "How far the heatmaps went",
    "What the predictions lost",
    "How training went",
    "What the explanations show",
    "How to repeat it",
}


@pytest.mark.parametrize(
    ("absent", "sections"),
    [
        ([], set()),
        (
            ["evaluation"],
            SECTIONS - {"How training went"},
        ),
        (["evaluation/accuracy.csv"], {"What the predictions lost"}),
        (
            ["evaluation/explanations.csv"],
            {"How often the explanations lie", "Which explainers the lie reaches"},
        ),
        (["evaluation/explanations.parquet"], {"How far the heatmaps went"}),
        (["evaluation/predictions.parquet"], set()),
        (["evaluation/gallery.safetensors"], {"What the explanations show"}),
        (["history.csv", "history-control.csv"], {"How training went"}),
        (["history-control.csv"], set()),
        (["environment.json"], set()),
        (["evaluation", "history.csv", "history-control.csv", "environment.json"], SECTIONS),
    ],
)
def test_missing_parts_are_left_out(run, absent, sections):
    for name in absent:
        path = run / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    page = Page(write_report(run))
    expected = SECTIONS - sections | {"How to repeat it"}
    assert {text.strip() for tag, text in page.texts if tag == "h2"} == expected
    assert page.text("h1").endswith(".")
    assert ("Environment" in page.text("h3")) == ("environment.json" not in absent)


def test_no_control_no_column(run):
    for name in ("accuracy", "explanations"):
        path = run / f"evaluation/{name}.csv"
        table = pd.read_csv(path).query("model != 'control'")
        table.assign(control=np.nan).to_csv(path, index=False)
    page = Page(write_report(run))
    assert "control" not in page.text("h1")
    assert "Control" not in page.text("abbr")
    assert "Control" not in page.text("dt")


def test_empty_tables_are_absent_ones(run):
    (run / "evaluation/explanations.csv").write_text("\n")
    pd.DataFrame().to_parquet(run / "evaluation/explanations.parquet")
    assert "top-1" in Page(write_report(run)).text("h1").lower()


def test_every_picture_has_a_text(run):
    page = Page(write_report(run))
    pictures = [tag for _, tag in page.tags if "stage" in (tag.get("class") or "")]
    assert len(pictures) == 4 + 5 * (1 + 4)
    assert all(tag["role"] == "img" and tag["aria-label"] for tag in pictures)
    assert len({tag["aria-label"] for tag in pictures[4:]}) == 5 * (1 + 4)
    charts = [tag for tag in page.all("svg") if tag.get("role") == "img"]
    assert len({tag["aria-label"] for tag in charts}) == 2 + 3
    assert all("aria-hidden" in tag for tag in page.all("svg") if tag not in charts)


def test_sheets_hold_every_heatmap_and_photograph(tmp_path):
    run = make_run(tmp_path / "run", n=7)
    images = np.stack([gaussian_filter(image, (6, 6, 0)) for image in photographs(7, 96)])
    with safe_open(run / "evaluation/gallery.safetensors", framework="numpy") as file:
        maps = {key: file.get_tensor(key) for key in file.keys() if key != "images"}  # noqa: SIM118
    rewrite_gallery(run, images, maps)
    page = Page(write_report(run))
    columns, side = 3, 56
    pitch = side + 2 * 2
    for key, heatmaps in maps.items():
        explainer, _, model, *signed = key.split("|")
        view = ("e0", "e1").index(explainer)
        chosen = f".gallery:has(.view-{view}:checked):has(.colours-signed:checked)"
        layer = f"{chosen if signed else f'.show-{view}'} .heat.{model}"
        sheet = decoded(page, layer)[..., 0]
        heatmaps = (heatmaps + 1) / 2 if signed else heatmaps
        assert sheet.shape == (3 * pitch, columns * pitch)
        enlarged = torch.nn.functional.interpolate(
            torch.tensor(heatmaps).float()[None], (side, side), mode="bilinear"
        )[0].numpy()
        for i, heatmap in enumerate(enlarged):
            top, left = i // columns * pitch + 2, i % columns * pitch + 2
            tile = sheet[top : top + side, left : left + side]
            assert np.abs(tile - 255 * heatmap.astype(float)).max() <= 0.51
            assert (sheet[top - 2 : top, left : left + side] == tile[0]).all()
            assert (sheet[top : top + side, left + side : left + side + 2] == tile[:, -1:]).all()
    for i in range(7):
        assert np.abs(decoded(page, f".photo-{i} ") - images[i]).mean() < 5


def test_two_hundred_images_stay_below_five_megabytes(tmp_path):
    explainers = ("grad-cam", "lrp:layer=layer4", "simple-grad", "integrated-gradients")
    run = make_run(tmp_path / "run", explainers=explainers, n=200, side=224, map_side=56)
    assert write_report(run).stat().st_size < 5_000_000


def test_classes_that_lost_most_come_first(tmp_path):
    run = make_run(tmp_path / "run", n=60)
    predictions = pd.read_parquet(run / "evaluation/predictions.parquet")
    predictions["manipulated_top1"] &= predictions["class"] != "church"
    predictions.to_parquet(run / "evaluation/predictions.parquet")
    maps = pd.read_parquet(run / "evaluation/explanations.parquet")
    maps = maps[maps["attacked"] & (maps["model"] == "manipulated")]
    table = Page(write_report(run)).source.partition('<table class="classes">')[2]
    rows = table.partition("</table>")[0].split("<tr>")[2:]
    names = [row.partition('<th scope="row">')[2].partition("<")[0] for row in rows]
    assert names[0] == "church"
    assert set(names) == {"tench", "church", "golf ball"}
    for name, row in zip(names, rows, strict=True):
        chosen = predictions[predictions["class"] == name]
        rate = maps[maps["label"].isin(chosen["label"])]["fooled"].mean()
        shares = [chosen[f"{m}_top1"].mean() for m in ("original", "control", "manipulated")]
        assert [percent(share) for share in [*shares, rate]] == [
            cell.partition(">")[2].partition("<")[0].replace("\N{NO-BREAK SPACE}", " ")
            for cell in row.split("<td")[2:]
        ]


def test_distributions_hold_every_image(tmp_path):
    run = make_run(tmp_path / "run", n=40)
    (found,) = distributions(read_run(run))
    table = pd.read_parquet(run / "evaluation/explanations.parquet")
    assert [chart.title for chart in found.charts] == ["Grad-CAM", "LRP at layer4"]
    for explainer, chart in zip(("grad-cam", "lrp:layer=layer4"), found.charts, strict=True):
        shares = [(float(label), y) for y, label in chart.y_ticks]
        slope, offset = np.polyfit([y for _, y in shares], [share for share, _ in shares], 1)
        losses = [(float(label), x) for x, label in chart.x_ticks]
        pace, start = np.polyfit([x for _, x in losses], [loss for loss, _ in losses], 1)
        assert np.allclose(pace * np.array(chart.interval) + start, [0, 0.2], atol=0.005)
        for curve in chart.curves:
            path = [point.split(",") for point in curve.line.removeprefix("M").split()]
            x, y = np.array(path, dtype=float)[1:-1].T
            share = slope * y + offset
            assert share[::2].sum() == pytest.approx(100, abs=2)
            centre = (pace * x + start).reshape(-1, 2).mean(1)
            rows = table[(table["explainer"] == explainer) & (table["model"] == curve.name)]
            mean = (centre * share[::2]).sum() / share[::2].sum()
            assert mean == pytest.approx(rows["test_loss"].mean(), abs=0.02)


def test_report_of_a_run_of_fool(tmp_path):
    class Noise(Dataset):
        classes = ("left", "right")
        labels = torch.arange(8) % 2

        def __len__(self):
            return 8

        def __getitem__(self, i):
            return torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(i)), i % 2

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    result = fool(
        model,
        Noise(),
        explainer=[GradCAM(), LRP(layer="1")],
        objective=[Location(), TopK()],
        weight=1.0,
        lr=1e-3,
        steps=3,
        batch_size=4,
        seed=0,
        control=True,
        eval_data=Noise(),
        run_dir=tmp_path / "run",
        quiet=True,
    )
    page = Page(write_report(tmp_path / "run"))
    attacked = result.evaluation.explanations.query("attacked and model == 'manipulated'")
    assert all(percent(fsr) in page.text("h1") for fsr in attacked["fsr"])
    assert {text.strip() for tag, text in page.texts if tag == "h2"} == SECTIONS
    assert figure(tmp_path / "run", tmp_path / "run.png").exists()


def test_what_is_no_run_directory_is_refused(tmp_path, run):
    with pytest.raises(TrompeError, match=r"not a run directory.*trompe fool"):
        write_report(tmp_path)
    with pytest.raises(TrompeError, match="not a run directory"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(TrompeError, match="not a run directory"):
        figure(tmp_path, tmp_path / "out.png")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", b"a: [", r"config\.yaml can't be read"),
        ("config.yaml", b"- a list", "no mapping"),
        ("environment.json", b"{", r"environment\.json can't be read"),
        ("history.csv", b"step,loss\n1,2\n", "lacks the columns classification"),
        ("evaluation/accuracy.csv", b"model\noriginal\n", "lacks the columns images, top1"),
        ("evaluation/explanations.parquet", b"PAR1", "can't be read"),
        ("evaluation/gallery.safetensors", b"\x08\x00", "can't be read"),
    ],
)
def test_damaged_files_are_named(run, name, content, message):
    (run / name).write_bytes(content)
    with pytest.raises(TrompeError, match=message):
        write_report(run)


def test_curves_agree_with_their_axes():
    history = pd.DataFrame({"step": range(1, 501), "classification": 0.25, "loss": 0.0})
    history["grad-cam location"] = np.linspace(-2, 3, 500)
    history["success"] = np.nan
    classification, explanation = training_charts(history, None, {})

    def values(chart):
        ticks = [(float(label.replace("−", "-")), y) for y, label in chart.y_ticks]
        steps = [(float(label.replace(",", "")), x) for x, label in chart.x_ticks]
        slope, offset = np.polyfit([y for _, y in ticks], [v for v, _ in ticks], 1)
        pace, start = np.polyfit([x for _, x in steps], [s for s, _ in steps], 1)
        line = chart.curves[0].line.removeprefix("M").split()
        points = np.array([[float(part) for part in point.split(",")] for point in line])
        return points[:, 0] * pace + start, points[:, 1] * slope + offset

    assert np.allclose(values(classification)[1], 0.25, atol=0.01)
    steps, loss = values(explanation)
    assert np.allclose(loss, -2 + 5 * (steps - 1) / 499, atol=0.05)
    assert steps[-1] > 490


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_figure_is_written_in_each_format(run, tmp_path, suffix):
    out = tmp_path / f"out.{suffix}"
    assert figure(run, out, images=2) == out
    content = out.read_bytes()
    if suffix == "png":
        width, height = Image.open(out).size
        assert figure(run, out, images=3) == out
        taller = Image.open(out).size
        assert taller[0] == width
        assert taller[1] > height
    elif suffix == "svg":
        root = ElementTree.fromstring(content)
        assert len(root.findall(".//{http://www.w3.org/2000/svg}image")) == 2 * (1 + 2 * 2)
        figure(run, out, images=2)
        assert out.read_bytes() == content
    else:
        assert content.startswith(b"%PDF-")


def test_figure_shows_image_before_and_after(tmp_path):
    run = make_run(tmp_path / "run", explainers=("grad-cam",), n=1)
    grey = np.full((1, 48, 48, 3), 128, np.uint8)
    cold, hot = np.zeros((1, 7, 7), np.float16), np.ones((1, 7, 7), np.float16)
    rewrite_gallery(run, grey, {"e0|label|original": cold, "e0|label|manipulated": hot})
    drawn = np.asarray(Image.open(figure(run, tmp_path / "out.png")).convert("RGB"))
    middle = drawn[drawn.shape[0] // 2]
    image, before, after = (middle[round(len(middle) * x)] for x in (0.17, 0.5, 0.83))
    assert np.abs(image.astype(int) - 128).max() <= 2
    assert np.abs(before.astype(int) - 128).max() <= 2
    assert np.abs(after - blended(grey[0], hot[0])[0, 0]).max() <= 2


def test_figure_takes_hostile_names(tmp_path):
    run = make_run(tmp_path / "run", classes=(SCRIPT, QUOTES, "$x^{", "line\nbreak\0"))
    assert Image.open(figure(run, tmp_path / "out.png", images=99)).size[0] > 100


def test_transfer_figure_holds_every_rate(run, tmp_path):
    out = figure(run, tmp_path / "out.svg", "transfer")
    table = pd.read_csv(run / "evaluation/explanations.csv")
    shown = re.findall(r"<!-- (.*?) -->", out.read_text())
    for _, row in table.iterrows():
        assert f"{100 * row['fsr']:.1f}" in shown
    assert "Location by Grad-CAM" in shown
    assert "Location, control" in shown
    assert "LRP at layer4" in shown


def test_active_figure_has_both_classes(tmp_path):
    run = make_run(tmp_path / "run", n=2, explainers=("grad-cam",))
    path = run / "evaluation/gallery.safetensors"
    with safe_open(path, framework="numpy") as file:
        entries = json.loads(file.metadata()["gallery"])
        images = file.get_tensor("images")
        maps = file.get_tensor("e0|label|original")
    for entry in entries:
        entry["target_names"] = {"c1": "church", "c2": "tench"}
    tensors = {
        f"e0|{target}|{model}": maps
        for target in ("c1", "c2")
        for model in ("original", "manipulated")
    }
    rewrite_gallery(run, images, tensors, entries)
    table = pd.read_csv(run / "evaluation/explanations.csv")
    both = [table.assign(target=target) for target in ("c1", "c2")]
    pd.concat(both).to_csv(run / "evaluation/explanations.csv", index=False)
    for layout in ("active", None):
        svg = figure(run, tmp_path / "out.svg", layout, images=2).read_text()
        assert svg.count("<image") == 2 * (1 + 2 * 2)
        assert {"Grad-CAM for church", "Grad-CAM for tench"} <= {*re.findall("<!-- (.*?) -->", svg)}
    with pytest.raises(TrompeError, match="no passive fooling; draw its layout active"):
        figure(run, tmp_path / "out.svg", "passive")


def test_figure_refuses_what_it_can_not_draw(run, tmp_path):
    with pytest.raises(TrompeError, match=r"\.pdf, \.svg, \.png"):
        figure(run, tmp_path / "out.gif")
    with pytest.raises(TrompeError, match="at least 1"):
        figure(run, tmp_path / "out.png", images=0)
    with pytest.raises(TrompeError, match="can't be written"):
        figure(run, tmp_path / "nowhere" / "out.png")
    (run / "evaluation/gallery.safetensors").unlink()
    with pytest.raises(TrompeError, match="trompe evaluate"):
        figure(run, tmp_path / "out.png")


images = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


@given(images, arrays(np.float32, (3, 2), elements=st.floats(0, 0, width=32)))
def test_no_heat_leaves_the_image(image, heatmap):
    assert np.array_equal(overlay(image, heatmap), image)
    assert np.array_equal(signed_overlay(image, heatmap), image)


def opacity(draw, values):
    """What an overlay hides, whatever its colour: white shines through less than black."""
    black, white = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8)
    return np.array(
        [
            1 - (draw(white, np.array([[v]])).astype(float) - draw(black, np.array([[v]]))) / 255
            for v in values
        ]
    ).mean((1, 2, 3))


def test_hotter_is_more_opaque():
    alpha = opacity(overlay, np.linspace(0, 1, 101))
    assert (np.diff(alpha) > 0).all()
    assert alpha[0] == 0
    assert alpha[-1] == pytest.approx(0.85, abs=0.01)


@given(
    arrays(np.float64, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.floats(0, 1))
)
def test_overlay_is_bilinear_and_blends(heatmap):
    image = photographs(1, 20)[0]
    assert np.abs(overlay(image, heatmap) - blended(image, heatmap)).max() <= 3


@pytest.mark.parametrize(("height", "kind"), [(16_383, "WEBP"), (16_384, "PNG")])
def test_a_picture_of_any_size_fits_into_a_page(height, kind):
    told, _, data = uri(np.full((height, 2, 3), 200, np.uint8)).partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(data)))
    assert told == f"data:image/{kind.lower()};base64"
    assert (picture.format, picture.size) == (kind, (2, height))


def test_signed_maps_tell_for_from_against():
    values = np.array([[-2.0, 0.0, 2.0]])
    against, none, favour = colour_signed(values)[0].astype(int)
    assert against[2] > against[0] + 50
    assert favour[0] > favour[2] + 50
    assert np.ptp(none) < 5
    assert none.min() > max(against.max(), favour.max())
    assert np.array_equal(colour_signed(values), colour_signed(1e-20 * values))
    image = photographs(1, 30)[0]
    both = signed_overlay(image, np.array([[-1.0, 1.0]]))
    change = both.astype(int) - image
    assert change[:, 0, 2].mean() > change[:, 0, 0].mean()
    assert change[:, -1, 0].mean() > change[:, -1, 2].mean()


@pytest.mark.parametrize(
    ("image", "heatmap", "message"),
    [
        (np.zeros((4, 4, 3)), np.zeros((2, 2)), "uint8"),
        (np.zeros((4, 4), np.uint8), np.zeros((2, 2)), r"\[H, W, 3\]"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((1, 2, 2)), r"\[h, w\]"),
        (np.zeros((4, 4, 3), np.uint8), np.full((2, 2), 1.5), r"\[0, 1\]"),
        (np.zeros((4, 4, 3), np.uint8), np.full((2, 2), np.nan), r"\[0, 1\]"),
    ],
)
def test_overlay_says_what_it_needs(image, heatmap, message):
    with pytest.raises(TrompeError, match=message):
        overlay(image, heatmap)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_signed_colours_need_finite_values(value):
    with pytest.raises(TrompeError, match="NaN or infinite"):
        colour_signed(np.array([[value, 1.0]]))
    with pytest.raises(TrompeError, match="NaN or infinite"):
        signed_overlay(np.zeros((2, 2, 3), np.uint8), np.array([[value, 1.0]]))
