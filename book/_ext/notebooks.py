"""The page as a notebook: a download button for it, and launch buttons once there is a public repository.

The notebook is made from the page's source, so it holds no outputs: who runs it sees their own.
"""

from __future__ import annotations

from pathlib import Path

import jupytext


def offer(app, pagename, templatename, context, doctree) -> None:
    """Name the notebook of a page with code to the theme, whose download menu then has it."""
    source = Path(app.env.doc2path(pagename)) if doctree is not None else None
    if app.builder.name == "html" and source is not None and "{code-cell}" in source.read_text():
        context["ipynb_source"] = f"{pagename}.ipynb"


def write(app, pagename, templatename, context, doctree) -> None:
    """Write that notebook beside the sources."""
    if "ipynb_source" in context:
        notebook = jupytext.read(Path(app.env.doc2path(pagename)))
        for i, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{i}"
        target = Path(app.outdir) / "_sources" / context["ipynb_source"]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(jupytext.writes(notebook, "ipynb"))


def no_launch_from_nowhere(app, config) -> None:
    if not config.html_theme_options.get("repository_url"):
        config.html_theme_options["launch_buttons"] = {}


def setup(app) -> dict:
    app.connect("config-inited", no_launch_from_nowhere)
    app.connect("html-page-context", offer, priority=400)  # before the theme draws its buttons, at 500
    app.connect("html-page-context", write, priority=502)  # with launch buttons the theme writes executed ones, at 501
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
