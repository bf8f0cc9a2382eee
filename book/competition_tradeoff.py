"""What the weight of the KL trades in the recommended preset: how well sets are rebuilt, the past in h, prediction."""

from __future__ import annotations

import bookkit
import competition
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML, display

from hsetvae import plots
from hsetvae.standings import METRICS


def _beside(entrants: tuple[str, ...]) -> pd.DataFrame:
    """The rows of these entrants of the table, on the splits that are `complete`; who lacks one of them is left out."""
    seeds = set(competition.complete("tradeoff")["seed"])
    rows = competition.rows().query("seed in @seeds and entrant in @entrants")
    return rows.groupby("entrant").filter(lambda own: set(own["seed"]) == seeds)


def figure(metric: str) -> None:
    """Distortion, what h keeps of the past and a score at each value of the setting; means over the same splits."""
    arms = competition.complete("tradeoff")
    if not len(arms):
        return
    name, _, unit = METRICS[metric]
    presets = ("baseline", "improved")
    titles = competition.titles("tradeoff") | {e: competition.titles()[e] for e in presets}
    found = pd.concat([arms, _beside(presets)]).groupby("entrant", sort=False)
    mean, splits = found[["nll_per_event", "s_past", metric]].mean(), arms["seed"].nunique()
    turned = list(competition.titles("tradeoff"))
    colours = [*plt.get_cmap("viridis")(np.linspace(0, 0.85, len(turned))), "black", "black"]
    left, right = plt.subplots(1, 2, figsize=(plots.WIDTH, 3.6), layout="constrained")[1]
    for axis, column, label, scale in ((left, "s_past", "S_past", 1), (right, metric, f"{name} (times {unit})", unit)):
        x, y = mean["nll_per_event"], scale * mean[column]
        axis.plot(x[turned], y[turned], color="grey", linewidth=1, zorder=1)
        for e, colour, marker in zip(titles, colours, ["o"] * len(turned) + ["s", "D"], strict=True):
            if e in mean.index:
                axis.scatter(x[e], y[e], color=colour, marker=marker, label=titles[e], zorder=2)
        axis.set_ylabel(label)
        axis.margins(0.1)
    left.figure.supxlabel("distortion (nats per event)", fontsize="medium")
    left.figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    said = "; ".join(f"{titles[e]}: {r.nll_per_event:.2f} nats, S_past {r.s_past:.2f}, {name} {unit * r[metric]:.1f}"
                     for e, r in mean.iterrows())  # fmt: skip
    caption = (f"What the weight of the KL trades, on the test stays: means over {splits} splits. "
               "Further left sets are rebuilt better, further up more of the past in h, "
               f"or a better {name}.")  # fmt: skip
    bookkit.picture([left, right], f"S_past and {name} against the distortion. {said}", caption)


def table(metrics: tuple[str, ...]) -> None:
    """What each value of the turned setting brings: against the goals that pull against one another, and in scores
    against the preset's own value; with intervals that count the overlap of the splits."""
    arms = competition.complete("tradeoff")
    if not len(arms):
        return
    goals = [("baseline", "s_past", 1, "S_past, minus the baseline's"),
             ("improved", "negative_elbo", -1, "negative ELBO (nats per event), minus improved's")]  # fmt: skip
    others = {e: own.set_index("seed") for e, own in _beside(("baseline", "improved")).groupby("entrant")}
    lines, met = [], []
    for e in competition.suite().design("tradeoff")[2]:
        own, overlap = arms[arms["entrant"] == e.name].set_index("seed"), competition.suite().overlap(e)
        line, reached = {"value": e.title}, []
        for other, name, sign, text in (goal for goal in goals if goal[0] in others):
            gap = own[name] - others[other][name]
            line[text] = competition.points(gap, overlap, digits=3 if name == "s_past" else 2)
            reached.append(sign * gap.mean() > 0)
        whole = arms[arms["entrant"] == e.against].set_index("seed")
        line["distortion alone (nats per event)"] = f"{own['nll_per_event'].mean():.2f}"
        for metric in metrics:
            gap = (own[metric] - whole[metric]) * METRICS[metric][2]
            line[f"{METRICS[metric][0]}, minus the preset's"] = competition.points(gap, overlap)
        lines.append(line)
        met += [e.title] if all(reached) else []
    bookkit.table(lines)
    if len(others) == len(goals):
        both = f"Both goals are met, on average, by {', '.join(met)}" if met else "No value meets both goals"
        display(HTML(f"<p>{both}: more of the past than the baseline's, and a negative ELBO not above improved's.</p>"))
