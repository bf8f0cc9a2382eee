"""Scores and predictions of a run: the numbers they claim to be, for the stays asked for, in any order."""

import dataclasses

import numpy as np
import pytest
import torch

from hsetvae.baselines import train_baseline
from hsetvae.config import UserError
from hsetvae.data import collate
from hsetvae.diagnostics import diagnose
from hsetvae.evaluate import evaluate, mean_terms, passes, predict
from hsetvae.objective import objective
from hsetvae.scores import score_all


def test_a_prediction_does_not_depend_on_the_other_stays_scored_with_it(small_run):
    run, cohort, _ = small_run
    together = predict(run, cohort)
    assert together.shape == (len(cohort),) and ((together > 0) & (together < 1)).all()
    order = np.random.default_rng(0).permutation(len(cohort))
    assert np.allclose(predict(run, cohort, order), together[order], atol=1e-6)
    assert np.allclose([predict(run, cohort, np.array([i]))[0] for i in order[:5]], together[order[:5]], atol=1e-6)


def test_a_mask_chooses_the_stays_that_it_marks(small_run):
    run, cohort, parts = small_run
    mask = np.isin(np.arange(len(cohort)), parts.test)
    assert np.array_equal(predict(run, cohort, mask), predict(run, cohort, parts.test))
    assert evaluate(run, cohort, mask) == evaluate(run, cohort, parts.test)
    assert evaluate(run, cohort) == evaluate(run, cohort, parts.test), "unseen stays, unless others are named"
    with pytest.raises(UserError, match=f"there is no stay {len(cohort)}"):
        predict(run, cohort, np.array([0, len(cohort)]))


def test_a_prediction_does_not_depend_on_the_outcome(small_run):
    run, cohort, _ = small_run
    turned = dataclasses.replace(cohort, outcome=1 - cohort.outcome)
    assert np.array_equal(predict(run, cohort), predict(run, turned))
    assert np.array_equal(predict(run, cohort), predict(run, dataclasses.replace(cohort, outcome=None)))


def test_scores_are_those_of_the_predictions(small_run):
    run, cohort, parts = small_run
    scores = evaluate(run, cohort, parts.test)
    expected = score_all(cohort.outcome[parts.test], predict(run, cohort, parts.test))
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    assert scores == evaluate(run, cohort, parts.test), "scored twice, the same to the last digit"


def test_likelihood_and_kl_are_the_raw_terms_per_event_and_per_set(small_run):
    run, cohort, parts = small_run
    scores = evaluate(run, cohort, parts.test)
    part = cohort.subset(parts.test)
    batch = collate(cohort, parts.test, run.standardiser, run.config.max_sets)
    with torch.no_grad():
        output = run.model(batch, sample=False)
    assert scores["nll_per_event"] == pytest.approx(
        float(output.distortion["current"].sum()) / len(part.value), rel=1e-4
    )
    assert scores["kl_per_set"] == pytest.approx(float(output.kl.sum()) / len(part.hours), rel=1e-4)
    for name in ("nll_per_event", "kl_per_set"):
        assert scores[f"{name}_low"] < scores[name] < scores[f"{name}_high"]


def test_mean_terms_are_those_of_one_large_batch(small_run):
    run, cohort, _ = small_run
    terms, logits = mean_terms(run.model, cohort, np.arange(len(cohort)), run.standardiser, run.config)
    with torch.no_grad():
        batch = collate(cohort, np.arange(len(cohort)), run.standardiser, run.config.max_sets)
        whole = objective(run.model(batch, sample=False), batch, run.config, 1, 1).values
    for name in ("distortion_current", "distortion_next", "kl", "bce"):
        assert terms[name] == pytest.approx(float(whole[name]), rel=1e-4)
    assert logits.shape == (len(cohort),)


