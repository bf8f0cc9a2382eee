"""Challenge 2012 as the book shows it, without the data: from the tables that `ablations/challenge2012.py` writes."""

from __future__ import annotations

import functools
import html
from pathlib import Path

import bookkit
import numpy as np
import pandas as pd
from IPython.display import HTML, display

from hsetvae.config import UserError
from hsetvae.data import Cohort
from hsetvae.study import HASHES
from hsetvae.suite import LOADED

RESULTS = Path(__file__).resolve().parent.parent / "ablations" / "results"
SCORES = {"auroc": "AUROC", "auprc": "AUPRC", "brier": "Brier score", "ece": "calibration error"}
FACTS = pd.read_csv(RESULTS / "challenge2012.csv")
CODE = LOADED["model"]  # what rows of the present code carry


def part(name: str) -> pd.Series:
    """The facts of one part: name -> value."""
    rows = FACTS[FACTS["part"] == name]
    return pd.Series(rows["value"].to_numpy(), index=rows["name"])


def number(value: float) -> str:
    """A count as a count, anything else to three digits."""
    return f"{value:,.0f}" if value == round(value) else f"{value:.3g}"


def stay() -> pd.DataFrame:
    """One real stay: when which variable was recorded."""
    return pd.read_csv(RESULTS / "challenge2012_stay.csv")


def twin(cohort: Cohort) -> None:
    """Sizes of a cohort beside those of Challenge 2012."""
    sets, events = np.diff(cohort.first_set), np.diff(cohort.first_event)
    mine = {
        "stays": len(cohort), "share with the outcome": cohort.outcome.mean(), "variables": len(cohort.variables),
        "sets per stay, median": np.median(sets), "sets per stay, most": sets.max(),
        "events per set, mean": events.mean(), "events per set, most": events.max(),
        "events per stay, mean": len(cohort.value) / len(cohort),
    }  # fmt: skip
    real = part("size")
    bookkit.table({"size": list(mine), "simulated": [number(v) for v in mine.values()],
                   "Challenge 2012": [number(real[name]) for name in mine]})  # fmt: skip


def bars() -> pd.DataFrame:
    """Scores of the baselines: protocol, model, metric, value, low, high, n."""
    rows = FACTS[FACTS["part"].str.startswith("bar: ")].copy()
    rows["protocol"] = rows["part"].str.removeprefix("bar: ")
    rows[["model", "metric"]] = rows["name"].str.rsplit(", ", n=1, expand=True)
    return rows.drop(columns=["part", "name"])


def bar_table() -> None:
    """The bars, a table for each protocol: mean and range over the random splits, a fixed one with its interval."""
    table = bars()
    table["kind"] = table["protocol"].where(~table["protocol"].str.startswith("split "), "random splits")
    for kind, of_kind in table.groupby("kind", sort=False):
        rows = []
        for model, part_ in of_kind.groupby("model", sort=False):
            row = {f"{kind}, {part_['n'].iloc[0]:.0f} test stays": model}
            for metric, text in SCORES.items():
                values = part_[part_["metric"] == metric]
                ends = values["value"].agg(["min", "max"]) if len(values) > 1 else values[["low", "high"]].iloc[0]
                row[text] = "{:.3f} [{:.3f}, {:.3f}]".format(values["value"].mean(), *ends)
            rows.append(row)
        bookkit.table(rows)


def scored(run: pd.Series | dict, of: str = "") -> dict[str, str]:
    """Scores with intervals of a run, or of the model whose columns begin with `of`, on the test stays of the run."""
    cells = {text: [run[f"{of}{m}{end}"] for end in ("", "_low", "_high")] for m, text in SCORES.items()}
    return {text: f"{value:.3f} [{low:.3f}, {high:.3f}]" for text, (value, low, high) in cells.items()}


