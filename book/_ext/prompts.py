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
    """A screen reader hears the prompt that is seen, and not the same label for all."""
    if doctree is not None:
        context["body"] = context["body"].replace(' aria-label="Toggle hidden content"', "")


def setup(app) -> dict:
    app.connect("doctree-read", name)
    app.connect("html-page-context", speak)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
