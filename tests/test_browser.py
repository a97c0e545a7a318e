"""The report as a browser shows it, and as someone uses it."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file

from tests.runs import IMAGE, QUOTES, SCRIPT, make_run
from trompe import Shapes
from trompe.experiments import SECTIONS, load_grid
from trompe.models.embedded import packaged_weights
from trompe.report import overlay, signed_overlay, write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SHARED = Path(__file__).parents[2] / "shared"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser):
    """Open a file; what the page should not do is collected in ``page.faults``."""
    contexts = []

    def open_page(path, width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        context.set_default_timeout(5000)
        page = context.new_page()
        page.faults = []
        page.on("console", lambda m: m.type in ("error", "warning") and page.faults.append(m.text))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("dialog", lambda dialog: (page.faults.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: (
                request.url.partition(":")[0] not in ("data", "blob")
                and request.url != path.as_uri()
                and page.faults.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A run whose maps and losses are known."""
    path = make_run(tmp_path_factory.mktemp("drawn") / "run", n=14)
    write_report(path)
    return path


def fooled(trompe, out, *words):
    """A small run of the command line, with everything a report can hold."""
    code, _, err = trompe("fool", *words, "--control", "--out", out, "--quiet")
    assert code == 0, err
    return out


def demo(trompe, out):
    words = ["--model", "embedded", "--data", "shapes:train", "--eval-data", "shapes:validation"]
    words += ["--limit", 64, "--eval-limit", 24, "--steps", 6, "--lr", 1e-3, "--no-check"]
    return fooled(trompe, out, *words)


def imagenette(trompe, out):
    data, weights = SHARED / "data/imagenette", SHARED / "models/resnet18-imagenette.safetensors"
    if not data.is_dir() or not weights.is_file():
        pytest.skip(f"needs Imagenette in {data} and {weights}")
    words = ["--model", "resnet18", "--num-classes", 10, "--weights", weights, "--no-check"]
    words += ["--data", data / "train-00000-of-00004.parquet", "--limit", 10, "--steps", 1]
    words += ["--eval-data", data / "validation-00000-of-00001.parquet", "--eval-limit", 6]
    return fooled(trompe, out, *words, "--batch-size", 2, "--gallery", 6)


def grid(trompe, out):
    """Cells run here, one after another; `reproduce` finds them finished."""
    cells = ["control-densenet121", "location-grad-cam-densenet121", "active-lrp-t-densenet121"]
    given = {"steps": 2, "limit": 32, "eval_limit": 16, "eval_pairs": 3}
    for cell in load_grid("embedded", given=given).chosen(SECTIONS, cells):
        config = out.parent / f"{cell.name}.yaml"
        settings = cell.job(out).model_dump(mode="json", exclude_unset=True)
        config.write_text(yaml.safe_dump({**settings, "quiet": True}))
        code, _, err = trompe(cell.command, "--config", config, "--out", out / cell.folder)
        assert code == 0, err
    options = [("--cells", c) for c in cells] + [("--set", f"{k}={v}") for k, v in given.items()]
    code, _, err = trompe(
        *("reproduce", "--scale", "embedded", "--out", out), *(w for pair in options for w in pair)
    )
    assert code == 0, err
    return out


def audit(trompe, out):
    """The audit of a model against itself, on files and a class with hostile names."""
    photos, images = out.parent / "photos" / IMAGE, Shapes("validation", size=16)
    photos.mkdir(parents=True)
    for row in range(16):
        images.picture(row).save(photos / f"{row}{IMAGE}.png")
    words = ["embedded", "--reference", packaged_weights("embedded"), "--data", photos.parent]
    words += ["--explainer", "grad-cam", "--explainer", "lrp-t", "--out", out, "--quiet"]
    code, _, err = trompe("audit", *words)
    assert code == 0, err
    return out


VIEWS = {"grad-cam": "e0", "lrp:layer=layer4": "e1"}
LIGHT, DARK = "light", "dark"


@pytest.mark.parametrize(
    ("made", "looks"),
    [
        (demo, [(1280, LIGHT), (1280, DARK), (400, LIGHT), (400, DARK)]),
        (imagenette, [(1280, DARK), (400, LIGHT)]),
        (grid, [(1280, LIGHT), (400, DARK)]),
        (audit, [(1280, DARK), (400, LIGHT)]),
    ],
)
def test_a_report_is_sound_in_every_theme_and_width(made, looks, trompe, tmp_path, visit):
    report = made(trompe, tmp_path / "run") / "report.html"
    for width, scheme in looks:
        page = visit(report, width, color_scheme=scheme)
        check_sound(page)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (max(map(int, ground[4:-1].split(","))) < 60) == (scheme == DARK)


