"""Figures of the suite of models on Challenge 2012, from the published records."""

from __future__ import annotations

import bookkit
import competition
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from hsetvae import plots
from hsetvae.calibration import HOURS
from hsetvae.lineup import CORE
from hsetvae.standings import METRICS
from hsetvae.statistics import compare

MARKERS = "osd^v"  # of entrants, beside their colours


def forest(metric: str, delta: float, design: str = "table") -> None:
    """Paired differences of one metric, every split a dot."""
    if competition.there(design):
        name, _, unit = METRICS[metric]
        table = competition.compared(design).query("metric == @metric and pairs > 2").assign(label=lambda t: t["title"])
        if not len(table):
            return
        values = competition.rows(design).pivot(index="seed", columns="entrant", values=metric)
        pairs = {row.title: (values[row.entrant] - values[row.against]).dropna() * unit for row in table.itertuples()}
        dots = pd.concat([pd.DataFrame({"label": title, "difference": d}) for title, d in pairs.items()])
        table[["estimate", "low", "high"]] *= unit
        against = " or ".join(competition.titles(design)[name] for name in dict.fromkeys(table["against"]))
        alt = "; ".join(f"{row.title}: {bookkit.signed(row)}, {row.words}" for row in table.itertuples())
        axis = plots.forest(table, dots, delta, f"{name}, points")
        caption = (f"Difference in {name} to {against} on the same splits; a dot is one split, the line the interval "
                   "for these splits.")  # fmt: skip
        if design == "ladder":  # one large effect would hide the small ones
            axis.set_xscale("symlog", linthresh=1)
            axis.xaxis.set_major_formatter("{x:g}")
            caption += (f" What begins with “only” is compared with {competition.titles(design)[CORE]}. "
                        "The scale is linear within one point and logarithmic beyond.")  # fmt: skip
        bookkit.picture(axis, f"Paired differences in {name}. {alt}", caption)


def hours_curve(entrants: tuple[str, ...], metric: str = "auroc") -> None:
    """Scores by what was known at each hour: mean over the splits, 95 % t interval."""
    table = competition.shared(entrants)
    if not competition.there() or not len(table):
        return
    name, _, unit = METRICS[metric]
    axis, said = plt.subplots(figsize=(plots.WIDTH, 3.2), layout="constrained")[1], []
    for number, entrant in enumerate(e for e in entrants if e in set(table["entrant"])):
        values = table[table["entrant"] == entrant].reindex(columns=[f"{metric}_{hour:g}h" for hour in HOURS]) * unit
        found = [compare(values[column].dropna().to_numpy()) for column in values]
        reach = [[c.estimate - c.low for c in found], [c.high - c.estimate for c in found]]
        hours, mean = np.array(HOURS) + 0.5 * number, [c.estimate for c in found]  # side by side, not one on another
        marker, title = MARKERS[number % len(MARKERS)], competition.titles()[entrant]
        axis.errorbar(hours, mean, yerr=reach, marker=marker, capsize=3, label=title)
        said += [f"{title} at {hour:g} h: {c.estimate:.1f}" for hour, c in zip(HOURS, found, strict=True)]
    axis.set(xlabel="hours of the stay that were seen", ylabel=f"{name} (times {unit})", xticks=HOURS)
    axis.legend(frameon=False)
    caption = (f"{name} on the test stays as they were known at an hour: mean over the same "
               f"{table['seed'].nunique()} splits, 95 % t interval.")  # fmt: skip
    bookkit.picture(axis, f"{name} against the hours seen. {'; '.join(said)}", caption)


def learning_curve(metric: str) -> None:
    """A score against the number of stays that an entrant learned from: mean over the splits, 95 % t interval."""
    table = competition.complete("curve")
    if not len(table):
        return
    name, _, unit = METRICS[metric]
    axis = plt.subplots(figsize=(plots.WIDTH, 3.2), layout="constrained")[1]
    said = []
    shares = competition.suite().shares
    learned = (shares[0] + shares[1]) / shares[0]  # what scores the test stays has learned from validation stays, too
    base = table["entrant"].map(lambda e: e.partition(" at ")[0])
    table = table.assign(base=base, stays=table["train_stays"] * learned)
    for number, (base, part) in enumerate(table.groupby("base", sort=False)):
        points = []
        for _, values in part.groupby("entrant"):
            c = compare(values[metric].to_numpy() * unit)
            points.append((values["stays"].iloc[0], c.estimate, c.estimate - c.low, c.high - c.estimate))
        stays, mean, below, above = np.array(sorted(points)).T
        beside = stays * 1.04 ** (number - 0.5)  # two intervals at one place hide one another
        axis.errorbar(beside, mean, yerr=[below, above], marker=MARKERS[number % len(MARKERS)], capsize=3, label=base)
        said += [f"{base} with {n:.0f} stays: {value:.1f}" for n, value in zip(stays, mean, strict=True)]
    ticks = sorted(table["stays"].unique())
    axis.set(xscale="log", xlabel="stays to learn from", ylabel=f"{name} (times {unit})")
    axis.set_xticks(ticks, [f"{n:.0f}" for n in ticks])
    axis.set_xticks([], minor=True)
    axis.legend(frameon=False)
    splits = table["seed"].nunique()
    caption = f"{name} on the same test stays: mean and 95 % interval over the {splits} splits that all have run."
    bookkit.picture(axis, f"{name} against the number of stays. {'; '.join(said)}", caption)
