"""Runs that are killed, resumed, damaged or mixed up: exact weights, or an error that names the file."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch

from hsetvae.config import BASELINE, IMPROVED, UserError
from hsetvae.data import split
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


KILLED = """
import sys
from hsetvae.config import IMPROVED
from hsetvae.data import split
from hsetvae.simulate import simulate
from hsetvae.train import train
cohort = simulate(40, seed=1).cohort
config = IMPROVED.but(width=16, latent=6, feedforward=16, epochs=30, batch_size=8, pretrain_epochs=6)
train(config, cohort, split(cohort, 0), sys.argv[1], resume=True, progress=False)
"""


def test_a_run_killed_ten_times_ends_with_the_same_weights(tmp_path):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", KILLED]
    start = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment)
    whole = time.monotonic() - start
    rng, kills = random.Random(0), 0
    folder = tmp_path / "killed"
    while kills < 10:
        process = subprocess.Popen([*command, str(folder)], env=environment)
        try:
            process.wait(timeout=whole * rng.uniform(0.5, 0.8))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        finally:
            process.wait()
        if (folder / "done.json").exists():
            break
    assert kills > 0
    subprocess.run([*command, str(folder)], check=True, env=environment)
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not (folder / "resume.pt").exists() and not list(folder.glob(".*"))


def test_resume_refuses_other_settings_seed_or_data(cohort, tmp_path):
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


def test_a_finished_run_is_returned_at_once(cohort, tmp_path):
    run = run_of(BASELINE.but(**TINY), cohort, tmp_path / "run")
    stamp = (run.folder / "model.safetensors").stat().st_mtime_ns
    run_of(BASELINE.but(**TINY), cohort, tmp_path / "run", resume=True)
    assert (run.folder / "model.safetensors").stat().st_mtime_ns == stamp


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
