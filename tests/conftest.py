"""Fixtures that several tests share."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: a process a core is what fills the cores

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from hsetvae import cli
from hsetvae.config import BASELINE, IMPROVED, RECOMMENDED
from hsetvae.data import split
from hsetvae.declaration import Study, load_study
from hsetvae.events import read_cohort, write_cohort
from hsetvae.simulate import Simulation, simulate
from hsetvae.study import runs_folder
from hsetvae.suite import Suite, execute, jobs_of, load_suite
from hsetvae.sweep import run_study
from hsetvae.train import train

ABLATIONS = Path(__file__).resolve().parents[1] / "ablations"


COSTLY = ("made", "ran_suite", "recommended_run", "small_run")  # fixtures that take long, the longest first


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a costly fixture go to one process, which makes it once."""
    for item in items:
        if shared := [name for name in COSTLY if name in item.fixturenames]:
            item.add_marker(pytest.mark.xdist_group(shared[0]))


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


def two_factor_study(folder: Path) -> Study:
    """The declared study with two crossed factors and a smallest budget of four runs, in a folder of its own."""
    text = (ABLATIONS / "study.toml").read_text()
    text = text.replace('["beta", "position", "pooling", "clipping"]', '["beta", "pooling"]')
    text = text.replace("replicates = 2", "replicates = 1")
    (folder / "study.toml").write_text(text)
    shutil.copy(ABLATIONS / "run.ipynb", folder)
    return load_study(folder / "study.toml")


@pytest.fixture
def study(tmp_path, monkeypatch) -> Study:
    monkeypatch.delenv("HSETVAE_RUNS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return two_factor_study(tmp_path)


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """The folder with every run of the two-factor study at its smallest."""
    study = two_factor_study(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("HSETVAE_RUNS", raising=False)
        assert run_study(study, "smoke", workers=1, progress=False) == 0
        return runs_folder(study)


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


# --- the command line ---------------------------------------------------------------------------------------------


class Called(NamedTuple):
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch, capsys):
    """Call `hsetvae` with words, in a terminal wide enough not to break lines."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def caller(*words: object) -> Called:
        monkeypatch.setattr("sys.argv", ["hsetvae", *map(str, words)])
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return Called(status or 0, *capsys.readouterr())

    return caller


def write_tables(folder: Path, stays: int = 40) -> None:
    cohort = simulate(stays, seed=1).cohort
    sets = np.repeat(np.arange(len(cohort.hours)), np.diff(cohort.first_event))
    stay = np.repeat(np.arange(len(cohort)), np.diff(cohort.first_set))[sets]
    names = np.array(cohort.variables)[cohort.variable]
    events = pd.DataFrame(
        {"stay": cohort.stays[stay], "hours": cohort.hours[sets], "variable": names, "value": cohort.value}
    )
    events.to_csv(folder / "events.csv", index=False)
    pd.DataFrame({"stay": cohort.stays, "outcome": cohort.outcome.astype(int)}).to_csv(
        folder / "outcomes.csv", index=False
    )


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A folder with a table of one's own and a small run trained on it."""
    folder = tmp_path_factory.mktemp("own")
    write_tables(folder)
    cohort, _ = read_cohort(folder / "events.csv", folder / "outcomes.csv")
    config = IMPROVED.but(epochs=1, width=16, latent=4, feedforward=16, pretrain_epochs=0)
    train(config, cohort, split(cohort, 0), folder / "run", progress=False)
    return folder


@pytest.fixture
def tables(own) -> list[str]:
    return ["--data", str(own / "events.csv"), "--outcomes", str(own / "outcomes.csv")]


@pytest.fixture(scope="session")
def ran_suite(tmp_path_factory) -> Path:
    """A folder with the table and the records of tiny_suite.toml, all of whose entrants ran in this process."""
    folder = tmp_path_factory.mktemp("suite")
    shutil.copy(Path(__file__).parent / "tiny_suite.toml", folder)
    write_cohort(simulate(120, seed=3).cohort, folder / "events.parquet")
    for job in jobs_of(load_suite(str(folder / "tiny_suite.toml"))):
        assert execute(job)["status"] == "finished"
    return folder


@pytest.fixture
def suite(ran_suite, tmp_path) -> Suite:
    """A copy of it, to change."""
    shutil.copytree(ran_suite, tmp_path / "suite")
    return load_suite(str(tmp_path / "suite" / "tiny_suite.toml"))


@pytest.fixture
def pages(monkeypatch) -> None:
    """The helpers of the book can be imported."""
    monkeypatch.syspath_prepend(str(ABLATIONS.parent / "book"))


@pytest.fixture
def shown(pages, monkeypatch) -> list[str]:
    """The HTML that helpers of the book display."""
    pieces = []
    competing = ("competition", "competition_ladder", "competition_tradeoff")
    for name in ("bookkit", "challenge", *competing, "earlier", "explorer"):
        monkeypatch.setattr(f"{name}.display", lambda piece: pieces.append(piece.data))
    return pieces
