"""Scores of a trained run on stays: outcome, calibration, likelihood, with 95 % intervals; predictions per stay.

Evaluation uses posterior means, the strict causal mask and no noise anywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch

from .baselines import Baseline
from .cohort import Cohort
from .config import Config, UserError, stream
from .data import Batch, Standardiser, collate
from .model import HSetVAE, Output
from .objective import objective
from .scores import draws_at_once, interval, score_all

EVALUATION_BATCH = 64  # stays per pass; changes speed only


def passes(
    model: HSetVAE, cohort: Cohort, index: np.ndarray, standardiser: Standardiser, max_sets: int, device: str = "cpu",
    decode: bool = True, until: float | None = None,
) -> Iterator[tuple[np.ndarray, Batch, Output]]:  # fmt: skip
    """Evaluate `index` in order, a batch at a time, as known at the hour `until` (default: all of a stay): yields
    (part of index, Batch, Output)."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(index), EVALUATION_BATCH):
                part = index[start : start + EVALUATION_BATCH]
                known, places = cohort, part
                if until is not None:
                    known, places = cohort.subset(part).until(until), np.arange(len(part))
                batch = collate(known, places, standardiser, max_sets).to(device)
                yield part, batch, model(batch, sample=False, decode=decode)
    finally:
        model.train(training)


def mean_terms(
    model: HSetVAE, cohort: Cohort, index: np.ndarray, standardiser: Standardiser, config: Config, device: str = "cpu"
) -> tuple[dict[str, float], np.ndarray]:
    """Raw terms of the objective over `index`, each averaged in its own unit (sets or stays), and the logits; the
    cross-entropy `bce` is NaN where no outcome is known."""
    plain = config.but(label_smoothing=0.0)
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    logits = []
    for _, batch, output in passes(model, cohort, index, standardiser, config.max_sets, device):
        terms = objective(output, batch, plain, step=1, total=1).values
        weight = {"bce": int((~batch.outcome.isnan()).sum()), "distortion_next": int(output.has_next.sum())}
        for name, value in terms.items():
            n = weight.get(name, batch.size)
            sums[name] = sums.get(name, 0.0) + float(value) * n
            counts[name] = counts.get(name, 0) + n
        logits.append(output.logits.cpu().numpy())
    means = {name: sums[name] / max(counts[name], 1) for name in sums}
    return means | ({} if counts["bce"] else {"bce": math.nan}), np.concatenate(logits)


def refuse_baseline(run) -> None:
    if isinstance(run, Baseline):
        raise UserError("this is a baseline, which has no sets and scores itself: call its own `predict` or `evaluate`")


def _checked(run, cohort: Cohort, index: np.ndarray | None) -> np.ndarray:
    """`index` as positions (default: all)."""
    refuse_baseline(run)
    index = cohort.positions(index)
    if len(index) == 0:
        raise UserError(
            "there is no stay to score: all stays of this table were used to train or to select this run; "
            "give a table with other stays, or use `--split all` to score seen stays on purpose"
        )
    if tuple(cohort.variables) != tuple(run.variables):
        raise UserError(
            f"this table's {len(cohort.variables)} variables are not the run's {len(run.variables)}: "
            "read it with read_cohort(events, outcomes, variables=run.variables)"
        )
    return index


def knows_outcomes(run) -> bool:
    """Whether the outcome head has learned: some training stay had an outcome, and the loss counted it."""
    return run.config.class_weight > 0 and bool(run.history["bce"].any())  # exactly 0 where there was none


def _refuse_untaught(run) -> None:
    if not knows_outcomes(run):
        raise UserError(
            "this run was trained without outcomes: train one with the outcome table (--outcomes FILE) and a "
            "class_weight above 0"
        )


def predict(run, cohort: Cohort, index: np.ndarray | None = None, until: float | None = None) -> np.ndarray:
    """Probability of the outcome for each stay of `index` (default: all), as known at the hour `until` (default: all of
    a stay) -> (n,) float64.

    Raises UserError for a run that was trained without outcomes, and for a baseline.
    """
    index = _checked(run, cohort, index)
    _refuse_untaught(run)
    stays = passes(run.model, cohort, index, run.standardiser, run.config.max_sets, decode=False, until=until)
    return np.concatenate([_probability(output) for _, _, output in stays])


def _probability(output: Output) -> np.ndarray:
    return torch.sigmoid(output.logits.double()).numpy()


def per_stay(run, cohort: Cohort, index: np.ndarray, until: float | None = None) -> tuple[pd.DataFrame, np.ndarray]:
    """Sums over each stay of `index`, as known at the hour `until`: events, sets, kl and, where the current set is
    rebuilt, nll (nats); and the probabilities of the outcome (n,)."""
    index = _checked(run, cohort, index)
    rows, probability = [], []
    for _, batch, output in passes(run.model, cohort, index, run.standardiser, run.config.max_sets, until=until):
        probability.append(_probability(output))
        per_set = {"events": batch.events().numpy(), "sets": 1.0, "kl": output.kl.double().sum((1, 2)).numpy()}
        if "current" in output.distortion:
            per_set["nll"] = output.distortion["current"].double().numpy()
        rows.append(pd.DataFrame(per_set).groupby(batch.row.numpy()).sum())
    return pd.concat(rows, ignore_index=True), np.concatenate(probability)


def evaluate(
    run, cohort: Cohort, index: np.ndarray | None = None, until: float | None = None
) -> dict[str, float | int | None]:
    """Scores on `index` (default: the stays that the run has not seen), as known at the hour `until` (default: all of a
    stay): n, auroc, auprc, accuracy, majority, brier, ece, nll_per_event, kl_per_set, each with `_low` and `_high`; nll
    in nats per event (None unless the decoder is a likelihood of the current set), KL in nats per set.

    Raises UserError when no stay has a known outcome, for a run that was trained without, and for a baseline.
    """
    if index is None and not isinstance(run, Baseline):
        index = run.unseen(cohort)
    return scores_and_probabilities(run, cohort, index, until)[0]


def scores_and_probabilities(
    run, cohort: Cohort, index: np.ndarray | None = None, until: float | None = None
) -> tuple[dict[str, float | int | None], np.ndarray]:
    """What `evaluate` and `predict` give, from one pass."""
    index = _checked(run, cohort, index)
    _refuse_untaught(run)
    stays, probability = per_stay(run, cohort, index, until)
    outcome = cohort.outcome[index] if cohort.outcome is not None else np.full(len(index), np.nan)
    known = ~np.isnan(outcome)
    if not known.any():
        raise UserError("none of these stays has a known outcome: give the outcome table (--outcomes FILE)")
    scores = score_all(outcome[known], probability[known])
    rng, n = np.random.default_rng(stream(0, "bootstrap")), len(stays)
    drawn = [rng.multinomial(n, np.ones(n) / n, number) @ stays.to_numpy() for number in draws_at_once(n)]
    resampled = pd.DataFrame(np.concatenate(drawn), columns=stays.columns)
    per_event = run.config.decoder == "likelihood" and "nll" in stays
    ratios = {"nll_per_event": ("nll", "events") if per_event else None, "kl_per_set": ("kl", "sets")}
    for name, pair in ratios.items():
        scores[name] = scores[f"{name}_low"] = scores[f"{name}_high"] = None
        if pair:
            above, below = pair
            scores[name] = float(stays[above].sum() / stays[below].sum())
            ratio = resampled[above] / resampled[below]
            scores[f"{name}_low"], scores[f"{name}_high"] = interval(ratio.to_numpy())
    return scores, probability
