"""A suite of models on a tiny table: fair splits, blind entrants, records that resume, and a table that adds up."""

import dataclasses
import importlib.util
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hsetvae import entrants as kinds
from hsetvae import suite as suites
from hsetvae.challenge import best_threshold, event1, hosmer_lemeshow
from hsetvae.cli import app
from hsetvae.config import RECOMMENDED, UserError
from hsetvae.data import Standardiser, split
from hsetvae.entrants import compete, hourly
from hsetvae.events import write_cohort
from hsetvae.scores import auroc
from hsetvae.simulate import simulate
from hsetvae.standings import METRICS, averaged, publish, report, rows_at_hand, rows_of, standings, status, wording
from hsetvae.statistics import compare
from hsetvae.suite import execute, jobs_of, load_suite, run_suite

ROOT = Path(__file__).resolve().parents[1]
TINY = "{width = 8, latent = 2, levels = 1, layers = 1, feedforward = 8, epochs = 2, pretrain_epochs = 1}"
DECLARED = f"""
title = "who is best"
data = "events.parquet"
shares = [0.7, 0.1, 0.2]
splits = 2
against = "boosting"

[entrants.boosting]
title = "boosting"
kind = "boosting"

[entrants.logistic]
title = "logistic regression"
kind = "logistic"

[entrants.tuned]
title = "tuned"
kind = "tuned boosting"
settings = {{trials = 2}}

[entrants.ours]
title = "ours"
kind = "model"
preset = "recommended"
settings = {TINY}

[entrants.average]
title = "average"
kind = "average"
of = ["ours", "boosting"]

[ladder]
whole = "ours"
splits = 1

[ladder.ingredients.statistics]
title = "statistics"
off = {{statistics = false}}

[ladder.ingredients.cut]
title = "cut stays"
off = {{cut = 0.0}}
"""


@pytest.fixture(scope="module")
def cohort():
    return simulate(120, seed=3).cohort


