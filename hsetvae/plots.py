"""Every figure: a table in, axes out, nothing computed beyond what a line through dots needs.

Without an axis a figure of phone width is made; the palette can be told apart by colour-blind readers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

WIDTH = 5.0  # inches; on a phone of 390 px the font of 10 points is then still 11 px high
PALETTE = sns.color_palette("colorblind")
LABEL_LETTERS = 26  # letters of a row label before it is wrapped
STRONGEST = 15  # variables in the figure of an explanation
STEPS = "step (updates)"


def _axis(axis: Axes | None, height: float = 3.0) -> Axes:
    return axis if axis is not None else plt.subplots(figsize=(WIDTH, height), layout="constrained")[1]


def _wrapped(labels) -> list[str]:
    return [textwrap.fill(str(label), LABEL_LETTERS) for label in labels]


# --- the study -------------------------------------------------------------------------------------------------------


def forest(summary: pd.DataFrame, replicates: pd.DataFrame, delta: float, unit: str, axis: Axes | None = None) -> Axes:
    """Effects with intervals (summary: label, estimate, low, high), every replicate as a dot (replicates: label,
    difference), and the band ±delta that is too small to matter; first row on top."""
    axis = _axis(axis, 1.0 + 0.55 * len(summary))
    place = {label: i for i, label in enumerate(summary["label"])}
    axis.axvspan(-delta, delta, color="0.9", zorder=0, label=f"±{delta:g}: too small to matter")
    axis.axvline(0, color="0.6", lw=0.8, zorder=1)
    dots = replicates["label"].map(place).astype(float) + 0.22
    axis.scatter(replicates["difference"], dots, s=12, color=PALETTE[7], zorder=2, label="one replicate")
    y, estimate = np.arange(len(summary)), summary["estimate"]
    reach = np.abs(summary[["low", "high"]].T.to_numpy() - estimate.to_numpy())
    axis.errorbar(estimate, y, xerr=reach, fmt="o", color=PALETTE[0], capsize=3, zorder=3, label="mean, 95 % interval")
    axis.set_yticks(y, _wrapped(summary["label"]))
    axis.set(xlabel=f"difference ({unit})", ylim=(len(summary) - 0.5, -0.5))
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    return axis


def paired(table: pd.DataFrame, unit: str, axis: Axes | None = None) -> Axes:
    """Arms side by side, a line for each replicate (replicate, arm, value): what the pairing sees."""
    axis = _axis(axis)
    arms = list(pd.unique(table["arm"]))
    for _, one in table.groupby("replicate", sort=False):
        axis.plot(one["arm"].map(arms.index), one["value"], color="0.7", lw=1, zorder=1)
    for i, arm in enumerate(arms):
        values = table.loc[table["arm"] == arm, "value"]
        axis.scatter(np.full(len(values), i), values, color=PALETTE[i % 10], s=22, zorder=2)
    axis.set_xticks(range(len(arms)), [textwrap.fill(str(arm), 14) for arm in arms])
    axis.set(ylabel=unit, xlim=(-0.4, len(arms) - 0.6), xlabel="arm (a line is a replicate)")
    return axis


def interaction(table: pd.DataFrame, x: str, hue: str, value: str, unit: str, axis: Axes | None = None) -> Axes:
    """Two factors of two levels each: every replicate as a dot, lines through the means.

    Parallel lines: the effect of `x` does not depend on `hue`.
    """
    axis = _axis(axis)
    levels = {factor: list(pd.unique(table[factor])) for factor in (x, hue)}
    for i, level in enumerate(levels[hue]):
        part = table[table[hue] == level]
        place = part[x].map(levels[x].index) + 0.06 * (i - 0.5)
        axis.scatter(place, part[value], s=14, alpha=0.5, color=PALETTE[i])
        mean = part.groupby(place)[value].mean()
        axis.plot(mean.index, mean, "o-", color=PALETTE[i], label=f"{hue} = {level}")
    axis.set_xticks(range(len(levels[x])), [str(level).replace(", ", "\n") for level in levels[x]])
    axis.set(xlabel=x, ylabel=unit, xlim=(-0.4, len(levels[x]) - 0.6))
    axis.legend(fontsize="small", frameon=False)
    return axis


def interaction_grid(table: pd.DataFrame, factor: str, others: Sequence[str], value: str, unit: str) -> np.ndarray:
    """`interaction` of one factor with each of the others, side by side -> axes; a dot is a replicate, as a mean over
    the factors that its panel leaves out."""
    figure, axes = plt.subplots(1, len(others), figsize=(WIDTH, 2.6), sharey=True, squeeze=False, layout="constrained")
    for axis, other in zip(axes.flat, others, strict=True):
        means = table.groupby(["replicate", factor, other], sort=False)[value].mean().reset_index()
        interaction(means, factor, other, value, unit, axis).set_ylabel("")
        axis.legend(fontsize="x-small", frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.supylabel(unit, fontsize="medium")
    return axes.flat[:]


def roadmap(table: pd.DataFrame, unit: str, axis: Axes | None = None) -> Axes:
    """A measure along the steps from one preset to another (order, step, label, replicate, value): the declared order
    (0) with its labels and a dot for each replicate, other orders as thin lines of means."""
    declared = table[table["order"] == 0]
    labels = declared.drop_duplicates("step").set_index("step")["label"].sort_index()
    axis = _axis(axis, 1.2 + 0.24 * len(labels))
    for order, part in table.groupby("order"):
        mean = part.groupby("step")["value"].mean()
        style = {"lw": 1.6, "marker": "o", "ms": 4, "color": PALETTE[0]} if order == 0 else {"lw": 0.9, "color": "0.6"}
        name = "declared order" if order == 0 else "random orders" if order == 1 else None
        axis.plot(mean, mean.index, label=name, zorder=2, **style)
    axis.scatter(declared["value"], declared["step"], s=8, color=PALETTE[7], zorder=1, label="one replicate")
    axis.set_yticks(labels.index, labels)
    axis.set(xlabel=unit, ylim=(len(labels) - 0.5, -0.5))
    axis.figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    return axis


# --- training --------------------------------------------------------------------------------------------------------

CURVES = {  # panel: y label, logarithmic, column of history.csv -> name
    "distortion": ("nats per set", False, {"distortion_current": "current set", "distortion_next": "next set"}),
    "KL": ("nats per set", False, {"kl": "training", "validation_kl": "validation"}),
    "cross-entropy": ("nats per stay", False, {"bce": "training", "validation_bce": "validation"}),
    "gradient": ("norm", True, {"gradient_norm": "before clipping", "gradient_norm_clipped": "after"}),
    "weight": ("weight", False, {"beta": "beta", "reconstruction_weight": "reconstruction", "class_weight": "outcome"}),
}


def _curves(history: pd.DataFrame, columns: dict[str, str], unit: str, axis: Axes) -> Axes:
    for color, (column, name) in zip(cycle(PALETTE), columns.items(), strict=False):
        curve = history[["step", column]].dropna()
        axis.plot(curve["step"], curve[column], ".-", ms=4, color=color, label=name)
    axis.set(xlabel=STEPS, ylabel=unit)
    # above the panel, where no curve runs
    axis.legend(fontsize="small", frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.1)
    return axis


def training_curves(history: pd.DataFrame) -> np.ndarray:
    """Raw terms, gradient norms and weights over the steps of a run (its history.csv) -> axes, one below the other."""
    axes = plt.subplots(len(CURVES), 1, figsize=(WIDTH, 1.9 * len(CURVES)), sharex=True, layout="constrained")[1]
    for axis, (title, (unit, logarithmic, columns)) in zip(axes, CURVES.items(), strict=True):
        _curves(history, {c: name for c, name in columns.items() if c in history}, unit, axis)
        axis.set_title(title, loc="left")
        axis.set_yscale("log" if logarithmic else "linear")
        axis.label_outer()
    return axes


def kl_levels(history: pd.DataFrame, axis: Axes | None = None) -> Axes:
    """KL of each level over the steps, before weight and floor; level 1 is nearest the data."""
    levels = {column: f"level {column[8:]}" for column in history if column.startswith("kl_level")}
    return _curves(history, levels, "KL (nats per set)", _axis(axis))


def gradient_health(history: pd.DataFrame) -> np.ndarray:
    """Norm before and after clipping, and the share of steps that clipping changed -> two axes."""
    axes = plt.subplots(2, 1, figsize=(WIDTH, 4.0), sharex=True, layout="constrained")[1]
    _curves(history, CURVES["gradient"][2], "gradient norm", axes[0]).set_yscale("log")
    names = {"clipped": "share of steps clipped", "gradient_cosine": "cosine, raw and clipped"}
    _curves(history, names, "share, cosine", axes[1]).set_ylim(-0.05, 1.05)
    axes[0].label_outer()
    return axes


# --- diagnosis -------------------------------------------------------------------------------------------------------


def au_spectrum(table: pd.DataFrame, thresholds: Sequence[float], axis: Axes | None = None) -> Axes:
    """Variance of each dimension's posterior mean, sorted (level, network, rank, variance), with the thresholds of
    active units; the untrained network dashed."""
    axis = _axis(axis)
    for (level, network), part in table.groupby(["level", "network"]):
        trained = network == "trained"
        color = PALETTE[(level - 1) % 10]
        style = {"ls": "-", "marker": ".", "ms": 4} if trained else {"ls": "--", "alpha": 0.6}
        axis.plot(part["rank"], part["variance"], color=color, label=f"level {level}, {network}", **style)
    for threshold in thresholds:
        axis.axhline(threshold, color="0.6", lw=0.7, zorder=0)
    axis.set(yscale="log", xlabel="dimension (sorted)", ylabel="variance of the posterior mean\n(squared latent unit)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(fontsize="small", frameon=False)
    return axis


def rate_distortion(table: pd.DataFrame, axis: Axes | None = None) -> Axes:
    """Rate against distortion (label, rate, distortion), one path for each label; a cross marks its end."""
    axis = _axis(axis)
    for color, (label, path) in zip(cycle(PALETTE), table.groupby("label", sort=False), strict=False):
        axis.plot(path["rate"], path["distortion"], ".-", ms=4, color=color, label=label)
        axis.plot(path["rate"].iloc[-1:], path["distortion"].iloc[-1:], "X", ms=9, color=color)
    axis.set(xlabel="rate: KL (nats per set)", ylabel="distortion (nats per set)")
    axis.legend(fontsize="small", frameon=False)
    return axis


def projection(table: pd.DataFrame) -> np.ndarray:
    """z and h on the same two principal axes (state, hours, x, y), coloured by time -> two axes with shared scales."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.9), sharex=True, sharey=True, layout="constrained")
    scale = plt.Normalize(table["hours"].min(), table["hours"].max())
    for axis, state in zip(axes, ("z", "h"), strict=True):
        part = table[table["state"] == state]
        dots = axis.scatter(part["x"], part["y"], c=part["hours"], norm=scale, cmap="cividis", s=9)
        axis.set(title=state, xlabel="axis 1 (no unit)", ylabel="axis 2 (no unit)")
        axis.label_outer()
    figure.colorbar(dots, ax=axes, label="time (hours)", location="bottom", aspect=40, shrink=0.8)
    return axes


