"""The instruments of `measures` on a run, with the network before training beside it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn.decomposition import PCA
from torch import Tensor

from .cohort import Cohort, ragged_rows
from .config import Config, UserError, stream
from .data import Standardiser
from .evaluate import knows_outcomes, refuse_baseline
from .measures import (
    active_units,
    calibration_table,
    collapsed,
    debiased_cka,
    effective_sets,
    floor_shares,
    gradient_health,
    learning,
    mean_cosine,
    mutual_information,
    noise_share,
    past_swap,
    ridge_r2,
    unit_variance,
)
from .model import HSetVAE, Memoryless, initialise
from .observe import Line, Observed, double_batches, paired_lines
from .scores import score_all

THRESHOLDS = (0.01, 0.05, 0.1, 0.2)  # of active units; 0.01 is the usual one
EPSILONS = (0.001, 0.01, 0.1, 1.0)  # nats; the curve of (eps, delta)-collapse at delta = 0.01
INFORMATIVE = 0.1  # nats; a dimension above it says something
MOST_SETS = 20_000  # of a diagnosis, unless told otherwise: means then stand to the second digit
MI_SETS = 4_000  # the cap ln N of the mutual information must not move with the size of the data
CKA_SETS = 1_000
PROBED = 3  # variables in the history probes: the most frequent ones
SHOWN_SETS, SHOWN_STAYS = 400, 4  # in figures


def diagnose(
    run,
    cohort: Cohort,
    index: np.ndarray | None = None,
    seed: int = 0,
    state: np.ndarray | None = None,
    most_sets: int = MOST_SETS,
) -> dict:
    """Every measure of collapse, history, gradients and calibration of a run on the stays `index`.

    `index` defaults to the stays the run has not seen; a random part of them is looked at when they hold more than
    `most_sets` sets.  `state` (M, k), the true latent state at each set of a simulated cohort, adds how well z and h
    recover it.  Returns a dict that JSON can hold (None = undefined), with the same measures of the network before
    training under "untrained".  Deterministic from `seed`.
    Raises UserError without stays or with fewer than four sets, with other variables than the run's, with a stay that
    is too long for the model, and for a baseline.
    """
    refuse_baseline(run)
    index = _chosen(cohort, cohort.positions(run.unseen(cohort) if index is None else index), seed, most_sets)
    if state is not None:
        if np.shape(state)[:1] != (len(cohort.hours),):
            raise UserError(f"state has shape {np.shape(state)}: give one row for each of {len(cohort.hours)} sets")
        state = np.asarray(state, dtype=np.float64)[ragged_rows(cohort.first_set, index)[0]]
    part = cohort.subset(index)
    batches = double_batches(part, run.standardiser, run.config.max_sets)
    fresh = HSetVAE(run.config, len(run.variables))
    initialise(fresh, run.config, run.seed)
    trained, untrained = (Observed(model, batches, seed) for model in (run.model, fresh))
    found, before = (_network(o, part, run.config, run.standardiser, state) for o in (trained, untrained))
    return _plain(
        {
            "stays": len(part),
            "sets": len(part.hours),
            "seed": seed,
            "run_seed": run.seed,
            "settings": run.config.to_dict(),
            **found,
            **_outcome(trained, part if knows_outcomes(run) else dataclasses.replace(part, outcome=None)),
            "gradient": gradient_health(run.history),
            "learning": learning(run.history),
            "untrained": before,
            "figures": {"projection": _projection(trained, part), "pooling": _pooling(trained, part)},
        }
    )


def glance(
    model: HSetVAE, cohort: Cohort, standardiser: Standardiser, config: Config, history: pd.DataFrame, seed: int
) -> dict:
    """What `diagnose` finds on the few stays of `cohort`, without what costs seconds: for a network in training.

    `history` are the rows so far.  There is no untrained network beside it ("untrained" is None) and no probe; what
    has no history has no S_past.  Touches neither the model nor a random stream of the training.
    """
    o = Observed(model, double_batches(cohort, standardiser, config.max_sets), seed)
    rng = np.random.default_rng(stream(seed, "partners"))
    s_past, s_cur = _swaps(o, [] if isinstance(model.history, Memoryless) else paired_lines(cohort, rng))
    swapped = {"s_past": s_past, "s_cur": s_cur, "untrained": None}
    found = {**_latents(o, config), **swapped, "gradient": gradient_health(history), "settings": config.to_dict()}
    return _plain(found)


def _chosen(cohort: Cohort, index: np.ndarray, seed: int, most_sets: int) -> np.ndarray:
    """Stays in random order until they hold `most_sets` sets, then sorted."""
    if not len(index):
        raise UserError("there is no stay to diagnose this run on: give a table with stays it was not trained on")
    order = np.random.default_rng(stream(seed, "diagnosed stays")).permutation(index)
    count = np.diff(cohort.first_set)[order]
    return np.sort(order[np.cumsum(count) - count < most_sets])


def _plain(value):
    """The same as numbers, lists and dicts that JSON can hold; None for what is not finite."""
    if isinstance(value, dict):
        return {str(name): _plain(v) for name, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _network(o: Observed, cohort: Cohort, config: Config, standardiser: Standardiser, state) -> dict:
    """What is measured on the trained and on the untrained network alike."""
    stay = np.repeat(np.arange(len(cohort)), np.diff(cohort.first_set))  # (M,)
    return {
        **_latents(o, config),
        **_history(o, cohort),
        **_probes(o, cohort, standardiser, stay),
        **({} if state is None else {f"state_{name}": ridge_r2(getattr(o, name), state, stay).mean() for name in "zh"}),
        "effective_sets": np.mean(effective_sets(o.pooling, stay)),
        "sets_per_stay": len(stay) / len(cohort),
    }


# --- latents ---------------------------------------------------------------------------------------------------------


def _latents(o: Observed, config: Config) -> dict:
    """Per level (1 = nearest the data) and over all levels; decoder use = distortion with z shuffled − with its own.

    Of one level what it adds to its prior is shuffled, and heard through all levels below: below the deepest level z
    itself also holds what was said above.  That is why `au` counts it there, and only `au_beyond_prior` and KL do not.
    Posteriors and priors of a level are those at the posterior means of the levels above: its KL is not averaged over
    z above, and its `mi` lacks the noise from there, so it is somewhat high.
    """
    latents, rng = o.latents, np.random.default_rng(stream(o.seed, "shuffled latents"))
    mu, prior_mu, logvar, kl = (t.numpy() for t in (latents.mu, latents.prior_mu, latents.logvar, latents.kl))
    M, L, Z = mu.shape
    chosen = np.sort(rng.permutation(M)[:MI_SETS])
    drawn = mu[chosen] + np.exp(0.5 * logvar[chosen]) * rng.standard_normal((len(chosen), L, Z))
    order = rng.permutation(M)
    own = o.distortion(latents.z)

    def information(levels) -> float:
        parts = (a[:, levels].reshape(len(chosen), -1) for a in (drawn, mu[chosen], logvar[chosen]))
        return mutual_information(*parts)

    def use(z: Tensor) -> dict[str, float]:
        missed = o.distortion(z)
        return {f"decoder_use_{name}": missed[name] - own[name] for name in own}

    rows = []
    for level in range(L):
        at_floor, parked = floor_shares(kl[:, level], config.free_bits, config.free_bits_per)
        rows.append(
            {
                "level": level + 1,
                "au": {threshold: active_units(mu[:, level], threshold) for threshold in THRESHOLDS},
                "au_ratio": active_units(mu[:, level]) / Z,
                "au_beyond_prior": active_units(mu[:, level] - prior_mu[:, level]),
                "informative": int((kl[:, level].mean(axis=0) > INFORMATIVE).sum()),
                "kl": kl[:, level].sum(axis=1).mean(),
                "kl_dimensions": kl[:, level].mean(axis=0),
                "variance_dimensions": unit_variance(mu[:, level]),
                "at_floor": at_floor,
                "parked": parked,
                "mean_sigma": np.exp(0.5 * logvar[:, level]).mean(),
                "collapsed": {eps: collapsed(kl[:, level], eps).mean() for eps in EPSILONS},
                "mi": information([level]),
                **use(o.exchanged(level, order)),
            }
        )
    mean = {name: np.mean([row[name] for row in rows]) for name in ("au_ratio", "at_floor", "parked", "mean_sigma")}
    return {
        "levels": rows,
        **mean,
        "collapsed": np.mean([row["collapsed"][0.01] for row in rows]),
        "kl": sum(row["kl"] for row in rows),
        "mi": information(list(range(L))),
        "mi_sets": len(chosen),
        "mi_cap": math.log(len(chosen)),
        **use(latents.z[order]),
        **{f"distortion_{name}": missed for name, missed in own.items()},
    }


# --- history ---------------------------------------------------------------------------------------------------------


def _swaps(o: Observed, lines: list[Line]) -> tuple[float, float]:
    """(S_past, S_cur) at the posterior means; NaN where no stay has a past and a partner."""
    if not lines:
        return math.nan, math.nan
    own, other = (o.latents.z, "own"), (o.latents.z, "other")
    return past_swap(lambda past, now: o.last_states(lines, past, now), (own, own), (other, other))


def _history(o: Observed, cohort: Cohort) -> dict:
    """Whether h knows the past: swaps, noise, similarity of z and h, and the update that the history adds."""
    rng = np.random.default_rng(stream(o.seed, "partners"))
    lines = paired_lines(cohort, rng)
    s_past, s_cur = _swaps(o, lines)
    noise = math.nan
    if lines:
        one, two = (o.draw(True, name).z for name in ("one", "two"))
        seen = [(one, "own"), (two, "own"), (two, "other")]
        noise = noise_share(*(o.last_states(lines, which, which) for which in seen))
    some = rng.permutation(len(o.h))[:CKA_SETS]
    update = o.h - o.residual
    return {
        "s_past": s_past,
        "s_cur": s_cur,
        "noise_share": noise,
        "zh_cka": debiased_cka(o.z[some], o.h[some]),
        "zh_cosine": mean_cosine(o.h, o.residual),
        "update_cosine": mean_cosine(update, o.residual),
        "update_size": np.sqrt(np.square(update).sum() / np.square(o.residual).sum()),
    }


def _probes(o: Observed, cohort: Cohort, standardiser: Standardiser, stay: np.ndarray) -> dict:
    """R² of ridge probes of z and of h for facts that the current set does not hold, about variables it lacks.

    Facts: last value seen, hours since then, mean of the values so far.  The control task asks for the same facts
    dealt out to other sets: its gain must be 0.
    """
    rng, M = np.random.default_rng(stream(o.seed, "control task")), len(stay)
    set_of_event = np.repeat(np.arange(M), np.diff(cohort.first_event))
    value, hours = standardiser.transform(cohort), pd.Series(cohort.hours)
    frequent = np.argsort(-np.bincount(cohort.variable, minlength=len(cohort.variables)), kind="stable")[:PROBED]
    scores = []
    for v in frequent:
        seen = np.full(M, np.nan)
        seen[set_of_event[cohort.variable == v]] = value[cohort.variable == v]
        seen = pd.Series(seen)
        there = seen.notna()
        total, number = seen.fillna(0.0).groupby(stay).cumsum(), there.astype(float).groupby(stay).cumsum()
        rows = np.flatnonzero(~there & (number > 0))
        since = hours - hours.where(there).groupby(stay).ffill()
        facts = np.stack([seen.groupby(stay).ffill(), since, total / number.clip(lower=1)], axis=1)[rows]
        if len(rows):
            targets = np.concatenate([facts, facts[rng.permutation(len(rows))]], axis=1)
            scores.append([ridge_r2(features[rows], targets, stay[rows]) for features in (o.z, o.h)])
    z, h = np.mean(scores, axis=0).reshape(2, 2, 3).mean(axis=2) if scores else np.full((2, 2), np.nan)
    return {"probe_z": z[0], "probe_h": h[0], "probe_gain": h[0] - z[0], "probe_control_gain": h[1] - z[1]}


# --- outcome and figures ---------------------------------------------------------------------------------------------


def _outcome(o: Observed, cohort: Cohort) -> dict:
    """Scores of the outcome with intervals and the calibration table; None without known outcomes, in training or
    here."""
    known = np.zeros(len(cohort), dtype=bool) if cohort.outcome is None else ~np.isnan(cohort.outcome)
    if not known.any():
        return {"scores": None, "calibration": None}
    outcome, probability = cohort.outcome[known], expit(o.logits[known])
    table = calibration_table(outcome, probability)
    return {"scores": score_all(outcome, probability), "calibration": table.to_dict("list")}


def _projection(o: Observed, cohort: Cohort) -> dict:
    """Two principal axes shared by h and by what h would be if the history added nothing ("z"), in D dimensions."""
    rng = np.random.default_rng(stream(o.seed, "projected sets"))
    some = np.sort(rng.permutation(len(o.h))[:SHOWN_SETS])
    both = np.concatenate([o.residual[some], o.h[some]])
    place = PCA(min(2, *both.shape), svd_solver="full").fit_transform(both)
    hours = np.tile(cohort.hours[some], 2)
    return {"state": ["z"] * len(some) + ["h"] * len(some), "hours": hours, "x": place[:, 0], "y": place[:, -1]}


def _pooling(o: Observed, cohort: Cohort) -> dict:
    """Weights of the sets in the outcome head of the stays with the most sets."""
    count = np.diff(cohort.first_set)
    shown = np.argsort(-count, kind="stable")[:SHOWN_STAYS]
    sets, _ = ragged_rows(cohort.first_set, shown)
    return {
        "stay": np.repeat(cohort.stays[shown], count[shown]),
        "hours": cohort.hours[sets],
        "weight": o.pooling[sets],
    }
