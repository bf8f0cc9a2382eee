"""A teacher says what is likely, never what happened to the stay itself."""

import dataclasses
import json
import time

import numpy as np
import pytest

from hsetvae import teacher
from hsetvae import train as training
from hsetvae.config import BASELINE
from hsetvae.data import Split, split
from hsetvae.scores import auroc
from hsetvae.simulate import simulate
from hsetvae.teacher import taught
from hsetvae.train import train

COHORT = simulate(120, seed=3).cohort  # five boostings take as long as they have stays
PARTS = split(COHORT, 0)
SMALL = BASELINE.but(width=16, feedforward=16, latent=4, levels=1, layers=1, epochs=1, pretrain_epochs=0, teacher=0.5)


def test_only_the_outcomes_of_training_stays_are_softened():
    soft = taught(COHORT, PARTS.train, 0.4, seed=0).outcome
    others = np.setdiff1d(np.arange(len(COHORT)), PARTS.train)
    assert np.array_equal(soft[others], COHORT.outcome[others])
    turned = COHORT.outcome.copy()
    turned[others] = 1 - turned[others]
    again = taught(dataclasses.replace(COHORT, outcome=turned), PARTS.train, 0.4, seed=0).outcome
    assert np.array_equal(again[PARTS.train], soft[PARTS.train]), "the teacher has seen no other outcome"
    y = COHORT.outcome[PARTS.train]
    moved = np.abs(soft[PARTS.train] - y)
    assert (moved > 0).all() and (moved < 0.4).all(), "a probability is neither 0 nor 1"
    assert taught(COHORT, PARTS.train, 0.0, seed=0) is COHORT


def test_a_teacher_knows_the_risk_and_not_the_stay_itself():
    cohort = simulate(300, seed=3).cohort
    every = np.arange(len(cohort))
    p = taught(cohort, every, 1.0, seed=0).outcome
    assert auroc(cohort.outcome, p) > 0.55
    rng = np.random.default_rng(0)
    chance = dataclasses.replace(cohort, outcome=rng.permutation(cohort.outcome))
    p = taught(chance, every, 1.0, seed=0).outcome
    assert auroc(chance.outcome, p) < 0.65, "out of fold nothing of a stay's own outcome can be known"


def test_a_teacher_without_both_outcomes_or_without_outcomes_says_nothing():
    outcome = np.where(np.arange(len(COHORT)) == PARTS.train[0], 1.0, 0.0)
    one = dataclasses.replace(COHORT, outcome=outcome)
    assert taught(one, PARTS.train, 0.5, seed=0) is one
    none = dataclasses.replace(COHORT, outcome=None)
    assert taught(none, PARTS.train, 0.5, seed=0) is none


def test_unknown_outcomes_stay_unknown_and_two_calls_agree():
    outcome = COHORT.outcome.copy()
    outcome[PARTS.train[:20]] = np.nan
    some = dataclasses.replace(COHORT, outcome=outcome)
    first, again = (taught(some, PARTS.train, 0.5, seed=4).outcome for _ in range(2))
    assert np.isnan(first[PARTS.train[:20]]).all() and not np.isnan(first[PARTS.train[20:]]).any()
    assert np.array_equal(first, again, equal_nan=True), "a resumed run has the same teacher"


def test_a_run_with_a_teacher_sees_no_outcome_of_a_test_stay(tmp_path):
    turned = COHORT.outcome.copy()
    turned[PARTS.test] = 1 - turned[PARTS.test]
    weights = []
    for name, outcome in {"as they are": COHORT.outcome, "turned": turned}.items():
        cohort = dataclasses.replace(COHORT, outcome=outcome)
        train(SMALL, cohort, PARTS, tmp_path / name, seed=0, progress=False)
        weights.append((tmp_path / name / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_beyond_so_many_features_stays_drawn_at_random_keep_their_outcomes(monkeypatch):
    monkeypatch.setattr(teacher, "CELLS", 50 * 8 * len(COHORT.variables))
    moved = taught(COHORT, PARTS.train, 0.5, seed=0).outcome[PARTS.train] != COHORT.outcome[PARTS.train]
    assert moved.sum() == 50 < len(moved) and not moved[:50].all(), "not the first ones of the table"


def test_the_teacher_is_part_of_the_cost_of_a_training_and_a_finished_one_asks_it_no_more(tmp_path, monkeypatch):
    def slow(cohort, *_):
        time.sleep(2)
        return cohort

    monkeypatch.setattr(training, "taught", slow)
    train(SMALL, COHORT, PARTS, tmp_path / "run", seed=0, progress=False)
    assert json.loads((tmp_path / "run" / "done.json").read_text())["seconds"] > 2
    monkeypatch.setattr(training, "taught", lambda *_: pytest.fail("this run has ended"))
    train(SMALL, COHORT, PARTS, tmp_path / "run", seed=0, resume=True, progress=False)


def test_validation_stays_that_are_learned_from_too_have_no_ranking(tmp_path):
    """As in a refit: their outcomes are softened, and two of them look like two classes."""
    outcome = COHORT.outcome[PARTS.train]
    two = np.sort(PARTS.train[[np.flatnonzero(outcome == 0)[0], np.flatnonzero(outcome == 1)[0]]])
    run = train(SMALL, COHORT, Split(PARTS.train, two, PARTS.test), tmp_path / "run", progress=False)
    assert run.history["validation_auroc"].isna().all() and run.history["validation_bce"].notna().any()
