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

PROMISES = {  # rule -> settings that make it speak, its measure, and by how much the remedy must move it
    "collapse": (dict(beta=0.5), lambda m: m["au_ratio"], 0.2),
    "unused_level": (
        dict(beta=0.1, level_weights="depth"),
        lambda m: min(advice._worth(level) for level in m["levels"]),
        0.02,
    ),
    "noisy_state": (dict(beta=0.1), lambda m: m["noise_share"], -0.3),
    "turned_gradient": (dict(clip="value", clip_at=0.01), lambda m: m["gradient"]["cosine"], 0.2),
    "miscalibrated": (dict(class_weight=5.0, label_smoothing=0.5), lambda m: m["scores"]["ece"], -0.02),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The measures of a small run of a configuration; rules that speak of the same run share it."""
    cohort = simulate(100, seed=5).cohort
    parts = split(cohort, 0)

    @functools.cache
    def of(config: Config) -> dict:
        run = train(config, cohort, parts, tmp_path_factory.mktemp("remedy") / "run", progress=False)
        return diagnose(run, cohort, parts.test)

    return of


@pytest.mark.filterwarnings("ignore::hsetvae.monitor.TrainingWarning")
@pytest.mark.parametrize("rule", PROMISES)
def test_a_remedy_moves_the_measure_of_its_rule(rule, measured):
    changes, measure, least = PROMISES[rule]
    config = SOUND.but(**changes)
    before = measured(config)
    seen = getattr(advice, rule)(before)
    assert seen is not None, "the settings provoke it"
    moved = measure(measured(config.but(**seen.changes))) - measure(before)
    assert moved / least >= 1, f"{moved:+.3f}"
