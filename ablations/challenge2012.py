"""Facts and scores of Challenge 2012 for the book, which is built without the data.

    python ablations/challenge2012.py facts data/physionet2012      # a folder with set-a.tar.gz, Outcomes-a.txt …
    python ablations/challenge2012.py runs runs/one runs/two --data data/physionet2012.parquet

`facts` counts, and fits the baselines; it writes results/challenge2012.csv.  `runs` scores trained runs on the stays
they have not seen and adds one row each to results/challenge2012_runs.csv; a run that is there is replaced.
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
from hsetvae.data import Cohort, split
from hsetvae.evaluate import evaluate
from hsetvae.events import Report, read_cohort
from hsetvae.files import write_atomically
from hsetvae.physionet import load_challenge2012
from hsetvae.runs import load_run
from hsetvae.scores import score_all

RESULTS = Path(__file__).resolve().parent / "results"
METRICS = ("auroc", "auprc", "brier", "ece")
SPLITS = 5
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


def bars(cohort: Cohort) -> list[dict]:
    """Scores of the baselines, one row per protocol, split, model and metric."""
    protocols = {f"split {r}": split(cohort, r) for r in range(SPLITS)}
    groups = sorted(set(cohort.group.tolist()))
    if len(groups) > 1:
        name = f"fit {', '.join(groups[:-1])}, score {groups[-1]}"
        protocols[name] = split(cohort, 0, score=groups[-1:])
    rows = []
    for protocol, parts in protocols.items():
        for model, probability in fit_baselines(cohort, parts).items():
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
    print(f"wrote {RESULTS / 'challenge2012.csv'}: {len(table)} facts about sets {', '.join(letters)}")


@app.command()
def runs(folders: list[Path], data: Annotated[Path, typer.Option(help="The table of `hsetvae data`.")]) -> None:
    """Score trained runs on the stays of `data` that they have not seen."""
    path, rows = RESULTS / "challenge2012_runs.csv", []
    for folder in folders:
        run = load_run(folder)
        cohort, _ = read_cohort(data, variables=run.variables)
        scores = evaluate(run, cohort, run.unseen(cohort))
        seconds = json.loads((folder / "done.json").read_text())["seconds"]
        names = [name for metric in METRICS for name in (metric, f"{metric}_low", f"{metric}_high")]
        row = {"arm": folder.name, "seed": run.seed, "n": scores["n"], **{name: scores[name] for name in names}}
        rows.append(row | {"seconds": seconds, **today()})
    table = pd.DataFrame(rows)
    if path.exists():
        table = pd.concat([pd.read_csv(path), table]).drop_duplicates(["arm", "seed"], keep="last")
    write_atomically(path, table.to_csv(index=False, float_format="%.8g").encode())
    print(f"wrote {path}: {len(table)} runs")


if __name__ == "__main__":
    app()
