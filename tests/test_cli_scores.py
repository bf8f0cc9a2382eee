"""The commands that predict, calibrate, ask a run at several hours, and explain a prediction."""

import dataclasses
import hashlib
import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest

from hsetvae.config import UserError
from hsetvae.data import split
from hsetvae.events import read_cohort, write_cohort
from hsetvae.simulate import simulate


def weights_of(run: Path) -> str:
    return hashlib.blake2b((run / "model.safetensors").read_bytes(), digest_size=8).hexdigest()


def test_a_run_is_scored_at_several_hours_in_one_call(call, own, tables, tmp_path):
    figure = tmp_path / "hours.png"
    answer = call("evaluate", own / "run", *tables, "--hours", "12,1000", "--figure", figure)
    rows = json.loads(answer.out)
    then = json.loads(call("evaluate", own / "run", *tables, "--until", 12).out)
    assert [row["hours"] for row in rows] == [12, 1000] and len(answer.out.splitlines()) == 4
    assert rows[0]["auroc"] == pytest.approx(then["auroc"]) and rows[0]["n"] == then["n"] == 8
    assert figure.read_bytes().startswith(b"\x89PNG") and f"wrote {figure}" in answer.err


def test_a_run_is_calibrated_once_and_scored_with_it(call, own, tables, tmp_path):
    run, scored = shutil.copytree(own / "run", tmp_path / "run"), tmp_path / "calibrated.csv"
    cohort, _ = read_cohort(own / "events.csv", own / "outcomes.csv")
    validated = cohort.outcome[split(cohort, 0).validation]
    outcomes = hashlib.blake2b(validated.tobytes(), digest_size=8).hexdigest()
    kept = {"slope": 0.5, "intercept": -1.0, "stays": 8, "outcomes": outcomes}
    (run / "calibration.json").write_text(json.dumps({"weights": weights_of(run), "hours": {"all": kept}}))
    plain = json.loads(call("evaluate", run, *tables).out)
    scores = json.loads(call("evaluate", run, *tables, "--calibrated", "--out", scored).out)
    assert scores["auroc"] == plain["auroc"] and scores["brier"] != plain["brier"] and scores["ece_expected"] > 0
    assert pd.read_csv(scored).probability.between(0, 1).all()


def test_new_patients_get_probabilities_without_outcomes(call, own, tables, tmp_path):
    """At any hour, calibrated by what the folder of the run holds; who was learned from is counted."""
    run, out = shutil.copytree(own / "run", tmp_path / "run"), tmp_path / "p.csv"
    kept = {"slope": 0.5, "intercept": -1.0, "stays": 8, "outcomes": "0" * 16}
    (run / "calibration.json").write_text(json.dumps({"weights": weights_of(run), "hours": {"all": kept}}))
    new = simulate(12, seed=2).cohort
    write_cohort(dataclasses.replace(new, outcome=None, probability=None), tmp_path / "new.parquet")
    given = ["--data", tmp_path / "new.parquet", "--out", out]
    assert call("predict", run, *given).err.splitlines()[-1] == f"wrote {out}"
    plain = pd.read_csv(out, dtype={"stay": str})
    assert plain.stay.tolist() == new.stays.tolist() and plain.probability.between(0, 1).all()
    assert call("predict", run, *given, "--until", 6).status == 0
    assert not pd.read_csv(out).probability.equals(plain.probability)
    assert call("predict", run, *given, "--calibrated").status == 0
    log_odds = (plain.probability / (1 - plain.probability)).map(math.log)
    assert pd.read_csv(out).probability.tolist() == pytest.approx([1 / (1 + math.exp(1 - x / 2)) for x in log_odds])
    (run / "calibration.json").unlink()
    assert "--outcomes" in call("predict", run, *tables[:2], "--out", out, "--calibrated").err
    with_outcomes = call("predict", run, *tables, "--out", out, "--calibrated").err
    assert "with the outcome)" in with_outcomes and "--outcomes" not in with_outcomes, (
        "they are given, and are looked at"
    )
    told = call("predict", run, *tables[:2], "--out", out)
    assert "the run has learned from, or was selected on, 32 of these 40 stays: what it says" in told.err