@pytest.fixture(scope="module")
def ran(tmp_path_factory, cohort):
    """A folder with a suite whose table has been run, in this process."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "tiny.toml").write_text(DECLARED)
    write_cohort(cohort, folder / "events.parquet")
    for job in jobs_of(load_suite(str(folder / "tiny.toml"))):
        assert execute(job)["status"] == "finished"
    return folder


@pytest.fixture
def suite(ran, tmp_path):
    """A copy of it, to change."""
    shutil.copytree(ran, tmp_path / "suite")
    return load_suite(str(tmp_path / "suite" / "tiny.toml"))


def kept_by(job: dict) -> dict[str, np.ndarray]:
    with np.load(Path(job["out"]) / "probabilities.npz") as stored:
        return dict(stored)


# --- splits and what entrants see ------------------------------------------------------------------------------------


def test_the_parts_of_a_split_are_disjoint_and_have_the_declared_shares(suite, cohort):
    for job in jobs_of(suite):
        kept, parts = kept_by(job), split(cohort, job["facts"]["seed"], suite.shares)
        assert np.array_equal(kept["test_index"], parts.test)
        assert np.array_equal(kept["validation_index"], parts.validation)
        together = np.concatenate([parts.train, parts.validation, parts.test])
        assert np.array_equal(np.sort(together), np.arange(len(cohort)))
        sizes = [len(part) / len(cohort) for part in (parts.train, parts.validation, parts.test)]
        assert np.allclose(sizes, suite.shares, atol=2 / len(cohort))
    first, second = (kept_by(job)["test_index"] for job in jobs_of(suite) if job["entrant"] == "boosting")
    assert not np.array_equal(first, second), "every seed has a split of its own"


@pytest.mark.parametrize("name", ["boosting", "logistic", "tuned", "ours"])
def test_outcomes_of_test_stays_change_nothing_that_an_entrant_gives(ran, cohort, tmp_path, name):
    job = next(job for job in jobs_of(load_suite(str(ran / "tiny.toml"))) if job["entrant"] == name)
    parts, kept = split(cohort, 0, tuple(job["shares"])), kept_by(job)
    outcome = cohort.outcome.copy()
    outcome[parts.test] = 1 - outcome[parts.test]
    other = dataclasses.replace(cohort, outcome=outcome)
    made, _ = compete(job["facts"]["kind"], job["settings"], other, parts, 0, tmp_path)
    assert np.array_equal(made.validation, kept["validation"]) and np.array_equal(made.test, kept["test"])


def test_the_threshold_and_all_validation_scores_ignore_the_test_stays(suite):
    before = rows_of(suite)
    for job in jobs_of(suite):
        kept = kept_by(job)
        np.savez(Path(job["out"]) / "probabilities.npz", **kept | {"test_outcome": 1 - kept["test_outcome"]})
    after = rows_of(suite)
    same = ["threshold", *(f"validation_{name}" for name in METRICS)]
    pd.testing.assert_frame_equal(before[same], after[same], check_exact=True)
    assert np.allclose(after["auroc"], 1 - before["auroc"])


def test_the_tuned_boosting_is_the_best_of_its_candidates_on_validation_stays(cohort, tmp_path):
    parts = split(cohort, 0, (0.7, 0.1, 0.2))
    one, _ = compete("tuned boosting", {"trials": 1}, cohort, parts, 0, tmp_path)
    untuned, _ = compete("boosting", {}, cohort, parts, 0, tmp_path)
    assert np.array_equal(one.test, untuned.test), "the first candidate is the untuned model"

    def loss(p):
        y = cohort.outcome[parts.validation]
        return -np.mean(np.log(np.where(y == 1, p, 1 - p)))

    several, _ = compete("tuned boosting", {"trials": 4}, cohort, parts, 0, tmp_path)
    assert loss(several.validation) <= loss(untuned.validation) + 1e-12


def test_hourly_values_are_the_means_of_the_long_table(cohort):
    scale = Standardiser.fit(cohort, np.arange(50))
    X = hourly(cohort, scale, 24)
    events = np.diff(cohort.first_event)
    table = pd.DataFrame({"stay": np.repeat(np.arange(len(cohort)), np.add.reduceat(events, cohort.first_set[:-1])),
                          "hour": np.minimum(np.repeat(cohort.hours, events) // 1, 23).astype(int),
                          "variable": cohort.variable, "z": scale.transform(cohort)})  # fmt: skip
    means = table.groupby(["stay", "hour", "variable"])["z"].mean()
    assert np.allclose(X[tuple(zip(*means.index, strict=True))], means, atol=1e-5)
    assert np.isfinite(X).sum() == len(means)


def test_gru_d_learns_the_same_twice_and_without_its_library_fails_alone(cohort, tmp_path, monkeypatch):
    parts, settings = split(cohort, 0), {"hours": 24, "rnn_hidden_size": 4, "batch_size": 16, "epochs": 1}
    if importlib.util.find_spec("pypots"):
        first, second = (compete("gru-d", settings, cohort, parts, 0, tmp_path)[0] for _ in range(2))
        assert np.array_equal(first.test, second.test) and len(first.test) == len(parts.test)
    monkeypatch.setitem(sys.modules, "pypots.classification", None)
    monkeypatch.setitem(sys.modules, "pypots", None)
    with pytest.raises(UserError, match=r"\[peers\]"):
        compete("gru-d", settings, cohort, parts, 0, tmp_path)


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_record_says_what_it_was_and_what_it_cost(suite):
    rows = rows_of(suite).set_index("entrant")
    for column in ("seconds", "peak_mib", "stays_per_second", "train_stays", "test_stays"):
        assert (rows.loc[["boosting", "logistic", "tuned", "ours"], column] > 0).all(), column
    for column in ("hsetvae", "torch", "python", "platform", "cores", "threads", "date"):
        assert rows.loc["ours", column].notna().all(), column
    assert (rows.loc["ours", "parameters"] > 100).all() and json.loads(rows.loc["tuned", "chosen"].iloc[0]) is not None


def test_finished_runs_are_skipped_and_partial_ones_are_not_mistaken(suite, monkeypatch):
    jobs = jobs_of(suite)
    times = {job["out"]: (Path(job["out"]) / "record.json").stat().st_mtime_ns for job in jobs}
    lost = Path(jobs[0]["out"])
    (lost / "record.json").unlink()  # a kill between the two files: probabilities without a record
    table = status(suite)
    assert "missing" in table and len(rows_of(suite)) == len(jobs) - 1 + 1  # and one of the averages cannot be made
    with pytest.raises(UserError, match="1 runs are missing"):
        publish(suite)
    for job in jobs:
        execute(job)
    again = {out for out, at in times.items() if (Path(out) / "record.json").stat().st_mtime_ns != at}
    assert again == {str(lost)}


def test_a_failed_entrant_keeps_its_place_is_reported_and_is_tried_again(suite, monkeypatch):
    job = next(job for job in jobs_of(suite) if job["entrant"] == "logistic")
    (Path(job["out"]) / "record.json").unlink()
    broken = dataclasses.replace(kinds.KINDS["logistic"], run=lambda *a: 1 / 0)
    monkeypatch.setitem(kinds.KINDS, "logistic", broken)
    assert execute(job)["status"] == "failed"
    text, table = report(suite), standings(suite, rows_of(suite))
    assert "1 runs failed" in text and "ZeroDivisionError" in text
    own = table[table["entrant"] == "logistic"]
    assert (own["failed"] == 1).all() and (own["n"] == 1).all()
    monkeypatch.undo()
    assert execute(job)["status"] == "finished"


def test_other_settings_data_or_splits_are_other_runs(suite, cohort):
    ids = [job["facts"]["id"] for job in jobs_of(suite)]
    assert len(set(ids)) == len(ids)
    declared = suite.folder / "tiny.toml"
    for old, new in (
        ("epochs = 2", "epochs = 3"),
        ("trials = 2", "trials = 3"),
        ("[0.7, 0.1, 0.2]", "[0.6, 0.2, 0.2]"),
    ):
        declared.write_text(DECLARED.replace(old, new))
        assert {job["facts"]["id"] for job in jobs_of(load_suite(str(declared)))} - set(ids)
    declared.write_text(DECLARED.replace('"who is best"', '"another title"'))
    assert [job["facts"]["id"] for job in jobs_of(load_suite(str(declared)))] == ids
    write_cohort(cohort.subset(np.arange(100)), suite.data)
    assert not {job["facts"]["id"] for job in jobs_of(load_suite(str(declared)))} & set(ids)


def test_the_ladder_leaves_each_ingredient_out_and_adds_each_to_the_model_without_all(suite):
    _, splits, arms = suite.design("ladder")
    changed = {arm.name: RECOMMENDED.but(**arm.settings) for arm in arms}
    whole = changed["ours"]
    assert splits == 1 and changed["core"] == whole.but(statistics=False, cut=0.0)
    assert changed["without cut"] == whole.but(cut=0.0)
    assert changed["core + cut"] == whole.but(statistics=False) == changed["without statistics"]
    assert {arm.name: arm.against for arm in arms} == {
        "ours": "", "core": "ours", "without statistics": "ours", "without cut": "ours",
        "core + statistics": "core", "core + cut": "core",
    }  # fmt: skip
    ids = [job["facts"]["id"] for job in jobs_of(suite, "ladder")]
    assert len(set(ids)) == 4, "with two ingredients leaving one out is adding the other: the same run"
    assert ids[0] in {job["facts"]["id"] for job in jobs_of(suite)}, "the whole model is that of the table"


RUN = """
import sys
from hsetvae.suite import load_suite, run_suite
if __name__ == "__main__":
    sys.exit(run_suite(load_suite(sys.argv[1]), workers=1))
