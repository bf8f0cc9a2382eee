"""Intervals, exact tests, correction and the words of a verdict."""

import itertools

import numpy as np
import pytest
from scipy import stats

from hsetvae.config import UserError
from hsetvae.statistics import (
    Comparison,
    compare,
    detectable,
    holm,
    replicates_needed,
    sign_flip_p,
    t_interval,
    verdict,
)


@pytest.mark.parametrize(("n", "smallest"), [(5, 0.0625), (8, 0.0078125), (10, 0.001953125)])
def test_the_smallest_possible_p_is_two_of_all_flips(n, smallest):
    assert sign_flip_p(np.arange(1, n + 1)) == smallest


def test_sign_flips_are_counted_exactly():
    d = np.array([0.3, -0.1, 0.4, 0.2, 0.05])
    flips = [abs(np.dot(s, d)) >= abs(d.sum()) - 1e-12 for s in itertools.product([1, -1], repeat=5)]
    assert sign_flip_p(d) == np.mean(flips)
    assert sign_flip_p(np.zeros(6)) == 1


def test_many_replicates_are_sampled_close_to_the_exact_answer():
    d = np.random.default_rng(0).normal(0.4, 1, 17)
    sampled, exact = sign_flip_p(d), stats.permutation_test(
        (d,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    ).pvalue  # fmt: skip
    assert sampled == pytest.approx(exact, abs=0.005)


def test_the_interval_is_students():
    d = np.random.default_rng(1).normal(size=9)
    assert t_interval(d) == pytest.approx(stats.ttest_1samp(d, 0).confidence_interval(0.95))


def test_holm_agrees_with_its_definition_and_leaves_nan_out():
    assert holm([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)
    assert holm([0.9, 0.8]).tolist() == [1, 1]


def test_a_detectable_effect_shrinks_with_replicates_until_delta_is_reached():
    n = replicates_needed(sd=0.01, delta=0.005)
    assert detectable(0.01, n) <= 0.005 < detectable(0.01, n - 1)


CASES = {  # mean, SD, n, corrected p -> the verdict's first words (claim: up, delta .1)
    "supported": (0.3, 0.05, 8, 0.01),
    "supported, below the size of interest": (0.05, 0.01, 8, 0.01),
    "refuted: harmful": (-0.3, 0.05, 8, 0.01),
    "refuted: negligible": (0.01, 0.02, 8, 0.4),
    "undecided": (0.1, 0.3, 8, 0.4),
    "not evaluable": (0.3, 0.05, 1, 0.01),
}


@pytest.mark.parametrize("words", CASES)
def test_every_verdict_has_a_case(words):
    mean, sd, n, p = CASES[words]
    reach = stats.t.ppf(0.95, max(n - 1, 1)) * sd / np.sqrt(n)
    c = Comparison(n, mean, sd, mean - 1.3 * reach, mean + 1.3 * reach, mean - reach, mean + reach, 1.0, p, p)
    assert verdict(c, 1, 0.1).startswith(words)
    if words == "supported":
        assert verdict(c, -1, 0.1).startswith("refuted: harmful")
        assert verdict(c, 1, 0.1, failed=0.3).startswith("not evaluable")


def test_a_question_without_a_size_of_interest_is_refused():
    with pytest.raises(UserError, match="delta above 0"):
        verdict(compare(np.ones(5)), 1, 0.0)


def test_null_suites_keep_the_family_wise_error():
    rng = np.random.default_rng(2)
    wins = 0
    for _ in range(400):
        p = holm([compare(d).p for d in rng.normal(size=(4, 8))])
        wins += (p < 0.05).any()
    assert wins / 400 <= 0.06 + 2 * np.sqrt(0.05 * 0.95 / 400)