def test_a_prediction_is_explained_in_a_table_and_a_figure(call, own, tables, tmp_path):
    stay = simulate(40, seed=1).cohort.stays[3]
    whole, figure = tmp_path / "whole.csv", tmp_path / "stay.png"
    answer = call("explain", own / "run", *tables[:2], "--stay", stay, "--rows", 3, "--out", whole, "--figure", figure)
    table = pd.read_csv(whole)
    assert (
        list(table) == ["stay", "hours", "variable", "events", "value", "contribution"] and (table.stay == stay).all()
    )
    assert answer.out.startswith(f"stay {stay}: logit") and len(answer.out.splitlines()) == 5
    assert table.variable[0] in answer.out and figure.read_bytes().startswith(b"\x89PNG")
    parts = split(simulate(40, seed=1).cohort, 0)
    assert ("learned from, or was selected on, 1 of these 1 stays" in answer.err) == (3 not in parts.test)
    early = call("explain", own / "run", *tables[:2], "--stay", stay, "--until", 6, "--out", whole)
    assert early.status == 0 and pd.read_csv(whole).hours.max() <= 6


def test_a_table_without_the_validation_stays_does_not_calibrate_a_run(call, own, tmp_path):
    write_cohort(simulate(12, seed=2).cohort, tmp_path / "other.parquet")
    refused = call("evaluate", own / "run", "--data", tmp_path / "other.parquet", "--calibrated")
    assert refused.status == 2 and "0 of its 8 validation stays" in refused.err and "calibrate once with" in refused.err
    assert not (own / "run" / "calibration.json").exists()


def test_what_a_score_might_hide_is_said(call, own, tables, tmp_path):
    """The same patients with one digit changed, and hours at which nothing was known of anybody."""
    events = pd.read_csv(own / "events.csv", dtype={"stay": str})
    events.assign(value=events.value + 1e-4, hours=events.hours + 24).to_csv(tmp_path / "later.csv", index=False)
    other = ["--data", tmp_path / "later.csv", *tables[2:]]
    told = call("evaluate", own / "run", *other, "--until", 6)
    assert "32 stays are left out because the run has learned from, or was selected on, stays of these ids" in told.err
    assert json.loads(told.out)["n"] == 8
    assert "8 stays have no event until hour 6: their first set stands in for it" in told.err
    plain = call("evaluate", own / "run", *tables)
    assert "these" not in plain.err and "stands in" not in plain.err


def test_variables_of_the_run_without_an_event_in_another_table_are_named(call, own, tables, tmp_path):
    events = pd.read_csv(own / "events.csv", dtype={"stay": str})
    events[~events.variable.isin(["HR", "Temp"])].to_csv(tmp_path / "fewer.csv", index=False)
    told = call("evaluate", own / "run", "--data", tmp_path / "fewer.csv", *tables[2:])
    assert told.status == 0 and "no event of 2 of the run's variables: HR, Temp" in told.err
    assert "no event of" not in call("evaluate", own / "run", *tables).err


def test_an_hour_that_cannot_be_calibrated_takes_no_other_hour_with_it(call, own, tables, monkeypatch):
    from hsetvae import calibration

    whole = calibration.over_hours

    def weak_at_twelve(run, cohort, index, hours, calibrated=False):
        if calibrated and hours == [12.0]:
            raise UserError("there is nothing to calibrate")
        return whole(run, cohort, index, hours)

    monkeypatch.setattr(calibration, "over_hours", weak_at_twelve)
    told = call("evaluate", own / "run", *tables, "--hours", "6,12,24", "--calibrated")
    assert [(row["hours"], row["calibrated"]) for row in json.loads(told.out)] == [(6, True), (12, False), (24, True)]
    assert "hour 12 is not calibrated: there is nothing to calibrate" in told.err
    told = call("evaluate", own / "run", *tables, "--hours", "12", "--calibrated")
    assert told.status == 2 and "no hour can be calibrated" in told.err


def test_scores_are_said_before_a_file_that_cannot_be_written(call, own, tables, tmp_path):
    for words in (["--out", "taken.csv"], ["--hours", "6,12", "--figure", "taken.png"]):
        words[-1] = tmp_path / words[-1]
        words[-1].mkdir()
        told = call("evaluate", own / "run", *tables, *words)
        assert told.status == 2 and "cannot be written" in told.err and '"auroc"' in told.out


def test_a_training_that_has_not_ended_is_neither_scored_nor_diagnosed(call, own, tables, tmp_path):
    shutil.copytree(own / "run", tmp_path / "run")
    (tmp_path / "run" / "done.json").unlink()
    for command in ("evaluate", "diagnose"):
        told = call(command, tmp_path / "run", *tables)
        assert told.status == 2 and "has not finished its training: continue it" in told.err
