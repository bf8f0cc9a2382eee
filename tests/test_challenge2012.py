"""What is recorded of Challenge 2012 and of runs on it: enough for the book's pages, no value of one patient."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hsetvae.config import UserError
from hsetvae.events import write_cohort
from hsetvae.simulate import simulate
from hsetvae.study import HASHES

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
def challenge(pages):
    """The book's view of the records."""
    import challenge

    return challenge


@pytest.fixture
def shown(challenge, shown) -> list[str]:
    """The HTML that the book displays of the records."""
    challenge._of_other_code.cache_clear()
    yield shown
    challenge._of_other_code.cache_clear()


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


def test_the_bar_of_a_split_is_fitted_with_the_seed_of_the_split_as_in_the_suite(script, monkeypatch):
    fitted = []

    def fit(cohort, parts, seed):
        fitted.append((seed, tuple(parts.test)))
        return {"a model": np.full(len(parts.test), 0.5)}

    monkeypatch.setattr(script, "fit_baselines", fit)
    cohort = replace(simulate(200, seed=3).cohort, group=np.repeat(["a", "b"], [100, 100]))
    rows = script.bars(cohort)
    assert fitted[:-1] == [(seed, tuple(script.split(cohort, seed).test)) for seed in range(script.SPLITS)]
    assert fitted[-1] == (0, tuple(range(100, 200))) and rows[-1]["part"] == "bar: fit a, score b"


def test_a_run_is_recorded_for_the_page_and_recorded_again_replaces_itself(script, challenge, small_run, tmp_path):
    run, cohort, parts = small_run
    write_cohort(cohort, tmp_path / "table.parquet")
    for _ in range(2):
        script.runs([run.folder], tmp_path / "table.parquet")
    (row,) = pd.read_csv(script.RESULTS / "challenge2012_runs.csv").to_dict("records")
    assert row["arm"] == run.folder.name and row["n"] == len(parts.test) and row["learned_stays"] == len(parts.train)
    assert row["steps"] == run.history["step"].max() and 0 < row["first_seconds_a_step"] < row["seconds"]
    published = {path.name: pd.read_csv(path) for path in (ROOT / "ablations" / "results").glob("challenge2012_*.csv")}
    for path in script.RESULTS.glob("challenge2012_*.csv"):
        found = pd.read_csv(path, dtype=HASHES)
        assert (found["code"] == challenge.CODE).all(), "the pages know rows of the present code"
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


@pytest.mark.parametrize("code", [None, "another", "present"])
def test_runs_of_other_code_are_shown_and_said_to_be_so_once_a_page(challenge, shown, monkeypatch, tmp_path, code):
    monkeypatch.setattr(challenge, "RESULTS", tmp_path)
    row = {"arm": "mine", "seed": 0, "epoch": 1} | ({"code": code} if code else {})
    for what in ("curves", "skill"):
        table = pd.DataFrame([row]).replace("present", challenge.CODE)
        table.to_csv(tmp_path / f"challenge2012_{what}.csv", index=False)
        assert len(challenge.recorded(what, "mine", 0)) == 1
    assert sum("of other code" in piece for piece in shown) == (code != "present")


def test_what_the_curves_show_is_said_in_words_from_the_record(challenge, shown):
    same = {"distortion_current": 3.0, "reconstruction_weight": 1.0, "bce": 0.5, "gradient_norm": 2.0}
    moved = {"epoch": [1, 2, 3], "beta": [0.1, 0.2, 0.2], "kl": [5.0, 4.0, 6.0], "validation_bce": [0.4, 0.3, 0.6]}
    challenge.read_curves(pd.DataFrame(moved).assign(**same, gradient_norm_clipped=1.0))
    assert "against beta in 1 of the 1 cases" in shown[-1] and "falls in 1 of 2 cases" in shown[-1]
    assert "lowest after epoch 2" in shown[-1] and "at the end of 2 of 3 epochs" in shown[-1]


def test_what_sets_the_wrong_ones_apart_is_said_in_words_from_the_record(challenge, shown, monkeypatch):
    means = {"deaths called safe": (9.0, 5.0), "survivors called dying": (6.0, 10.0)}
    rows = [(group, "last GCS", *both, 20, 2.0) for group, both in means.items()]
    rows += [(group, fact, 1.0, 1.0, 20, spread) for group in means for fact, spread in (("sets", None), ("same", 1.0))]
    table = pd.DataFrame(rows, columns=["group", "fact", "these", "others", "n", "spread"])
    monkeypatch.setattr(challenge, "recorded", lambda *_: table.copy())
    challenge.read_gallery("mine", 0)
    assert "from the other deaths most in last GCS: 9 against 5, 2.0 SD apart. In 1 of 1 facts" in shown[-1]
    assert shown[-1].count("1 of 1 facts they differ from them towards the other") == 2
