"""Say what unfolds: a folded cell is an exercise's solution, a folded input is the code behind a figure or a table."""

from __future__ import annotations

from docutils import nodes

PROMPTS = {"all": "Show the solution", "input": "Show the code"}


def name(app, doctree) -> None:
    for cell in doctree.findall(nodes.container):
        if cell.get("hide_mode") in PROMPTS:
            cell["prompt_show"] = PROMPTS[cell["hide_mode"]]
            cell["prompt_hide"] = cell["prompt_show"].replace("Show", "Hide")


def speak(app, pagename, templatename, context, doctree) -> None:
    """A screen reader hears the prompt that is seen, not the same label for all, and how many references there are."""
    if doctree is not None:
        body = context["body"].replace(' aria-label="Toggle hidden content"', "")
        context["body"] = body.replace(' role="doc-biblioentry"', ' role="listitem"')  # docutils' role is in no list


def setup(app) -> dict:
    app.connect("doctree-read", name)
    app.connect("html-page-context", speak)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
