"""Intervals, exact tests, correction and the words of a verdict."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hsetvae.config import UserError
from hsetvae.declaration import Study, load_study
from hsetvae.designs import plan
from hsetvae.statistics import (
    Comparison,
    compare,
    compare_events,
    detectable,
    holm,
    replicates_needed,
    sign_flip_p,
    t_interval,
    verdict,
)
from hsetvae.study import summary


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


EXACTLY = {"rel": 1e-12, "abs": 1e-12}


@pytest.mark.parametrize("n", [2, 3, 5, 8, 10])
def test_intervals_and_p_values_are_scipys_to_twelve_digits(n):
    for seed in range(20):
        d = np.random.default_rng([n, seed]).normal(0.3, 1, n)
        c = compare(d)
        for level, low, high in ((0.95, c.low, c.high), (0.9, c.low90, c.high90)):
            assert (low, high) == pytest.approx(tuple(stats.ttest_1samp(d, 0).confidence_interval(level)), **EXACTLY)
        flips = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert c.p == pytest.approx(flips.pvalue, **EXACTLY)
        assert (c.estimate, c.sd) == pytest.approx((d.mean(), stats.tstd(d)), **EXACTLY)


def test_negligible_means_that_both_one_sided_tests_reject():
    delta, seen = 0.3, set()
    for seed in range(200):
        d = np.random.default_rng(seed).normal(0.05, 0.3, 10)
        above = stats.ttest_1samp(d, -delta, alternative="greater").pvalue
        below = stats.ttest_1samp(d, delta, alternative="less").pvalue
        negligible = verdict(dataclasses.replace(compare(d), p_holm=1.0), 1, delta) == "refuted: negligible"
        assert negligible == (max(above, below) < 0.05)
        seen.add(negligible)
    assert seen == {True, False}


def test_holm_rejects_step_by_step_as_its_definition_says():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = rng.beta(0.4, 2, rng.integers(1, 12)).round(rng.integers(2, 8))  # with ties
        for alpha in (0.01, 0.05, 0.3):
            order, rejected = np.argsort(p, kind="stable"), np.zeros(len(p), dtype=bool)
            for rank, i in enumerate(order):
                if p[i] * (len(p) - rank) > alpha:
                    break
                rejected[i] = True
            assert ((holm(p) <= alpha) == rejected).all()


def test_holm_on_a_table_worked_by_hand():
    assert holm([0.01, 0.04, 0.03, np.nan]) == pytest.approx([0.03, 0.06, 0.06, np.nan], nan_ok=True)
    assert holm([0.9, 0.8]).tolist() == [1, 1]


def test_a_detectable_effect_shrinks_with_replicates_until_delta_is_reached():
    n = replicates_needed(sd=0.01, delta=0.005)
    assert detectable(0.01, n) <= 0.005 < detectable(0.01, n - 1)


# Truth table: mean, SD, corrected p, at n = 10, claim "up", smallest effect of interest .1 -> the words
TRUTH = [
    (0.30, 0.05, 0.01, "supported"),
    (0.10, 0.05, 0.01, "supported"),
    (0.05, 0.01, 0.01, "supported, below the size of interest"),
    (-0.30, 0.05, 0.01, "refuted: harmful"),
    (-0.05, 0.01, 0.01, "refuted: harmful"),
    (0.01, 0.02, 0.40, "refuted: negligible"),
    (-0.01, 0.02, 0.05, "refuted: negligible"),
    (0.10, 0.30, 0.40, "undecided at n=10 (could have seen 0.3; 73 replicates would show 0.1)"),
    (-0.30, 0.50, 0.05, "undecided at n=10 (could have seen 0.49; 199 replicates would show 0.1)"),
]


def comparison(mean: float, sd: float, p: float, n: int = 10) -> Comparison:
    reach = {level: stats.t.ppf(0.5 + level / 2, max(n - 1, 1)) * sd / np.sqrt(n) for level in (0.95, 0.9)}
    ends = [mean + sign * reach[level] for level in (0.95, 0.9) for sign in (-1, 1)]
    return Comparison(n, mean, sd, *ends, positive=1.0, p=p, p_holm=p)


@pytest.mark.parametrize(("mean", "sd", "p", "words"), TRUTH)
def test_the_words_of_a_verdict_follow_the_truth_table(mean, sd, p, words):
    assert verdict(comparison(mean, sd, p), 1, 0.1) == words
    mirrored = verdict(comparison(-mean, sd, p), -1, 0.1)
    assert mirrored == words, "a claim that a measure goes down is the same claim upside down"


def test_what_could_have_been_seen_counts_the_questions_that_share_the_error():
    c = comparison(0.10, 0.30, 0.40)
    alone, among = (verdict(c, 1, 0.1, corrected_for=k) for k in (1, 20))
    assert [int(text.split("; ")[1].split()[0]) for text in (alone, among)] == [73, 139]
    assert detectable(0.3, 139, 0.05 / 20) <= 0.1 < detectable(0.3, 138, 0.05 / 20)
    few = verdict(comparison(0.3, 0.01, 0.06, n=5), 1, 0.1)
    assert few == "undecided at n=5 (could have seen nothing; 6 replicates would show 0.1)"


def test_a_verdict_needs_runs():
    good = comparison(0.3, 0.05, 0.01)
    assert verdict(good, 1, 0.1, failed=0.2) == "supported", "up to a fifth may fail"
    assert verdict(good, 1, 0.1, failed=0.21) == "not evaluable: 21% of the runs failed"
    assert verdict(comparison(0.3, 0.05, 0.01, n=1), 1, 0.1, failed=0.06) == "not evaluable at n=1"
    assert verdict(compare(np.array([])), 1, 0.1) == "not evaluable at n=0"


def test_a_question_without_a_size_of_interest_is_refused():
    with pytest.raises(UserError, match="delta above 0"):
        verdict(compare(np.ones(5)), 1, 0.0)


# --- the whole engine on made-up records -----------------------------------------------------------------------------

STUDIES = 1000
STUDY = load_study(Path(__file__).resolve().parents[1] / "ablations" / "study.toml")
FEW = "pooling gelu head dynamic_weights beta warmup position".split()  # add-one-in with these questions only


def records_of(arms, replicates: int, rng, effect: dict | None = None) -> pd.DataFrame:
    """Records in which replicates differ and arms do not, but for `effect`: arm -> what it adds to every endpoint."""
    arm, replicate = (grid.ravel() for grid in np.meshgrid(np.arange(len(arms)), np.arange(replicates), indexing="ij"))
    names = np.array([a.name for a in arms])[arm]
    frame = {"arm": names, "replicate": replicate, "status": "finished", "diverged": 0.0}
    added = np.array([(effect or {}).get(name, 0.0) for name in names])
    for e in STUDY.endpoints.values():  # the SD between replicates is four times the SD within, in units of delta
        within = rng.standard_normal(len(names)) / np.sqrt(2)
        frame[e.name] = e.delta * (4 * rng.standard_normal(replicates)[replicate] + within + added)
    return pd.DataFrame(frame)


def only(names) -> Study:
    """The study with these questions and their endpoints."""
    questions = {name: STUDY.questions[name] for name in names}
    endpoints = {q.endpoint: STUDY.endpoints[q.endpoint] for q in questions.values()}
    factors = tuple(name for name in STUDY.factorial if name in names)
    return dataclasses.replace(STUDY, questions=questions, endpoints=endpoints, path=(), factorial=factors)


@pytest.mark.slow
@pytest.mark.parametrize("design", ["factorial", "add"])
def test_null_studies_keep_the_family_wise_error_from_records_to_verdicts(design):
    """A thousand studies in which no arm does anything; .064 is the promised .05 and two SD of this simulation."""
    study, rng, wrong = only(STUDY.factorial if design == "factorial" else FEW), np.random.default_rng(5), Counter()
    arms = plan(study, design)[0]
    replicates = STUDY.budgets[STUDY.designs[design].budget]["replicates"]
    assert 0.05 + 2 * np.sqrt(0.05 * 0.95 / STUDIES) <= 0.064
    for _ in range(STUDIES):
        table = summary(study, records_of(arms, replicates, rng), design)
        claimed = table["verdict"].str.startswith(("supported", "refuted: harmful"))
        wrong.update(set(table["family"][claimed]))
    assert len(wrong) == table["family"].nunique(), "every family errs at times"
    assert max(wrong.values()) / STUDIES <= 0.064


def test_a_true_effect_is_seen_as_often_as_theory_says():
    """Paired differences of mean 1.2 SD at n = 10: power of the t test, which the sign-flip test nearly reaches."""
    study, rng, n, seen, size = only(FEW), np.random.default_rng(6), 10, 0, 1.2
    arms, studies = plan(study, "add")[0], 400
    for _ in range(studies):  # `position` is alone in its family, so that nothing is corrected; SD of a pair = delta
        found = summary(study, records_of(arms, n, rng, {"position": size}), "add").query("primary")
        seen += found.set_index("question").loc["position", "verdict"].startswith("supported")
    reach = stats.t.ppf(0.975, n - 1)
    theory = stats.nct.sf(reach, n - 1, size * np.sqrt(n))
    assert 0.85 < theory < 0.95
    assert abs(seen / studies - theory) < 0.02 + 3 * np.sqrt(theory * (1 - theory) / studies)


@pytest.mark.parametrize(("n", "questions"), [(6, 1), (8, 2), (10, 1), (10, 23), (12, 9), (14, 5)])
def test_the_detectable_effect_has_a_power_of_eighty_percent(n, questions):
    """Counted with the test that decides; three SD of this simulation, and what the search for the effect may miss."""
    alpha, rng, samples = 0.05 / questions, np.random.default_rng(7), 600
    seen = [sign_flip_p(rng.standard_normal(n) + detectable(1.0, n, alpha)) < alpha for _ in range(samples)]
    assert np.mean(seen) == pytest.approx(0.8, abs=3 * np.sqrt(0.8 * 0.2 / samples) + 0.02)


def test_an_answer_that_the_overlap_takes_away_holds_on_these_splits_only():
    d = np.array([0.3, 0.5, 0.2, 0.6, 0.4, 0.4])
    c = dataclasses.replace(compare(d), p_holm=0.03)
    for overlap in (0.0, 1 / 3, 3.0):
        low, _ = t_interval(d, overlap=overlap)
        assert verdict(c, 1, 0.1, overlap=overlap) == "supported" + " on these splits only" * (low < 0)
        assert verdict(c, -1, 0.1, overlap=overlap) == "refuted: harmful" + " on these splits only" * (low < 0)
    nothing = compare(d - 0.4)
    for overlap in (0.0, 3.0):
        low, high = t_interval(d - 0.4, 0.9, overlap)
        inside = -0.15 < low and high < 0.15
        assert verdict(nothing, 1, 0.15, overlap=overlap) == "refuted: negligible" + " on these splits only" * (
            not inside
        )
    assert t_interval(d, overlap=3.0)[0] < 0 < t_interval(d, overlap=1 / 3)[0], "both words were met"


def test_what_could_have_been_seen_counts_the_overlap_and_promises_nothing_of_more_splits():
    c = compare(np.array([0.3, -0.5, 0.2, -0.6, 0.4, 0.4]))
    alone, split = (verdict(c, 1, 0.001, overlap=overlap) for overlap in (0.0, 1 / 3))
    assert alone.endswith("; more than 10000 replicates would show 0.001)")
    seen = detectable(c.sd, 6)
    assert f"could have seen {seen:.2g};" in alone
    assert split == f"undecided at n=6 (could have seen {seen * np.sqrt(3):.2g})"


def test_pairs_that_all_differ_by_the_same_are_too_few_and_not_none():
    few, enough = (dataclasses.replace(c, p_holm=c.p) for c in (compare(np.full(n, 0.1)) for n in (3, 6)))
    assert verdict(few, 1, 0.1) == "undecided at n=3 (all pairs differ by the same; 6 such replicates would decide it)"
    assert verdict(few, 1, 0.1, overlap=1.0) == "undecided at n=3 (all pairs differ by the same)"
    assert verdict(enough, 1, 0.05) == "supported"


def test_what_never_happens_in_ten_runs_may_still_happen():
    few, many = (verdict(compare_events(np.zeros(n)), 1, 0.1) for n in (10, 29))
    assert few == "undecided at n=10 (no pair differs; 29 such replicates would refute it)"
    assert many == "refuted: negligible"
    assert verdict(compare_events(np.zeros(10)), 1, 0.1, overlap=1.0) == "undecided at n=10 (no pair differs)"
    c = compare_events(np.zeros(10))
    assert (1 - c.high90) ** 10 == pytest.approx(0.05), "a rate this high shows itself in ten runs 19 times in 20"
    once = np.array([1.0] + [0.0] * 9)
    assert compare_events(once) == compare(once)