def swap_bars(table: pd.DataFrame, axis: Axes | None = None) -> Axes:
    """Shares from 0 to 1 of the trained and of the untrained network side by side (measure, network, value)."""
    axis = _axis(axis, 1.2 + 0.5 * table["measure"].nunique())
    sns.barplot(table, y="measure", x="value", hue="network", palette=[PALETTE[0], "0.75"], ax=axis)
    axis.set_yticks(axis.get_yticks(), _wrapped(pd.unique(table["measure"])))
    axis.set(xlabel="share (0 to 1)", ylabel="")
    axis.legend(fontsize="small", frameon=False)
    return axis


def calibration(table: pd.DataFrame, axis: Axes | None = None) -> Axes:
    """Predicted against observed share of the outcome (predicted, observed, low, high), with 95 % intervals."""
    axis = _axis(axis, 3.4)
    top = 1.05 * max(table["predicted"].max(), table["high"].max())
    axis.plot([0, top], [0, top], color="0.6", lw=0.8, label="perfect")
    reach = np.abs(table[["low", "high"]].T.to_numpy() - table["observed"].to_numpy())
    axis.errorbar(
        table["predicted"],
        table["observed"],
        yerr=reach,
        fmt="o",
        ms=4,
        capsize=2,
        color=PALETTE[0],
        label="bin of stays, 95 % interval",
    )
    axis.set(xlabel="predicted probability (share of stays)", ylabel="observed (share of stays)")
    axis.set(xlim=(0, top), ylim=(0, top))
    axis.legend(fontsize="small", frameon=False)
    return axis


