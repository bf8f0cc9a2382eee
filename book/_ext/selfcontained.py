"""Put MathJax beside the book's pages, so that formulas need no other host; and search quietly in a book on a disk.

The wheel `sphinx-mathjax-offline` carries 24 MB of MathJax; a page with TeX input and HTML output loads one script and
the fonts it names, 1.6 MB.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path

# Excerpts below search hits are fetched page by page, which browsers refuse between files.
QUIET_SEARCH = "if (location.protocol === 'file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false"
# A formula that is wider than the page scrolls inside its line; with a tab stop it does so by keyboard too.
REACHABLE_FORMULAS = """addEventListener('load', () => window.MathJax?.startup?.promise.then(() => {
  for (const formula of document.querySelectorAll('mjx-container[display=true]'))
    if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0
}))"""
PARTS = ("tex-chtml.js", "output/chtml/fonts")


def copy_mathjax(app, exception) -> None:
    if exception or app.builder.format != "html":
        return
    wheel = importlib.metadata.distribution("sphinx-mathjax-offline")
    source = Path(wheel.locate_file("sphinx-mathjax-offline/static/mathjax"))
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in PARTS:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)  # a second build finds the first one's
        else:
            shutil.copy2(source / part, target / part)


def setup(app) -> dict:
    app.connect("build-finished", copy_mathjax)
    app.add_js_file(None, body=QUIET_SEARCH)
    app.add_js_file(None, body=REACHABLE_FORMULAS)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
