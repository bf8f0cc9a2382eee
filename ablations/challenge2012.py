"""Facts and scores of Challenge 2012 for the book, which is built without the data.

    python ablations/challenge2012.py facts FOLDER                    # a folder with set-a.tar.gz, Outcomes-a.txt …
    python ablations/challenge2012.py runs runs/one runs/two --data data/physionet2012.parquet

`facts` counts, and fits the baselines; it writes results/challenge2012.csv, and for one drawing
results/challenge2012_stay.csv, when which variable was recorded in one stay.  `runs` scores trained runs on the stays
they have not seen, beside gradient boosting fitted on the stays they have, and adds them to six tables in results/; a
run that is there is replaced.  The column `code` holds the fingerprint of the code that scored it, so score a run with
the code that trained it; `hsetvae study confirm --suite` carries it over a change of code that changes no number:

    challenge2012_runs.csv          one row a run: scores, and what it cost
    challenge2012_curves.csv        one row an epoch: what was logged
    challenge2012_calibration.csv   one row a bin of stays and model: predicted and observed share
    challenge2012_failures.csv      the most confidently wrong, never fewer than LEAST stays together
    challenge2012_skill.csv         one row a variable: errors of imputation and forecast, natural units
    challenge2012_deletion.csv      how far the events that an explanation names move the logit, and random ones
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

import hsetvae
from hsetvae.baselines import fit_baselines
from hsetvae.config import stream
from hsetvae.data import Cohort, Split, split
from hsetvae.evaluate import evaluate, predict
from hsetvae.events import Report, read_cohort
from hsetvae.explain import deletion, deletion_ratio
from hsetvae.files import write_atomically
from hsetvae.measures import calibration_table
from hsetvae.physionet import load_challenge2012
from hsetvae.runs import Run, load_run
from hsetvae.scores import score_all
from hsetvae.skill import skill
from hsetvae.study import HASHES
from hsetvae.suite import LOADED

RESULTS = Path(__file__).resolve().parent / "results"
METRICS = ("auroc", "auprc", "brier", "ece")
CODE = LOADED["model"]  # the fingerprint by which a suite knows its runs of the model
SPLITS = 5
WRONG = 0.1  # share of the deaths, and of the survivors, that counts as the most confidently wrong
EXPLAINED = 100  # stays of the deletion test
LEAST = 10  # a mean over fewer stays is not written: nobody can be recognised in these tables
CURVES = (  # columns of history.csv that the book draws
    "step", "epoch", "seconds", "distortion_current", "distortion_next", "kl", "bce", "gradient_norm",
    "gradient_norm_clipped", "beta", "reconstruction_weight", "class_weight", "validation_kl", "validation_bce",
    "validation_auroc",
)  # fmt: skip
app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


def today() -> dict[str, str]:
    return {"hsetvae": hsetvae.__version__, "date": f"{datetime.date.today():%Y-%m-%d}"}


def counted(cohort: Cohort, report: Report) -> list[tuple[str, str, float]]:
    """Part, name and value of everything that is counted: sizes, what the reader did, how often things are measured."""
    sets, events = np.diff(cohort.first_set), np.diff(cohort.first_event)
    per_stay = np.add.reduceat(events, cohort.first_set[:-1])
    sizes = {
        "stays": len(cohort), "share with the outcome": np.nanmean(cohort.outcome),
        "variables": len(cohort.variables), "sets": len(cohort.hours), "events": len(cohort.value),
        "sets per stay, median": np.median(sets), "sets per stay, 99 %": np.quantile(sets, 0.99),
        "sets per stay, most": sets.max(), "events per set, mean": events.mean(), "events per set, most": events.max(),
        "events per stay, mean": per_stay.mean(),
    }  # fmt: skip
    stay = np.repeat(np.arange(len(cohort)), per_stay)
    ever = pd.DataFrame({"stay": stay, "variable": cohort.variable}).drop_duplicates()["variable"].value_counts()
    return [
        *(("size", name, float(value)) for name, value in sizes.items()),
        *(("reader", name, float(value)) for name, value in report.counts.items()),
        *(("measured", cohort.variables[v], n / len(cohort)) for v, n in ever.items()),
    ]


def recorded(cohort: Cohort) -> pd.DataFrame:
    """When (hours) which variable was recorded in the first stay with a median number of sets: no id, no value."""
    sets = np.diff(cohort.first_set)
    one = cohort.subset(np.argsort(np.abs(sets - np.median(sets)), kind="stable")[:1])
    hours = np.repeat(one.hours, np.diff(one.first_event))
    return pd.DataFrame({"hours": hours, "variable": np.array(one.variables)[one.variable]})


def bars(cohort: Cohort) -> list[dict]:
    """Scores of the baselines, one row per protocol, split, model and metric; fitted with the seed of the split."""
    protocols = {f"split {r}": (r, split(cohort, r)) for r in range(SPLITS)}
    groups = sorted(set(cohort.group.tolist()))
    if len(groups) > 1:
        name = f"fit {', '.join(groups[:-1])}, score {groups[-1]}"
        protocols[name] = 0, split(cohort, 0, score=groups[-1:])
    rows = []
    for protocol, (seed, parts) in protocols.items():
        for model, probability in fit_baselines(cohort, parts, seed=seed).items():
            scores = score_all(cohort.outcome[parts.test], probability)
            for metric in METRICS:
                low, high = scores[f"{metric}_low"], scores[f"{metric}_high"]
                rows.append({"part": f"bar: {protocol}", "name": f"{model}, {metric}", "value": scores[metric],
                             "low": low, "high": high, "n": scores["n"]})  # fmt: skip
    return rows


@app.command()
def facts(source: Path, sets: Annotated[str, typer.Option(help="Which of the sets a, b, c.")] = "a,b") -> None:
    """Count the records of a folder and fit the baselines on them."""
    letters = tuple(sets.split(","))
    cohort, report = load_challenge2012(source, letters)
    table = pd.DataFrame(counted(cohort, report), columns=["part", "name", "value"])
    table = pd.concat([table, pd.DataFrame(bars(cohort))]).assign(sets=", ".join(letters), **today())
    write_atomically(RESULTS / "challenge2012.csv", table.to_csv(index=False, float_format="%.8g").encode())
    stay = recorded(cohort).to_csv(index=False, float_format="%.4g")
    write_atomically(RESULTS / "challenge2012_stay.csv", stay.encode())
    print(f"wrote {RESULTS / 'challenge2012.csv'}: {len(table)} facts about sets {', '.join(letters)}")


def cost(folder: Path) -> dict[str, float]:
    """Steps and seconds of a run and of its pretraining (0 without one), and seconds a step until the first logged row.

    The first row is what a reader has within a minute; validation comes later and is part of the whole only.
    """
    found = dict.fromkeys(("pretraining_seconds", "pretraining_steps", "pretraining_first_seconds_a_step"), 0.0)
    for part, name in {"": folder, "pretraining_": folder / "pretraining"}.items():
        if (name / "done.json").exists():
            done, first = json.loads((name / "done.json").read_text()), pd.read_csv(name / "history.csv").iloc[0]
            found |= {f"{part}seconds": done["seconds"], f"{part}steps": done["steps"],
                      f"{part}first_seconds_a_step": first["seconds"] / first["step"]}  # fmt: skip
    return found


def wrong(outcome: np.ndarray, probability: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The deaths with the lowest and the survivors with the highest probability, WRONG of each, at least LEAST: name ->
    (places of these, places of all others with the same outcome), both empty where there are not twice LEAST."""
    groups = {}
    for name, value, sign in (("deaths called safe", 1, 1), ("survivors called dying", 0, -1)):
        place = np.flatnonzero(outcome == value)
        place = place[np.argsort(sign * probability[place], kind="stable")]
        n = max(LEAST, round(WRONG * len(place))) if len(place) >= 2 * LEAST else 0
        groups[name] = (place[:n], place[n:] if n else place[:0])
    return groups


