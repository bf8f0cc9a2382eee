"""A study from declaration to verdict, with papermill, Dask and kills that are real."""

import ast
import json
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

from hsetvae.config import UserError
from hsetvae.declaration import load_study
from hsetvae.designs import _dumped, code_hash, expand
from hsetvae.simulate import simulate
from hsetvae.study import (
    StaleRecords,
    load_records,
    local_records,
    publish,
    runs_folder,
)
from hsetvae.sweep import describe_run, run_study
from hsetvae.verdicts import report

ABLATIONS = Path(__file__).resolve().parents[1] / "ablations"


def test_an_arm_of_ones_own_is_one_entry_and_nothing_else_runs_again(study):
    path = study.folder / "study.toml"
    old = {spec.id for design in study.designs for spec in expand(study, "", design)}
    own = "claim = 'x'\nendpoint = 'auroc'\ndirection = 1\nexpected = 0\nwhy = 'y'\nchanged = {layers = 1}\n"
    path.write_text(f"{path.read_text()}\n[questions.mine]\n{own}")
    mine = load_study(path)
    new = {spec.id: spec for design in mine.designs for spec in expand(mine, "", design) if spec.id not in old}
    assert len(new) == 10 and all(spec.arm.settings == {"layers": 1} for spec in new.values())
    assert old < {spec.id for design in mine.designs for spec in expand(mine, "", design)}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('endpoint = "au_ratio"', 'endpoint = "au_ration"', 'unknown endpoint "au_ration"; did you mean "au_ratio"'),
        ("latent = 8", "latnt = 8", 'unknown setting "latnt"; did you mean "latent"'),
        ("changed = {beta = 0.1}", "changed = {beat = 0.1}", "the same settings in `reference` and `changed`"),
        ('changed = {head = "mlp"}', 'changed = {head = "mpl"}', "[questions.head]: setting head = 'mpl' is not one"),
        ("expected = 1", "expected = 3", "expected must be 1, 0 or -1"),
        ('changed = "improved"', 'changed = "better"', 'preset "better" is not one of'),
        ('path = [\n  "beta",', 'path = [\n  "betta",', 'path names "betta"'),
        ("[tables.physionet2012]", "[tables]\nmine = 1\n[tables.physionet2012]", "tables.mine"),
        ('{factorial = "challenge2012"', '{factorial = "chalenge2012"', 'did you mean "challenge2012"'),
        ("[designs.add]", "[designs.add]\nbudgets = 1", 'unknown key "budgets"; did you mean "budget"'),
        ('budget = "register"', 'budget = "registre"', 'no budget "registre"; did you mean "register"'),
        ("direction = 1", "direction = 2", "direction must be 1 or -1"),
        ("delta = 0.005", "delta = 0.0", "delta must be above 0"),
        ('claim = "A KL', 'clam = "A KL', 'unknown key "clam"; did you mean "claim"'),
        ('preset = "baseline"', 'preset = "base"', 'preset "base" is not one of'),
        ("replicates = 10", "replicates = 0", "needs replicates"),
        ("title =", "title", "not valid TOML"),
        ('factorial = ["beta"', 'factorial = 3  # ["beta"', "factorial = 3 must be a list of texts"),
        ("delta = 0.005", 'delta = "small"', "delta = 'small' must be a number"),
        ("direction = 1", "direction = [1]", "direction = [1] must be a whole number"),
        ("replicates = 10", 'replicates = "ten"', "[budgets.standard]: replicates = 'ten' must be a whole number"),
        ("stays = 1500", "stay = 1500", '[data]: unknown key "stay"; did you mean "stays"'),
        ("stays = 1500", "stays = -3", "[budgets.standard]: a replicate of -3 stays has none to learn from"),
        ('labels = "shuffled"', 'labels = "shuffle"', 'labels "shuffle" are not one of true, shuffled, leaked'),
        ("[questions.beta]", "[question.beta]", 'unknown key "question"; did you mean "questions"'),
        ('title = "What', 'title = "Wh\udce4t', "is not UTF-8 text"),
        ("shares = [0.2, 0.07, 0.73]", "shares = [0.2, 0.07]", "shares = [0.2, 0.07] must be a list of 3 numbers"),
        ("shares = [0.2, 0.07, 0.73]", "shares = [0.2, 0.07, 0.9]", "three numbers above 0 that add up to 1"),
        ("shares = [0.2, 0.07, 0.73]", "shares = [0.0, 0.27, 0.73]", "three numbers above 0 that add up to 1"),
        ('source = "simulated"', "", '[data] lacks source: "simulated", or the path'),
        ("stays = 1500", "", "neither [data] nor [budgets.standard] says how many stays are simulated"),
        (
            "[tables.physionet2012]",
            "[tables.physionet]",
            "a table is called like its file, and its is",
        ),
        (
            'factorial = ["beta"',
            'factorial = []  # ["beta"',
            "[designs.factorial] has no arms, because factorial",
        ),
        ("between = [0.99, 1.0]", "between = [1.0, 0.99]", "between = [1.0, 0.99] has its lower end first"),
    ],
)
def test_a_wrong_declaration_is_refused_where_it_is_wrong(study, old, new, words):
    path = study.folder / "study.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1), errors="surrogateescape")
    with pytest.raises(UserError) as error:
        load_study(path)
    assert words in str(error.value)