"""


def test_a_killed_suite_repeats_only_what_had_not_ended(suite, tmp_path):
    for job in jobs_of(suite):
        shutil.rmtree(job["out"])
    script, declared = tmp_path / "run.py", suite.folder / "tiny.toml"
    script.write_text(RUN)
    outs = [Path(job["out"]) for job in jobs_of(suite)]

    def ended() -> dict[Path, int]:
        paths = [out / "record.json" for out in outs]
        return {path: path.stat().st_mtime_ns for path in paths if path.exists()}

    command, log = [sys.executable, str(script), str(declared)], tmp_path / "log"
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(ended()) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = ended()
    assert 2 <= len(before) < len(outs)
    with log.open("w") as errors:
        assert subprocess.run(command, stderr=errors, timeout=240).returncode == 0
    after = ended()
    assert len(after) == len(outs) and all(after[path] == at for path, at in before.items())
    assert f"runs: {len(outs)}/{len(outs)}, " in log.read_text() and " left" in log.read_text()
    assert rows_of(suite)["status"].eq("finished").all()


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_average_is_of_the_same_stays_and_lies_between_its_parts(suite):
    rows = rows_of(suite)
    of = {job["entrant"]: kept_by(job) for job in jobs_of(suite) if job["facts"]["seed"] == 0}
    both = averaged([of["ours"], of["boosting"]])
    assert np.array_equal(both["test"], (of["ours"]["test"] + of["boosting"]["test"]) / 2)
    row = rows[(rows["entrant"] == "average") & (rows["seed"] == 0)].iloc[0]
    assert row["auroc"] == auroc(both["test_outcome"], both["test"])
    other = next(kept_by(job) for job in jobs_of(suite) if job["facts"]["seed"] == 1)
    with pytest.raises(UserError, match="different stays"):
        averaged([of["ours"], other])


def test_paired_differences_are_those_of_scipy():
    rng, n = np.random.default_rng(0), 8
    ours, theirs = rng.normal(0.87, 0.01, n), rng.normal(0.86, 0.01, n)
    declared = suites.Suite(
        Path(), "s", "s", Path(), None, (), (0.7, 0.1, 0.2),
        {"table": (n, (suites.Entrant("b", "b", "boosting"), suites.Entrant("o", "o", "logistic", against="b")))},
    )  # fmt: skip
    rows = pd.DataFrame({"design": "table", "status": "finished", "seed": [*range(n)] * 2,
                         "entrant": ["o"] * n + ["b"] * n, "auroc": [*ours, *theirs]})  # fmt: skip
    shuffled = rows.sample(frac=1, random_state=1)
    line = standings(declared, shuffled).set_index(["entrant", "metric"]).loc[("o", "auroc")]
    test = stats.ttest_rel(ours, theirs)
    assert line["mean"] == pytest.approx(ours.mean()) and line["sd"] == pytest.approx(ours.std(ddof=1))
    assert (line["low"], line["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
    flips = stats.permutation_test((ours - theirs,), np.sum, permutation_type="samples", n_resamples=math.inf)
    assert line["p"] == pytest.approx(flips.pvalue) and line["pairs"] == n
    missing = rows[~((rows["entrant"] == "b") & (rows["seed"] == 3))]
    line = standings(declared, missing).set_index(["entrant", "metric"]).loc[("o", "auroc")]
    assert line["pairs"] == n - 1 and line["estimate"] == pytest.approx(np.delete(ours - theirs, 3).mean())


def test_the_words_follow_the_interval_and_the_direction_of_the_metric():
    up = compare(np.array([0.02, 0.021, 0.019, 0.02, 0.022, 0.018, 0.02, 0.02]))
    assert wording("auroc", up, "boosting") == "better than boosting"
    assert wording("brier", up, "boosting") == "worse than boosting"
    assert wording("auroc", compare(np.array([0.02, -0.02, 0.01, -0.01])), "x").startswith("not told apart from x")
    assert wording("auroc", compare(np.array([0.02, 0.021, 0.019])), "x") == "better than x, p is at least 0.25 at n=3"
    assert wording("auroc", compare(np.array([0.02])), "x") == "not compared with x at n=1"


def test_what_is_published_gives_the_same_table_without_the_data(suite):
    here = report(suite)
    publish(suite)
    shutil.rmtree(suite.folder / "runs")
    suite.data.unlink()
    assert report(suite) == here
    assert len(rows_at_hand(suite)) == 2 * 5
    with pytest.raises(UserError, match="does not exist: write it with `hsetvae data"):
        run_suite(suite, workers=1)


# --- the scores of the challenge -------------------------------------------------------------------------------------


def test_event_1_is_the_smaller_of_sensitivity_and_precision():
    rng = np.random.default_rng(1)
    for _ in range(20):
        outcome, p = (rng.random(40) < 0.3).astype(float), rng.integers(0, 12, 40) / 12
        outcome[0] = 1
        twins = {}
        for threshold in np.unique(p):
            true = sum(a == 1 and b >= threshold for a, b in zip(outcome, p, strict=True))
            twins[threshold] = min(true / sum(outcome), true / sum(b >= threshold for b in p))
            assert event1(outcome, p, threshold) == pytest.approx(twins[threshold])
        best = best_threshold(outcome, p)
        assert twins[best] == max(twins.values())
    assert event1(np.array([0.0, 1.0]), np.array([0.1, 0.2]), 0.9) == 0


def test_h_is_the_statistic_of_the_challenge_decile_by_decile():
    rng = np.random.default_rng(2)
    p = rng.random(200) * 0.6
    outcome = (rng.random(200) < p).astype(float)
    ranked, h = sorted(zip(p, outcome, strict=True)), 0.0
    means = []
    for d in range(10):
        risks, deaths = zip(*ranked[20 * d : 20 * d + 20], strict=True)
        mean = sum(risks) / 20
        h += (sum(deaths) - 20 * mean) ** 2 / (20 * mean * (1 - mean) + 0.001)
        means.append(mean)
    assert hosmer_lemeshow(outcome, p) == pytest.approx(h / (means[-1] - means[0]))
    assert hosmer_lemeshow(outcome, np.full(200, 0.2)) == math.inf


# --- the declared one ------------------------------------------------------------------------------------------------


def test_the_declared_suite_of_challenge_2012_is_whole(monkeypatch):
    monkeypatch.chdir(ROOT)
    declared = load_suite("challenge2012")
    _, splits, entrants = declared.design()
    assert splits == 10 and {e.name: e.preset for e in entrants if e.kind == "model"} == {
        name: name for name in ("baseline", "improved", "recommended")
    }
    assert declared.design("ladder")[1] >= 5


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('kind = "logistic"', 'kind = "logistics"', 'kind "logistics" is not one of'),
        ('against = "boosting"', 'against = "bosting"', 'there is no entrant "bosting"'),
        ("off = {cut = 0.0}", "off = {cut = 0.25}", "changes nothing"),
        ("off = {cut = 0.0}", "off = {statistics = false}", "belongs to another ingredient"),
        ('whole = "ours"', 'whole = "boosting"', 'is not an entrant of kind "model"'),
        ('preset = "recommended"', 'preset = "recomended"', 'preset "recomended" is not one of'),
        ("epochs = 2", "epoch = 2", 'unknown setting "epoch"'),
        ("splits = 2", "", "lacks the entry 'splits'"),
    ],
)
def test_what_is_wrong_in_a_declaration_is_named(tmp_path, old, new, said):
    path = tmp_path / "wrong.toml"
    path.write_text(DECLARED.replace(old, new))
    with pytest.raises(UserError, match=said):
        load_suite(str(path))


def test_the_commands_of_a_study_work_on_a_suite(suite, capsys):
    where = ["--suite", str(suite.folder / "tiny.toml")]
    for command, said in (("status", "nothing is missing"), ("publish", "wrote"), ("report", "than boosting")):
        app(["study", command, *where], standalone_mode=False)
        assert said in capsys.readouterr().out
    with pytest.raises(UserError, match="--budget is for studies"):
        app(["study", "report", *where, "--budget", "smoke"], standalone_mode=False)
