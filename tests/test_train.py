"""The loop: learning, exactness, resume after a real kill, and what happens when numbers go wrong."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from hsetvae.config import BASELINE, IMPROVED, PRESETS, Config, UserError
from hsetvae.data import Split, Standardiser, collate, split
from hsetvae.diagnostics import diagnose
from hsetvae.evaluate import evaluate, mean_terms, predict
from hsetvae.model import HSetVAE, initialise
from hsetvae.optim import follow
from hsetvae.runs import load_run, load_tensors
from hsetvae.scores import auroc
from hsetvae.simulate import simulate
from hsetvae.train import TrainingDiverged, train

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


def test_the_same_seed_gives_the_same_run_and_another_seed_another(cohort, tmp_path):
    config = IMPROVED.but(**TINY)
    a, b = (run_of(config, cohort, tmp_path / n) for n in "ab")
    c = run_of(config, cohort, tmp_path / "c", seed=1)
    assert same(weights(a.folder), weights(b.folder)) and not same(weights(a.folder), weights(c.folder))
    columns = [c for c in a.history if c != "seconds"]
    assert a.history[columns].equals(b.history[columns])


def test_history_rows_hold_every_raw_term(cohort, tmp_path):
    history = run_of(IMPROVED.but(**TINY), cohort, tmp_path / "run").history
    wanted = (
        "step epoch seconds total distortion_current distortion_next kl kl_level1 kl_level2 kl_weighted bce "
        "variance_term mean_term beta reconstruction_weight class_weight lr gradient_norm gradient_norm_clipped "
        "gradient_cosine clipped skipped floor_share validation_loss validation_auroc validation_kl"
    )
    assert set(wanted.split()) <= set(history.columns)
    assert np.allclose(history.kl, history.kl_level1 + history.kl_level2, rtol=1e-5)


# --- no dead knobs ---------------------------------------------------------------------------------------------------

ARMS = {  # every field, the change, and what else must hold for it to matter
    "width": (24, {}), "latent": (8, {}), "levels": (3, {}), "heads": (4, {}), "layers": (1, {}),
    "feedforward": (8, {}), "inducing_points": (3, {}), "max_sets": (128, dict(position="index")),
    "dropout": (0.4, {}), "event_embedding": ("product", {}), "posterior": ("independent", {}),
    "norm_gelu": (True, {}), "residual": (True, {}), "init": ("xavier", {}), "posterior_noise": (0.5, {}),
    "event_norm": ("rms", {}), "input_dropout": (0.3, {}), "position": ("none", {}), "norm": ("pre", {}),
    "activation": ("gelu", {}), "future_leak": (0.5, {}), "pooling": ("dot", {}), "head": ("mlp", {}),
    "decoder": ("chamfer", {}), "tanh_output": (True, {}), "target": ("next", {}), "beta": (5.0, dict(free_bits=0.0)),
    "beta_warmup": (0.9, dict(free_bits=0.0)), "beta_cycles": (2, dict(free_bits=0.0)), "free_bits": (2.0, {}),
    "free_bits_per": ("level", dict(free_bits=1.5)), "level_weights": ("depth", dict(free_bits=0.0)),
    "variance_weight": (1.0, {}), "mean_weight": (1.0, {}), "class_weight": (5.0, {}), "dynamic_weights": (True, {}),
    "label_smoothing": (0.2, {}), "lr": (1e-2, {}), "setvae_lr_scale": (0.1, {}), "weight_decay": (0.5, {}),
    "lr_schedule": ("cosine", {}), "lr_warmup": (1.0, {}), "clip": ("norm", {}), "clip_at": (1e-3, {}),
    "averaging": (0.0, {}), "epochs": (1, {}), "batch_size": (8, {}), "pretrain_epochs": (1, {}),
    "stages": ("progressive", {}), "statistics": (True, {}), "statistics_dropout": (0.5, dict(statistics=True)),
    "cut": (0.8, {}), "teacher": (0.5, {}), "masking": (0.5, {}),
}  # fmt: skip
ELSEWHERE = {  # fields whose effect has a test of its own below
    "logvar_clamp": "test_logvar_stays_within_its_clamp",
    "detect_anomaly": "test_anomaly_detection_names_the_operation",
    "skip_nonfinite": "test_skipped_steps_are_counted",
    "selection": "test_an_epoch_is_kept_by_the_outcome_or_by_the_whole_objective",
    "patience": "test_patience_stops_a_run_that_does_not_improve",
}


def test_every_field_is_turned_by_a_test():
    assert {f.name for f in dataclasses.fields(Config)} == ARMS.keys() | ELSEWHERE.keys()
    assert all(name in globals() for name in ELSEWHERE.values())


@pytest.fixture(scope="module")
def plain(cohort, tmp_path_factory):
    done = {}

    def get(needs):
        key = json.dumps(needs)
        if key not in done:
            done[key] = run_of(BASELINE.but(**TINY, **needs), cohort, tmp_path_factory.mktemp("plain") / "run")
        return done[key]

    return get


@pytest.mark.parametrize("name", ARMS)
def test_no_knob_is_dead(name, cohort, plain, tmp_path):
    value, needs = ARMS[name]
    reference = plain(needs)
    changed = run_of(reference.config.but(**{name: value}), cohort, tmp_path / "run")
    assert not same(weights(reference.folder), weights(changed.folder))


@pytest.mark.parametrize("clamp", ["hard", "soft"])
def test_logvar_stays_within_its_clamp(clamp, cohort):
    standardiser = Standardiser.fit(cohort, np.arange(8))
    batch = collate(cohort, np.arange(8), standardiser, 256)
    for name, limit in (("none", np.inf), (clamp, 10.0)):
        model = HSetVAE(BASELINE.but(**TINY, logvar_clamp=name, levels=1), len(cohort.variables)).eval()
        with torch.no_grad():
            for p in model.setvae.posteriors.parameters():
                p.mul_(200)
        reached = model(batch, sample=False).logvar.abs().max().item()
        assert reached <= limit and (limit < np.inf or reached > 10)


def test_averaged_weights_forget_the_start_and_follow_the_model():
    model, average = (torch.nn.Linear(1, 1, bias=False) for _ in range(2))
    expected = 0.0
    for n, value in enumerate([8.0, 4.0, 0.0, 2.0, 7.0, 3.0, 5.0, 1.0, 6.0, 9.0, 2.0, 7.0]):
        with torch.no_grad():
            model.weight.fill_(value)
        follow(average, model, n, 0.5)
        kept = min(0.5, n / (9 + n))
        expected = value if n == 0 else kept * expected + (1 - kept) * value
        assert float(average.weight.detach()) == pytest.approx(expected)


def test_without_averaging_the_last_weights_are_kept():
    model, average = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    for step in range(3):
        with torch.no_grad():
            model.weight.normal_()
        follow(average, model, step, 0.0)
    assert torch.equal(average.weight, model.weight)


def test_an_epoch_is_kept_by_the_outcome_or_by_the_whole_objective(cohort, tmp_path):
    config = BASELINE.but(**TINY | dict(epochs=4, lr=2e-2, batch_size=8), statistics=True, class_weight=0.5)
    kept = {}
    for name in ("outcome", "objective"):
        run = run_of(config.but(selection=name), cohort, tmp_path / name)
        epochs = run.history.dropna(subset="validation_loss")
        parts = split(cohort, 0)
        terms, _ = mean_terms(run.model, cohort, parts.validation, run.standardiser, config)
        kept[name] = terms["bce"]
        sets = terms["distortion_current"] + terms["distortion_next"] + config.beta * terms["kl"]
        whole = sets / terms["events_per_set"] + config.class_weight * terms["bce"]
        assert epochs.validation_loss.min() == pytest.approx(terms["bce"] if name == "outcome" else whole, rel=1e-5)
    assert kept["outcome"] < kept["objective"], "the head is ahead of the sets"


def test_patience_stops_a_run_that_does_not_improve(cohort, tmp_path):
    config = BASELINE.but(**TINY | dict(epochs=30, lr=0.0), patience=2)
    history = run_of(config, cohort, tmp_path / "run").history
    assert history.epoch.max() == 3  # the first epoch is the best, two more wait


# --- numbers that go wrong -------------------------------------------------------------------------------------------


def poison(monkeypatch, at):
    """Make the gradient of one step (None: of every step) infinite, as a real overflow does: through the loss."""
    import hsetvae.train as module

    def poisoned(output, batch, config, step, total):
        terms = real(output, batch, config, step, total)
        return dataclasses.replace(terms, total=terms.total * float("inf")) if at in (None, step) else terms

    real = module.objective
    monkeypatch.setattr(module, "objective", poisoned)


def test_divergence_names_step_stays_and_parameter_and_keeps_the_checkpoint(cohort, tmp_path, monkeypatch):
    poison(monkeypatch, at=1)
    config = BASELINE.but(**TINY)
    with pytest.raises(TrainingDiverged, match=r"step 1: the gradient of .* is not finite.*stays of this batch: "):
        run_of(config, cohort, tmp_path / "run")
    before = weights(tmp_path / "run")
    assert all(torch.isfinite(t).all() for t in before.values())
    monkeypatch.undo()
    resumed = run_of(config, cohort, tmp_path / "run", resume=True)
    assert same(weights(resumed.folder), weights(run_of(config, cohort, tmp_path / "other").folder))


def test_a_split_whose_test_stays_are_learned_from_is_refused(cohort, tmp_path):
    parts = split(cohort, 0)
    mixed = Split(parts.train, parts.validation, np.append(parts.test, parts.train[:2]))
    with pytest.raises(UserError, match="2 test stays of this split are learned from"):
        train(BASELINE, cohort, mixed, tmp_path / "run", progress=False)


def test_skipped_steps_are_counted(cohort, tmp_path, monkeypatch):
    poison(monkeypatch, at=1)
    run = run_of(BASELINE.but(**TINY, skip_nonfinite=True), cohort, tmp_path / "run")
    assert run.history.skipped.sum() == 1
    assert all(torch.isfinite(t).all() for t in weights(run.folder).values())


def test_a_run_that_skipped_every_step_ends_in_words(cohort, tmp_path, monkeypatch):
    poison(monkeypatch, at=None)
    config = BASELINE.but(**TINY, skip_nonfinite=True)
    for again in (False, True):
        with pytest.raises(TrainingDiverged, match=r"learned nothing: 2 of 2 steps were not finite.*Lower lr"):
            run_of(config, cohort, tmp_path / "run", resume=again)
    assert not (tmp_path / "run" / "done.json").exists()


def test_a_run_without_a_finite_validation_loss_ends_in_words(cohort, tmp_path, monkeypatch):
    import hsetvae.train as module

    terms = {"distortion_current": np.nan, "distortion_next": np.nan, "kl": np.nan, "bce": np.nan}
    monkeypatch.setattr(module, "mean_terms", lambda m, c, index, *a: (terms, np.zeros(len(index))))
    with pytest.raises(TrainingDiverged, match=r"0 of 2 steps .* the validation loss was finite after no epoch"):
        run_of(BASELINE.but(**TINY), cohort, tmp_path / "run")


def test_anomaly_detection_names_the_operation(cohort, tmp_path, monkeypatch):
    from hsetvae import objective as module

    def broken(logits, outcome, smoothing):
        return (logits * 0).sqrt().sum() * 0  # sqrt at 0: a NaN gradient

    monkeypatch.setattr(module, "outcome_loss", broken)
    with pytest.raises(RuntimeError, match="SqrtBackward"), pytest.warns(UserWarning):
        run_of(BASELINE.but(**TINY, detect_anomaly=True), cohort, tmp_path / "run")


def test_pretraining_arrives_whole_in_the_model(cohort, tmp_path, monkeypatch):
    import hsetvae.train as module

    loaded = []
    monkeypatch.setattr(module, "load_tensors", lambda *a, **k: loaded.append((load_tensors(*a, **k), a[0])))
    config = IMPROVED.but(**TINY | dict(pretrain_epochs=2), setvae_lr_scale=0.0, weight_decay=0.0)
    run = run_of(config, cohort, tmp_path / "run")
    before = weights(run.folder / "pretraining")
    ((count, setvae),) = loaded
    assert count == len(setvae.state_dict()) > 30
    after = weights(run.folder)  # the SetVAE did not move afterwards, so its tensors are those of the pretraining
    assert all(torch.equal(before[n], after[n]) for n in after if n.startswith("setvae."))


def test_progressive_stages_free_one_part_after_another(cohort):
    from hsetvae.optim import set_stage

    model = HSetVAE(IMPROVED.but(**TINY), len(cohort.variables))
    free = []
    for step in (0, 10, 20):
        set_stage(model, IMPROVED.but(stages="progressive"), step, 30)
        free.append({n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad})
    assert free == [
        {"head", "decoders"},
        {"head", "decoders", "embed", "history"},
        {"head", "decoders", "embed", "history", "setvae"},
    ]


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_eight_stays_can_be_learned_by_heart(tmp_path):
    few = simulate(60, seed=2).cohort
    sick = np.flatnonzero(few.outcome == 1)[:4]
    index = np.concatenate([sick, np.flatnonzero(few.outcome == 0)[:4]])
    config = BASELINE.but(width=32, latent=16, feedforward=32, epochs=25, batch_size=8, dropout=0.0, class_weight=5.0)
    config = config.but(residual=True, norm="pre", lr=3e-3, pretrain_epochs=0, beta=0.01)
    often = np.repeat(index, 10)  # ten steps an epoch, one look at the validation stays
    run = train(config, few, Split(often, index, index[:0]), tmp_path / "run", progress=False)
    assert auroc(few.outcome[index], predict(run, few, index)) == 1
    first, last = run.history.distortion_current.iloc[[0, -1]]
    assert last < 0.7 * first


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_learns_what_a_set_holds(preset, tmp_path):
    many = simulate(300, seed=4).cohort
    parts = split(many, 0)
    small = PRESETS[preset].but(
        width=32, latent=12, feedforward=32, epochs=14, batch_size=8, lr=3e-3, pretrain_epochs=4
    )
    run = train(small, many, parts, tmp_path / "run", progress=False)
    fresh = HSetVAE(small, len(many.variables))
    initialise(fresh, small, 0)
    before, after = (mean_terms(m, many, parts.test, run.standardiser, small)[0] for m in (fresh, run.model))
    # a decoder that knows no set but the average one reaches what it reaches for the sets of other stays
    shuffled = diagnose(run, many, parts.test)["decoder_use_current"]
    assert shuffled > 0.5, "nats per set that z is worth to the decoder"
    assert after["distortion_next"] < before["distortion_next"] and after["bce"] < before["bce"]


def test_stays_used_to_train_or_select_are_known_by_content(cohort, tmp_path):
    run = run_of(BASELINE.but(**TINY), cohort, tmp_path / "run")
    parts = split(cohort, 0)
    assert sorted(run.unseen(cohort)) == sorted(parts.test)
    renamed = dataclasses.replace(cohort, stays=np.array([f"x{i}" for i in range(len(cohort))]))
    assert sorted(run.unseen(renamed)) == sorted(parts.test)
    with pytest.raises(UserError, match="no stay to score"):
        evaluate(run, cohort.subset(parts.train), np.array([], dtype=int))


DISTRIBUTED = """
import sys
from hsetvae.config import BASELINE
from hsetvae.data import split
from hsetvae.simulate import simulate
from hsetvae.train import train
cohort = simulate(40, seed=1).cohort
config = BASELINE.but(width=16, latent=6, feedforward=16, epochs=2, pretrain_epochs=1)
train(config, cohort, split(cohort, 0), sys.argv[1], progress=False)
"""


@pytest.mark.slow
def test_two_processes_under_torchrun_train_one_model(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(DISTRIBUTED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run(
        [*command, str(tmp_path / "run")], check=True, env=dict(os.environ, OMP_NUM_THREADS="1"), capture_output=True
    )
    run = load_run(tmp_path / "run")
    assert run.history.epoch.max() == 2 and np.isfinite(run.history.total).all()