def test_outcomes_without_their_events_are_refused(study, tmp_path):
    (tmp_path / "outcomes.csv").touch()
    with pytest.raises(UserError, match="belongs to another table of events: name it, too, with --data"):
        load_study(study.file, outcomes=tmp_path / "outcomes.csv")


def test_arms_that_a_budget_makes_the_same_are_refused_before_anything_runs(study):
    path = study.folder / "study.toml"
    path.write_text(
        path.read_text().replace("settings = {width = 16, feed", "settings = {beta = 0.1, width = 16, feed", 1)
    )
    with pytest.raises(UserError, match=r'the arms "reference" and "beta" are the same run: take the setting'):
        run_study(load_study(path), "smoke", workers=1, progress=False)


def test_code_counts_and_comments_do_not(study, tmp_path):
    notebook = json.loads(study.notebook.read_text())
    cell = next(
        c for c in notebook["cells"] if c["cell_type"] == "code" and "parameters" not in c["metadata"].get("tags", [])
    )
    hashes = []
    for i, line in enumerate(["", "# a remark\n", "x = 1\n"]):
        source = cell["source"]
        cell["source"] = [line, *source]
        path = tmp_path / f"{i}.ipynb"
        path.write_text(json.dumps(notebook))
        cell["source"] = source
        hashes.append(code_hash(path))
    assert hashes[0] == hashes[1] != hashes[2]


def test_code_is_hashed_in_the_same_words_by_every_version_of_python():
    assert _dumped(ast.parse("def f(x):\n    return g()\n")) == (
        "Module(body=[FunctionDef(name='f', args=arguments(posonlyargs=[], args=[arg(arg='x')], kwonlyargs=[], "
        "kw_defaults=[], defaults=[]), body=[Return(value=Call(func=Name(id='g', ctx=Load()), args=[], keywords=[]))], "
        "decorator_list=[])], type_ignores=[])"
    )
    text = ast.parse('f"{x:{w}}"')
    text.body[0].value.values[0].format_spec.values.append(ast.Constant(""))  # as Python 3.12.1 parses it
    assert _dumped(text) == _dumped(ast.parse('f"{x:{w}}"'))


@pytest.mark.parametrize(("old", "new", "counts"), [("beta=0.1,", "beta=0.3,", False), ("knob(64,", "knob(32,", True)])
def test_a_preset_counts_by_its_settings_and_a_default_as_code(study, monkeypatch, old, new, counts):
    read, before = Path.read_text, code_hash(study.notebook)

    def changed(path, *args, **kwargs):
        text = read(path, *args, **kwargs)
        assert path.name != "config.py" or old in text
        return text.replace(old, new) if path.name == "config.py" else text

    monkeypatch.setattr(Path, "read_text", changed)
    code_hash.cache_clear()
    assert (code_hash(study.notebook) != before) is counts
    code_hash.cache_clear()


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("[budgets.smoke]", "[budgets.more]\nreplicates = 3\n\n[budgets.smoke]", False),
        ("delta = 0.005", "delta = 0.006", True),
    ],
)
def test_a_budget_declares_nothing_and_an_endpoint_does(study, old, new, counts):
    path = study.folder / "study.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert (load_study(path).key != study.key) is counts


def test_a_renamed_parameter_of_the_notebook_is_refused_before_anything_runs(study):
    text = study.notebook.read_text()
    study.notebook.write_text(text.replace("replicate = 0", "replicates = 0"))
    code_hash.cache_clear()
    with pytest.raises(UserError, match=r'no parameter "replicate"; did you mean "replicates"'):
        run_study(study, "smoke", workers=1, progress=False)
    assert not runs_folder(study).exists()


OWN = """
title = "Own data"
preset = "baseline"
data = {source = "events.csv", outcomes = "outcomes.csv"}
settings = {width = 16, feedforward = 16, latent = 4, epochs = 1, pretrain_epochs = 0}
budgets = {tiny = {replicates = 1}}
designs = {add = {budget = "tiny"}}

[endpoints.auroc]
family = "prediction"
delta = 0.005
unit = "AUROC"
text = "ranking"

[questions.head]
claim = "A larger head helps"
endpoint = "auroc"
direction = 1
expected = 0
why = "Why not"
changed = {head = "mlp"}
"""


