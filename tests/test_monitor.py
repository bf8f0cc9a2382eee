"""The monitor logs what a diagnosis would find, says once what stays, and disturbs nothing."""

import copy
import dataclasses
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from hsetvae.config import BASELINE
from hsetvae.data import Standardiser, split
from hsetvae.diagnostics import diagnose
from hsetvae.model import HSetVAE, SetAutoencoder, initialise
from hsetvae.monitor import Monitor, TrainingWarning
from hsetvae.simulate import simulate
from hsetvae.train import train

TINY = dict(width=16, latent=4, feedforward=16, batch_size=8, pretrain_epochs=0, free_bits=0.0)
DYING = BASELINE.but(**TINY | dict(batch_size=4), beta=50.0, epochs=6, lr=1e-2, clip="norm", class_weight=0.0)


@pytest.fixture(scope="module")
def cohort():
    return simulate(60, seed=3).cohort


@pytest.fixture(scope="module")
def dying(cohort, tmp_path_factory):
    """A run whose latents die, pretraining included -> (run, what was said)."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        folder = tmp_path_factory.mktemp("dying") / "run"
        run = train(DYING.but(pretrain_epochs=6), cohort, split(cohort, 0), folder, progress=False)
    return run, [w for w in said if w.category is TrainingWarning]


def test_what_begins_and_stays_is_said_once_in_words_at_the_line_that_called(dying):
    _, said = dying
    for part in ("run, epoch", "pretraining, epoch"):
        (one,) = [w for w in said if str(w.message).startswith(part) and "has collapsed" in str(w.message)]
        assert re.search(r"0% of the latent dimensions are active.*Try: lower the KL weight", str(one.message))
        assert one.filename == __file__


def test_the_columns_are_the_measures_of_a_diagnosis(dying, cohort):
    run, _ = dying
    row = run.history.iloc[-1]
    columns = "au_ratio at_floor mean_sigma decoder_use_current decoder_use_next s_past".split()
    levels = [f"{name}_level{level}" for name in ("au_ratio", "kl") for level in (1, 2)]
    assert np.isfinite(row[[f"validation_{name}" for name in columns + levels]].astype(float)).all()
    assert run.history["validation_au_ratio"].notna().sum() == DYING.epochs, "one row an epoch"
    assert row["validation_kl"] == pytest.approx(row["validation_kl_level1"] + row["validation_kl_level2"])
    parts = split(cohort, 0)
    monitor = Monitor("run", cohort, parts, run.standardiser, run.config, run.seed)
    assert set(monitor.cohort.stays) <= set(cohort.stays[parts.validation])
    looked = monitor.look(run.model, run.history.to_dict("records"), {})
    index = np.flatnonzero(np.isin(cohort.stays, monitor.cohort.stays))
    found = diagnose(run, cohort, index, seed=run.seed)
    for name in columns:
        assert looked[f"validation_{name}"] == pytest.approx(found[name], rel=1e-9, abs=1e-12), name


def test_a_network_without_a_history_is_not_blamed_for_it(dying):
    run, said = dying
    before = pd.read_csv(run.folder / "pretraining" / "history.csv")
    assert before["validation_s_past"].isna().all() and before["validation_au_ratio"].notna().sum() == 6
    assert not [w for w in said if str(w.message).startswith("pretraining") and "remembers" in str(w.message)]


@pytest.fixture
def watched(cohort):
    """An untrained model whose latents say nothing, its monitor, and a healthy row of its history."""
    parts, config = split(cohort, 0), BASELINE.but(**TINY)
    model = HSetVAE(config, len(cohort.variables)).train()
    initialise(model, config, 0)
    with torch.no_grad():
        for posterior in model.setvae.posteriors:
            posterior[-1].weight.zero_()
    standardiser = Standardiser.fit(cohort, parts.train)
    rows = [{"step": 1, "epoch": 1, "skipped": 0.0, "gradient_norm": 1.0, "gradient_cosine": 1.0}]
    return model, Monitor("run", cohort, parts, standardiser, config, 0), rows


def looks(watched, times, lasted):
    """How often a collapse was said in so many looks."""
    model, monitor, rows = watched
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(times):
            monitor.look(model, rows, lasted)
    return sum("has collapsed" in str(w.message) for w in said)


def test_what_was_said_is_not_said_again_by_a_resumed_run(watched):
    lasted = {}
    assert looks(watched, 2, lasted) == 0, "two epochs are not enough"
    assert looks(watched, 1, copy.deepcopy(lasted)) == 1, "the counts are all that a resumed run has to know"
    assert looks(watched, 1, lasted) == 1 and looks(watched, 5, lasted) == 0


def test_what_heals_begins_anew(watched):
    lasted = {}
    looks(watched, 2, lasted)
    model, *_ = watched
    dead = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for posterior in model.setvae.posteriors:
            posterior[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    assert looks(watched, 1, lasted) == 0 and lasted["collapse"] == 0
    model.load_state_dict(dead)
    assert looks(watched, 2, lasted) == 0 and looks(watched, 1, lasted) == 1


def test_a_skipped_step_is_said_at_once(watched):
    model, monitor, rows = watched
    with pytest.warns(TrainingWarning, match="run, epoch 1: Some steps were not finite"):
        monitor.look(model, [rows[0] | {"skipped": 1.0}], {})


def test_a_look_changes_nothing_and_draws_no_random_number(watched):
    model, monitor, rows = watched
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002  (that the global stream stays where it is)
    first, second = monitor.look(model, rows, {}), monitor.look(model, rows, {})
    assert first == second and model.training and torch.equal(state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_numbers_that_overflow_are_left_to_the_loop(watched):
    model, monitor, rows = watched
    with torch.no_grad():
        model.setvae.posteriors[0][-1].bias.fill_(float("nan"))
    assert monitor.look(model, rows, {}) == {}


def test_cohorts_without_outcomes_are_watched(cohort, tmp_path):
    unknown = dataclasses.replace(cohort, outcome=None, probability=None)
    run = train(BASELINE.but(**TINY, epochs=1), unknown, split(unknown, 0), tmp_path / "run", progress=False)
    assert np.isfinite(run.history["validation_au_ratio"].iloc[-1])


def test_the_autoencoder_of_the_pretraining_adds_nothing_to_its_tokens(cohort, watched):
    from hsetvae.observe import Observed, double_batches

    _, monitor, _ = watched
    model = SetAutoencoder(BASELINE.but(**TINY), len(cohort.variables))
    o = Observed(model, double_batches(monitor.cohort, monitor.standardiser, 256), 0)
    assert np.array_equal(o.h, o.residual)
