"""A suite of models on a tiny table: records that resume and are never mistaken, and a declaration that is checked."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hsetvae import entrants as kinds
from hsetvae.cli import app
from hsetvae.config import RECOMMENDED, UserError
from hsetvae.data import Split
from hsetvae.entrants import fewer
from hsetvae.events import write_cohort
from hsetvae.simulate import simulate
from hsetvae.standings import publish, report, rows_of, standings, status
from hsetvae.suite import execute, jobs_of, load_suite, run_suite

ROOT = Path(__file__).resolve().parents[1]
DECLARED = (Path(__file__).parent / "tiny_suite.toml").read_text()


@pytest.fixture(scope="module")
def cohort():
    return simulate(120, seed=3).cohort


def numbers(text: str) -> list[str]:
    """A report without the minutes, which differ between equal runs."""
    return [line.rpartition("  ")[0] if "±" in line else line for line in text.splitlines()]


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_record_says_what_it_was_and_what_it_cost(suite):
    rows = rows_of(suite).set_index("entrant")
    for column in ("seconds", "peak_mib", "stays_per_second", "train_stays", "test_stays"):
        assert (rows.loc[["boosting", "logistic", "tuned", "ours"], column] > 0).all(), column
    for column in ("hsetvae", "torch", "python", "platform", "cores", "threads", "date"):
        assert rows.loc["ours", column].notna().all(), column
    assert (rows.loc["ours", "parameters"] > 100).all() and json.loads(rows.loc["tuned", "chosen"].iloc[0]) is not None


def test_finished_runs_are_skipped_and_partial_ones_are_not_mistaken(suite):
    jobs = jobs_of(suite)
    times = {job["out"]: (Path(job["out"]) / "record.json").stat().st_mtime_ns for job in jobs}
    lost = Path(jobs[0]["out"])
    (lost / "record.json").unlink()  # a kill between the two files: probabilities without a record
    table = status(suite)
    assert "missing" in table and len(rows_of(suite)) == len(jobs) - 1 + 1  # and one of the averages cannot be made
    assert "; 1 runs of design table are missing" in publish(suite)
    (lost / "record.json").touch()  # a disk that was full
    assert "missing" in status(suite), "a record that cannot be read is none"
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


def test_a_worker_of_other_code_makes_no_record_of_this_one(suite, monkeypatch):
    job = jobs_of(suite)[0] | {"code": "0" * 16}
    (Path(job["out"]) / "record.json").unlink()
    assert "RuntimeError: the code has changed since this process loaded it" in execute(job)["error"]
    job = jobs_of(suite)[0]
    monkeypatch.setattr("hsetvae.designs._modules", lambda names: [])  # as if a file had been edited meanwhile
    assert "RuntimeError: the code has changed since this process loaded it" in execute(job)["error"]


def test_a_table_that_does_not_fit_is_refused_once_and_before_any_run(suite):
    declared = suite.folder / "tiny_suite.toml"
    declared.write_text(DECLARED.replace("splits = 2", 'splits = 2\ngroups = ["a"]', 1))
    with pytest.raises(UserError, match=r"has no column group, and the suite wants groups a: .* leaves `groups` out"):
        run_suite(load_suite(str(declared)), workers=1, progress=False)
    with pytest.raises(UserError, match="is a folder: a suite reads one file of events"):
        jobs_of(load_suite(str(declared), data=str(suite.folder)))


def test_other_settings_data_or_splits_are_other_runs(suite, cohort):
    ids = [job["facts"]["id"] for job in jobs_of(suite)]
    assert len(set(ids)) == len(ids)
    declared = suite.folder / "tiny_suite.toml"
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
    jobs = jobs_of(suite, "ladder")
    assert len({job["facts"]["id"] for job in jobs}) == 4, "with two, leaving one out is adding the other: the same run"
    assert not any(job["settings"]["refit"] for job in jobs)


def test_a_tradeoff_turns_one_setting_of_the_whole_model(suite):
    arms = suite.design("tradeoff")[2]
    assert {arm.name: (arm.settings["beta"], arm.against) for arm in arms} == {
        "beta 0.1": (0.1, ""), "beta 0.5": (0.5, "beta 0.1"),
    }  # fmt: skip
    turned, ladder = ({job["facts"]["id"] for job in jobs_of(suite, design)} for design in ("tradeoff", "ladder"))
    assert len(turned & ladder) == 1, "the value that the model has is the whole model of the ladder: the same run"


RUN = """
import sys
from hsetvae.suite import load_suite, run_suite
if __name__ == "__main__":
    sys.exit(run_suite(load_suite(sys.argv[1]), workers=1))