def pooling(table: pd.DataFrame, axis: Axes | None = None) -> Axes:
    """Weights that the outcome head gives to the sets of some stays (stay, hours, weight)."""
    axis = _axis(axis)
    for color, (stay, part) in zip(cycle(PALETTE), table.groupby("stay", sort=False), strict=False):
        axis.plot(part["hours"], part["weight"], ".-", ms=5, lw=0.8, color=color, label=stay)
    axis.set(xlabel="time (hours)", ylabel="weight of the set (share)", ylim=(0, None))
    axis.legend(title="stay", fontsize="small", title_fontsize="small", frameon=False)
    return axis


def over_hours(table: pd.DataFrame) -> np.ndarray:
    """Scores of one run against the hours seen (hours, and auroc, auprc, ece with `_low` and `_high`; ece_expected) ->
    three axes, one below the other; a band is a 95 % interval."""
    names = {"auroc": "AUROC", "auprc": "AUPRC (share)", "ece": "ECE (share)"}
    axes = plt.subplots(len(names), 1, figsize=(WIDTH, 5.4), sharex=True, layout="constrained")[1]
    for axis, (name, label) in zip(axes, names.items(), strict=True):
        low, high = (table[f"{name}_{end}"].astype(float) for end in ("low", "high"))
        axis.fill_between(table["hours"], low, high, color=PALETTE[0], alpha=0.2, lw=0)
        axis.plot(table["hours"], table[name].astype(float), "o-", ms=4, color=PALETTE[0])
        axis.set(xlabel="known of the stay (hours)", ylabel=label)
        axis.set_xticks(table["hours"])
        axis.label_outer()
    style = {"ls": "--", "lw": 1, "color": "0.5", "label": "if all probabilities were true"}
    axes[-1].plot(table["hours"], table["ece_expected"], **style)
    axes[-1].set_ylim(0, None)
    axes[-1].legend(fontsize="small", frameon=False)
    return axes


def contributions(table: pd.DataFrame, axis: Axes | None = None) -> Axes:
    """What drove the prediction of one stay (hours, variable, contribution): red speaks for the outcome, blue against
    it; the variables of the strongest rows, the strongest on top."""
    shown = list(pd.unique(table.sort_values("contribution", key=np.abs, ascending=False)["variable"]))[:STRONGEST]
    part = table[table["variable"].isin(shown)]
    axis = _axis(axis, 1.2 + 0.2 * len(shown))
    reach = max(part["contribution"].abs().max(), 1e-9)
    dots = axis.scatter(
        part["hours"], part["variable"].map(shown.index), c=part["contribution"], cmap="vlag", vmin=-reach, vmax=reach,
        s=26, edgecolor="0.4", linewidth=0.4,
    )  # fmt: skip
    axis.set_yticks(range(len(shown)), [name.replace("$", r"\$") for name in shown])
    axis.set(xlabel="time (hours)", ylabel="variable", ylim=(len(shown) - 0.5, -0.5))
    label = "contribution to the prediction (logit)"
    axis.figure.colorbar(dots, ax=axis, label=label, location="bottom", aspect=40, shrink=0.8)
    return axis
