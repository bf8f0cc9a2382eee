"""The bars to beat: logistic regression and gradient boosting on summary features of each variable.

Neither is tuned and neither selects anything, so both learn from the training and the validation stays together.
"""

from __future__ import annotations

import io
import json
import os
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, RobustScaler, StandardScaler

from .cohort import Cohort
from .config import UserError, nearest, stream
from .data import Split
from .files import LOCK, PARTIAL, held, write_atomically
from .scores import score_all
from .stays import STAYS, hash_of, read_stays, stays_of, unseen, write_stays

FEATURES = "features.npz"  # in the folder of a baseline: what it learned from
SECOND_DAY = 24.0  # hours
STATISTICS = ("first", "last", "mean", "min", "max", "sd", "count", "second day")


def summary_features(cohort: Cohort, index: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """First, last, mean, min, max, SD, count and second-day mean of each variable over the whole stay.

    X is (n, 8·V) float64 in natural units, NaN where a variable was never measured (its count is 0); names (8·V,).
    """
    part, V = cohort.subset(index), len(cohort.variables)
    hours = np.repeat(part.hours, np.diff(part.first_event))
    stay = np.repeat(np.arange(len(part)), np.diff(part.first_event[part.first_set]))
    cell = stay * V + part.variable
    order = np.argsort(cell, kind="stable")  # events of a stay are in time, and stay so within a cell
    cell, value, late = cell[order], part.value[order], hours[order] >= SECOND_DAY
    start = np.flatnonzero(np.diff(cell, prepend=-1))
    count = np.diff(start, append=len(cell))
    mean = np.add.reduceat(value, start) / count
    variance = np.add.reduceat((value - np.repeat(mean, count)) ** 2, start) / count
    on_day_2 = np.add.reduceat(late, start, dtype=float)
    day_2 = np.divide(np.add.reduceat(value * late, start), on_day_2, np.full(len(start), np.nan), where=on_day_2 > 0)
    low, high = np.minimum.reduceat(value, start), np.maximum.reduceat(value, start)
    X = np.full((len(STATISTICS), len(part) * V), np.nan)
    X[STATISTICS.index("count")] = 0
    X[:, cell[start]] = [value[start], value[start + count - 1], mean, low, high, np.sqrt(variance), count, day_2]
    X = X.reshape(len(STATISTICS), len(part), V).transpose(1, 0, 2).reshape(len(part), -1)
    return X, [f"{statistic} {variable}" for statistic in STATISTICS for variable in cohort.variables]


def logistic(seed: int):
    robust = RobustScaler(quantile_range=(5, 95)), FunctionTransformer(np.clip, kw_args={"a_min": -2, "a_max": 2})
    return make_pipeline(*robust, StandardScaler(), SimpleImputer(), LogisticRegression(C=0.01, max_iter=1000))


def boosting(seed: int):
    # Fixed once on Challenge 2012: many correlated features, so each split sees a random tenth of them.  The number of
    # trees is fixed, too: left to itself, scikit-learn stops early above 10,000 stays, and only there.
    return HistGradientBoostingClassifier(
        learning_rate=0.03, max_iter=400, max_leaf_nodes=15, l2_regularization=5, max_features=0.1,
        early_stopping=False, random_state=stream(seed, "boosting") % 2**32,
    )  # fmt: skip


MODELS = {"logistic": ("logistic regression", logistic), "boosting": ("gradient boosting", boosting)}


def fitted(name: str, X: np.ndarray, outcome: np.ndarray, seed: int):
    if name not in MODELS:
        raise UserError(f'there is no baseline "{name}"{nearest(name, MODELS)}: choose among {", ".join(MODELS)}')
    known = ~np.isnan(outcome)
    if len(np.unique(outcome[known])) < 2:
        raise UserError("the training stays need both outcomes, 0 and 1: give more stays or the outcome table")
    return MODELS[name][1](seed).fit(X[known], outcome[known])


def fit_baselines(cohort: Cohort, split: Split, seed: int = 0) -> dict[str, np.ndarray]:
    """Probabilities of both baselines on `split.test`: {"logistic regression": (n,), "gradient boosting": (n,)}.

    Raises UserError when the stays to learn from do not have both outcomes.
    """
    X, outcome, used = learned_from(cohort, split)
    tested = summary_features(cohort, split.test)[0][:, used]
    models = {text: fitted(name, X, outcome, seed) for name, (text, _) in MODELS.items()}
    return {text: model.predict_proba(tested)[:, 1] for text, model in models.items()}


def learned_from(cohort: Cohort, split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features and outcomes of the training and validation stays, and which features have a value there at all."""
    index = np.concatenate([split.train, split.validation])
    X, _ = summary_features(cohort, index)
    used = ~np.isnan(X).all(axis=0)
    return X[:, used], np.full(len(index), np.nan) if cohort.outcome is None else cohort.outcome[index], used


# --- a baseline as a run folder --------------------------------------------------------------------------------------


@dataclass
class Baseline:
    """A fitted baseline, with the same verbs as a run of the model."""

    name: str
    variables: tuple[str, ...]
    stays: pd.DataFrame  # columns stay, part (train, validation, test), fingerprint
    used: np.ndarray  # which features have a value in training
    model: object

    def unseen(self, cohort: Cohort) -> np.ndarray:
        """Index of the stays that it did not learn from, by id and by content."""
        return unseen(self.stays, cohort)

    def predict(self, cohort: Cohort, index: np.ndarray | None = None) -> np.ndarray:
        """Probability of the outcome of the stays `index` (default: all) -> (n,)."""
        index = cohort.positions(index)
        if cohort.variables != self.variables:
            raise UserError("this table has other variables: read it with read_cohort(..., variables=run.variables)")
        if not len(index):
            raise UserError("there is no stay to score: this baseline learned from all of them; give other stays")
        return self.model.predict_proba(summary_features(cohort, index)[0][:, self.used])[:, 1]

    def evaluate(self, cohort: Cohort, index: np.ndarray | None = None) -> dict[str, float | int | None]:
        """The scores that `evaluate` gives for a run, of the stays `index` (default: unseen ones) with a known outcome.

        What a model of sets alone has, the likelihood of events and the KL, is None.  UserError without known outcomes.
        """
        index = cohort.positions(self.unseen(cohort) if index is None else index)
        probability = self.predict(cohort, index)
        known = np.zeros(len(index), dtype=bool) if cohort.outcome is None else ~np.isnan(cohort.outcome[index])
        if not known.any():
            raise UserError("none of these stays has a known outcome: give the outcome table (--outcomes FILE)")
        absent = [f"{name}{end}" for name in ("nll_per_event", "kl_per_set") for end in ("", "_low", "_high")]
        return score_all(cohort.outcome[index][known], probability[known]) | dict.fromkeys(absent)


def train_baseline(name: str, cohort: Cohort, split: Split, out: str | os.PathLike, seed: int = 0) -> Baseline:
    """Fit "logistic" or "boosting" and keep it in the folder `out`: what it learned from, not a pickle.

    `load_baseline` fits it again, in seconds and to the same numbers, so that opening a run never executes its bytes.
    Raises UserError when `out` holds something else, and as `fit_baselines` does.
    """
    out = Path(out)
    X, outcome, used = learned_from(cohort, split)
    model = fitted(name, X, outcome, seed)
    stays, buffer = stays_of(cohort, split), io.BytesIO()
    np.savez_compressed(buffer, X=X, outcome=outcome, used=used)
    facts = {"baseline": name, "seed": int(seed), "variables": list(cohort.variables), "stays": hash_of(stays),
             "scikit-learn": sklearn.__version__}  # fmt: skip
    with held(out):
        if any(p.name not in (LOCK, STAYS, FEATURES) and not p.name.endswith(PARTIAL) for p in out.iterdir()):
            raise UserError(f"{out} is a folder with files: choose another --out")
        write_stays(out, stays)
        write_atomically(out / FEATURES, buffer.getvalue())
        write_atomically(out / "baseline.json", json.dumps(facts).encode())
    return Baseline(name, cohort.variables, stays, used, model)


def is_baseline(folder: str | os.PathLike) -> bool:
    """Whether a run folder holds a baseline."""
    return (Path(folder) / "baseline.json").exists()


def load_baseline(folder: str | os.PathLike) -> Baseline:
    """The baseline of a folder, fitted again from what it learned from.  UserError when the folder is damaged; a
    warning where another scikit-learn fits it, which need not come to the same numbers."""
    try:
        facts = json.loads((Path(folder) / "baseline.json").read_text())
        name, seed, variables = facts["baseline"], facts["seed"], tuple(facts["variables"])
        stays = read_stays(Path(folder), facts["stays"])
        with np.load(io.BytesIO((Path(folder) / FEATURES).read_bytes()), allow_pickle=False) as stored:
            X, outcome, used = stored["X"], stored["outcome"], stored["used"]
        if (made := facts["scikit-learn"]) != sklearn.__version__:
            warnings.warn(
                f"{folder} was fitted by scikit-learn {made} and is fitted again by {sklearn.__version__}: its "
                "predictions may differ from those of then",
                stacklevel=2,
            )
        model = fitted(name, X, outcome, seed)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile, zlib.error):
        raise UserError(
            f"{folder} holds no baseline, or baseline.json or {FEATURES} is damaged: train one, or `load_run` a model"
        ) from None
    return Baseline(name, variables, stays, used, model)