def check_sound(page):
    """No fault, nothing wider than the page, nothing that axe-core calls serious."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    slivers = "[...document.querySelectorAll('th, td')].filter(e => e.innerText.length > 12"
    slivers += " && e.offsetWidth && e.offsetWidth < 40).map(e => e.innerText)"
    assert page.evaluate(slivers) == []
    found = axe.Axe().run(page).response["violations"]
    serious = [fault for fault in found if fault["impact"] in ("serious", "critical")]
    assert not serious, json.dumps(serious, indent=1)[:3000]
    assert not page.faults


def shot(locator):
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def expected(run, index, view, model, shape):
    """A heatmap over its image by the Python that draws figures, at the size of a screenshot."""
    tensors = load_file(run / "evaluation" / "gallery.safetensors")
    size = shape[1], shape[0]
    image = Image.fromarray(tensors["images"][index]).resize(size, Image.Resampling.BILINEAR)
    heatmap = tensors[f"{VIEWS[view]}|label|{model}"][index].astype(np.float32)
    return overlay(np.asarray(image), heatmap).astype(int)


def card(page, number):
    return page.locator(".card", has=page.locator(f"text=/^image-{number}.jpeg/"))


def inner(picture):
    """Without the rounded corners and the handle of the divider."""
    height, width = picture.shape[:2]
    return picture[8 : height - 45, 8 : width - 8]


def nearest(picture, candidates):
    distance = {
        name: np.abs(inner(picture) - inner(drawn)).mean() for name, drawn in candidates.items()
    }
    name = min(distance, key=distance.get)
    assert distance[name] < 12, distance
    return name


def test_divider_and_choices_show_the_heatmap_of_the_model_and_explainer(drawn, visit):
    page = visit(drawn / "report.html")
    number = 3
    stage = card(page, number).locator(".compare")
    divider = stage.locator("input")
    pictures = {
        (view, model): expected(drawn, number, view, model, shot(stage).shape)
        for view in ("grad-cam", "lrp:layer=layer4")
        for model in ("original", "control", "manipulated")
    }

    def show(**chosen):
        for name, value in chosen.items():
            page.locator(f"input[name={name}][value='{value}']").check()
        return nearest(shot(stage), pictures)

    divider.focus()
    page.keyboard.press("End")
    assert show() == ("grad-cam", "original")
    divider.focus()
    page.keyboard.press("Home")
    assert show() == ("grad-cam", "manipulated")
    assert show(against="control") == ("grad-cam", "control")
    assert show(view=1) == ("lrp:layer=layer4", "control")
    assert show(against="manipulated") == ("lrp:layer=layer4", "manipulated")

    box = stage.bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.5 * box["height"])
    mixed = shot(stage)
    middle = 3 * mixed.shape[1] // 4
    left, right = (pictures["lrp:layer=layer4", m] for m in ("original", "manipulated"))
    assert np.abs(inner(mixed)[:, : middle - 20] - inner(left)[:, : middle - 20]).mean() < 8
    assert np.abs(inner(mixed)[:, middle:] - inner(right)[:, middle:]).mean() < 8

    page.locator("input[name=split]").focus()
    page.keyboard.press("End")
    assert {int(d.input_value()) for d in page.locator(".compare input").all()} == {100}
    assert nearest(shot(stage), pictures) == ("lrp:layer=layer4", "original")
    page.locator("input[name=opacity]").focus()
    page.keyboard.press("Home")
    gallery = load_file(drawn / "evaluation" / "gallery.safetensors")
    images = gallery["images"]
    size = mixed.shape[1], mixed.shape[0]
    bare = np.asarray(Image.fromarray(images[number]).resize(size, Image.Resampling.BILINEAR))
    brightness = inner(shot(stage)).mean(2) - inner(bare).mean(2)
    assert np.abs(brightness).mean() < 6

    page.keyboard.press("End")
    page.locator("input[name=colours][value=signed]").check()
    assert page.locator(".of-signed").is_visible()
    signed = gallery["e1|label|original|signed"][number]
    pictures["signed"] = signed_overlay(bare, signed.astype(np.float64)).astype(int)
    assert nearest(shot(stage), pictures) == "signed"
    assert show(view=0) == ("grad-cam", "original")
    assert not page.locator(".of-signed").is_visible()
    assert not page.get_by_text("For and against").is_visible()
    assert not page.faults


@pytest.mark.parametrize("view", [0, 1])
def test_best_and_worst_lies_are_one_click_away(drawn, visit, view):
    page = visit(drawn / "report.html")
    table = pd.read_parquet(drawn / "evaluation" / "explanations.parquet")
    explainer = ("grad-cam", "lrp:layer=layer4")[view]
    losses = table[(table["model"] == "manipulated") & (table["explainer"] == explainer)]
    order = [f"image-{i}.jpeg" for i in losses.sort_values("test_loss")["index"]]

    def names():
        return [
            text.strip()
            for text in page.locator(".card:visible figcaption p small").all_inner_texts()
        ]

    assert names() == [f"image-{i}.jpeg" for i in range(12)]
    page.locator(f".view-{view}").check()
    page.get_by_label("Best lies first").check()
    assert names() == order[:12]
    page.get_by_label("Worst lies first").check()
    assert names() == order[::-1][:12]
    page.get_by_text("Show all 14 images").click()
    assert names() == order[::-1]
    page.get_by_label("As drawn").check()
    assert names() == [f"image-{i}.jpeg" for i in range(14)]
    assert not page.faults


def test_high_losses_are_good_lies_where_the_interval_says_so(tmp_path, visit):
    run = make_run(tmp_path / "run", n=5)
    for name in ("explanations.csv", "explanations.parquet"):
        path = run / "evaluation" / name
        read, write = (
            (pd.read_csv, pd.DataFrame.to_csv)
            if path.suffix == ".csv"
            else (pd.read_parquet, pd.DataFrame.to_parquet)
        )
        write(read(path).assign(objective="active:c1=0,c2=1", interval_low=0.5), path)
    page = visit(write_report(run))
    page.get_by_label("Best lies first").check()
    losses = [
        float(text.split("loss ")[1].split()[0])
        for text in page.locator(".card dd").all_inner_texts()
        if "loss" in text
    ]
    shown = losses[1::2]
    assert len(shown) == 5
    assert shown == sorted(shown, reverse=True)


def test_without_scripts_and_on_paper_everything_is_side_by_side(drawn, visit):
    pages = [visit(drawn / "report.html", java_script_enabled=False), visit(drawn / "report.html")]
    pages[1].emulate_media(media="print")
    for page in pages:
        side = card(page, 3).locator(".side")
        assert side.is_visible()
        assert not page.locator(".compare").first.is_visible()
        assert not page.get_by_text("All dividers").is_visible()
        picture = side.locator(".of-control .stage")
        pictures = {
            model: expected(drawn, 3, "grad-cam", model, shot(picture).shape)
            for model in ("original", "control", "manipulated")
        }
        for model in pictures:
            assert nearest(shot(side.locator(f".of-{model} .stage")), pictures) == model
    pages[0].locator(".view-1").check()
    picture = shot(card(pages[0], 3).locator(".of-control .stage"))
    pictures = {
        view: expected(drawn, 3, view, "control", picture.shape)
        for view in ("grad-cam", "lrp:layer=layer4")
    }
    assert nearest(picture, pictures) == "lrp:layer=layer4"
    assert len(pages[1].pdf()) > 10_000


def test_hostile_text_stays_text(tmp_path, visit):
    run = make_run(
        tmp_path / "<img src=y onerror=alert(3)>",
        explainers=("grad-cam", f"mine:{SCRIPT}"),
        classes=(SCRIPT, IMAGE, QUOTES),
        names="{}" + IMAGE,
        config={"model": SCRIPT, "data": IMAGE, SCRIPT: [QUOTES]},
        command=f"trompe fool {SCRIPT} {IMAGE}",
    )
    page = visit(write_report(run))
    page.get_by_label("Worst lies first").check()
    assert not page.faults
    assert page.locator("script").count() == 1
    assert page.locator("img").count() == 0
    assert SCRIPT in page.locator("pre").last.inner_text()
    assert {SCRIPT, IMAGE, QUOTES} >= set(page.locator(".card figcaption p b").all_inner_texts())
    assert IMAGE in page.locator(".card .compare input").first.get_attribute("aria-label")
    check_sound(page)


def test_the_policy_stops_foreign_scripts(drawn, visit, tmp_path):
    page_text = (drawn / "report.html").read_text()
    path = tmp_path / "changed.html"
    path.write_text(page_text.replace("</main>", "<script>document.title = 'run'</script></main>"))
    page = visit(path)
    assert page.title() != "run"
    assert any("Content Security Policy" in fault for fault in page.faults)
