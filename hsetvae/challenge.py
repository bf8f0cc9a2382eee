"""The two scores of the PhysioNet/CinC Challenge 2012: Event 1 of a yes or no, Event 2 (H) of a probability.

Functions of (outcome (n,) 0 or 1, probability (n,)); Silva et al. 2012, Computing in Cardiology 39.
"""

from __future__ import annotations

import numpy as np

DECILES = 10
FLOOR = 0.001  # of the variance of a decile's deaths, as in the Challenge's own program


def event1(outcome: np.ndarray, probability: np.ndarray, threshold: float) -> float:
    """The smaller of sensitivity and precision of "death is predicted from `threshold` on"; 0 without a hit."""
    said, died = np.asarray(probability) >= threshold, np.asarray(outcome) == 1
    hits = int((said & died).sum())
    return hits / max(int(said.sum()), int(died.sum()), 1)


def best_threshold(outcome: np.ndarray, probability: np.ndarray) -> float:
    """The probability from which on `event1` is largest, the highest one of equals.

    With k stays above the threshold, h of them hits, and D deaths Event 1 is h / max(k, D).
    """
    order = np.argsort(-np.asarray(probability), kind="stable")
    p, died = np.asarray(probability)[order], np.asarray(outcome)[order] == 1
    last = np.flatnonzero(np.diff(p, append=-1.0))  # ties are on one side together
    hits, said = np.cumsum(died)[last], last + 1
    return float(p[last[np.argmax(hits / np.maximum(said, max(died.sum(), 1)))]])


def hosmer_lemeshow(outcome: np.ndarray, probability: np.ndarray) -> float:
    """H of Event 2: squared gaps of observed and expected deaths over their variance, summed over the deciles of risk,
    divided by the range of the deciles' mean risks.  0 is best; infinite when all stays have one risk, NaN with fewer
    stays than deciles.
    """
    if len(probability) < DECILES:
        return float("nan")
    order = np.argsort(probability, kind="stable")
    risk, died = (np.array_split(np.asarray(x, dtype=np.float64)[order], DECILES) for x in (probability, outcome))
    size, mean, seen = (np.array([f(part) for part in of]) for f, of in ((len, risk), (np.mean, risk), (np.sum, died)))
    gaps = (seen - size * mean) ** 2 / (size * mean * (1 - mean) + FLOOR)
    reach = mean[-1] - mean[0]
    return float(gaps.sum() / reach) if reach > 0 else float("inf")
