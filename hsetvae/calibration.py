"""Probabilities that mean what they say, and one run at every hour: what is fitted sees validation stays only.

The runs here are trained models and baselines alike; a calibration needs a model, because a baseline learned from its
validation stays.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from .baselines import Baseline
from .cohort import Cohort
from .config import UserError, stream
from .evaluate import predict, scores_and_probabilities
from .files import write_atomically
from .scores import ece, score_all

FILE = "calibration.json"  # in the folder of the run, beside the weights that it belongs to
HOURS = (6.0, 12.0, 24.0, 36.0, 48.0)
DRAWS = 200  # of outcomes, for the calibration error that true probabilities have


@dataclass(frozen=True)
class Calibrator:
    """logit of the calibrated probability = slope · logit of the predicted one + intercept (Platt 1999)."""

    slope: float
    intercept: float
    stays: int  # validation stays that it was fitted on
    outcomes: str  # hash of their outcomes

    @classmethod
    def fit(cls, outcome: np.ndarray, probability: np.ndarray) -> Calibrator:
        """Maximum likelihood with Platt's targets, which keep the slope finite where a threshold separates all stays.

        Raises UserError with one outcome only, and when higher predictions go with fewer outcomes.
        """
        positive, n = int(outcome.sum()), len(outcome)
        if not 0 < positive < n:
            raise UserError(f"a calibration needs validation stays with both outcomes; {positive} of {n} have it")
        target = np.where(outcome == 1, (positive + 1) / (positive + 2), 1 / (n - positive + 2))
        x = np.tile(log_odds(probability), 2)[:, None]
        model = LogisticRegression(C=np.inf, max_iter=1000)
        model.fit(x, np.repeat([1, 0], n), sample_weight=np.concatenate([target, 1 - target]))
        slope, intercept = float(model.coef_[0, 0]), float(model.intercept_[0])
        if slope <= 0:
            raise UserError(
                "the validation stays with higher predictions have the outcome less often: there is nothing to "
                "calibrate; train longer or on more stays"
            )
        return cls(slope, intercept, n, _hash(outcome.tobytes()))

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """Predicted (n,) -> calibrated (n,); the order of the stays, and with it AUROC and AUPRC, stays."""
        return expit(self.slope * log_odds(probability) + self.intercept)


def log_odds(probability: np.ndarray) -> np.ndarray:
    """logit p, finite at 0 and 1."""
    tiny = np.finfo(float).eps
    return logit(np.clip(probability, tiny, 1 - tiny))


def calibrate(run, cohort: Cohort, until: float | None = None) -> Calibrator:
    """The calibration of a run, fitted on its validation stays and kept in its folder; no test stay is looked at.

    `until` (hours) calibrates what is predicted at that hour.  A calibration that the folder holds for these weights,
    and for the outcomes that the table gives the validation stays, is read instead, so that a table without these stays
    can be scored.  Raises UserError when neither is there.
    """
    if isinstance(run, Baseline):
        raise UserError("a baseline learned from its validation stays: there is none left to calibrate it on")
    weights = _hash((run.folder / "model.safetensors").read_bytes())
    hour = "all" if until is None else f"{until:g}"
    kept = _kept(run.folder / FILE, weights)
    index, wanted = _validation(run, cohort)
    outcome = np.full(len(index), np.nan) if cohort.outcome is None else cohort.outcome[index]
    known = ~np.isnan(outcome)
    comparable = len(index) == wanted and known.any()
    if hour not in kept or (comparable and kept[hour].outcomes != _hash(outcome[known].tobytes())):
        if len(index) < wanted:
            raise UserError(
                f"{run.folder} holds no calibration at hour {hour}, and {len(index)} of its {wanted} validation stays "
                "are in this table: calibrate once with the table that the run was trained on, at the same hour; the "
                "calibration is then kept in its folder for other tables"
            )
        if not known.any():
            raise UserError("no validation stay has a known outcome: give the outcome table (--outcomes FILE)")
        probability = probabilities(run, cohort, index[known], until)
        kept[hour] = Calibrator.fit(outcome[known], probability)
        hours = {name: dataclasses.asdict(one) for name, one in kept.items()}
        try:
            write_atomically(run.folder / FILE, json.dumps({"weights": weights, "hours": hours}, indent=1).encode())
        except UserError as error:
            warnings.warn(f"the calibration is used now and not kept for other tables: {error}", stacklevel=2)
    return kept[hour]


def _kept(path: Path, weights: str) -> dict[str, Calibrator]:
    """The calibrations in the folder of a run, by hour; none when they belong to other weights."""
    if not path.exists():
        return {}
    try:
        facts = json.loads(path.read_text())
        hours = {hour: Calibrator(**values) for hour, values in facts["hours"].items()}
        return hours if facts["weights"] == weights else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: delete it, and it is fitted again") from None


def _validation(run, cohort: Cohort) -> tuple[np.ndarray, int]:
    """Index of the run's validation stays in `cohort`, by id and content, and how many the run has."""
    part = run.stays[run.stays.part == "validation"]
    wanted = set(zip(part.stay, part.fingerprint, strict=True))
    pairs = zip(cohort.stays.tolist(), cohort.fingerprints(), strict=True)
    return np.array([i for i, pair in enumerate(pairs) if pair in wanted], dtype=np.int64), len(wanted)


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


