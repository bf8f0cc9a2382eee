"""Who competes in a suite: each kind of entrant is one function from stays and a split to probabilities.

No entrant is given the outcomes of the test stays, so none can use them.  What selects (an epoch, a candidate) does so
on the validation stays.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import loguniform, randint, uniform
from sklearn.base import clone
from sklearn.ensemble import VotingClassifier
from sklearn.model_selection import GridSearchCV, ParameterSampler, PredefinedSplit

from .baselines import boosting, fitted, learned_from, summary_features
from .calibration import HOURS, probabilities
from .cohort import Cohort
from .config import Config, UserError, stream
from .data import Split, Standardiser
from .designs import CODE
from .diagnostics import diagnose
from .evaluate import per_stay, predict
from .events import read_cohort
from .runs import DONE, Run
from .train import train

# --- stays -----------------------------------------------------------------------------------------------------------


def known_stays(data: str, outcomes: str, groups: tuple[str, ...]) -> Cohort:
    """The stays with a known outcome of some groups; a worker reads them once, and again when a file has changed."""
    return _known_stays(data, outcomes, groups, tuple(Path(f).stat().st_mtime_ns for f in (data, outcomes) if f))


@functools.lru_cache(maxsize=1)
def _known_stays(data: str, outcomes: str, groups: tuple[str, ...], modified: tuple[int, ...]) -> Cohort:
    cohort, _ = read_cohort(data, outcomes or None)
    if groups and cohort.group is None:
        raise UserError(
            f"{data} has no column group, and the suite wants groups {', '.join(groups)}: a declaration of your own "
            "leaves `groups` out"
        )
    known = np.zeros(len(cohort), dtype=bool) if cohort.outcome is None else ~np.isnan(cohort.outcome)
    index = np.flatnonzero(known & (np.isin(cohort.group, groups) if groups else True))
    if not len(index):
        raise UserError(f"{data} has no stay with a known outcome" + (f" in groups {', '.join(groups)}" * bool(groups)))
    return cohort.subset(index)


def fewer(parts: Split, share: float, seed: int) -> Split:
    """A random `share` of the training and of the validation stays; a smaller share is part of a larger one."""
    rng = np.random.default_rng(stream(seed, "share of the stays"))
    train, validation = (
        np.sort(rng.permutation(part)[: round(share * len(part))]) for part in (parts.train, parts.validation)
    )
    return Split(train, validation, parts.test)


# --- one entrant -----------------------------------------------------------------------------------------------------

# What the tuned boosting is drawn from, around the settings of the untuned one.
SEARCHED = {
    "learning_rate": loguniform(0.01, 0.1), "max_iter": randint(100, 800), "max_leaf_nodes": randint(4, 32),
    "min_samples_leaf": randint(5, 80), "l2_regularization": loguniform(0.1, 100), "max_features": uniform(0.05, 0.45),
}  # fmt: skip


class Made(NamedTuple):
    """What an entrant leaves: probabilities of the validation (n,) and the test stays (m,), and facts for its record.

    The facts are parameters (None where a model has none to count), seconds_training and stays_per_second, what was
    chosen, and of our own models what the instruments show on the test stays.  `earlier` holds the probabilities of the
    test stays as they were known at an hour: "6h", …
    """

    validation: np.ndarray
    test: np.ndarray
    facts: dict[str, Any]
    earlier: Mapping[str, np.ndarray] = MappingProxyType({})


def compete(
    kind: str, settings: dict[str, Any], cohort: Cohort, parts: Split, seed: int, folder: Path
) -> tuple[Made, float]:
    """Train and score one entrant on a split -> what it made, and the peak memory of the process meanwhile in MiB.

    The process also holds the table, and the libraries that entrants before it have loaded.
    `folder` is its own: a training that is killed continues there.  Raises what the entrant raises.
    """
    outcome = cohort.outcome.copy()
    outcome[parts.test] = np.nan
    _forget_peak()
    made = KINDS[kind].run(settings, dataclasses.replace(cohort, outcome=outcome), parts, seed, folder)
    for name, probability in {"validation": made.validation, "test": made.test, **made.earlier}.items():
        if not ((probability >= 0) & (probability <= 1)).all():
            raise UserError(f"{kind} gave a stay ({name}) something that is no probability")
    return made, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _forget_peak() -> None:
    """Let Linux count this process's peak memory anew; elsewhere it counts from the start of the worker."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _timed(score: Callable[[np.ndarray], np.ndarray], index: np.ndarray) -> tuple[np.ndarray, float]:
    """Probabilities of the stays `index`, and how many stays a second that were."""
    started = time.perf_counter()
    return score(index), len(index) / (time.perf_counter() - started)


# --- simple models on summary features -------------------------------------------------------------------------------


