"""A teacher for the outcome head: what gradient boosting expects softens the outcomes that the head learns from."""

from __future__ import annotations

import dataclasses

import numpy as np
from sklearn.model_selection import StratifiedKFold

from .baselines import STATISTICS, fitted, summary_features
from .cohort import Cohort
from .config import stream
from .data import FITTED, at_most

FOLDS = 5
CELLS = 50_000_000  # features that boosting is fitted on at most: 400 MB


def taught(cohort: Cohort, train: np.ndarray, share: float, seed: int) -> Cohort:
    """The cohort with the outcome y of every stay in `train` replaced by (1 − share)·y + share·p.

    p is the probability of a boosting that has not seen the stay's own outcome: the stays are dealt out to five folds,
    and each fold is predicted from the others.  A death that nobody could have foreseen then pulls less than one that
    shows (distillation, Hinton et al. 2015).  Other stays keep their outcomes; all do where fewer than two stays have
    one of the outcomes, and in a table of more than FITTED events or CELLS features those beyond.
    """
    if cohort.outcome is None or share == 0:
        return cohort
    index = train[~np.isnan(cohort.outcome[train])]
    index = at_most(cohort, index, FITTED)
    draw = np.random.default_rng(stream(seed, "teacher")).permutation(len(index))
    index = index[np.sort(draw[: CELLS // (len(STATISTICS) * len(cohort.variables))])]
    y = cohort.outcome[index]
    folds = min(FOLDS, int((y == 0).sum()), int((y == 1).sum()))
    if folds < 2:
        return cohort
    X, p = summary_features(cohort, index)[0], np.zeros(len(index))
    dealt = StratifiedKFold(folds, shuffle=True, random_state=stream(seed, "teacher") % 2**32)
    for known, asked in dealt.split(X, y):
        used = np.flatnonzero(~np.isnan(X[known]).all(axis=0))
        model = fitted("boosting", X[np.ix_(known, used)], y[known], seed)
        p[asked] = model.predict_proba(X[np.ix_(asked, used)])[:, 1]
    outcome = cohort.outcome.copy()
    outcome[index] = (1 - share) * y + share * p
    return dataclasses.replace(cohort, outcome=outcome)
