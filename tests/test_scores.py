"""Scores against definitions, against scikit-learn, and against counting stays one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from hsetvae import scores
from hsetvae.config import UserError
from hsetvae.scores import SCORES, accuracy, auprc, auroc, brier, ece, interval, majority, score_all


def example(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Informative probabilities, rounded so that many are tied."""
    rng = np.random.default_rng(seed)
    probability = rng.beta(1, 5, n)
    return (rng.random(n) < probability).astype(float), probability.round(2)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9])), min_size=2, max_size=40))
def test_ranking_scores_equal_scikit_learn_also_with_ties(pairs):
    outcome, probability = np.array(pairs, dtype=float).T
    if 0 < outcome.sum() < len(outcome):
        assert auroc(outcome, probability) == pytest.approx(roc_auc_score(outcome, probability), abs=1e-12)
        assert auprc(outcome, probability) == pytest.approx(average_precision_score(outcome, probability), abs=1e-12)
    assert brier(outcome, probability) == pytest.approx(brier_score_loss(outcome, probability), abs=1e-12)
    assert accuracy(outcome, probability) == pytest.approx(np.mean((probability >= 0.5) == outcome))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_the_stays_changes_no_score(seed):
    outcome, probability = example(100)
    order = np.random.default_rng(seed).permutation(100)
    for score in (auroc, auprc, accuracy, brier, ece):
        assert score(outcome, probability) == pytest.approx(score(outcome[order], probability[order]), abs=1e-12)


def test_weighting_a_stay_twice_is_having_it_twice():
    outcome, probability = example(60)
    weight = np.random.default_rng(1).integers(0, 4, (3, 60)).astype(float)
    for w in weight:
        repeated = np.repeat(np.arange(60), w.astype(int))
        for score in SCORES.values():
            once = score(*scores._counts(outcome, probability, w[None]))[0]
            assert once == pytest.approx(score(*scores._counts(outcome[repeated], probability[repeated]))[0], abs=1e-12)


def test_auroc_by_hand():
    assert auroc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert auroc([0, 1], [0.3, 0.3]) == 0.5
    assert auroc([0, 1], [0.9, 0.1]) == 0


def test_calibration_error_by_hand():
    # ten bins of two stays: each says .3, one of two has the outcome
    assert ece([0, 1] * 10, np.repeat(np.linspace(0.29999, 0.30001, 10), 2)) == pytest.approx(0.2, abs=1e-4)
    # the outcome's share is right overall, but the two halves are off by .5 each
    assert ece([0] * 10 + [1] * 10, np.full(20, 0.5) + np.linspace(-1e-6, 1e-6, 20)) == pytest.approx(0.5, abs=1e-3)
    # ten bins of two, too low and too high in turn: none may be merged with its neighbour
    assert ece([1, 1, 0, 0] * 5, np.repeat(np.linspace(0.49, 0.51, 10), 2)) == pytest.approx(0.5, abs=0.01)
    assert ece([0] * 10 + [1] * 10, np.full(20, 0.5)) == 0  # tied stays cannot be told apart: one bin


def test_true_probabilities_are_calibrated_and_flattened_ones_are_not():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    outcome = (rng.random(20_000) < p).astype(float)
    assert ece(outcome, p) < 0.015 < 0.1 < ece(outcome, 0.5 + (p - 0.5) / 2)


def test_majority_is_the_share_of_the_larger_class():
    assert majority(np.array([0, 0, 0, 1.0])) == majority(np.array([1, 1, 1, 0.0])) == 0.75


def test_intervals_hold_the_score_and_narrow_with_more_stays():
    few, many = score_all(*example(200)), score_all(*example(3200))
    for name in SCORES:
        for found in (few, many):
            assert found[f"{name}_low"] <= found[name] + 0.02 and found[name] - 0.02 <= found[f"{name}_high"]
    width = [found["auroc_high"] - found["auroc_low"] for found in (few, many)]
    assert 2.5 < width[0] / width[1] < 6.5  # sixteen times the stays: a quarter of the width
    assert few["n"] == 200 and few["majority"] == majority(example(200)[0])


def test_the_bootstrap_interval_is_that_of_resampled_stays():
    outcome, probability = example(300)
    rng = np.random.default_rng(3)
    drawn = [rng.integers(0, 300, 300) for _ in range(400)]
    reference = interval(np.array([roc_auc_score(outcome[i], probability[i]) for i in drawn]))
    found = score_all(outcome, probability)
    assert (found["auroc_low"], found["auroc_high"]) == pytest.approx(reference, abs=0.012)


def test_the_same_seed_gives_the_same_intervals():
    assert score_all(*example(), seed=1) == score_all(*example(), seed=1) != score_all(*example(), seed=2)


def test_a_ranking_of_one_class_is_undefined_and_said_to_be():
    found = score_all(np.zeros(5), np.linspace(0, 1, 5))
    assert found["auroc"] is None and found["auprc_low"] is None and found["brier"] is not None
    assert np.isnan(auroc(np.ones(3), np.array([0.1, 0.2, 0.3])))


@pytest.mark.parametrize(
    ("outcome", "probability"),
    [([0, 1], [0.5]), ([], []), ([0, np.nan], [0.1, 0.2]), ([0, 2], [0.1, 0.2]), ([0, 1], [0.1, np.nan])],
)
def test_what_cannot_be_scored_is_refused(outcome, probability):
    with pytest.raises(UserError, match=r"scored|outcomes must be 0 or 1"):
        auroc(outcome, probability)
