"""Runs that are killed, resumed, damaged or mixed up: exact weights, or an error that names the file."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from hsetvae.config import BASELINE, IMPROVED, UserError
from hsetvae.data import Split, split
from hsetvae.evaluate import predict
from hsetvae.model import HSetVAE
from hsetvae.runs import load_run, load_tensors
from hsetvae.simulate import simulate
from hsetvae.train import train

TINY = dict(width=16, latent=6, feedforward=16, epochs=2, batch_size=32, pretrain_epochs=0, lr_warmup=0.0)


@pytest.fixture(scope="module")
def cohort():
    return simulate(40, seed=1).cohort


def run_of(config, cohort, folder, seed=0, **more):
    return train(config, cohort, split(cohort, seed), folder, seed=seed, progress=False, **more)


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


TRAINER = """
import os, sys
from hsetvae.config import IMPROVED
from hsetvae.data import split
from hsetvae.simulate import simulate
from hsetvae.train import train
cohort = simulate(40, seed=1).cohort
config = IMPROVED.but(width=16, latent=6, feedforward=16, epochs=20, batch_size=8, pretrain_epochs=6)
print("ready", flush=True)
for line in sys.stdin:  # a process of its own for each folder that is named, without importing torch again
    pid = os.fork()
    if not pid:
        train(config, cohort, split(cohort, 0), line.strip(), resume=True, progress=False)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.fixture
def trainer():
    """Starts a training process in a folder -> (its pid, a function that waits for it and returns its status)."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )  # fmt: skip

    assert process.stdout.readline() == "ready\n"

    def start(folder):
        print(folder, file=process.stdin, flush=True)
        return int(process.stdout.readline()), lambda: int(process.stdout.readline())

    yield start
    process.stdin.close()
    process.wait()


def resume_point(folder):
    """What identifies the last resume point: every save replaces the file."""
    return [path.stat().st_mtime_ns for path in sorted(folder.rglob("resume.pt"))]


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_with_the_same_weights(trainer, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    start = time.monotonic()
    assert trainer(whole)[1]() == 0
    epoch = (time.monotonic() - start) / 26
    rng = random.Random(0)
    for kill in range(10):
        before = resume_point(killed)
        pid, end = trainer(killed)
        patience = time.monotonic() + 60  # the first kills come at once; the others let the run get on
        while kill > 2 and resume_point(killed) == before and time.monotonic() < patience:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, epoch))
        os.kill(pid, signal.SIGKILL)
        assert end() == signal.SIGKILL, "it was still at work"
    assert resume_point(killed) and not (killed / "done.json").exists()
    assert trainer(killed)[1]() == 0
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()
    first, second = (pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (whole, killed))
    assert first.equals(second), "every row of the history, too"
    assert not list(killed.rglob("resume.pt")) and not list(killed.rglob(".*"))


@pytest.mark.parametrize("name", [".stays.csv.k1lled00.partial", ".config.json.k1lled00.partial"])
def test_a_run_killed_in_its_first_write_can_be_started_again(name, cohort, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("stay,pa")
    run = run_of(BASELINE.but(**TINY), cohort, tmp_path / "run")
    assert not list(run.folder.glob(".*"))


def test_resume_refuses_other_settings_seed_data_or_split(cohort, tmp_path):
    config = BASELINE.but(**TINY)
    run_of(config, cohort, tmp_path / "run")
    with pytest.raises(UserError, match=r"already holds a run.*--resume"):
        run_of(config, cohort, tmp_path / "run")
    with pytest.raises(UserError, match=r"beta is 0\.5 there and 0\.1 here"):
        run_of(config.but(beta=0.1), cohort, tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="another seed"):
        run_of(config, cohort, tmp_path / "run", seed=1, resume=True)
    with pytest.raises(UserError, match="other data"):
        run_of(config, simulate(40, seed=2).cohort, tmp_path / "run", resume=True)
    parts, before = split(cohort, 0), (tmp_path / "run" / "stays.csv").read_bytes()
    assert len(parts.validation) == len(parts.test)
    other = Split(parts.train, validation=parts.test, test=parts.validation)
    with pytest.raises(UserError, match="another split"):
        train(config, cohort, other, tmp_path / "run", resume=True, progress=False)
    assert (tmp_path / "run" / "stays.csv").read_bytes() == before, "it says what the weights have seen"


def test_a_folder_that_is_refused_keeps_what_others_are_writing_below_it(cohort, tmp_path):
    other = tmp_path / "other" / ".model.safetensors.abc.partial"
    other.parent.mkdir()
    other.write_text("half a file")
    with pytest.raises(UserError, match="is a folder with other files"):
        run_of(BASELINE.but(**TINY), cohort, tmp_path)
    assert other.exists()


def test_a_finished_run_is_returned_at_once_and_stays_what_it_was(cohort, tmp_path):
    run = run_of(BASELINE.but(**TINY), cohort, tmp_path / "run")
    path = run.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threads": 64}))  # made elsewhere
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in run.folder.iterdir()}
    run_of(BASELINE.but(**TINY), cohort, tmp_path / "run", resume=True)
    after = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in run.folder.iterdir()}
    assert after.pop("stays.csv")[1] == before.pop("stays.csv")[1] and after == before


def test_a_run_that_goes_on_with_other_threads_says_so(cohort, tmp_path):
    run = run_of(BASELINE.but(**TINY), cohort, tmp_path / "run")
    (run.folder / "done.json").unlink()
    path = run.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"threads": 64}))
    with pytest.warns(UserWarning, match=r"was begun with threads 64 and goes on with \d+: its numbers will not be"):
        run_of(BASELINE.but(**TINY), cohort, tmp_path / "run", resume=True)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_run_read_back_predicts_the_same(cohort, tmp_path):
    run = run_of(IMPROVED.but(**TINY), cohort, tmp_path / "run")
    again = load_run(run.folder)
    assert np.array_equal(predict(run, cohort), predict(again, cohort))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 40), "not a whole safetensors file"),
        (lambda f: (f / "model.safetensors").unlink(), "does not exist"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is damaged"),
        (lambda f: (f / "stays.csv").unlink(), "stays.csv is missing"),
    ],
)
def test_a_damaged_run_is_refused_with_the_file_named(damage, words, cohort, tmp_path):
    run = run_of(BASELINE.but(**TINY), cohort, tmp_path / "run")
    damage(run.folder)
    with pytest.raises(UserError, match=words):
        load_run(run.folder)


def test_weights_of_another_model_are_refused_tensor_by_tensor(cohort, tmp_path):
    run = run_of(BASELINE.but(**TINY), cohort, tmp_path / "run")
    other = HSetVAE(BASELINE.but(**TINY | dict(latent=7)), len(cohort.variables))
    with pytest.raises(UserError, match=r"does not fit.*tensors differ: .*in the file.*in the model"):
        load_tensors(other, run.folder / "model.safetensors")