def runs() -> None:
    """Scores of trained runs of the model, with boosting on the same stays; a note where none has been recorded."""
    path = RESULTS / "challenge2012_runs.csv"
    if not path.exists():
        bookkit.box("Not yet recorded", "<p>No run of the model on Challenge 2012 is recorded with this version. The "
                    "command below trains one, and the last line adds it to this page.</p>")  # fmt: skip
        return
    table = pd.read_csv(path, dtype=HASHES)
    _code_of(table)
    above = {SCORES[m]: (table[m] > table[f"boosting_{m}"]).sum() for m in ("auroc", "auprc")}
    said = ", ".join(f"{n} of {len(table)} by {text}" for text, n in above.items())
    display(HTML(f"<p>Runs above gradient boosting on the same test stays: {said}.</p>"))
    cost = []
    for seed, same in table.groupby("seed"):  # the runs of one seed have the same test stays
        n = int(same["n"].iloc[0])
        who, split = f"split of seed {seed}, {n} test stays", {"seed of the split": seed}
        rows = [{who: run["arm"], **scored(run)} for run in same.to_dict("records")]
        bookkit.table([*rows, {who: "gradient boosting", **scored(same.iloc[0], "boosting_")}])
        for run in same.to_dict("records"):
            minutes = f"{(run['pretraining_seconds'] + run['seconds']) / 60:.0f}"
            cost.append(
                {"model": run["arm"], **split, "learned from (stays)": run["learned_stays"], "minutes": minutes}
            )
        others = int(part("size")["stays"]) - n  # boosting selects nothing and learns from all other stays
        cost.append({"model": "gradient boosting", **split, "learned from (stays)": others, "minutes": "–"})
    bookkit.table(cost)
    bookkit.provenance(f"Runs recorded {bookkit.days(table['date'])} with hsetvae "
                       f"{', '.join(sorted(map(str, table['hsetvae'].unique())))}. Page built")  # fmt: skip


# --- one run ---------------------------------------------------------------------------------------------------------


@functools.cache
def _of_other_code() -> None:
    """Say once a page that rows on it were not made by the present code."""
    made = "<code>python ablations/challenge2012.py runs FOLDER --data FILE</code>"
    bookkit.box("These runs are of other code", "<p>Numbers of trained runs on this page were made by other code than "
                f"the present one, or do not say by which: {made} makes them anew.</p>", "warning")  # fmt: skip


def _code_of(rows: pd.DataFrame) -> None:
    """Look whether rows that are shown are of the present code."""
    if "code" not in rows or (rows["code"] != CODE).any():
        _of_other_code()


def recorded(what: str, arm: str, seed: int) -> pd.DataFrame:
    """The rows of one run in a table of `ablations/challenge2012.py runs`: runs, curves, skill, ….
    UserError where it has none; the page says once when they are of other code."""
    path = RESULTS / f"challenge2012_{what}.csv"
    table = pd.read_csv(path, dtype=HASHES)
    rows = table[(table["arm"] == arm) & (table["seed"] == seed)]
    if rows.empty:
        there = ", ".join(f"{a} with seed {s}" for a, s in table[["arm", "seed"]].drop_duplicates().to_numpy())
        raise UserError(f"{path.name} has no run {arm} with seed {seed}; it has {there}")
    _code_of(rows)
    return rows.reset_index(drop=True)


def beside_boosting(run: pd.Series) -> None:
    """Scores of a run and of boosting on the same stays."""
    models = {"this model": "", "gradient boosting": "boosting_"}
    bookkit.table([{"model": model, **scored(run, of)} for model, of in models.items()])


def read_curves(curves: pd.DataFrame) -> None:
    """What the figure of the curves shows, in words made from the record."""
    first, last, epochs = curves.iloc[0], curves.iloc[-1], len(curves)
    moved = curves[["beta", "kl", "validation_bce"]].diff().iloc[1:]  # from the end of an epoch to the end of the next
    turned = moved[moved["beta"] != 0]
    against = (np.sign(turned["kl"]) == -np.sign(turned["beta"])).sum()
    lowest = curves.loc[curves["validation_bce"].idxmin(), "epoch"]
    below = (curves["validation_bce"] < curves["bce"]).sum()
    shortened = (curves["gradient_norm_clipped"] < curves["gradient_norm"]).sum()
    said = {
        "Distortion": f"that of the current set is {first['distortion_current']:.2f} nats a set at the end of the "
        f"first epoch and {last['distortion_current']:.2f} at that of the last, while its weight goes from "
        f"{first['reconstruction_weight']:.2f} to {last['reconstruction_weight']:.2f}.",
        "KL": f"from one epoch to the next it moves against beta in {against} of the {len(turned)} cases in which "
        "beta moves.",
        "Cross-entropy": f"the validation line falls in {(moved['validation_bce'] < 0).sum()} of {len(moved)} cases, "
        f"is lowest after epoch {lowest:.0f}, and lies below the training line at the end of {below} of {epochs} "
        "epochs.",
        "Gradient": f"it is shortened at the end of {shortened} of {epochs} epochs, of the last from a norm of "
        f"{last['gradient_norm']:.2f} to {last['gradient_norm_clipped']:.2f}.",
    }
    display(HTML("<ul>" + "".join(f"<li><em>{name}</em>: {text}</li>" for name, text in said.items()) + "</ul>"))


