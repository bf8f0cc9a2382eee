"""How good predicted probabilities are: small pure functions of (outcome, probability), with bootstrap intervals.

All of them work on counts: how many stays with and without the outcome hold each distinct probability.  A bootstrap
resample is then another row of counts, so that a thousand resamples are one array operation, and ties are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .config import UserError, stream

BINS = 10  # of the calibration error, equal in mass
RESAMPLES = 1000  # of the bootstrap: the ends of a 95 % interval then vary by about a tenth of its width
AT_ONCE = 4_000_000  # counts in memory: resamples times stays

Counts = tuple[np.ndarray, np.ndarray, np.ndarray]  # with outcome (R, G), without (R, G), distinct probability (G,)


def _counts(outcome: np.ndarray, probability: np.ndarray, weight: np.ndarray | None = None) -> Counts:
    """`weight` (R, n) says how often each stay occurs in each of R resamples; default once in one."""
    outcome, probability = np.asarray(outcome, dtype=float), np.asarray(probability, dtype=float)
    if outcome.shape != probability.shape or outcome.ndim != 1 or not len(outcome):
        raise UserError(f"{outcome.shape} outcomes and {probability.shape} probabilities cannot be scored")
    if not np.isin(outcome, (0, 1)).all() or np.isnan(probability).any():
        raise UserError("outcomes must be 0 or 1 and probabilities numbers: leave stays with an unknown outcome out")
    order = np.argsort(probability, kind="stable")
    distinct, start = np.unique(probability[order], return_index=True)
    weight = np.ones((1, len(outcome))) if weight is None else weight
    positive, total = (np.add.reduceat(w[:, order], start, axis=1) for w in (weight * outcome, weight))
    return positive, total - positive, distinct


def _auroc(positive: np.ndarray, negative: np.ndarray, _: np.ndarray) -> np.ndarray:
    below = np.cumsum(negative, axis=1) - negative / 2  # a tie counts one half
    return _ratio((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def _auprc(positive: np.ndarray, negative: np.ndarray, _: np.ndarray) -> np.ndarray:
    hits = np.cumsum(positive[:, ::-1], axis=1)
    precision = _ratio(hits, hits + np.cumsum(negative[:, ::-1], axis=1))
    return _ratio(np.nansum(positive[:, ::-1] * precision, axis=1), positive.sum(axis=1))


def _accuracy(positive: np.ndarray, negative: np.ndarray, p: np.ndarray) -> np.ndarray:
    return np.where(p >= 0.5, positive, negative).sum(axis=1) / (positive + negative).sum(axis=1)


def _brier(positive: np.ndarray, negative: np.ndarray, p: np.ndarray) -> np.ndarray:
    return (positive * (1 - p) ** 2 + negative * p**2).sum(axis=1) / (positive + negative).sum(axis=1)


def _ece(positive: np.ndarray, negative: np.ndarray, p: np.ndarray) -> np.ndarray:
    number = positive + negative
    total = number.sum(axis=1, keepdims=True)
    middle = (np.cumsum(number, axis=1) - number / 2) / total  # share of stays below; ties share a bin
    cell = np.minimum((BINS * middle).astype(int), BINS - 1) + BINS * np.arange(len(number))[:, None]
    gap = np.bincount(cell.ravel(), (positive - number * p).ravel(), BINS * len(number))
    return np.abs(gap.reshape(-1, BINS)).sum(axis=1) / total[:, 0]


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)


SCORES: dict[str, Callable[..., np.ndarray]] = {
    "auroc": _auroc,
    "auprc": _auprc,
    "accuracy": _accuracy,
    "brier": _brier,
    "ece": _ece,
}


def auroc(outcome: np.ndarray, probability: np.ndarray) -> float:
    """Area under the ROC curve: chance that a stay with the outcome ranks above one without; NaN with one class."""
    return float(_auroc(*_counts(outcome, probability))[0])


def auprc(outcome: np.ndarray, probability: np.ndarray) -> float:
    """Average precision: mean precision over the stays with the outcome; NaN when there is none."""
    return float(_auprc(*_counts(outcome, probability))[0])


def accuracy(outcome: np.ndarray, probability: np.ndarray) -> float:
    """Share of stays on the right side of 0.5; read it beside `majority`."""
    return float(_accuracy(*_counts(outcome, probability))[0])


def majority(outcome: np.ndarray) -> float:
    """Accuracy of always saying the more frequent class."""
    return float(max(np.mean(outcome), 1 - np.mean(outcome)))


def brier(outcome: np.ndarray, probability: np.ndarray) -> float:
    """Mean squared difference between probability and outcome."""
    return float(_brier(*_counts(outcome, probability))[0])


def ece(outcome: np.ndarray, probability: np.ndarray) -> float:
    """Expected calibration error: |share with the outcome - mean probability|, averaged over 10 equal-mass bins."""
    return float(_ece(*_counts(outcome, probability))[0])


def interval(resampled: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of resampled values; NaNs (resamples with one class) are left out."""
    finite = resampled[~np.isnan(resampled)]
    return tuple(map(float, np.quantile(finite, [0.025, 0.975]))) if len(finite) else (math.nan, math.nan)


def draws_at_once(n: int) -> list[int]:
    """RESAMPLES of n stays as numbers of resamples that fit into memory; their draws do not depend on the cut."""
    most = min(100, max(1, AT_ONCE // n))
    return [min(most, RESAMPLES - done) for done in range(0, RESAMPLES, most)]


def score_all(outcome: np.ndarray, probability: np.ndarray, seed: int = 0) -> dict[str, float | int | None]:
    """n, majority, and auroc, auprc, accuracy, brier, ece, each with `_low` and `_high`: 95 % bootstrap over stays.

    What is undefined (a ranking with one class) is None.  Raises UserError unless outcomes are 0 or 1, none unknown.
    """
    n, rng = len(outcome), np.random.default_rng(stream(seed, "bootstrap"))
    whole = _counts(outcome, probability)
    resampled = {name: [] for name in SCORES}
    for number in draws_at_once(n):
        counts = _counts(outcome, probability, rng.multinomial(n, np.full(n, 1 / n), number).astype(float))
        for name, score in SCORES.items():
            resampled[name].append(score(*counts))
    found = {"n": n, "majority": majority(outcome)}
    for name, score in SCORES.items():
        found[name] = float(score(*whole)[0])
        found[f"{name}_low"], found[f"{name}_high"] = interval(np.concatenate(resampled[name]))
    return {name: None if math.isnan(value) else value for name, value in found.items()}
