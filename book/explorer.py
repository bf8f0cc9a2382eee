"""Pictures that a reader moves through: one figure per setting, chosen by radio buttons.

Nothing but HTML and CSS: it works in the built book, from a file, by keyboard (arrow keys), and in JupyterLab.
"""

from __future__ import annotations

import base64
import html
import io

import matplotlib.pyplot as plt
from IPython.display import HTML, display
from matplotlib.figure import Figure


def svg(figure: Figure) -> str:
    """A figure as the address of an image, the same bytes for the same figure; the figure is closed."""
    content = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "hsetvae"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def explorer(name: str, label: str, frames: dict[str, tuple[Figure, str]], caption: str, start: int = 0) -> None:
    """Show one of `frames` (setting -> figure, text for who cannot see it) at a time, first the one at `start`.

    `name` is unique on the page; `label` says what the settings are.  The text also stands below its figure,
    because what is written in a figure shrinks with it on a phone.
    """
    buttons = "".join(
        f'<label><input type="radio" name="{name}" id="{name}-{i}"{" checked" * (i == start)}> '
        f"{html.escape(setting)}</label>"
        for i, setting in enumerate(frames)
    )
    images = "".join(
        f'<div><img src="{svg(figure)}" alt="{html.escape(alt)}" /><p aria-hidden="true">{html.escape(alt)}</p></div>'
        for figure, alt in frames.values()
    )
    rules = "".join(
        f".explorer:has(#{name}-{i}:checked) figure > div:nth-of-type({i + 1}) {{ display: block }}"
        for i in range(len(frames))
    )
    display(HTML(
        f"<style>.explorer figure > div {{ display: none }} {rules}</style>"
        f'<fieldset class="explorer"><legend>{html.escape(label)}</legend>{buttons}'
        f"<figure>{images}<figcaption>{html.escape(caption)}</figcaption></figure></fieldset>"
    ))  # fmt: skip
