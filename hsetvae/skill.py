"""How well a run fills a gap and says the next set, in natural units, beside what needs no model.

The two bars: the last value of the variable in the same stay, carried forward, and the variable's mean over the
training stays.  Where a stay has no earlier value, the mean is carried.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from .cohort import Cohort
from .config import UserError, stream
from .data import at_most
from .evaluate import passes, refuse_baseline
from .generate import impute

MOST_EVENTS = 200_000  # of stays that nobody named: errors of frequent variables then stand to the second digit
AT_ONCE = 256  # stays; what an imputation says of all variables is held in memory
TASKS = {"imputation": "current", "forecast": "next"}  # task: the set that a run must be able to say


def skill(run, cohort: Cohort, index: np.ndarray | None = None, seed: int = 0) -> pd.DataFrame:
    """Mean absolute errors of imputation and of forecasts on the stays `index` (default: unseen ones).

    A row for each task and variable, those measured most often first: task, variable, n (values), model, last, mean
    (absolute errors, natural units), skill (1 − error of the model / that of the better bar; 0 = as good, NaN where
    that bar makes no error).  Imputation: one random event of every set with two or more is hidden, and no earlier
    hidden value is carried.  Forecast: every set but the first of a stay, from those before it.  Tasks that the run was
    not trained for are left out.  Raises UserError without a likelihood decoder, and without stays.
    """
    refuse_baseline(run)
    index = cohort.positions(at_most(cohort, run.unseen(cohort), MOST_EVENTS) if index is None else index)
    if run.config.decoder != "likelihood":
        raise UserError(
            f"this run (decoder={run.config.decoder}) says no values: train one with decoder=likelihood to ask for them"
        )
    if not len(index):
        raise UserError("there is no stay to fill and to forecast: give a table with stays that the run has not seen")
    tables = []
    for part in np.array_split(index, -(-len(index) // AT_ONCE)):
        stays = cohort.subset(part)
        for task, target in TASKS.items():
            if target in run.model.decoders:
                values = _imputed(run, stays, seed) if task == "imputation" else _forecast(run, stays)
                tables.append(values.assign(task=task))
    values = pd.concat(tables, ignore_index=True)
    errors = values[["model", "last", "mean"]].sub(values["value"], axis=0).abs()
    table = errors.assign(n=1).groupby([values["task"], values["variable"]]).agg(
        {"n": "size", "model": "mean", "last": "mean", "mean": "mean"}
    )  # fmt: skip
    bar = table[["last", "mean"]].min(axis=1)
    table["skill"] = 1 - table["model"] / bar.where(bar > 0)
    table = table.reset_index().sort_values(["task", "n"], ascending=False, kind="stable")
    table["variable"] = np.asarray(run.variables, dtype=object)[table["variable"]]
    return table.sort_values("task", key=lambda task: task.map(list(TASKS).index), kind="stable", ignore_index=True)


def _imputed(run, stays: Cohort, seed: int) -> pd.DataFrame:
    """variable (code), value, model, last, mean of the hidden events: one drawn from every set with two or more."""
    size, first = np.diff(stays.first_event), stays.first_event[:-1]
    rng = np.random.default_rng(stream(seed, "hidden events", str(stays.stays[0])))
    hidden = np.zeros(len(stays.value), dtype=bool)
    hidden[(first + (rng.random(len(size)) * size).astype(int))[size > 1]] = True
    return _bars(run, stays, hidden, ~hidden).assign(model=impute(run, stays, hidden)["mean"].to_numpy())


@torch.no_grad()
def _forecast(run, stays: Cohort) -> pd.DataFrame:
    """variable (code), value, model, last, mean of all events but those of the first set of a stay."""
    every, means = np.arange(len(stays)), []
    for _, batch, output in passes(run.model, stays, every, run.standardiser, run.config.max_sets, decode=False):
        means.append(run.model.decoders["next"](batch.flat(output.h)).mean.double().numpy())
    sets = np.repeat(np.arange(len(stays.hours)), np.diff(stays.first_event))
    later = ~np.isin(sets, stays.first_set[:-1])
    variable = stays.variable[later]
    said = run.standardiser.inverse(variable, np.concatenate(means)[sets[later] - 1, variable])
    return _bars(run, stays, later, np.ones(len(sets), dtype=bool)).assign(model=said)


def _bars(run, stays: Cohort, wanted: np.ndarray, shown: np.ndarray) -> pd.DataFrame:
    """Of the events `wanted` (E,) bool, in order: variable (code), value, `last` (of the events `shown` (E,) bool that
    came earlier), mean."""
    stay = np.repeat(np.arange(len(stays)), np.diff(stays.first_event[stays.first_set]))
    mean = run.standardiser.mean[stays.variable]
    seen = pd.Series(np.where(shown, stays.value, np.nan)).groupby([stay, stays.variable])
    last = seen.ffill().groupby([stay, stays.variable]).shift().fillna(pd.Series(mean))
    table = pd.DataFrame({"variable": stays.variable, "value": stays.value, "last": last, "mean": mean})
    return table[wanted].reset_index(drop=True)
