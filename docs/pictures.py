"""Make the documentation's pictures of the demo: its figure, and its report as browsers show it.

make pictures
"""

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from trompe.cli import main
from trompe.report import figure

RESULTS = Path(__file__).parent / "results"
SHOTS = {
    "report-wide": (1280, "light", "header, .exhibit"),
    "report-gallery": (1280, "dark", ".gallery"),
    "report-narrow": (400, "light", "header, .exhibit .tiles"),
}


def shoot(page: Page, selector: str) -> Image.Image:
    """The part of a page from the first to the last element of a selector, at most 990 high."""
    boxes = [box for one in page.locator(selector).all() if (box := one.bounding_box())]
    top = max(0, min(box["y"] for box in boxes) - 24)
    bottom = min(max(box["y"] + box["height"] for box in boxes) + 12, top + 990)
    assert page.viewport_size is not None
    clip = {"x": 0, "y": top, "width": page.viewport_size["width"], "height": bottom - top}
    shot = page.screenshot(full_page=True, clip=clip)
    return Image.open(io.BytesIO(shot))


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture with 256 colours, dithered: a third of the bytes."""
    picture = picture.convert("RGB")
    palette = picture.quantize(256)
    picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def make(run: Path) -> None:
    """Run the demo in ``run`` and draw it."""
    sys.argv = ["trompe", "demo", "--out", str(run)]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
    demo = figure(run, RESULTS / "demo.png", images=3)
    save(Image.open(demo), demo)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, (width, scheme, selector) in SHOTS.items():
            page = browser.new_page(
                viewport={"width": width, "height": 900},
                color_scheme=scheme,
            )
            page.goto((run / "report.html").resolve().as_uri())
            save(shoot(page, selector), RESULTS / f"{name}.png")
        browser.close()


if __name__ == "__main__" and len(sys.argv) > 1:
    make(Path(sys.argv[1]))
elif __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "demo")
