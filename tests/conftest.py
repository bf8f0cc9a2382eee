"""Fixtures that several tests share."""

import os
from pathlib import Path

import pytest

from hsetvae.config import BASELINE, RECOMMENDED
from hsetvae.data import split
from hsetvae.simulate import Simulation, simulate
from hsetvae.train import train


@pytest.fixture(scope="session")
def simulation() -> Simulation:
    """A thousand simulated stays with the default knobs."""
    return simulate()


@pytest.fixture(scope="session")
def challenge2012() -> Path:
    """The folder with the real data of Challenge 2012, sets a and b."""
    folder = os.environ.get("HSETVAE_PHYSIONET2012")
    if not folder:
        pytest.skip("real data: set HSETVAE_PHYSIONET2012 to a folder with set-a.tar.gz, Outcomes-a.txt ...")
    return Path(folder)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> tuple:
    """A small model that has learned what a set holds, its cohort and its split: (run, cohort, parts)."""
    cohort = simulate(100, seed=5).cohort
    parts = split(cohort, 0)
    config = BASELINE.but(width=32, latent=8, feedforward=32, epochs=16, batch_size=4, lr=3e-3, pretrain_epochs=0)
    config = config.but(beta=0.05, free_bits=0.0, residual=True, norm_gelu=True, norm="pre")
    return train(config, cohort, parts, tmp_path_factory.mktemp("small") / "run", progress=False), cohort, parts


@pytest.fixture(scope="session")
def recommended_run(tmp_path_factory) -> tuple:
    """A small model of the recommended preset that predicts, its cohort and its split: (run, cohort, parts)."""
    cohort = simulate(300, seed=4).cohort
    parts = split(cohort, 0)
    config = RECOMMENDED.but(width=32, latent=12, feedforward=32, epochs=6, batch_size=8, pretrain_epochs=2)
    return train(config, cohort, parts, tmp_path_factory.mktemp("recommended") / "run", progress=False), cohort, parts
