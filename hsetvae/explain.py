"""What drove a prediction: how far the logit moves when the events of one variable in one window of time are removed.

Removal is exact for every part of the model.  A gradient is not: the statistics that the outcome head reads have none.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from .calibration import log_odds, probabilities
from .cohort import AT_ONCE, Cohort
from .config import UserError, stream
from .scores import RESAMPLES, interval

WINDOW = 6.0  # hours
DRAWS = 10  # random removals of a stay, beside the one of the named events


def without(cohort: Cohort, removed: np.ndarray) -> Cohort:
    """The cohort without the events `removed` (E,) bool; sets that lose all of theirs go, too.

    Raises UserError when a stay would have no event left.
    """
    sets = np.repeat(np.arange(len(cohort.hours)), np.diff(cohort.first_event))
    left = np.bincount(sets[~removed], minlength=len(cohort.hours))  # (M,) events of each set
    first_set = np.concatenate([[0], np.cumsum(left > 0)])[cohort.first_set]
    if (np.diff(first_set) == 0).any():
        stay = cohort.stays[int((np.diff(first_set) == 0).argmax())]
        raise UserError(f'stay "{stay}" would have no event left: leaving events out explains longer stays only')
    return dataclasses.replace(
        cohort, first_set=first_set, first_event=np.concatenate([[0], np.cumsum(left[left > 0])]),
        hours=cohort.hours[left > 0], variable=cohort.variable[~removed], value=cohort.value[~removed],
    )  # fmt: skip


def _logits_without(run, stay: Cohort, removed: np.ndarray) -> np.ndarray:
    """Logits of one stay, each without the events of one row of `removed` (K, E) -> (K,)."""
    found = []
    for some in np.array_split(removed, -(-removed.size // AT_ONCE)):
        versions = without(stay.subset(np.zeros(len(some), dtype=np.int64)), some.ravel())
        found.append(log_odds(probabilities(run, versions, np.arange(len(some)))))
    return np.concatenate(found)


def _cells(stay: Cohort, window: float) -> np.ndarray:
    """Which cell, a variable in a window of time, each event of one stay belongs to -> (E,), numbered from 0."""
    if not window > 0:
        raise UserError(f"window = {window}: explain in windows of more than 0 hours")
    hours = np.repeat(stay.hours, np.diff(stay.first_event))
    pairs = np.stack([np.floor(hours / window), stay.variable])
    return np.unique(pairs, axis=1, return_inverse=True)[1].ravel()


def _contributions(run, stay: Cohort, cell: np.ndarray) -> tuple[float, np.ndarray]:
    """The logit of one stay, and how much of it goes when the events of each cell go -> (K,)."""
    nothing = np.zeros((1, len(cell)), dtype=bool)
    logits = _logits_without(run, stay, np.concatenate([nothing, cell == np.arange(cell.max() + 1)[:, None]]))
    return logits[0], logits[0] - logits[1:]


def explain(run, cohort: Cohort, stay: str, window: float = WINDOW, until: float | None = None) -> pd.DataFrame:
    """What drove the prediction of one stay, as known at the hour `until` (default: all of it), the strongest first.

    A row for each variable in each window of `window` hours: stay, hours (of its first event), variable, events, value
    (their mean, natural units), contribution (logit with these events minus logit without them: positive means that
    they speak for the outcome).  `attrs["logit"]` is the logit of the whole stay.  Contributions need not add up to it:
    two variables may say the same, and each is then missed less.
    Raises UserError for an unknown stay, and for one whose events all lie in one window of one variable.
    """
    places = np.flatnonzero(np.asarray(cohort.stays) == str(stay))
    if not len(places):
        shown = ", ".join(map(str, cohort.stays[:3]))
        raise UserError(f'the table has no stay "{stay}": its {len(cohort)} stays are {shown} …')
    one = cohort.subset(places[:1])
    one = one if until is None else one.until(until)
    cell = _cells(one, window)
    whole, contribution = _contributions(run, one, cell)
    events = pd.DataFrame(
        {
            "hours": np.repeat(one.hours, np.diff(one.first_event)),
            "variable": np.asarray(one.variables, dtype=object)[one.variable],
            "value": one.value,
        }
    )
    table = events.groupby(cell).agg(
        hours=("hours", "first"), variable=("variable", "first"), events=("value", "size"), value=("value", "mean")
    )
    table.insert(0, "stay", str(one.stays[0]))
    table["contribution"] = contribution
    table = table.sort_values("contribution", key=np.abs, ascending=False, kind="stable").reset_index(drop=True)
    table.attrs["logit"] = float(whole)
    return table


# --- is an explanation true? -----------------------------------------------------------------------------------------


def deletion(
    run, cohort: Cohort, index: np.ndarray | None = None, share: float = 0.1, window: float = WINDOW, seed: int = 0
) -> pd.DataFrame:
    """The deletion test: a row for each stay of `index` (default: all) with stay, events (how many are removed, `share`
    of them), and how far the logit moves without the named ones (`named`), without as many random events
    (`events_at_random`), and without as many events of random variables and windows (`cells_at_random`); the two are
    means of DRAWS draws.

    A stay whose events all lie in one window of one variable has nothing to name and no row.
    """
    rows = []
    for i in cohort.positions(index):
        one = cohort.subset(np.array([i]))
        rng = np.random.default_rng(stream(seed, "deletion", str(one.stays[0])))
        cell = _cells(one, window)
        if not cell.any():
            continue
        whole, contribution = _contributions(run, one, cell)
        E, K = len(cell), len(contribution)
        n = max(1, round(share * E))
        rank = np.argsort(np.argsort(-np.abs(contribution), kind="stable"))  # of each cell
        cells = np.argsort(rng.random((DRAWS, K)), axis=1)  # random ranks
        order = np.concatenate([rank[None, cell], rng.random((DRAWS, E)), cells[:, cell]])
        gone = np.argsort(np.argsort(order, axis=1, kind="stable"), axis=1) < n  # (1 + 2·DRAWS, E)
        moved = np.abs(whole - _logits_without(run, one, gone))
        rows.append((str(one.stays[0]), n, moved[0], moved[1 : 1 + DRAWS].mean(), moved[1 + DRAWS :].mean()))
    return pd.DataFrame(rows, columns=["stay", "events", "named", "events_at_random", "cells_at_random"])


def deletion_ratio(table: pd.DataFrame, against: str = "events_at_random", seed: int = 0) -> tuple[float, float, float]:
    """How many times as far the named events move the logit, over the stays of `deletion` -> ratio, low, high (95 %,
    bootstrap over stays)."""
    named, random = table["named"].to_numpy(), table[against].to_numpy()
    n = len(table)
    if not n or not random.sum():
        raise UserError("there is no ratio: no stay was explained, or no random event moves its logit")
    weight = np.random.default_rng(stream(seed, "deletion ratio")).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    return float(named.sum() / random.sum()), *interval((weight @ named) / (weight @ random))
