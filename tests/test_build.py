"""The book builds strictly, needs no other host, and a broken page breaks the build."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.xdist_group("book")  # one process builds `html` for all of them
EXECUTED = ("index", "ablations/beta")  # here; `make book` executes every page, strictly as well


def copy_book(folder: Path) -> Path:
    """A copy of the book's sources in `folder`, with the package and the study where the pages look for them."""
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns("_build", "__pycache__"))
    for name in ("hsetvae", "ablations"):
        (folder / name).symlink_to(ROOT / name)
    return folder / "book"


def build(book: Path) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(book), "-W", "-n", "--keep-going"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    book = copy_book(tmp_path_factory.mktemp("copy"))
    config = yaml.safe_load((book / "_config.yml").read_text())
    pages = [path.relative_to(book).with_suffix("").as_posix() for path in book.rglob("*.md")]
    config["execute"]["exclude_patterns"] = [f"{page}.md" for page in pages if page not in EXECUTED]
    # a page that is not executed has no kernel that would say that `!command` is IPython
    config["sphinx"]["config"]["suppress_warnings"] = ["misc.highlighting_failure"]
    (book / "_config.yml").write_text(yaml.safe_dump(config))
    built = build(book)
    assert built.returncode == 0, built.stdout[-5000:] + built.stderr[-5000:]
    return book / "_build" / "html"


@pytest.mark.slow
def test_every_page_is_built_without_a_warning(html):
    for page in (ROOT / "book").glob("[a-z]*/*.md"):
        assert (html / page.relative_to(ROOT / "book").with_suffix(".html")).is_file()
    assert (html / "index.html").is_file()


@pytest.mark.slow
def test_no_page_loads_anything_from_another_host(html):
    loads = re.compile(r'<(?:script|img|iframe|source)[^>]+src="(?:https?:)?//|<link[^>]+href="(?:https?:)?//|@import')
    for page in html.rglob("*.html"):
        assert not loads.search(page.read_text()), page.name
    assert (html / "_static" / "mathjax" / "tex-chtml.js").is_file()


@pytest.mark.slow
def test_a_page_with_code_can_be_taken_along_as_a_notebook_without_outputs(html):
    for name in ("history", *EXECUTED):
        assert f"_sources/{name}.ipynb" in (html / f"{name}.html").read_text()
        notebook = json.loads((html / "_sources" / f"{name}.ipynb").read_text())
        assert not any(cell.get("outputs") for cell in notebook["cells"])


@pytest.mark.slow
def test_launch_buttons_come_with_the_address_of_a_public_repository_and_not_before(html):
    config = yaml.safe_load((ROOT / "book" / "_config.yml").read_text())["sphinx"]["config"]
    public = bool(config["html_theme_options"]["repository_url"])
    assert public == ("mybinder.org" in (html / "history.html").read_text())


def write_only_page(book: Path, title: str, code: str) -> None:
    """Make a page with one cell the whole book."""
    (book / "_toc.yml").write_text("format: jb-book\nroot: only\n")
    header = (book / "index.md").read_text().split("\n\n")[0]
    (book / "only.md").write_text(f"{header}\n\n# {title}\n\n```{{code-cell}} ipython3\n{code}\n```\n")


@pytest.mark.slow
def test_a_page_that_fails_breaks_the_build(tmp_path):
    book = copy_book(tmp_path)
    write_only_page(book, "Broken", "assert False, 'a claim that no longer holds'")
    assert build(book).returncode != 0


@pytest.mark.slow
def test_a_page_is_executed_again_although_its_own_code_is_the_same(tmp_path):
    book = copy_book(tmp_path)
    for said in ("first", "second"):
        write_only_page(book, f"The {said} edition", "print(open('said.txt').read())")
        (book / "said.txt").write_text(f"read in the {said}")
        built = build(book)
        assert built.returncode == 0, built.stdout[-5000:] + built.stderr[-5000:]
        assert f"read in the {said}" in (book / "_build" / "html" / "only.html").read_text()


@pytest.fixture
def chrome():
    """A browser, where there is one."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium on the PATH")
    with playwright.sync_playwright() as play:
        yield play.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (768, "light"), (390, "dark")])
def test_pages_are_quiet_and_fit_in_a_browser(html, chrome, width, scheme):
    found, context = [], chrome.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for name in ("index", "objective", "full_run", "ablations/beta", "api/index"):
        page = context.new_page()
        page.on("request", lambda r, n=name: r.url.startswith("http") and found.append(f"{n}: asks {r.url}"))
        # the theme logs what it does; a warning or an error is a defect
        page.on("console", lambda m, n=name: m.type in ("warning", "error") and found.append(f"{n}: {m.text}"))
        page.on("pageerror", lambda e, n=name: found.append(f"{n}: {e}"))
        page.goto((html / f"{name}.html").as_uri(), wait_until="load")
        page.wait_for_timeout(500)
        if page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth + 1"):
            found.append(f"{name}: scrolls sideways")
        page.close()
    assert not found


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "dark")])
def test_pages_break_no_rule_of_accessibility_that_a_machine_can_check(html, chrome, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python").Axe()
    rules = {"region": {"enabled": False}}  # the theme's side bar is no landmark
    tags = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21aa", "best-practice"]}
    found, context = [], chrome.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    for name in ("index", "objective", "ablations/beta", "api/index", "bibliography"):
        page = context.new_page()
        page.goto((html / f"{name}.html").as_uri(), wait_until="load")
        page.evaluate("document.querySelectorAll('details').forEach(folded => { folded.open = true })")
        page.wait_for_timeout(1000)  # what unfolds fades in
        result = axe.run(page, options={"runOnly": tags, "rules": rules, "resultTypes": ["violations"]})
        found += [f"{name}: {v['id']}, {v['nodes'][0]['html']}" for v in result.response["violations"]]
        page.close()
    assert not found