def _on_features(
    cohort: Cohort, parts: Split, both: Any, train: Any, used: np.ndarray, facts: dict, earlier: Mapping | None = None
) -> Made:
    """A fit to the training stays scores the validation stays, a fit to both scores the test stays."""

    def scored(model):
        return lambda index: model.predict_proba(summary_features(cohort, index)[0][:, used])[:, 1]

    validation, _ = _timed(scored(train), parts.validation)
    test, rate = _timed(scored(both), parts.test)
    return Made(validation, test, {"stays_per_second": rate, **facts}, earlier or {})


def _untuned(name: str) -> Callable[..., Made]:
    def run(settings: dict, cohort: Cohort, parts: Split, seed: int, folder: Path) -> Made:
        started = time.perf_counter()
        X, outcome, used = learned_from(cohort, parts)
        both = fitted(name, X, outcome, seed)
        facts = {"seconds_training": time.perf_counter() - started, "parameters": _coefficients(both)}
        train = fitted(name, X[: len(parts.train)], outcome[: len(parts.train)], seed)
        earlier = {f"{hour:g}h": _at(name, cohort.until(hour), parts, seed) for hour in HOURS}
        return _on_features(cohort, parts, both, train, used, facts, earlier)

    return run


def _at(name: str, known: Cohort, parts: Split, seed: int) -> np.ndarray:
    """Probabilities of the test stays by a model of its own for what is known at one hour."""
    X, outcome, used = learned_from(known, parts)
    model = fitted(name, X, outcome, seed)
    return model.predict_proba(summary_features(known, parts.test)[0][:, used])[:, 1]


def _coefficients(model) -> int | None:
    """Coefficients and intercept of a pipeline that ends in a linear model; trees have nothing comparable."""
    last = model[-1] if hasattr(model, "steps") else model
    return last.coef_.size + 1 if hasattr(last, "coef_") else None


def _tuned(settings: dict, cohort: Cohort, parts: Split, seed: int, folder: Path) -> Made:
    """Boosting with the best of `trials` candidates by the cross-entropy of the validation stays; the untuned settings
    are the first candidate."""
    started = time.perf_counter()
    X, outcome, used = learned_from(cohort, parts)
    drawn = ParameterSampler(SEARCHED, settings["trials"] - 1, random_state=stream(seed, "tuning") % 2**32)
    candidates = [{name: [value] for name, value in one.items()} for one in [{}, *drawn]]
    only = PredefinedSplit(np.repeat([-1, 0], [len(parts.train), len(parts.validation)]))
    search = GridSearchCV(boosting(seed), candidates, scoring="neg_log_loss", cv=only).fit(X, outcome)
    facts = {"seconds_training": time.perf_counter() - started, "parameters": None,
             "chosen": json.dumps(search.best_params_, default=float)}  # fmt: skip
    train = clone(search.best_estimator_).fit(X[: len(parts.train)], outcome[: len(parts.train)])
    return _on_features(cohort, parts, search.best_estimator_, train, used, facts)


def _averaged(settings: dict, cohort: Cohort, parts: Split, seed: int, folder: Path) -> Made:
    """The mean of the probabilities of untuned boostings from several random `starts`, the first of which is the one of
    the untuned entrant: what a second start adds is what a second model has to add to."""
    started = time.perf_counter()
    X, outcome, used = learned_from(cohort, parts)
    seeds = [seed, *(stream(seed, f"start {k}") for k in range(1, settings["starts"]))]
    both = VotingClassifier([(f"start {k}", boosting(s)) for k, s in enumerate(seeds)], voting="soft").fit(X, outcome)
    facts = {"seconds_training": time.perf_counter() - started, "parameters": None}
    train = clone(both).fit(X[: len(parts.train)], outcome[: len(parts.train)])
    return _on_features(cohort, parts, both, train, used, facts)


# --- neural models ---------------------------------------------------------------------------------------------------


def _model(settings: dict, cohort: Cohort, parts: Split, seed: int, folder: Path) -> Made:
    """hsetvae with the whole configuration in `settings`; its runs lie in folder/run, folder/refit and continue there.

    With `refit` a second training learns from the validation stays, too, and scores the test stays, as the fits of the
    simple models do.  What selects an epoch has then been learned from, which takes the last one.
    """
    config = Config.from_dict({name: value for name, value in settings.items() if name != "refit"})
    run = train(config, cohort, parts, folder / "run", seed=seed, resume=True, progress=False)
    validation, _ = _timed(lambda index: predict(run, cohort, index), parts.validation)
    if settings["refit"]:
        both = dataclasses.replace(parts, train=np.sort(np.concatenate([parts.train, parts.validation])))
        run = train(config, cohort, both, folder / "refit", seed=seed, resume=True, progress=False)
    done = [json.loads(path.read_text()) for path in folder.rglob(DONE)]  # pretraining has its own
    facts = {"seconds_training": sum(d["seconds"] for d in done),
             "parameters": sum(p.numel() for p in run.model.parameters())}  # fmt: skip
    test, rate = _timed(lambda index: predict(run, cohort, index), parts.test)
    facts |= {"stays_per_second": rate, **_instruments(run, cohort, parts.test, seed)}
    earlier = {f"{hour:g}h": probabilities(run, cohort, parts.test, hour) for hour in HOURS}
    return Made(validation, test, facts, earlier)