"""


def test_a_curve_has_nested_stays_and_shares_its_last_point_with_the_table(suite):
    table, curve = ({(job["entrant"], job["facts"]["seed"]): job["facts"]["id"] for job in jobs_of(suite, design)}
                    for design in ("table", "curve"))  # fmt: skip
    assert curve["ours at 1", 0] == table["ours", 0] and curve["ours at 0.5", 0] not in table.values()
    parts = Split(np.arange(0, 70), np.arange(70, 80), np.arange(80, 100))
    quarter, half, whole = (fewer(parts, share, seed=3) for share in (0.25, 0.5, 1.0))
    assert set(quarter.train) < set(half.train) < set(whole.train) and set(quarter.validation) < set(half.validation)
    assert (len(half.train), len(half.validation)) == (35, 5) and np.array_equal(whole.train, parts.train)
    assert np.array_equal(half.test, parts.test), "all are scored on the same stays"
    compared = {e.name: e.against for e in suite.design("curve")[2]}
    assert compared == {"boosting at 0.5": "", "ours at 0.5": "boosting at 0.5", "boosting at 1": "",
                        "ours at 1": "boosting at 1"}  # fmt: skip


@pytest.mark.slow
def test_a_killed_suite_repeats_only_what_had_not_ended(suite, tmp_path):
    for job in jobs_of(suite):
        shutil.rmtree(job["out"])
    script, declared = tmp_path / "run.py", suite.folder / "tiny_suite.toml"
    script.write_text(RUN)
    outs = [Path(job["out"]) for job in jobs_of(suite)]

    def ended() -> dict[Path, int]:
        paths = [out / "record.json" for out in outs]
        return {path: path.stat().st_mtime_ns for path in paths if path.exists()}

    command, log = [sys.executable, str(script), str(declared)], tmp_path / "log"
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(ended()) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = ended()
    assert 2 <= len(before) < len(outs)
    with log.open("w") as errors:
        assert subprocess.run(command, stderr=errors, timeout=600).returncode == 0
    after = ended()
    assert len(after) == len(outs) and all(after[path] == at for path, at in before.items())
    assert f"runs: {len(outs)}/{len(outs)}, " in log.read_text() and " left" in log.read_text()
    assert rows_of(suite)["status"].eq("finished").all()


@pytest.mark.slow
def test_what_another_machine_has_published_need_not_run_again(suite):
    jobs, here = jobs_of(suite), report(suite)
    by = {(job["entrant"], job["facts"]["seed"]): Path(job["out"]) for job in jobs}
    shutil.rmtree(by["ours", 1])
    publish(suite)  # nine of ten runs, and the average of split 0
    for job in jobs:
        shutil.rmtree(job["out"], ignore_errors=True)
    assert "published" in status(suite) and "1 are missing" in report(suite)
    assert run_suite(suite, workers=1, progress=False, published=True) == 0
    ran = {place for place, out in by.items() if (out / "record.json").exists()}
    assert ran == {("ours", 1), ("boosting", 1)}, "the average of split 1 needs the probabilities of both"
    assert numbers(report(suite)) == numbers(here)
    publish(suite)
    shutil.rmtree(suite.folder / "runs")
    assert numbers(report(suite)) == numbers(here)
    assert "nothing is missing" in status(suite)


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
        ("splits = 2\n", "", "lacks the entry 'splits'"),
        ('title = "ours"', "", r"\[entrants.ours\] lacks title"),
        ("trials = 2", "trails = 2", "settings lack trials"),
        ('entrants = ["boosting", "ours"]', 'entrants = ["bosting"]', r"\[curve\]: there is no entrant"),
        ("values = [0.1, 0.5]", "values = [0.2, 0.5]", r"\[tradeoff\]: values need the beta that ours has"),
        ('setting = "beta"', 'setting = "betta"', 'unknown setting "betta"; did you mean "beta"'),
        ("shares = [0.5, 1.0]", "shares = [50]", "above 0 and at most 1, and one of them is 50"),
        ("trials = 2", "trials = 2, depth = 3", 'has no setting "depth"'),
        ('kind = "logistic"', 'kind = "logistic"\nrefit = true', "refit is for models"),
        ('kind = "logistic"', "kind = 3", r"\[entrants.logistic\]: kind = 3 must be a text"),
        ("shares = [0.5, 1.0]", "shares = 0.5", r"\[curve\]: shares = 0.5 must be a list of numbers"),
        ('entrants = ["boosting", "ours"]', "entrants = []", r"\[curve\]: entrants are empty"),
        ('kind = "logistic"', 'kind = "logistic"\nshare = 2.0', "share is above 0 and at most 1, and here it is 2.0"),
        ("shares = [0.7, 0.1, 0.2]", "shares = [7, 1, 2]", "three numbers above 0 that add up to 1"),
        ('title = "cut stays"', "", r"\[ladder.ingredients.cut\] lacks title"),
        ("shares = [0.5, 1.0]", "", r"\[curve\] lacks shares"),
        ("splits = ", "split = ", 'unknown key "split"; did you mean "splits"'),
        ("splits = 2", "splits = 0", "design table has 0 splits, and needs one at least"),
        ('of = ["ours", "boosting"]', "", "an average needs the entrants that it is made `of`"),
    ],
)
def test_what_is_wrong_in_a_declaration_is_named(tmp_path, old, new, said):
    path = tmp_path / "wrong.toml"
    path.write_text(DECLARED.replace(old, new, 1))
    with pytest.raises(UserError, match=said):
        load_suite(str(path))


def test_the_commands_of_a_study_work_on_a_suite(suite, capsys):
    where = ["--suite", str(suite.folder / "tiny_suite.toml")]
    for command, said in (("status", "nothing is missing"), ("publish", "wrote"), ("report", "with boosting")):
        app(["study", command, *where], standalone_mode=False)
        assert said in capsys.readouterr().out
    with pytest.raises(UserError, match="--budget is for studies"):
        app(["study", "report", *where, "--budget", "smoke"], standalone_mode=False)
    with pytest.raises(UserError, match="--index is for studies"):
        app(["study", "run", *where, "--index", "0"], standalone_mode=False)
