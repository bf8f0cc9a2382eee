"""The recommended preset taken to pieces: what each ingredient is, and what it is good for, in scores and besides."""

from __future__ import annotations

import dataclasses

import bookkit
import competition
from IPython.display import HTML, display

from hsetvae.config import PRESETS
from hsetvae.lineup import CORE
from hsetvae.statistics import t_interval

# column -> title, whether more is better (1) or less (-1), unit of the table
MEASURES = {
    "auroc": ("AUROC", 1, 100), "auprc": ("AUPRC", 1, 100), "auroc_6h": ("AUROC at 6 hours", 1, 100),
    "s_past": ("S_past", 1, 1), "negative_elbo": ("negative ELBO (nats per event)", -1, 1),
}  # fmt: skip


def _names() -> dict[str, str]:
    """Ingredient -> its title."""
    left_out = {e: title for e, title in competition.titles("ladder").items() if e.startswith("without ")}
    return {e.removeprefix("without "): title.removeprefix("without ") for e, title in left_out.items()}


def ingredients() -> None:
    """What the ladder takes away and adds, with the settings."""
    arms = {e.name: e for e in competition.suite().design("ladder")[2]}
    lines = []
    for name, title in _names().items():
        whole = dataclasses.asdict(PRESETS[arms[f"without {name}"].preset])
        off = {k: v for k, v in arms[f"without {name}"].settings.items() if v != whole[k]}
        lines.append({"ingredient": title, "with it": bookkit.settings_text({k: whole[k] for k in off}),
                      "without it": bookkit.settings_text(off)})  # fmt: skip
    bookkit.table(lines)


def worth(alone: bool = False) -> None:
    """What each ingredient adds to the whole model (to the model without all of them when `alone`), measure by measure,
    and what it is good and bad for: where the interval, which counts the overlap of the splits, leaves out zero."""
    if not competition.there("ladder"):
        return
    whole = competition.suite().design("ladder")[2][0]
    overlap, lines, idle = competition.suite().overlap(whole), [], []
    for name, title in _names().items():
        one, other = (f"{CORE} + {name}", CORE) if alone else (whole.name, f"without {name}")
        line, good, bad, pairs = {"ingredient": title}, [], [], 0
        for column, (measure, better, unit) in MEASURES.items():
            d = (competition.difference(column, one, other, "ladder") * unit).dropna()
            low, high = sorted(better * bound for bound in t_interval(d, overlap=overlap))
            line[measure], pairs = competition.points(d, overlap), len(d)
            if pairs > 2:
                good += [measure] * (low > 0)
                bad += [measure] * (high < 0)
        if pairs > 2:
            idle += [title] * (not good)
            lines.append(line | {"pairs": pairs, "good for": ", ".join(good), "bad for": ", ".join(bad)})
    if not lines:
        display(HTML("<p>No ingredient has three splits yet, the least that is judged.</p>"))
        return
    bookkit.table(lines)
    said = f"none of these: {', '.join(idle)}" if idle else f"something: all {len(lines)} that are judged"
    display(HTML(f"<p>Good for {said}.</p>"))
