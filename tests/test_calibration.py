"""Calibrated probabilities mean what they say, know no test stay, and a run may be asked at any hour."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from scipy.special import expit, logit

from hsetvae.baselines import train_baseline
from hsetvae.calibration import Calibrator, calibrate, expected_ece, over_hours, score
from hsetvae.cohort import Cohort
from hsetvae.config import UserError
from hsetvae.evaluate import EVALUATION_BATCH, predict
from hsetvae.runs import load_run
from hsetvae.scores import auroc, ece, score_all


@pytest.fixture
def fresh(recommended_run, tmp_path):
    """A copy of the run without a calibration, its cohort and its split."""
    run, cohort, parts = recommended_run
    folder = shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("calibration.json"))
    return load_run(folder), cohort, parts


# --- the calibrator --------------------------------------------------------------------------------------------------


def test_a_distortion_of_the_log_odds_is_undone():
    rng = np.random.default_rng(0)
    truth = expit(rng.normal(-2, 1.5, 20_000))
    outcome = (rng.random(len(truth)) < truth).astype(float)
    told = expit(2 * logit(truth) + 1)
    calibrator = Calibrator.fit(outcome, told)
    assert calibrator.slope == pytest.approx(0.5, abs=0.03) and calibrator.intercept == pytest.approx(-0.5, abs=0.06)
    assert ece(outcome, told) > 0.05 > 0.01 > ece(outcome, calibrator(told))


def test_calibration_keeps_the_order_of_the_stays():
    rng = np.random.default_rng(1)
    told, outcome = rng.random(300), (rng.random(300) < 0.3).astype(float)
    calibrator = Calibrator(0.3, -2.0, 300, "")
    assert auroc(outcome, calibrator(told)) == auroc(outcome, told)
    assert np.isfinite(calibrator(np.array([0.0, 1.0]))).all()


def test_stays_that_a_threshold_separates_do_not_make_the_slope_infinite():
    told, outcome = np.linspace(0.1, 0.9, 10), np.repeat([0.0, 1.0], 5)
    calibrated = Calibrator.fit(outcome, told)(told)
    assert ((calibrated > 0.01) & (calibrated < 0.99)).all()


def test_what_cannot_be_calibrated_is_refused():
    told = np.linspace(0.1, 0.9, 10)
    with pytest.raises(UserError, match="0 of 10 have it"):
        Calibrator.fit(np.zeros(10), told)
    with pytest.raises(UserError, match="nothing to calibrate"):
        Calibrator.fit(np.repeat([1.0, 0.0], 5), told)


def test_true_probabilities_have_a_calibration_error_that_falls_with_the_root_of_the_stays():
    told = np.random.default_rng(2).random(200)
    few, many = expected_ece(told), expected_ece(np.tile(told, 16))
    assert 0.2 < many / few < 0.3


# --- the calibration of a run ----------------------------------------------------------------------------------------


def test_a_calibration_looks_at_validation_stays_only(fresh):
    run, cohort, parts = fresh
    outcome = cohort.outcome.copy()
    outcome[parts.test], outcome[parts.train] = 1 - outcome[parts.test], np.nan
    blind = calibrate(run, dataclasses.replace(cohort, outcome=outcome))
    (run.folder / "calibration.json").unlink()
    alone = calibrate(run, cohort.subset(parts.validation))
    expected = Calibrator.fit(cohort.outcome[parts.validation], predict(run, cohort, parts.validation))
    assert blind == alone
    assert dataclasses.astuple(alone)[:2] == pytest.approx(dataclasses.astuple(expected)[:2], rel=1e-3)
    assert (alone.stays, alone.outcomes) == (expected.stays, expected.outcomes)


def test_a_calibration_is_fitted_again_when_an_outcome_was_corrected(fresh):
    run, cohort, parts = fresh
    before, outcome = calibrate(run, cohort), cohort.outcome.copy()
    outcome[parts.validation[:5]] = 1 - outcome[parts.validation[:5]]
    corrected = calibrate(run, dataclasses.replace(cohort, outcome=outcome))
    assert corrected != before and corrected == calibrate(run, cohort.subset(parts.test)), "the corrected one is kept"
    assert calibrate(run, cohort) == before


def test_a_calibration_that_cannot_be_kept_is_used_all_the_same(fresh, monkeypatch):
    run, cohort, _ = fresh

    def full(path, content):
        raise UserError(f"{path} cannot be written (No space left on device): choose another place")

    monkeypatch.setattr("hsetvae.calibration.write_atomically", full)
    with pytest.warns(UserWarning, match=r"is used now and not kept for other tables: .*No space left"):
        found = calibrate(run, cohort)
    monkeypatch.undo()
    assert found == calibrate(run, cohort)


def test_a_calibration_is_kept_for_tables_without_the_validation_stays(fresh):
    run, cohort, parts = fresh
    tested = cohort.subset(parts.test)
    with pytest.raises(UserError, match=r"no calibration at hour all, and 0 of its 60 validation stays are"):
        calibrate(run, tested)
    with pytest.raises(UserError, match=r"59 of its 60 validation stays"):
        calibrate(run, cohort.subset(np.delete(np.arange(len(cohort)), parts.validation[0])))
    assert not (run.folder / "calibration.json").exists()
    first = calibrate(run, cohort)
    assert calibrate(load_run(run.folder), tested) == first
    with pytest.raises(UserError, match="validation stays"):
        calibrate(run, tested, until=12)
    assert calibrate(run, cohort, until=12) != first == calibrate(run, tested)


def test_a_calibration_of_other_weights_is_not_used_and_a_damaged_one_is_named(fresh):
    run, cohort, parts = fresh
    calibrate(run, cohort)
    path = run.folder / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": "others"}))
    with pytest.raises(UserError, match="validation stays"):
        calibrate(run, cohort.subset(parts.test))
    path.write_text("{}")
    with pytest.raises(UserError, match=r"calibration.json is damaged: delete it"):
        calibrate(run, cohort)


def test_a_run_without_outcomes_and_a_baseline_are_not_calibrated(fresh, tmp_path):
    run, cohort, parts = fresh
    with pytest.raises(UserError, match="no validation stay has a known outcome"):
        calibrate(run, dataclasses.replace(cohort, outcome=None))
    with pytest.raises(UserError, match="a baseline learned from its validation stays"):
        calibrate(train_baseline("logistic", cohort, parts, tmp_path / "logistic"), cohort)


def test_calibrated_scores_are_those_of_the_calibrated_predictions(recommended_run):
    run, cohort, parts = recommended_run
    plain, told = score(run, cohort, parts.test)
    scores, probability = score(run, cohort, parts.test, calibrated=True)
    assert np.allclose(probability, calibrate(run, cohort)(told))
    expected = score_all(cohort.outcome[parts.test], probability)
    assert {name: scores[name] for name in expected} == expected
    assert scores["auroc"] == plain["auroc"] and scores["nll_per_event"] == plain["nll_per_event"]
    assert scores["brier"] != plain["brier"] and scores["ece_expected"] == expected_ece(probability)


# --- at any hour -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("until", [None, 6.0])
def test_scoring_reads_a_batch_of_stays_at_a_time(until, recommended_run, monkeypatch):
    """A mapped table need not fit in memory."""
    run, cohort, _ = recommended_run
    taken, subset = [], Cohort.subset

    def counted(self, index):
        taken.append(len(index))
        return subset(self, index)

    monkeypatch.setattr(Cohort, "subset", counted)
    _, probability = score(run, cohort, np.arange(len(cohort)), until)
    assert len(probability) == len(cohort) > EVALUATION_BATCH >= max(taken)


def test_scores_over_hours_are_those_of_the_same_stays_cut_at_each_hour(recommended_run):
    run, cohort, parts = recommended_run
    table = over_hours(run, cohort, parts.test, hours=(6, 24, 1000))
    assert table.hours.tolist() == [6, 24, 1000] and (table.n == len(parts.test)).all()
    cut = cohort.subset(parts.test).until(24)
    for row, told in ((1, predict(run, cut)), (2, predict(run, cohort, parts.test))):
        assert table.auroc[row] == pytest.approx(auroc(cohort.outcome[parts.test], told), abs=1e-6)
    assert table.auroc_low[0] < table.auroc[0] < table.auroc_high[0]
    assert over_hours(run, cohort, hours=[24]).auroc[0] == pytest.approx(table.auroc[1], abs=1e-6), "unseen stays"


def test_every_hour_has_its_own_calibration_and_keeps_its_ranking(recommended_run):
    run, cohort, parts = recommended_run
    plain, calibrated = (over_hours(run, cohort, parts.test, (12, 48), c) for c in (False, True))
    assert calibrated.auroc.tolist() == pytest.approx(plain.auroc.tolist())
    assert (calibrated.brier != plain.brier).all()
    assert calibrate(run, cohort, 12) != calibrate(run, cohort, 48)


def test_hours_need_outcomes(recommended_run):
    run, cohort, parts = recommended_run
    with pytest.raises(UserError, match="known outcome"):
        over_hours(run, dataclasses.replace(cohort, outcome=None), parts.test)
