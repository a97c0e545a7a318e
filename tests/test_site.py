"""The built site: every link and anchor leads somewhere, notebooks and search are there."""

import json
import logging
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parent.parent
SITE = ROOT / "build" / "site"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
KINDS = ("css", "csv", "ipynb", "js", "md", "png", "py")
READ = [path for kind in KINDS for path in (ROOT / "docs").rglob(f"*.{kind}")]
READ += [ROOT / "mkdocs.yml", *(ROOT / "src").rglob("*.py")]


class Page(HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        of = dict(attrs)
        self.ids |= {of[key] for key in ("id", "name") if of.get(key)}
        self.links += [of[key] for key in ("href", "src") if of.get(key)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Of the site that `make docs` built, or of a new one if that is older than what it is of."""
    index, site = SITE / "index.html", SITE
    if not index.exists() or index.stat().st_mtime < max(path.stat().st_mtime for path in READ):
        site = tmp_path_factory.mktemp("site")
        logging.getLogger("mkdocs").setLevel(logging.ERROR)
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(site)))
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_link_and_anchor_leads_somewhere(pages):
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https"):
                well = "." in parts.netloc and " " not in link
            elif parts.scheme:
                well = parts.scheme in ("data", "mailto")
            elif path.name == "404.html":
                well = True  # its links start from wherever it is shown
            else:
                to = (path.parent / unquote(parts.path)).resolve() if parts.path else path
                known = pages[to].ids if to in pages else set()
                well = to.exists() and (not parts.fragment or unquote(parts.fragment) in known)
            if not well:
                dead.append(f"{path.name}: {link}")
    assert not dead
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_notebooks_are_pages_with_their_pictures(pages):
    names = {path.stem for path in (ROOT / "docs" / "notebooks").glob("*.ipynb")}
    found = {path.stem: page for path, page in pages.items() if path.parent.name == "notebooks"}
    assert found.keys() == names
    for page in found.values():
        assert any(link.startswith("data:image/png;base64,") for link in page.links)


def test_search_knows_every_page(pages):
    (site,) = {path.parent for path in pages if path.name == "404.html"}
    found = json.loads((site / "search" / "search_index.json").read_text())["docs"]
    pages_of = {entry["location"].partition("#")[0] for entry in found}
    assert pages_of == {str(p.relative_to(site)) for p in pages if p.name != "404.html"}


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
def test_pages_opened_from_disk_are_searched_and_fetch_nothing(pages):
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the playwright package")
    (index,) = (path for path in pages if path.parent.name == "how-to" and path.stem == "own-data")
    fetched = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(index.as_uri())
        page.get_by_role("textbox", name="Search").click()
        page.keyboard.type("faintness")
        page.locator("a.md-search-result__link[href*='explanation/method.html']").first.wait_for()
    assert not [url for url in fetched if not url.startswith(("file:", "data:"))]
