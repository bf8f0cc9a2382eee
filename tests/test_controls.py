"""Pairing and controls: arms of a replicate share everything but the arm, and arms with known answers give them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from hsetvae.config import BASELINE, UserError
from hsetvae.controls import LEAK, leaked, shuffled
from hsetvae.data import split
from hsetvae.declaration import load_study
from hsetvae.evaluate import predict
from hsetvae.scores import auroc
from hsetvae.simulate import simulate
from hsetvae.train import train
from hsetvae.verdicts import control_table

TINY = BASELINE.but(width=16, latent=6, feedforward=16, epochs=2, batch_size=16, pretrain_epochs=0)
POOLINGS = ("mean", "dot", "query", "last")


@pytest.fixture(scope="module")
def cohort():
    return simulate(60, seed=1).cohort


# --- pairing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(monkeypatch):
    """Train a configuration -> stays of every batch, every draw of latent noise, the first Output."""
    import hsetvae.setvae as setvae
    import hsetvae.train as loop

    draw, judge, seen = setvae.noise_like, loop.objective, {}

    def noise_like(x, generator):
        seen["noise"].append(draw(x, generator))
        return seen["noise"][-1]

    def objective(output, batch, *more):
        seen["stays"].append(batch.stay)
        seen.setdefault("first", output)
        return judge(output, batch, *more)

    def run(config, cohort, folder):
        seen.clear()
        seen.update(noise=[], stays=[])
        with monkeypatch.context() as patch:
            patch.setattr(setvae, "noise_like", noise_like)
            patch.setattr(loop, "objective", objective)
            train(config, cohort, split(cohort, 3), folder, seed=3, progress=False)
        return dict(seen)

    return run


def test_arms_that_differ_in_pooling_share_initialisation_noise_dropout_and_batch_order_bit_for_bit(
    watched, cohort, tmp_path
):
    mean, *others = (watched(TINY.but(pooling=name), cohort, tmp_path / name) for name in POOLINGS)
    assert len({tuple(stays) for stays in mean["stays"]}) == len(mean["stays"]) > 2
    for other in others:
        assert other["stays"] == mean["stays"]
        assert len(other["noise"]) == len(mean["noise"]) > 2
        assert all(torch.equal(a, b) for a, b in zip(other["noise"], mean["noise"], strict=True))
        for name in ("z", "mu", "logvar", "kl", "tokens", "h"):  # before any step: same parameters, noise and dropout
            assert torch.equal(getattr(other["first"], name), getattr(mean["first"], name)), name


def test_replicates_do_not_share_their_split(cohort):
    parts = [set(split(cohort, replicate).test) for replicate in range(4)]
    assert all(a != b for i, a in enumerate(parts) for b in parts[:i])


def test_a_change_that_changes_nothing_gives_the_same_run_bit_for_bit(cohort, tmp_path):
    runs = [
        train(config, cohort, split(cohort, 0), tmp_path / name, progress=False)
        for name, config in (("a", TINY), ("b", TINY.but(detect_anomaly=True)), ("c", TINY.but(skip_nonfinite=True)))
    ]
    first, *others = (safetensors.torch.load_file(run.folder / "model.safetensors") for run in runs)
    for run, weights in zip(runs[1:], others, strict=True):
        assert all(torch.equal(first[name], weights[name]) for name in first)
        assert run.history.drop(columns="seconds").equals(runs[0].history.drop(columns="seconds"))
        assert (predict(run, cohort) == predict(runs[0], cohort)).all()


# --- controls --------------------------------------------------------------------------------------------------------


def test_shuffled_outcomes_are_the_same_outcomes_of_other_stays(cohort):
    a, b = shuffled(cohort, 0), shuffled(cohort, 1)
    assert a.outcome.sum() == cohort.outcome.sum() and (a.outcome != cohort.outcome).any()
    assert (a.outcome != b.outcome).any() and (shuffled(cohort, 0).outcome == a.outcome).all()
    assert a.value is cohort.value and a.probability is None


def test_a_leaked_outcome_is_in_every_set_and_nothing_else_has_moved(cohort):
    told = leaked(cohort, 0)
    assert (told.hours == cohort.hours).all() and (told.first_set == cohort.first_set).all()
    leak = told.variable == told.variables.index(LEAK)
    of_set = np.repeat(np.arange(len(told.hours)), np.diff(told.first_event))
    of_stay = np.repeat(np.arange(len(told)), np.diff(told.first_set))
    assert (of_set[leak] == np.arange(len(told.hours))).all()
    assert (told.value[leak] == cohort.outcome[of_stay]).all()
    assert (told.value[~leak] == cohort.value).all()
    names = np.array(told.variables)[told.variable[~leak]]
    assert (names == np.array(cohort.variables)[cohort.variable]).all()
    with pytest.raises(UserError, match='a variable "Outcome" already'):
        leaked(told, 0)


@pytest.mark.slow
def test_a_leaked_outcome_is_found_and_a_shuffled_one_is_not(tmp_path):
    many = simulate(300, seed=2).cohort
    config = TINY.but(residual=True, norm="pre", norm_gelu=True, init="xavier", lr=5e-3, epochs=8, batch_size=8)
    reached = []
    for name, alter in (("leaked", leaked), ("shuffled", shuffled)):
        told = alter(many, 0)
        parts = split(told, 0)
        run = train(config, told, parts, tmp_path / name, progress=False)
        reached.append(auroc(told.outcome[parts.test], predict(run, told, parts.test)))
    assert reached[0] > 0.99
    assert reached[1] < 0.8  # sixty stays, nine events: the SD of the AUROC of chance is 0.1


def control_records(**changes) -> pd.DataFrame:
    """Records in which every control of the declared study holds, but for `changes`: arm -> measures."""
    right = {"same": {}, "shuffled": {"auroc": 0.52}, "leaked": {"auroc": 1.0}, "heavy": {"au_ratio": 0.0}}
    rows = []
    for arm, measures in {"reference": {}, **right}.items():
        for r in range(3):
            row = {"id": f"{arm}{r}", "arm": arm, "replicate": r, "status": "finished", "seconds": r + len(rows)}
            rows.append(row | {"auroc": 0.7 + r / 100, "au_ratio": 0.5} | measures | changes.get(arm, {}))
    return pd.DataFrame(rows)


def test_controls_hold_or_say_what_was_seen():
    study = load_study(Path(__file__).resolve().parents[1] / "ablations" / "study.toml")
    table = control_table(study, control_records()).set_index("control")
    assert table["holds"].all() and set(table.index) == set(study.controls)
    for arm, measures in {
        "same": {"au_ratio": np.nextafter(0.5, 1)},
        "shuffled": {"auroc": 0.7},
        "leaked": {"auroc": 0.98},
        "heavy": {"au_ratio": 0.01},
    }.items():
        for broken in (measures, {"status": "failed"}):
            found = control_table(study, control_records(**{arm: broken})).set_index("control")
            assert found["holds"].to_dict() == {name: name != arm for name in study.controls}, arm
    none = control_records()
    none.loc[none["arm"] == "leaked", "status"] = "failed"
    seen = control_table(study, none.drop(columns="auroc")[none["arm"] == "leaked"]).set_index("control")["seen"]
    assert seen["leaked"] == "auroc nan"
    assert "measures that differ: 1" in control_table(study, control_records(same={"au_ratio": 0.4}))["seen"].tolist()