def _apart(arm: str, seed: int) -> dict[str, pd.DataFrame]:
    """For each group of the most confidently wrong stays the facts with a spread, those furthest apart first."""
    table = recorded("failures", arm, seed)
    table["apart"] = (table["these"] - table["others"]) / table["spread"]
    table = table.dropna(subset="apart").sort_values("apart", key=np.abs, ascending=False, kind="stable")
    return {group: table[table["group"] == group] for group in sorted(table["group"].unique())}


def gallery(arm: str, seed: int, facts: int) -> None:
    """For each group of the most confidently wrong stays the facts in which it is most unlike the others."""
    for group, rows in _apart(arm, seed).items():
        top = rows.head(facts)
        bookkit.table({group: top["fact"], "mean of these": [number(v) for v in top["these"]],
                       "of the others": [number(v) for v in top["others"]],
                       "apart (SD)": [f"{v:+.2f}" for v in top["apart"]],
                       "stays, at least": [number(v) for v in top["n"]]})  # fmt: skip


def read_gallery(arm: str, seed: int) -> None:
    """What sets each group of the gallery apart, and whether its values are like those of the other outcome."""
    groups, lines = _apart(arm, seed), []
    for group, rows in groups.items():
        same, other = ("deaths", "survivors") if group.startswith("deaths") else ("survivors", "deaths")
        top = rows.iloc[0]
        means = f"{number(top['these'])} against {number(top['others'])}, {abs(top['apart']):.1f} SD apart"
        line = (
            f"<em>{group.capitalize()}</em> differ from the other {same} most in {html.escape(top['fact'])}: {means}."
        )
        for opposite in (found for name, found in groups.items() if name != group):
            both = rows[rows["apart"] != 0].merge(opposite, on="fact", suffixes=("", "_opposite"))
            towards = (both["apart"] * (both["others_opposite"] - both["others"]) > 0).sum()
            line += f" In {towards} of {len(both)} facts they differ from them towards the other {other}."
        lines.append(f"<li>{line}</li>")
    display(HTML(f"<ul>{''.join(lines)}</ul>"))


def deletion(arm: str, seed: int) -> None:
    """How much further the events that an explanation names move the logit than random ones."""
    against = {"events_at_random": "as many random events", "cells_at_random": "random variables and windows"}
    bookkit.table([
        {"the named events, against": against[row.against], "move the logit": f"{row.ratio:.1f} times as far",
         "95 %": f"[{row.low:.1f}, {row.high:.1f}]", "stays": row.n}
        for row in recorded("deletion", arm, seed).itertuples()
    ])  # fmt: skip


def skill(arm: str, seed: int, most: int) -> None:
    """Errors of imputation and forecast beside the bars, in natural units; the variables measured most often first."""
    for task, part_ in recorded("skill", arm, seed).groupby("task", sort=False):
        display(HTML(f"<h3>{html.escape(task.capitalize())}</h3>"))
        better, worse = (part_["skill"] > 0).sum(), (part_["model"] > part_["mean"]).sum()
        perfect = part_["skill"].isna()  # a bar that makes no error leaves nothing to be skilled at
        display(HTML(f"<p>Of {len(part_)} variables better than both bars: {better}; worse than the mean: {worse}, "
                     f"among them {perfect.sum()} that a bar says without error, which are left out below. "
                     f"The {most} of the others that are measured most often:</p>"))  # fmt: skip
        part_ = part_[~perfect]
        names = {"n": "values", "model": "error of the model", "last": "of the last value", "mean": "of the mean"}
        part_ = part_[["variable", *names, "skill"]].rename(columns=names)
        bookkit.table(part_.head(most))
        if len(part_) > most:
            bookkit.table(part_[most:], fold=f"The others ({len(part_) - most})")


def carried(arm: str, seed: int) -> tuple[int, int]:
    """For how many variables the last value says the next one better than the mean does, and of how many."""
    table = recorded("skill", arm, seed).query("task == 'forecast'")
    return int((table["last"] < table["mean"]).sum()), len(table)


def run_provenance(run: pd.Series) -> None:
    """Where the facts about one run come from."""
    bookkit.provenance(f"Run {run['arm']}, seed {run['seed']}, {run['threads']:.0f} threads, recorded {run['date']} "
                       f"with hsetvae {run['hsetvae']}. Page built")  # fmt: skip


def provenance() -> None:
    """Where the facts of the page come from."""
    first = FACTS.iloc[0]
    made = f"with hsetvae {first['hsetvae']} on {first['date']}"
    bookkit.provenance(f"Counted in sets {first['sets']} {made}. Page built")