def failures(cohort: Cohort, index: np.ndarray, probability: dict[str, np.ndarray], scale: dict) -> pd.DataFrame:
    """Who the first model of `probability` is most wrong about, as means: rows group, fact, these, others, n, spread.

    `n` is the smaller number of stays behind the two means, `spread` what one standard deviation is, NaN for facts
    without one.  Of every variable the last value counts.
    """
    sets, per_stay = np.diff(cohort.first_set), np.add.reduceat(np.diff(cohort.first_event), cohort.first_set[:-1])
    table = pd.DataFrame({"stay": np.repeat(np.arange(len(cohort)), per_stay), "variable": cohort.variable,
                          "value": cohort.value})  # fmt: skip
    last = table.groupby(["stay", "variable"])["value"].last().unstack().reindex(index=index)
    last.columns = [cohort.variables[v] for v in last.columns]
    hours = cohort.hours[cohort.first_set[1:] - 1][index]
    facts = {f"probability, {name}": p for name, p in probability.items()}
    facts |= {"sets": sets[index], "events": per_stay[index], "hours to the last set": hours}
    facts |= {f"last {name}": last[name].to_numpy() for name in last if name in scale}
    rows = []
    for group, (these, others) in wrong(cohort.outcome[index], next(iter(probability.values()))).items():
        for fact, values in facts.items():
            n = min(int((~np.isnan(values[part])).sum()) for part in (these, others)) if len(these) else 0
            if n >= LEAST:
                means = {"these": np.nanmean(values[these]), "others": np.nanmean(values[others])}
                rows.append({"group": group, "fact": fact, **means, "n": n,
                             "spread": scale.get(fact.removeprefix("last "), np.nan)})  # fmt: skip
    return pd.DataFrame(rows, columns=["group", "fact", "these", "others", "n", "spread"])


