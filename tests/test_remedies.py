"""Advice keeps its promise: train until a rule speaks, train again with its remedy, and its measure has moved."""

import functools

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

CASES = {  # rule and case: settings that make it speak, by how much its remedy must move its measure, seed
    "skipped_steps": (FAST.but(lr=2.0, clip="none", skip_nonfinite=True, epochs=2), 5, 0),
    "collapse": (SOUND.but(beta=0.5), 0.2, 0),
    "few_active_units": (FAST.but(beta=0.3, latent=8, epochs=16), 0.2, 0),
    "paid_for_nothing": (FOR_THE_OUTCOME.but(epochs=16), 0.1, 0),
    "paid_for_nothing, at the floor": (SOUND.but(beta=0.5, free_bits=0.5), 0.5, 1),
    "unused_level": (SOUND, 0.02, 0),
    "unused_level, deepest pays more": (SOUND.but(beta=0.1, level_weights="depth"), 0.02, 0),
    "noisy_state": (SOUND.but(beta=0.1), 0.3, 0),
    "too_short": (FAST.but(lr=1e-3, class_weight=1.0, epochs=3), 0.002, 0),
    "miscalibrated": (SOUND.but(class_weight=5.0, label_smoothing=0.5), 0.02, 0),
    "turned_gradient": (SOUND.but(clip="value", clip_at=0.01), 0.2, 0),
    "jumping_gradient": (FAST.but(lr=0.3, clip="none", epochs=4), 0.5, 0),
    "narrow_pooling": (FOR_THE_OUTCOME.but(pooling="dot_unscaled", width=64, epochs=6), 5, 0),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The measures of a small run of a configuration; rules that speak of the same run share it.

    Nothing predicts the outcome of these stays: what the latents say for its sake is of no other use.
    """
    cohort = simulate(100, seed=5, history_weight=0.0, current_weight=0.0, time_weight=0.0).cohort

    @functools.cache
    def of(config: Config, seed: int) -> dict:
        parts = split(cohort, seed)
        run = train(config, cohort, parts, tmp_path_factory.mktemp("remedy") / "run", seed=seed, progress=False)
        return diagnose(run, cohort, parts.test)

    return of


@pytest.mark.filterwarnings("ignore::hsetvae.monitor.TrainingWarning")
@pytest.mark.parametrize("case", CASES)
def test_a_remedy_moves_the_measure_of_its_rule(case, measured):
    (config, least, seed), rule = CASES[case], case.split(",")[0]
    promise, before = advice.PROMISES[rule], measured(config, seed)
    seen = getattr(advice, rule)(before)
    assert seen is not None, "the settings provoke it"
    moved = promise.direction * (promise.of(measured(config.but(**seen.changes), seed)) - promise.of(before))
    assert moved >= least, f"{moved:+.3f}"


def test_every_promise_is_kept_to():
    assert {case.split(",")[0] for case in CASES} == advice.PROMISES.keys()