# --- probabilities and scores, at any hour ---------------------------------------------------------------------------


def probabilities(run, cohort: Cohort, index: np.ndarray, until: float | None = None) -> np.ndarray:
    """Predicted probability of the stays `index`, as known at the hour `until` (default: all of a stay) -> (n,)."""
    if not isinstance(run, Baseline):
        return predict(run, cohort, index, until)
    return run.predict(*_known_at(cohort, index, until))


def _known_at(cohort: Cohort, index: np.ndarray, until: float | None) -> tuple[Cohort, np.ndarray]:
    """The stays `index` as known at an hour, which for a baseline are read into memory."""
    return (cohort, index) if until is None else (cohort.subset(index).until(until), np.arange(len(index)))


def score(
    run, cohort: Cohort, index: np.ndarray, until: float | None = None, calibrated: bool = False
) -> tuple[dict, np.ndarray]:
    """`evaluate` for a model or a baseline, at an hour, calibrated -> the scores and the probabilities (n,) of `index`.

    Calibration changes accuracy, Brier score and calibration error; `ece_expected` is then beside them.
    """
    calibrator = calibrate(run, cohort, until) if calibrated else None
    if isinstance(run, Baseline):
        scores = run.evaluate(*_known_at(cohort, index, until))
        probability = probabilities(run, cohort, index, until)
    else:
        scores, probability = scores_and_probabilities(run, cohort, index, until)
    if calibrator:
        probability, outcome = calibrator(probability), cohort.outcome[index]
        known = ~np.isnan(outcome)
        scores |= score_all(outcome[known], probability[known])
        scores["ece_expected"] = expected_ece(probability[known])
    return scores, probability


def expected_ece(probability: np.ndarray, seed: int = 0) -> float:
    """The calibration error that these very probabilities have on average when all of them are true.

    It is not 0, because a bin of stays holds a whole number of outcomes: no calibration gets far below it.
    """
    rng = np.random.default_rng(stream(seed, "expected calibration error"))
    drawn = rng.random((DRAWS, len(probability))) < probability
    return float(np.mean([ece(outcome.astype(float), probability) for outcome in drawn]))


def over_hours(
    run,
    cohort: Cohort,
    index: np.ndarray | None = None,
    hours: Sequence[float] = HOURS,
    calibrated: bool = False,
) -> pd.DataFrame:
    """One run asked at several hours: a row for each with hours, n, majority, ece_expected, and auroc, auprc, accuracy,
    brier, ece, each with `_low` and `_high`.

    All rows are of the same stays, `index` (default: those that the run has not seen); a stay that ended earlier counts
    with all it has.  With `calibrated` every hour has its own calibration.
    """
    index = cohort.positions(run.unseen(cohort) if index is None else index)
    known = np.zeros(0, dtype=int) if cohort.outcome is None else index[~np.isnan(cohort.outcome[index])]
    if not len(known):
        raise UserError("none of these stays has a known outcome: give the outcome table (--outcomes FILE)")
    rows = []
    for hour in hours:
        calibrator = calibrate(run, cohort, hour) if calibrated else None
        probability = probabilities(run, cohort, known, hour)
        probability = calibrator(probability) if calibrator else probability
        scores = score_all(cohort.outcome[known], probability)
        rows.append({"hours": hour, **scores, "ece_expected": expected_ece(probability)})
    return pd.DataFrame(rows)
