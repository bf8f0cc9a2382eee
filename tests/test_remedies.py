"""Advice keeps its promise: train until a rule speaks, train again with its remedy, and its measure has moved."""

import functools
from typing import NamedTuple

import pytest

from hsetvae import advice
from hsetvae.config import BASELINE, Config
from hsetvae.data import split
from hsetvae.diagnostics import diagnose
from hsetvae.simulate import simulate
from hsetvae.train import train

SOUND = BASELINE.but(
    width=16, latent=4, feedforward=16, epochs=8, batch_size=4, lr=5e-3, pretrain_epochs=0, beta=0.05, free_bits=0.0,
    residual=True, norm_gelu=True, norm="pre", clip="norm", position="index+time", class_weight=0.0,
)  # fmt: skip

FAST = SOUND.but(levels=1, layers=1, lr=1e-2, batch_size=8)

FOR_THE_OUTCOME = FAST.but(class_weight=20.0, beta=0.01, target="current", init="xavier", dropout=0.0)


class Case(NamedTuple):
    """Settings that make a rule speak, and by how much its remedy must move its measure.

    `noise`: nothing predicts the outcome, and what the latents say for its sake is of no other use.
    """

    config: Config
    least: float
    seed: int = 0
    noise: bool = False


CASES = {
    "skipped_steps": Case(FAST.but(lr=2.0, clip="none", skip_nonfinite=True, epochs=2), 5),
    "collapse": Case(SOUND.but(beta=0.5), 0.2),
    "few_active_units": Case(FAST.but(beta=0.3, latent=8, epochs=16), 0.2),
    "paid_for_nothing": Case(FOR_THE_OUTCOME.but(epochs=16), 0.1, noise=True),
    "paid_for_nothing, at the floor": Case(SOUND.but(beta=0.5, free_bits=0.5), 0.5, seed=1),
    "unused_level": Case(SOUND.but(beta=0.1), 0.02, seed=2),
    "unused_level, the deepest pays more": Case(SOUND.but(beta=0.1, level_weights="depth"), 0.02),
    "noisy_state": Case(SOUND.but(beta=0.1), 0.3),
    "too_short": Case(FAST.but(lr=1e-3, class_weight=1.0, epochs=3), 0.002),
    "miscalibrated": Case(SOUND.but(class_weight=5.0, label_smoothing=0.5), 0.02),
    "turned_gradient": Case(SOUND.but(clip="value", clip_at=0.01), 0.2),
    "jumping_gradient": Case(FAST.but(lr=0.3, clip="none", epochs=4), 0.5),
    "narrow_pooling": Case(FOR_THE_OUTCOME.but(pooling="dot_unscaled", width=64, epochs=6), 5, seed=1),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The measures of a small run of a case with changes; rules that speak of the same run share it."""
    silent = dict(history_weight=0.0, current_weight=0.0, time_weight=0.0)
    cohorts = {noise: simulate(100, seed=5, **(silent if noise else {})).cohort for noise in (False, True)}

    @functools.cache
    def of(config: Config, seed: int, noise: bool) -> dict:
        cohort = cohorts[noise]
        parts = split(cohort, seed)
        run = train(config, cohort, parts, tmp_path_factory.mktemp("remedy") / "run", seed=seed, progress=False)
        return diagnose(run, cohort, parts.test)

    return of


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::hsetvae.monitor.TrainingWarning")
@pytest.mark.parametrize("case", CASES)
def test_a_remedy_moves_the_measure_of_its_rule(case, measured):
    (config, least, *where), rule = CASES[case], case.split(",")[0]
    promise, before = advice.PROMISES[rule], measured(config, *where)
    seen = getattr(advice, rule)(before)
    assert seen is not None, "the settings provoke it"
    moved = promise.direction * (promise.of(measured(config.but(**seen.changes), *where)) - promise.of(before))
    assert moved >= least, f"{moved:+.3f}"


def test_every_promise_is_kept_to():
    assert {case.split(",")[0] for case in CASES} == advice.PROMISES.keys()
