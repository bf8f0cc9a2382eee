"""The simple models beside the study's scores, on the stays of its replicates, fitted when the book is built."""

from __future__ import annotations

import html
from collections.abc import Iterable

import numpy as np
import pandas as pd

from hsetvae.baselines import fitted, learned_from, summary_features
from hsetvae.data import split
from hsetvae.scores import auroc
from hsetvae.simulate import simulate


def simple_aurocs(stays: int, shares: Iterable[float], replicates: Iterable[int]) -> pd.Series:
    """Mean AUROCs on the test stays of simulated replicates, made and split as `ablations/run.ipynb` does it."""
    rows = []
    for replicate in replicates:
        cohort = simulate(stays, seed=replicate).cohort
        parts = split(cohort, replicate, tuple(shares))
        X, outcome, used = learned_from(cohort, parts)
        model, tested = fitted("logistic", X, outcome, replicate), summary_features(cohort, parts.test)[0][:, used]
        visits = np.diff(cohort.first_set) / (cohort.hours[cohort.first_set[1:] - 1] + 1)
        scores = {"logistic": model.predict_proba(tested)[:, 1], "visits": visits[parts.test]}
        rows.append({name: auroc(cohort.outcome[parts.test], score) for name, score in scores.items()})
    return pd.DataFrame(rows).mean()


def how_far(records: pd.DataFrame, data: dict) -> str:
    """Mean AUROCs of all arms of a study in a few sentences of HTML, with the bar where its stays are simulated."""
    reached = records.groupby("arm")["auroc"].mean()
    text = (
        f"At this budget the {len(reached)} arms reach mean AUROCs from {reached.min():.2f} "
        f"({html.escape(reached.idxmin())}) to {reached.max():.2f} ({html.escape(reached.idxmax())}) on unseen stays, "
        f"the one with all references {reached['reference']:.2f}; "
    )
    if data["source"] != "simulated":
        return text.removesuffix("; ") + ". The verdicts speak about small models early in training."
    bar = simple_aurocs(data["stays"], data["shares"], np.unique(records["replicate"]).tolist())
    where = "below that bar" if reached.max() < bar["logistic"] else "around that bar"
    where = f"far {where}" if reached.max() < bar["logistic"] - 0.1 else where
    return text + (
        f"the true probability reaches {records['auroc_of_truth'].mean():.2f}. On the same stays logistic regression "
        "on summary features, which learns from those that the arms learned and selected from, reaches "
        f"{bar['logistic']:.2f}, and the number of visits per hour, which learns nothing, {bar['visits']:.2f}. "
        f"So the verdicts compare small models, early in training, with one another, {where}."
    )