def frequent(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with enough values that nobody can be recognised in a mean."""
    return table[table["n"] >= LEAST]


def deleted(run: Run, cohort: Cohort, index: np.ndarray) -> pd.DataFrame:
    """The deletion test on EXPLAINED random stays: against, ratio, low, high, n."""
    order = np.random.default_rng(stream(run.seed, "explained stays")).permutation(index)
    table = deletion(run, cohort, order[:EXPLAINED], seed=run.seed)
    kinds = ("events_at_random", "cells_at_random")
    rows = [(kind, *deletion_ratio(table, kind), len(table)) for kind in kinds]
    return pd.DataFrame(rows, columns=["against", "ratio", "low", "high", "n"])


def keep(name: str, table: pd.DataFrame, run: Run) -> None:
    """Replace the rows of a run in a table of results."""
    path, table = RESULTS / f"challenge2012_{name}.csv", table.assign(code=CODE)
    table.insert(0, "arm", run.folder.name)
    table.insert(1, "seed", run.seed)
    if path.exists():
        old = pd.read_csv(path, dtype=HASHES)
        table = pd.concat([old[(old["arm"] != run.folder.name) | (old["seed"] != run.seed)], table])
    table = table.sort_values(["arm", "seed"], kind="stable")
    write_atomically(path, table.to_csv(index=False, float_format="%.6g").encode())
    print(f"wrote {path}: {len(table)} rows")


@app.command()
def runs(folders: list[Path], data: Annotated[Path, typer.Option(help="The table of `hsetvae data`.")]) -> None:
    """Score trained runs on the stays of `data` that they have not seen; record what they cost and where they fail."""
    for folder in folders:
        run = load_run(folder.resolve())
        cohort, _ = read_cohort(data, variables=run.variables)
        index = run.unseen(cohort)
        index = index[~np.isnan(cohort.outcome[index])]
        learned = np.setdiff1d(np.arange(len(cohort)), run.unseen(cohort))
        simple = fit_baselines(cohort, Split(learned, learned[:0], index), run.seed)["gradient boosting"]
        outcome, probability = cohort.outcome[index], {"this model": predict(run, cohort, index), "boosting": simple}
        scores = evaluate(run, cohort, index)
        beside = score_all(outcome, simple)
        names = [name for metric in METRICS for name in (metric, f"{metric}_low", f"{metric}_high")]
        row = {"n": scores["n"], "deaths": outcome.sum(), "learned_stays": int((run.stays["part"] == "train").sum()),
               "epochs": run.config.epochs, "batch_size": run.config.batch_size,
               **{name: scores[name] for name in names}, **{f"boosting_{name}": beside[name] for name in names},
               **cost(run.folder), "threads": json.loads((run.folder / "config.json").read_text())["threads"],
               **today()}  # fmt: skip
        keep("runs", pd.DataFrame([row]), run)
        ended = run.history[run.history["validation_bce"].notna()]
        keep("curves", ended[[name for name in CURVES if name in ended]], run)
        bins = [calibration_table(outcome, p).assign(model=name) for name, p in probability.items()]
        keep("calibration", pd.concat(bins), run)
        scale = dict(zip(run.standardiser.variables, run.standardiser.scale, strict=True))
        keep("failures", failures(cohort, index, probability, scale), run)
        keep("skill", frequent(skill(run, cohort, index)), run)
        keep("deletion", deleted(run, cohort, index), run)


if __name__ == "__main__":
    app()