def test_stays_without_a_known_outcome_count_for_the_sets_and_not_for_the_outcome(small_run):
    run, cohort, parts = small_run
    unknown = parts.test[cohort.outcome[parts.test] == 0][:8]
    outcome = cohort.outcome.copy()
    outcome[unknown] = np.nan
    rest = np.setdiff1d(parts.test, unknown)
    partly = dataclasses.replace(cohort, outcome=outcome)
    some, all_, left = (evaluate(run, *a) for a in ((partly, parts.test), (cohort, parts.test), (cohort, rest)))
    assert some["n"] == len(rest) < len(parts.test) and some["nll_per_event"] == all_["nll_per_event"]
    assert some["auroc"] == left["auroc"] is not None and some["brier"] == pytest.approx(left["brier"])


def test_what_cannot_be_scored_is_refused(small_run):
    run, cohort, parts = small_run
    with pytest.raises(UserError, match="no stay to score"):
        predict(run, cohort, np.array([], dtype=int))
    with pytest.raises(UserError, match="known outcome"):
        evaluate(run, dataclasses.replace(cohort, outcome=np.full(len(cohort), np.nan)), parts.test)
    other = dataclasses.replace(cohort, variables=(*cohort.variables[:-1], "zz"))
    with pytest.raises(UserError, match="read it with read_cohort"):
        evaluate(run, other)


def test_a_baseline_is_told_that_it_scores_itself(small_run, tmp_path):
    _, cohort, parts = small_run
    baseline = train_baseline("logistic", cohort, parts, tmp_path / "run")
    for function in (predict, evaluate):
        with pytest.raises(UserError, match="call its own `predict` or `evaluate`"):
            function(baseline, cohort)


def test_a_head_that_never_saw_an_outcome_is_not_scored(small_run):
    """None was known, or none was counted: the weights of its head are as they were drawn."""
    run, cohort, _ = small_run
    nothing_known = dataclasses.replace(run, history=run.history.assign(bce=0.0))
    nothing_counted = dataclasses.replace(run, config=run.config.but(class_weight=0.0))
    for untaught in (nothing_known, nothing_counted):
        for function in (predict, evaluate):
            with pytest.raises(UserError, match="trained without outcomes"):
                function(untaught, cohort)
        assert diagnose(untaught, cohort)["scores"] is None
    unselected = dataclasses.replace(run, history=run.history.assign(validation_bce=np.nan))
    assert np.array_equal(predict(unselected, cohort), predict(run, cohort)), "known in training is enough"


def test_at_an_hour_a_stay_is_what_was_known_then(small_run):
    run, cohort, parts = small_run
    known = cohort.subset(parts.test).until(6.0)
    assert np.array_equal(predict(run, cohort, parts.test, until=6.0), predict(run, known))
    assert evaluate(run, cohort, parts.test, until=6.0) == evaluate(run, known)


def test_without_outcomes_the_cross_entropy_is_unknown_and_not_zero(small_run):
    run, cohort, parts = small_run
    blind = dataclasses.replace(cohort, outcome=None)
    terms, _ = mean_terms(run.model, blind, parts.test, run.standardiser, run.config)
    assert np.isnan(terms["bce"]) and np.isfinite([terms["kl"], terms["distortion_current"]]).all()


def test_a_prediction_does_not_need_the_decoders(small_run):
    run, cohort, parts = small_run
    whole = passes(run.model, cohort, parts.test, run.standardiser, run.config.max_sets)
    logits = torch.cat([output.logits.double() for _, _, output in whole])
    assert np.array_equal(predict(run, cohort, parts.test), torch.sigmoid(logits).numpy())
    undecoded = passes(run.model, cohort, parts.test, run.standardiser, run.config.max_sets, decode=False)
    assert all(output.distortion == {} for _, _, output in undecoded)


def test_scoring_leaves_a_model_in_training_as_it_was(small_run):
    run, cohort, parts = small_run
    run.model.train()
    try:
        list(passes(run.model, cohort, parts.test, run.standardiser, run.config.max_sets))
        assert run.model.training
        sampled = predict(run, cohort, parts.test), predict(run, cohort, parts.test)
        assert np.array_equal(*sampled), "no dropout and no posterior noise in a score"
    finally:
        run.model.eval()