@pytest.mark.slow
def test_a_study_runs_on_a_table_of_ones_own(tmp_path, monkeypatch):
    cohort = simulate(60, seed=4).cohort
    stay = np.repeat(np.repeat(cohort.stays, np.diff(cohort.first_set)), np.diff(cohort.first_event))
    variable = np.array(cohort.variables)[cohort.variable]
    hours = np.repeat(cohort.hours, np.diff(cohort.first_event))
    events = pd.DataFrame({"stay": stay, "hours": hours, "variable": variable, "value": cohort.value})
    outcomes = pd.DataFrame({"stay": cohort.stays, "outcome": cohort.outcome})
    (tmp_path / "study.toml").write_text(OWN)
    shutil.copy(ABLATIONS / "run.ipynb", tmp_path)
    own = load_study(tmp_path / "study.toml")
    with pytest.raises(UserError, match=r"the study's data .*events.csv does not exist"):
        expand(own)
    events.to_csv(tmp_path / "events.csv", index=False)
    outcomes.to_csv(tmp_path / "outcomes.csv", index=False)
    monkeypatch.delenv("HSETVAE_RUNS", raising=False)
    assert run_study(own, "", workers=1, progress=False, index=1) == 0
    (record,) = local_records(own).to_dict("records")
    assert record["arm"] == "head" and record["n"] == 12 and "auroc_of_truth" not in record
    assert run_study(own, "", workers=1, progress=False) == 0 and publish(own)[1] == 0
    before = [spec.id for spec in expand(own)]
    outcomes.assign(outcome=1 - outcomes["outcome"]).to_csv(tmp_path / "outcomes.csv", index=False)
    assert not set(before) & {spec.id for spec in expand(own)}, "other data are other runs"

    (tmp_path / "events.csv").rename(tmp_path / "away.csv")
    monkeypatch.setenv("HSETVAE_RUNS", str(tmp_path / "none"))
    assert len(load_records(own)) == len(before), "published records can be read where the table is not"
    (tmp_path / "away.csv").rename(tmp_path / "events.csv")
    with pytest.raises(StaleRecords):  # the outcomes are others now
        load_records(own)
    monkeypatch.delenv("HSETVAE_RUNS")

    outcomes.to_csv(tmp_path / "outcomes.csv", index=False)
    declared = load_study(ABLATIONS / "study.toml", str(tmp_path / "events.csv"), tmp_path / "outcomes.csv")
    ids = {spec.id for spec in expand(declared)}
    assert not ids & {spec.id for spec in expand(load_study(ABLATIONS / "study.toml"))}
    (tmp_path / "moved").mkdir()
    files = [shutil.move(tmp_path / name, tmp_path / "moved" / name) for name in ("events.csv", "outcomes.csv")]
    moved = load_study(ABLATIONS / "study.toml", *map(str, files))
    assert f" --data {files[0]} --outcomes {files[1]}" in describe_run(moved, "", "", 3)
    assert ids == {spec.id for spec in expand(moved)}, "a run is known by what is in the files, not by where they lie"


SUITE = """
import sys
from hsetvae.declaration import load_study
from hsetvae.sweep import describe_run, run_study
if __name__ == "__main__":
    sys.exit(run_study(load_study(sys.argv[1]), "smoke", workers=2, progress=False))
"""


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers through /proc")
def test_a_suite_survives_a_killed_worker_and_a_killed_suite_continues(study, tmp_path):
    script = tmp_path / "suite.py"
    script.write_text(SUITE)
    command = [sys.executable, str(script), str(study.folder / "study.toml")]
    wanted = len(expand(study, "smoke"))

    def start(until: int) -> subprocess.Popen:
        process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(local_records(study, "smoke")) < until and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        return process

    process = start(until=1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = local_records(study, "smoke").set_index("id")["seconds"]
    assert 1 <= len(first) < wanted

    process = start(until=len(first) + 1)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    assert process.wait(timeout=240) == 0
    records = load_records(study, "smoke")
    assert len(records) == wanted and (records["status"] == "finished").all()
    assert records.set_index("id")["seconds"][first.index].equals(first), "finished runs are not run again"
    table = pd.read_csv(publish(study, "smoke")[0], dtype={"id": str})
    assert table["id"].tolist() == records["id"].tolist()
    assert "0 runs failed" in report(study, "smoke")


@pytest.mark.slow
def test_ctrl_c_stops_a_study_in_one_line_and_keeps_what_is_finished(study):
    # tests that run in the background of a shell inherit that Ctrl-C is ignored
    started = ("import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
               "from hsetvae.cli import main; main()")  # fmt: skip
    command = [sys.executable, "-c", started, "study", "run", "--workers", "2",
               "--budget", "smoke", "--study", str(study.folder / "study.toml")]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 120
    while not len(local_records(study, "smoke")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    said = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 130 and said.rstrip().endswith("interrupted; what is finished is kept"), said
    assert "Traceback" not in said and "distributed.nanny" not in said, said
    assert len(local_records(study, "smoke"))


@pytest.mark.slow
def test_a_diverging_run_is_reported_and_keeps_its_place(study, capsys):
    path = study.folder / "study.toml"
    text = path.read_text().replace("epochs = 1}", "epochs = 1, lr = 1e6}")
    text = text.replace('["beta", "pooling"]', '["beta"]')
    path.write_text(text)
    diverging = load_study(path)
    assert run_study(diverging, "smoke", workers=1) == 2
    said = capsys.readouterr().err
    assert "TrainingDiverged" in said
    assert "runs: 2/2, beta, replicate 0: failed in" in said, "each run has its line where there is no terminal"
    assert (load_records(diverging, "smoke")["status"] == "failed").all()
    assert "not evaluable: 100% of the runs failed" in report(diverging, "smoke")
