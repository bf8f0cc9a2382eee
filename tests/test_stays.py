"""A stay that a run has learned from is known again, and a run belongs to one process at a time."""

import dataclasses
import multiprocessing
import time

import numpy as np
import pytest

from hsetvae import files
from hsetvae.baselines import load_baseline, train_baseline
from hsetvae.cohort import joined
from hsetvae.config import BASELINE, UserError
from hsetvae.data import Split, split
from hsetvae.files import held
from hsetvae.runs import load_run
from hsetvae.simulate import simulate
from hsetvae.stays import hash_of, read_stays, stays_of, unseen, write_stays
from hsetvae.train import train

TINY = BASELINE.but(width=8, latent=4, levels=1, layers=1, feedforward=8, epochs=1, pretrain_epochs=0)


@pytest.fixture(scope="module")
def cohort():
    return simulate(30, seed=4).cohort


@pytest.fixture
def learned(cohort):
    parts = split(cohort, 0)
    return stays_of(cohort, parts), parts


def renamed(cohort, ids=None, value=0.0):
    """The same stays under other ids, or with other values."""
    ids = cohort.stays if ids is None else ids
    return dataclasses.replace(cohort, stays=np.asarray(ids), value=cohort.value + value)


def test_a_table_has_a_row_for_each_stay_of_the_split(cohort, learned):
    stays, parts = learned
    assert sorted(stays.stay) == sorted(cohort.stays)
    assert stays.part.value_counts().to_dict() == {"train": 18, "validation": 6, "test": 6}
    assert set(stays.stay[stays.part == "test"]) == set(cohort.stays[parts.test])


def test_unseen_are_the_test_stays_and_the_stays_of_another_table(cohort, learned):
    stays, parts = learned
    assert unseen(stays, cohort).tolist() == parts.test.tolist()
    other = simulate(5, seed=5).cohort
    assert unseen(stays, joined([other, cohort])).tolist() == [*range(5), *(5 + parts.test)]


def test_a_learned_stay_is_known_by_its_id_and_by_its_events(cohort, learned):
    stays, parts = learned
    corrected, moved = renamed(cohort, value=1e-4), renamed(cohort, [f"new{i}" for i in range(30)])
    assert unseen(stays, corrected).tolist() == parts.test.tolist(), "the same patients, one digit changed"
    assert unseen(stays, moved).tolist() == parts.test.tolist(), "the same patients under other ids"


def test_a_test_stay_with_the_events_of_a_learned_one_stays_a_test_stay(cohort):
    twins = joined([cohort, renamed(cohort, [f"twin{i}" for i in range(30)])])
    parts = Split(np.arange(20), np.arange(20, 30), np.arange(30, 60))
    assert unseen(stays_of(twins, parts), twins).tolist() == parts.test.tolist()


def test_a_table_that_lost_a_row_is_refused(learned, tmp_path):
    stays, _ = learned
    write_stays(tmp_path, stays)
    assert read_stays(tmp_path, hash_of(stays)).equals(stays.astype(str))
    write_stays(tmp_path, stays.iloc[:-1])
    with pytest.raises(UserError, match="nobody can say which stays the run has seen"):
        read_stays(tmp_path, hash_of(stays))


def test_a_run_and_a_baseline_whose_table_was_cut_are_not_opened(cohort, tmp_path):
    train(TINY, cohort, split(cohort, 0), tmp_path / "run", progress=False)
    train_baseline("logistic", cohort, split(cohort, 0), tmp_path / "logistic")
    for name, load in (("run", load_run), ("logistic", load_baseline)):
        path = tmp_path / name / "stays.csv"
        assert load(tmp_path / name).unseen(cohort).tolist() == split(cohort, 0).test.tolist()
        path.write_bytes(path.read_bytes()[:400])
        with pytest.raises(UserError, match=r"stays\.csv is not as the training wrote it"):
            load(tmp_path / name)


# --- one process at a time -------------------------------------------------------------------------------------------


def hold(folder, holds):
    """In another process: take the folder, say so, and live on."""
    with held(folder):
        holds.set()
        time.sleep(600)


def test_two_processes_do_not_train_in_one_folder_and_a_killed_one_does_not_block(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    context = multiprocessing.get_context("spawn")
    holds = context.Event()
    other = context.Process(target=hold, args=(tmp_path / "run", holds), daemon=True)
    other.start()
    assert holds.wait(120)
    try:
        for begin in (
            lambda: train(TINY, cohort, split(cohort, 0), tmp_path / "run", resume=True, progress=False),
            lambda: train_baseline("logistic", cohort, split(cohort, 0), tmp_path / "run"),
        ):
            with pytest.raises(UserError, match=r"another process is writing the run .*run: wait until it has ended"):
                begin()
        assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]
    finally:
        other.kill()
        other.join()
    run = train(TINY, cohort, split(cohort, 0), tmp_path / "run", progress=False)
    assert len(run.history) and not (tmp_path / "run" / ".lock").exists()


def test_a_folder_that_cannot_be_held_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file: a run needs a folder"), held(tmp_path / "file" / "run"):
        pass
