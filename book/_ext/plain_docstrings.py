"""Docstrings are plain text with `code` in backticks; escape what reStructuredText would read as markup."""

from __future__ import annotations

import re


def escape(app, what, name, obj, options, lines: list[str]) -> None:
    for i, line in enumerate(lines):
        parts = re.split(r"(`[^`]+`)", line)
        parts[0::2] = [re.sub(r"([*|\\])|(?<=\w)_(?=\W|$)", lambda m: "\\" + m[0], text) for text in parts[0::2]]
        parts[1::2] = [f"`{code}`" for code in parts[1::2]]
        lines[i] = "".join(parts)


def setup(app) -> dict:
    app.connect("autodoc-process-docstring", escape)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
