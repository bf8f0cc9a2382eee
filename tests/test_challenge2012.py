"""What is recorded of Challenge 2012 and of runs on it: enough for the book's pages, no value of one patient."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hsetvae.config import UserError
from hsetvae.events import write_cohort
from hsetvae.simulate import simulate

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The script as a module, with results of its own."""
    spec = importlib.util.spec_from_file_location("challenge2012", ROOT / "ablations" / "challenge2012.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    return module


@pytest.fixture
def challenge(monkeypatch):
    """The book's view of the records."""
    monkeypatch.syspath_prepend(str(ROOT / "book"))
    import challenge

    return challenge


def test_the_most_wrong_are_the_deaths_with_the_lowest_and_the_survivors_with_the_highest_probability(script):
    outcome, probability = np.array([1.0] * 200 + [0.0] * 300), np.linspace(0, 1, 500)
    safe, dying = script.wrong(outcome, probability).values()
    assert safe[0].tolist() == list(range(20)) and sorted(safe[0].tolist() + safe[1].tolist()) == list(range(200))
    assert sorted(dying[0]) == list(range(470, 500)) and len(dying[1]) == 270


def test_the_stay_that_is_drawn_is_a_typical_one_without_id_and_values(script, challenge):
    cohort = simulate(50, seed=3).cohort
    table = script.recorded(cohort)
    assert list(table) == ["hours", "variable"] == list(challenge.stay())
    sets = np.diff(cohort.first_set)
    assert abs(table["hours"].nunique() - np.median(sets)) == np.abs(sets - np.median(sets)).min()
    assert not table.duplicated().any() and set(table["variable"]) <= set(cohort.variables)


def test_groups_too_small_to_hide_in_are_not_formed(script):
    few = 2 * script.LEAST - 1
    outcome = np.array([1.0] * few + [0.0] * 300)
    safe, _ = script.wrong(outcome, np.linspace(0, 1, len(outcome))).values()
    assert len(safe[0]) == len(safe[1]) == 0


def test_facts_about_the_wrong_ones_are_means_of_last_values_over_enough_stays(script):
    cohort = simulate(400, seed=3).cohort
    index, probability = np.arange(len(cohort)), cohort.probability
    table = script.failures(cohort, index, {"mine": probability}, dict.fromkeys(cohort.variables, 1.0))
    assert (table["n"] >= script.LEAST).all() and set(table["group"]) == set(script.wrong(cohort.outcome, probability))
    (these, others), _ = script.wrong(cohort.outcome, probability).values()
    found = table.query("group == 'deaths called safe'").set_index("fact")
    assert found.loc["probability, mine", "these"] == pytest.approx(probability[these].mean())
    assert found.loc["sets", "others"] == pytest.approx(np.diff(cohort.first_set)[others].mean())
    name = next(fact for fact in found.index if fact.startswith("last "))
    last = []
    for stay in these:  # by hand: the last event of this variable in each stay
        events = slice(cohort.first_event[cohort.first_set[stay]], cohort.first_event[cohort.first_set[stay + 1]])
        values = cohort.value[events][cohort.variable[events] == cohort.variables.index(name.removeprefix("last "))]
        last += [values[-1]] if len(values) else []
    assert found.loc[name, "these"] == pytest.approx(np.mean(last))


def test_a_run_is_recorded_for_the_page_and_recorded_again_replaces_itself(script, small_run, tmp_path):
    run, cohort, parts = small_run
    write_cohort(cohort, tmp_path / "table.parquet")
    for _ in range(2):
        script.runs([run.folder], tmp_path / "table.parquet")
    (row,) = pd.read_csv(script.RESULTS / "challenge2012_runs.csv").to_dict("records")
    assert row["arm"] == run.folder.name and row["n"] == len(parts.test) and row["learned_stays"] == len(parts.train)
    assert row["steps"] == run.history["step"].max() and 0 < row["first_seconds_a_step"] < row["seconds"]
    published = {path.name: pd.read_csv(path) for path in (ROOT / "ablations" / "results").glob("challenge2012_*.csv")}
    for path in script.RESULTS.glob("challenge2012_*.csv"):
        found = pd.read_csv(path)
        if path.name in published:
            assert set(found) <= set(published[path.name]), "what the pages read is what the script writes"
    skill, deletion = (pd.read_csv(script.RESULTS / f"challenge2012_{name}.csv") for name in ("skill", "deletion"))
    assert skill["n"].min() >= script.LEAST and set(skill["task"]) == {"imputation", "forecast"}
    assert (deletion["ratio"] > 0).all() and deletion["n"].eq(min(script.EXPLAINED, len(parts.test))).all()
    assert len(pd.read_csv(script.RESULTS / "challenge2012_curves.csv")) == run.config.epochs


def test_a_run_without_records_is_answered_with_those_that_are_there(challenge):
    there = challenge.recorded("runs", "improved", 0)
    assert len(there) == 1
    with pytest.raises(UserError, match="no run mine with seed 7; it has improved with seed 0"):
        challenge.recorded("runs", "mine", 7)


def test_no_published_mean_is_over_a_handful_of_patients(script):
    found = pd.read_csv(ROOT / "ablations" / "results" / "challenge2012_failures.csv")
    assert found["n"].min() >= script.LEAST
