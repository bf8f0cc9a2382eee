"""The report of a diagnosis: advice with its evidence, every measure beside the untrained network's, figures."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from . import plots
from .advice import advise, tried
from .diagnostics import THRESHOLDS
from .files import write_atomically

MEASURES = {  # title and unit: name in the measures
    "active units (share of dimensions)": "au_ratio",
    "collapsed dimensions (share)": "collapsed",
    "KL (nats per set)": "kl",
    "mutual information of z and the set (nats)": "mi",
    "z is worth to the decoder of the current set (nats per set)": "decoder_use_current",
    "z is worth to the decoder of the next set (nats per set)": "decoder_use_next",
    "dimensions at the free-bits floor (share)": "at_floor",
    "mean sigma of the posterior (a dead one has the prior's, so it says nothing about collapse)": "mean_sigma",
    "h moves with the past of another stay (share of the squared distance between stays)": "s_past",
    "h moves with the current set of another stay (share of the squared distance between stays)": "s_cur",
    "h moves with posterior noise (share of the squared distance between stays)": "noise_share",
    "h knows past facts better than z (difference of R²)": "probe_gain",
    "the same for facts dealt out at random (difference of R², 0 is right)": "probe_control_gain",
    "similarity of z and h (debiased CKA)": "zh_cka",
    "size of what the history adds to its input (ratio of norms)": "update_size",
    "true latent state read from z (R²)": "state_z",
    "true latent state read from h (R²)": "state_h",
    "sets that the outcome head looks at": "effective_sets",
}
LEVELS = {
    "active": "au_ratio", "active beyond the prior (dimensions)": "au_beyond_prior", "KL (nats)": "kl",
    "mutual information (nats)": "mi", "mean sigma": "mean_sigma", "worth, current (nats)": "decoder_use_current",
    "worth, next (nats)": "decoder_use_next", "at floor": "at_floor",
}  # fmt: skip

VALUES = (
    "Mean absolute error in natural units: of the model, of the last value of the stay carried forward, of the mean "
    "over the training stays. Skill is 1 − error of the model / that of the better of the two others: above 0 the "
    "model is worth asking."
)


def write_report(run, measures: dict, folder: str | os.PathLike, skill: pd.DataFrame | None = None) -> Path:
    """Write report.md, its figures and measures.json to `folder` -> the path of report.md.

    `measures` is what `diagnose` returned for `run`; the table of `skill` adds a section, and skill.csv.
    Raises UserError when the folder cannot be written.
    """
    folder = Path(folder)
    parts = [
        f"# Diagnosis of {run.folder.name}",
        f"{measures['stays']} stays that the run has not seen, with {measures['sets']} sets; the untrained network is "
        "the same one before its first step.",
        "## Advice",
        _advice(measures),
        "## Measures",
        _measures(measures),
        "## Levels",
        "Level 1 is nearest the data.",
        _levels(measures),
        *([] if skill is None else ["## Values", VALUES, _values(skill)]),
        "## Figures",
    ]
    for name, (text, draw) in FIGURES.items():
        axes = draw(run, measures)
        if axes is not None:
            parts.append(f"![{text}]({name}.png)\n\n*{text}*")
            write_atomically(folder / f"{name}.png", png(axes))
    if skill is not None:
        write_atomically(folder / "skill.csv", skill.to_csv(index=False).encode())
    write_atomically(folder / "measures.json", json.dumps(measures, indent=1).encode())
    write_atomically(folder / "report.md", "\n\n".join([*parts, ""]).encode())
    return folder / "report.md"


def png(axes) -> bytes:
    """A figure as a file, from its axis or axes; it is closed."""
    figure, buffer = np.ravel(axes)[0].figure, io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    plt.close(figure)
    return buffer.getvalue()


# --- text ------------------------------------------------------------------------------------------------------------


def _advice(measures: dict) -> str:
    advice = advise(measures)
    if not advice:
        return "No rule applies: nothing that is measured here calls for a change."
    told = [
        f"{a.rank}. **{a.finding}**\n   Evidence: {a.evidence}.\n   {tried(a.remedy)}"
        + (f"\n\n   `{a.command}`" if a.command else "")
        for a in advice
    ]
    needs = (
        "A command trains the same run with one change; add `--outcomes`, `--fit` and `--score` where the run had them."
    )
    return "\n\n".join([needs, *told])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _measures(measures: dict) -> str:
    before, scores = measures["untrained"], measures["scores"]
    rows = [
        [title, _number(measures[name]), _number(before[name])] for title, name in MEASURES.items() if name in measures
    ]
    for name in ("auroc", "auprc", "brier", "ece") if scores else ():
        reach = f"{_number(scores[name])} [{_number(scores[f'{name}_low'])}, {_number(scores[f'{name}_high'])}]"
        rows.append([f"{name.upper() if name != 'brier' else 'Brier score'} of the outcome", reach, ""])
    gradient = measures["gradient"]
    rows += [
        ["steps that clipping changed (share)", _number(gradient["clipped"]), ""],
        ["cosine of the raw and the clipped gradient", _number(gradient["cosine"]), ""],
        ["largest over median gradient norm", _number(gradient["largest_over_median"]), ""],
        ["steps skipped because they were not finite", f"{gradient['skipped']:.0f}", ""],
    ]
    cap = f"Mutual information cannot exceed ln {measures['mi_sets']} = {measures['mi_cap']:.2f} nats here."
    return _table(["measure", "trained", "untrained"], rows) + f"\n\n{cap}"


def _levels(measures: dict) -> str:
    shown = {title: name for title, name in LEVELS.items() if name in measures["levels"][0]}
    rows = [[str(level["level"]), *(_number(level[name]) for name in shown.values())] for level in measures["levels"]]
    return _table(["level", *shown], rows)


def _values(skill: pd.DataFrame) -> str:
    rows = [
        [row.task, row.variable, str(row.n), *(f"{x:.3g}" for x in (row.model, row.last, row.mean)), _number(row.skill)]
        for row in skill.astype({"skill": object}).where(skill.notna(), None).itertuples()
    ]
    return _table(["task", "variable", "values", "model", "last value", "mean", "skill"], rows)


# --- figures ---------------------------------------------------------------------------------------------------------


def _spectrum(run, measures: dict):
    networks = {"trained": measures, "untrained": measures["untrained"]}
    rows = [
        {"level": level["level"], "network": name, "rank": rank, "variance": variance}
        for name, network in networks.items()
        for level in network["levels"]
        for rank, variance in enumerate(sorted(level["variance_dimensions"], reverse=True), start=1)
    ]
    return plots.au_spectrum(pd.DataFrame(rows), THRESHOLDS)


def _rate_distortion(run, measures: dict):
    rows = [
        pd.DataFrame({"label": f"{which} set", "rate": seen["validation_kl"], "distortion": seen[column]})
        for which in ("current", "next")
        if f"distortion_{which}" in measures
        for column in [f"validation_distortion_{which}"]
        for seen in [run.history.dropna(subset=["validation_kl", column])]
    ]
    return plots.rate_distortion(pd.concat(rows, ignore_index=True))


def _swaps(run, measures: dict):
    titles = {
        "s_past": "past of another stay",
        "s_cur": "current set of another stay",
        "noise_share": "posterior noise",
    }
    rows = [
        {"measure": title, "network": name, "value": network[measure]}
        for measure, title in titles.items()
        for name, network in (("trained", measures), ("untrained", measures["untrained"]))
        if network[measure] is not None
    ]
    return plots.swap_bars(pd.DataFrame(rows)) if rows else None


def _calibration(run, measures: dict):
    return None if measures["calibration"] is None else plots.calibration(pd.DataFrame(measures["calibration"]))


FIGURES = {  # file name: caption, and the function that draws it or has nothing to draw (None)
    "spectrum": (
        "Variance of the posterior mean of every dimension; a line is a threshold of active units.",
        _spectrum,
    ),
    "kl": ("KL of each level during training, before weight and floor.", lambda run, m: plots.kl_levels(run.history)),
    "rate_distortion": (
        "Rate and distortion on validation stays during training; a cross marks the end.",
        _rate_distortion,
    ),
    "swaps": ("What moves h, as a share of the squared distance between stays.", _swaps),
    "projection": (
        "Sets before (z) and after (h) the history, on shared axes, coloured by time.",
        lambda run, m: plots.projection(pd.DataFrame(m["figures"]["projection"])),
    ),
    "pooling": (
        "Weights that the outcome head gives to the sets of the longest stays.",
        lambda run, m: plots.pooling(pd.DataFrame(m["figures"]["pooling"])),
    ),
    "calibration": ("Predicted and observed share of the outcome.", _calibration),
    "gradient": ("Norm of the gradient before and after clipping.", lambda run, m: plots.gradient_health(run.history)),
    "training": ("Raw terms, gradient and weights during training.", lambda run, m: plots.training_curves(run.history)),
}
