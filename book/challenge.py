"""Challenge 2012 as the book shows it, without the data: from the tables that `ablations/challenge2012.py` writes."""

from __future__ import annotations

import html
from pathlib import Path

import bookkit
import numpy as np
import pandas as pd
from IPython.display import HTML, display

from hsetvae.config import UserError
from hsetvae.data import Cohort

RESULTS = Path(__file__).resolve().parent.parent / "ablations" / "results"
SCORES = {"auroc": "AUROC", "auprc": "AUPRC", "brier": "Brier score", "ece": "calibration error"}
FACTS = pd.read_csv(RESULTS / "challenge2012.csv")


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
    """The bars: mean and range over the random splits, and each fixed protocol with its interval."""
    rows = []
    table = bars()
    table["kind"] = table["protocol"].where(~table["protocol"].str.startswith("split "), "random splits")
    for (kind, model), part_ in table.groupby(["kind", "model"], sort=False):
        row = {"protocol": kind, "model": model, "test stays": f"{part_['n'].iloc[0]:.0f}"}
        for metric, text in SCORES.items():
            values = part_[part_["metric"] == metric]
            several = len(values) > 1
            low, high = (values["value"].agg(["min", "max"]) if several else values[["low", "high"]].iloc[0]).tolist()
            row[text] = f"{values['value'].mean():.3f} [{low:.3f}, {high:.3f}]"
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
    table, rows = pd.read_csv(path), []
    for seed, same in table.groupby("seed"):  # the runs of one seed have the same test stays
        for run in same.to_dict("records"):
            minutes = f"{(run['pretraining_seconds'] + run['seconds']) / 60:.0f}"
            rows.append([run["arm"], seed, run["learned_stays"], run["n"], *scored(run).values(), minutes])
        others = int(part("size")["stays"]) - run["n"]  # boosting selects nothing and learns from all other stays
        rows.append(["gradient boosting", seed, others, run["n"], *scored(run, "boosting_").values(), "–"])
    names = ["model", "seed of the split", "learned from (stays)", "test stays", *SCORES.values(), "minutes"]
    above = {SCORES[m]: (table[m] > table[f"boosting_{m}"]).sum() for m in ("auroc", "auprc")}
    said = ", ".join(f"{n} of {len(table)} by {text}" for text, n in above.items())
    display(HTML(f"<p>Runs above gradient boosting on the same test stays: {said}.</p>"))
    bookkit.table(pd.DataFrame(rows, columns=names))
    bookkit.provenance(f"Runs recorded {table['date'].min()} to {table['date'].max()} with hsetvae "
                       f"{', '.join(sorted(map(str, table['hsetvae'].unique())))}. Page built")  # fmt: skip


# --- one run ---------------------------------------------------------------------------------------------------------


def recorded(what: str, arm: str, seed: int) -> pd.DataFrame:
    """The rows of one run in a table of `ablations/challenge2012.py runs`: runs, curves, skill, ….
    UserError where it has none."""
    path = RESULTS / f"challenge2012_{what}.csv"
    table = pd.read_csv(path)
    rows = table[(table["arm"] == arm) & (table["seed"] == seed)]
    if rows.empty:
        there = ", ".join(f"{a} with seed {s}" for a, s in table[["arm", "seed"]].drop_duplicates().to_numpy())
        raise UserError(f"{path.name} has no run {arm} with seed {seed}; it has {there}")
    return rows.reset_index(drop=True)


def beside_boosting(run: pd.Series) -> None:
    """Scores of a run and of boosting on the same stays."""
    models = {"this model": "", "gradient boosting": "boosting_"}
    bookkit.table([{"model": model, **scored(run, of)} for model, of in models.items()])


def gallery(arm: str, seed: int, facts: int) -> None:
    """For each group of the most confidently wrong stays the facts in which it is most unlike the others."""
    table = recorded("failures", arm, seed)
    table["apart"] = (table["these"] - table["others"]) / table["spread"]
    for group, rows in table.groupby("group", sort=False):
        top = rows.loc[rows["apart"].abs().sort_values(ascending=False).index].head(facts)
        bookkit.table({group: top["fact"], "mean of these": [number(v) for v in top["these"]],
                       "of the others": [number(v) for v in top["others"]],
                       "apart (SD)": [f"{v:+.2f}" for v in top["apart"]],
                       "stays, at least": [number(v) for v in top["n"]]})  # fmt: skip


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
                     f"The {most} others measured most often:</p>"))  # fmt: skip
        part_ = part_[~perfect]
        names = {"n": "values", "model": "error of the model", "last": "of the last value", "mean": "of the mean"}
        bookkit.table(part_.head(most)[["variable", *names, "skill"]].rename(columns=names))


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
