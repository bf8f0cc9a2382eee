"""The command line as a stranger uses it: every command, every wrong turn in one line, never a traceback."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import typer

from hsetvae import cli
from hsetvae.runs import FACTS

ROOT = Path(__file__).resolve().parents[1]
TINY = "--set epochs=1 --set width=16 --set latent=4 --set feedforward=16 --set pretrain_epochs=0".split()


# --- the way through -------------------------------------------------------------------------------------------------


def test_own_tables_are_trained_scored_and_diagnosed(call, tables, tmp_path):
    run, scored = tmp_path / "run", tmp_path / "predictions.csv"
    trained = call("train", *tables, *TINY, "--out", run)
    assert trained.status == 0 and "40 stays (7 with the outcome)" in trained.err
    follow = re.search(r"^next: hsetvae (.*)$", trained.out, flags=re.M)[1].split()
    evaluated = call(*follow, "--out", scored)
    scores = json.loads(evaluated.out)
    for name in "auroc auprc accuracy brier ece nll_per_event kl_per_set".split():
        assert scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"]
    predictions = pd.read_csv(scored)
    assert list(predictions) == ["stay", "probability"] and len(predictions) == scores["n"] == 8
    assert predictions.probability.between(0, 1).all()
    diagnosed = call("diagnose", run, *tables)
    assert diagnosed.status == 0
    assert all(f"## {title}" in diagnosed.out for title in ("Advice", "Measures", "Values"))
    assert list(pd.read_csv(run / "diagnosis" / "skill.csv"))[:2] == ["task", "variable"]
    report = (run / "diagnosis" / "report.md").read_text()
    for figure in re.findall(r"\]\((\w+\.png)\)", report):
        assert (run / "diagnosis" / figure).read_bytes().startswith(b"\x89PNG")
    assert json.loads((run / "diagnosis" / "measures.json").read_text())["stays"] == 8


def test_seen_stays_are_scored_on_purpose_only(call, own, tables):
    assert json.loads(call("evaluate", own / "run", *tables).out)["n"] == 8
    assert json.loads(call("evaluate", own / "run", *tables, "--split", "all").out)["n"] == 40


def test_a_run_or_a_baseline_is_scored_at_an_hour_on_the_same_stays(call, own, tables, tmp_path):
    call("train", *tables, "--preset", "logistic", "--out", tmp_path / "logistic")
    for run in (own / "run", tmp_path / "logistic"):
        now, then, end = (
            json.loads(call("evaluate", run, *tables, *words).out) for words in ([], ["--until", 12], ["--until", 1000])
        )
        assert now == end != then and now["n"] == then["n"] == 8
    assert call("evaluate", own / "run", *tables, "--until", -1).status == 2


def test_a_finished_run_resumes_to_itself(call, own, tables):
    before = (own / "run" / "model.safetensors").read_bytes()
    assert call("train", *tables, *TINY, "--out", own / "run", "--resume").status == 0
    assert (own / "run" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("preset", ["logistic", "boosting"])
def test_the_bars_to_beat_take_the_same_commands(preset, call, tables, tmp_path):
    assert call("train", *tables, "--preset", preset, "--out", tmp_path / "run").status == 0
    scores = json.loads(call("evaluate", tmp_path / "run", *tables, "--out", tmp_path / "p.csv").out)
    assert scores["n"] == len(pd.read_csv(tmp_path / "p.csv")) == 8 and 0 <= scores["auroc"] <= 1
    refused = call("diagnose", tmp_path / "run", *tables)
    assert refused.status == 2 and "holds a baseline" in refused.err


def test_a_simulated_table_carries_its_outcomes_and_the_truth(call, own, tmp_path):
    assert "25 stays" in call("data", "simulate", "--stays", 25, "--out", tmp_path / "s.parquet").out
    scores = json.loads(call("evaluate", own / "run", "--data", tmp_path / "s.parquet").out)
    assert scores["n"] == 25 and scores["auroc_of_truth"] > 0.5


def test_scores_are_printed_although_the_column_of_the_truth_is_empty(call, own, tmp_path):
    call("data", "simulate", "--stays", 25, "--out", tmp_path / "s.parquet")
    pd.read_parquet(tmp_path / "s.parquet").assign(probability=float("nan")).to_parquet(tmp_path / "s.parquet")
    scores = json.loads(call("evaluate", own / "run", "--data", tmp_path / "s.parquet").out)
    assert scores["n"] == 25 and scores["auroc_of_truth"] is None


def test_a_variable_that_no_training_stay_has_is_named(call, own, tmp_path):
    events, parts = (pd.read_csv(path, dtype={"stay": str}) for path in (own / "events.csv", own / "run" / "stays.csv"))
    tested = parts.stay[parts.part == "test"].iloc[0]
    pd.concat([events, pd.DataFrame([(tested, 1.0, "Troponin", 2.0)], columns=events.columns)]).to_csv(
        tmp_path / "events.csv", index=False
    )
    told = call("train", "--data", tmp_path / "events.csv", *TINY, "--out", tmp_path / "run")
    assert told.status == 0 and 'of "Troponin" the training stays have no event, or too few to be seen' in told.err


def test_what_is_undefined_is_null_and_never_nan(call, own, tables, tmp_path):
    table = pd.read_csv(own / "outcomes.csv").assign(outcome=0)
    table.to_csv(tmp_path / "healthy.csv", index=False)
    answer = call("evaluate", own / "run", *tables[:2], "--outcomes", tmp_path / "healthy.csv", "--split", "all").out
    assert json.loads(answer, parse_constant=lambda name: pytest.fail(name))["auroc"] is None


def test_settings_lists_every_setting_with_all_presets(call):
    from hsetvae.config import Config

    lines = call("settings").out.splitlines()
    assert [line.split()[0] for line in lines] == [name for name, *_ in Config.describe()]
    assert any(re.match(r"beta +0\.5 → 0\.1 → [\d.]+ +H1 ", line) for line in lines)


def test_the_state_of_a_study_is_told_without_running_it(call, monkeypatch, tmp_path):
    monkeypatch.setenv("HSETVAE_RUNS", str(tmp_path))
    monkeypatch.chdir(ROOT)
    status = call("study", "status", "--budget", "smoke")
    assert status.status == 0 and re.search(r"reference +2", status.out) and "missing" in status.out
    refused = call("study", "publish", "--budget", "smoke")
    assert refused.status == 2 and "has ended on this machine: run it first" in refused.err


# --- help ------------------------------------------------------------------------------------------------------------


def all_commands() -> list[list[str]]:
    def below(command, words):
        yield words
        for name, child in getattr(command, "commands", {}).items():
            yield from below(child, [*words, name])

    return list(below(typer.main.get_command(cli.app), []))


@pytest.mark.parametrize("words", all_commands(), ids=lambda words: " ".join(words) or "hsetvae")
def test_help_of_every_command_explains_it_and_all_its_options(words, call):
    command = typer.main.get_command(cli.app)
    for word in words:
        command = command.commands[word]
    shown = call(*words, "--help")
    assert shown.status == 0 and not shown.err
    assert (command.help or "").split("\n")[0] in shown.out
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} of {words} is not explained"
        assert parameter.opts[0] in shown.out and parameter.help.split()[0] in shown.out
    for name, child in getattr(command, "commands", {}).items():
        assert name in shown.out and child.help


# --- wrong turns -----------------------------------------------------------------------------------------------------

WRONG = {  # words of the command ({own} is the folder above, {new} a path that does not exist) -> what is said
    "a misspelt command": ("trian", "Did you mean 'train'"),
    "a misspelt option": ("train --ot {new}", "No such option.*--out"),
    "no folder": ("train", "Missing option '--out'"),
    "an unknown preset": ("train --preset improve --out {new}", "'improve' is not one of 'baseline', 'improved'"),
    "an unknown setting": ("train --set bta=1 --out {new}", 'unknown setting "bta"; did you mean "beta"'),
    "a setting without a value": ("train --set beta --out {new}", 'has no "="'),
    "a setting of another type": ("train --set beta=low --out {new}", '"low" is not a number'),
    "a setting out of range": ("train --set beta=-1 --out {new}", "must be at least 0"),
    "a size that no memory holds": ("train --set latent=10000000000 --out {new}", "at least 1 and at most 4096"),
    "a weight that no number holds": ("train --set free_bits=1e300 --out {new}", r"at least 0 and at most 1e\+06"),
    "an unknown choice": ("train --set clip=nrom --out {new}", 'did you mean "norm"'),
    "settings of a baseline": (
        "train --preset logistic --set beta=1 --out {new}",
        "for presets of the model; logistic has none",
    ),
    "outcomes without a table": ("train --outcomes {own}/outcomes.csv --out {new}", "goes with a table"),
    "groups that are not there": ("train {tables} --fit a --score b --out {new}", "no column group"),
    "a device without numbers": ("train {tables} --device meta --out {new}", 'device "meta" cannot be used'),
    "a device that is not there": ("train {tables} --device banana --out {new}", 'device "banana" cannot be used'),
    "stays that are too long": ("train {tables} --set max_sets=3 --out {new}", "more than max_sets = 3"),
    "no such table": ("train --data {new} --out {new}", "is not a file"),
    "a folder as table": ("train --data {own} --out {new}", "is a folder without .parquet files"),
    "a folder as outcomes": (
        "train --data {own}/events.csv --outcomes {own} --out {new}",
        "is a folder without .parquet files",
    ),
    "a run where a run is": ("train {tables} --out {own}/run", "already holds a run: use --resume"),
    "other settings where a run is": ("train {tables} --out {own}/run --resume --set beta=0.3", "beta is 0.1 there"),
    "a baseline where a run is": ("train {tables} --preset boosting --out {own}/run", "choose another --out"),
    "a run where a file is": ("train {tables} --out {own}/events.csv", "events.csv is a file"),
    "a run below a file": ("train {tables} --out {own}/events.csv/run", "events.csv is a file"),
    "a baseline where a file is": ("train {tables} --preset boosting --out {own}/events.csv", "events.csv is a file"),
    "scores of no run": ("evaluate {new} {tables}", "is not a finished run: config.json is missing"),
    "a diagnosis of no run": ("diagnose {new} {tables}", "is not a finished run"),
    "scores without outcomes": ("evaluate {own}/run --data {own}/events.csv", "give the outcome table"),
    "hours that are no numbers": ("evaluate {own}/run {tables} --hours 6,late", '"6,late" are not hours'),
    "hours before the stay": ("evaluate {own}/run {tables} --hours=-5,6", '"-5,6" are not hours from 0 on'),
    "no hour at all": ("evaluate {own}/run {tables} --hours nan", '"nan" are not hours'),
    "a comma too many": ("train {tables} --fit a,,b --out {new}", '--fit "a,,b" names nothing'),
    "hours and an hour": ("evaluate {own}/run {tables} --hours 6 --until 6", "leave one out"),
    "a figure of one hour": ("evaluate {own}/run {tables} --figure {new}.png", "name them, for example --hours"),
    "a stay that is not there": ("explain {own}/run --data {own}/events.csv --stay me", 'no stay "me"'),
    "an explanation of no run": ("explain {new} --data {own}/events.csv --stay me", "is not a finished run"),
    "predictions into a folder": (
        "evaluate {own}/run {tables} --out {own}",
        "would hold CSV: give it a name that ends",
    ),
    "predictions over the table": (
        "predict {own}/run {tables} --out {own}/events.csv",
        "would be lost: choose another",
    ),
    "predictions over the run": (
        "predict {own}/run {tables} --out {own}/run/stays.csv",
        "would be lost: choose another",
    ),
    "a table for a run": ("predict {own}/events.csv {tables} --out {new}.csv", "is a file: give the folder"),
    "a report below a file": ("diagnose {own}/run {tables} --out {own}/events.csv", "cannot be written"),
    "a table into a folder": ("data simulate --stays 5 --out {own}", "no empty folder"),
    "no stays": ("data simulate --stays 0 --out {new}", "at least 1 stay"),
    "no Challenge 2012": ("data physionet2012 --source {own} --out {new}", "has no set-a.tar.gz"),
    "an unknown set": ("data physionet2012 --sets q --source {own} --out {new}", 'no set "q"'),
    "no study": ("study status --study {new}", "is not a file: name the declared study"),
    "a folder as study": ("study report --study {own}", "is not a file: name the declared study"),
    "an unknown budget": ("study status --study {root}/ablations/study.toml --budget no", 'no budget "no"'),
    "a scheduler that is not there": (
        "study run --study {root}/ablations/study.toml --budget smoke --scheduler tcp://127.0.0.1:1",
        'no Dask scheduler at "tcp://127.0.0.1:1".*Connection refused',
    ),
    "a scheduler that is no address": (
        "study run --study {root}/ablations/study.toml --budget smoke --scheduler here",
        'no Dask scheduler at "here"',
    ),
    "workers below none": ("study run --study {root}/ablations/study.toml --workers -1", "--workers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_turn_is_answered_in_words_and_leaves_nothing_behind(case, call, own, tmp_path):
    line, answer = WRONG[case]
    tables = f"--data {own}/events.csv --outcomes {own}/outcomes.csv"
    before = sorted(own.rglob("*"))
    ended = call(*line.format(own=own, new=tmp_path / "new", root=ROOT, tables=tables).split())
    assert ended.status == 2 and re.search(answer, ended.err), ended.err
    assert "Traceback" not in ended.err and not (tmp_path / "new").exists() and sorted(own.rglob("*")) == before


def test_a_run_of_other_variables_is_refused_and_not_scored(call, own, tmp_path):
    table = pd.read_csv(own / "events.csv")
    table.assign(variable="my " + table.variable).to_csv(tmp_path / "events.csv", index=False)
    mine = ["--data", tmp_path / "events.csv", "--outcomes", own / "outcomes.csv"]
    strange = call("evaluate", own / "run", *mine)
    assert strange.status == 2 and "22 unknown variables dropped (my Age, my BUN" in strange.err
    assert call("train", *mine, *TINY, "--out", tmp_path / "run").status == 0
    for command in ("evaluate", "diagnose"):
        refused = call(command, tmp_path / "run")
        assert refused.status == 2 and "not trained on the simulated cohort: give its own" in refused.err


@pytest.mark.parametrize(
    ("name", "content", "answer"),
    [
        ("config.json", "{", "config.json is damaged"),
        ("config.json", "[]", "config.json is damaged"),
        ("config.json", "{}", "config.json is damaged"),
        ("config.json", json.dumps({name: {} for name in FACTS}), "of another version"),
        ("history.csv", "", "history.csv is damaged, it has no column step"),
        ("stays.csv", "stay,part,fingerprint\n1,test,00\n", "stays.csv is not as the training wrote it"),
        ("stays.csv", "", "stays.csv is not as the training wrote it"),
        ("model.safetensors", "no weights", "not a whole safetensors file"),
    ],
)
def test_a_damaged_run_is_named_by_every_command(name, content, answer, call, own, tables, tmp_path):
    run = shutil.copytree(own / "run", tmp_path / "run")
    (run / name).write_text(content)
    for command in ("evaluate", "diagnose"):
        ended = call(command, run, *tables)
        assert ended.status == 2 and answer in ended.err


def test_a_run_without_outcomes_is_not_scored_on_outcomes(call, own, tables, tmp_path):
    assert call("train", *tables[:2], *TINY, "--out", tmp_path / "run").status == 0
    told = call("evaluate", tmp_path / "run", *tables)
    assert told.status == 2 and "this run was trained without outcomes: train one with the outcome table" in told.err


def test_a_damaged_run_is_not_resumed(call, own, tables, tmp_path):
    run = shutil.copytree(own / "run", tmp_path / "run")
    (run / "done.json").unlink()
    for content in (b"PK\x03\x04 cut", b"", b"hello\n", b"stay,part\n1,test\n"):
        (run / "resume.pt").write_bytes(content)
        cut = call("train", *tables, *TINY, "--out", run, "--resume")
        assert cut.status == 2 and "resume.pt is damaged: delete it" in cut.err
    (run / "config.json").write_text("{")
    assert "config.json is damaged" in call("train", *tables, *TINY, "--out", run, "--resume").err


def test_an_interrupted_command_says_so(call, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.Config, "describe", interrupted)
    ended = call("settings")
    assert ended.status == 130 and "interrupted" in ended.err


def test_trouble_of_the_system_is_said_in_one_line(call, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli.Config, "describe", full)
    ended = call("settings")
    assert ended.status == 2 and ended.err.startswith("hsetvae: ") and "No space left on device" in ended.err
