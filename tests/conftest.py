"""Fixtures that several tests share."""

import os
from pathlib import Path

import pytest

from hsetvae.simulate import Simulation, simulate


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