def _instruments(run: Run, cohort: Cohort, index: np.ndarray, seed: int) -> dict[str, float | None]:
    """Whether it is still a VAE: active units of all levels and of the top one, what latents and decoders carry, what
    h keeps of the past, and the likelihood; None where a model has no such thing."""
    found, (sums, _) = diagnose(run, cohort, index, seed), per_stay(run, cohort, index)
    return {
        "au_ratio": found["au_ratio"],
        "au_ratio_top": found["levels"][-1]["au_ratio"],
        **{name: found.get(name) for name in ("mi", "decoder_use_current", "decoder_use_next", "s_past", "s_cur")},
        "s_past_untrained": found["untrained"]["s_past"],
        "kl_per_set": float(sums["kl"].sum() / sums["sets"].sum()),
        "nll_per_event": float(sums["nll"].sum() / sums["events"].sum()) if "nll" in sums else None,
    }


def hourly(cohort: Cohort, standardiser: Standardiser, hours: int) -> np.ndarray:
    """Mean standardised value of each variable in each of the first `hours` hours -> (S, hours, V) float32, NaN where
    none was measured; what comes later belongs to the last hour."""
    shape = len(cohort), hours, len(cohort.variables)
    stay = np.repeat(np.arange(len(cohort)), np.diff(cohort.first_event[cohort.first_set]))
    hour = np.repeat(cohort.hours, np.diff(cohort.first_event)).astype(int).clip(0, hours - 1)
    cell = np.ravel_multi_index((stay, hour, cohort.variable), shape)
    total, count = (np.bincount(cell, w, minlength=np.prod(shape)) for w in (standardiser.transform(cohort), None))
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0).reshape(shape).astype(np.float32)


def _grud(settings: dict, cohort: Cohort, parts: Split, seed: int, folder: Path) -> Made:
    """GRU-D (Che et al. 2018) of PyPOTS on hourly values; its best epoch is chosen on the validation stays."""
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # it greets whoever imports it
            from pypots.classification import GRUD
            from pypots.utils.logging import logger
            from pypots.utils.random import set_random_seed
    except ImportError:
        raise UserError(
            "GRU-D comes from PyPOTS, which is not installed: pip install -c constraints.txt -e '.[peers]'"
        ) from None
    logger.disabled = True  # it warns, once a run, that nothing is saved: that is meant
    set_random_seed(stream(seed, "gru-d") % 2**31)
    started = time.perf_counter()
    hours, standardiser = settings["hours"], Standardiser.fit(cohort, parts.train)
    more = {name: value for name, value in settings.items() if name != "hours"}

    def grid(index: np.ndarray) -> np.ndarray:
        return hourly(cohort.subset(index), standardiser, hours)

    def known(index: np.ndarray) -> dict[str, np.ndarray]:
        return {"X": grid(index), "y": cohort.outcome[index].astype(int)}

    model = GRUD(n_steps=hours, n_features=len(cohort.variables), n_classes=2, verbose=False, **more)
    model.fit(known(parts.train), known(parts.validation))
    facts = {"seconds_training": time.perf_counter() - started,
             "parameters": sum(p.numel() for p in model.model.parameters())}  # fmt: skip

    def scored(index: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict_proba({"X": grid(index)}), dtype=np.float64)[:, 1]

    validation, _ = _timed(scored, parts.validation)
    test, rate = _timed(scored, parts.test)
    return Made(validation, test, {"stays_per_second": rate, **facts})


# --- what there is ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Kind:
    """How a kind of entrant runs, the modules whose code decides its probabilities and their scores, and the settings
    that it takes."""

    run: Callable[..., Made]
    modules: tuple[str, ...]
    needs: frozenset[str] = frozenset()
    takes_more: bool = False


# `calibration`, `challenge` and `scores` decide what a published row says of the probabilities
_READING = (
    "calibration", "challenge", "cohort", "config", "data", "entrants", "events", "gather", "mapped", "scores", "tables"
)  # fmt: skip
_SIMPLE = tuple(sorted({*_READING, "baselines"}))
KINDS = {
    "logistic": Kind(_untuned("logistic"), _SIMPLE),
    "boosting": Kind(_untuned("boosting"), _SIMPLE),
    "tuned boosting": Kind(_tuned, _SIMPLE, frozenset({"trials"})),
    "averaged boosting": Kind(_averaged, _SIMPLE, frozenset({"starts"})),
    "gru-d": Kind(_grud, _READING, frozenset({"hours"}), takes_more=True),
    "model": Kind(_model, tuple(sorted({*_READING, *CODE})), takes_more=True),
}
