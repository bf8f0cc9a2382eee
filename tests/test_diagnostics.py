"""The instruments on whole networks whose answer is known: collapsed, sharp, memoryless, untrained."""

import copy
import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch

from hsetvae.advice import advise
from hsetvae.baselines import train_baseline
from hsetvae.config import BASELINE, UserError
from hsetvae.data import split
from hsetvae.diagnostics import diagnose
from hsetvae.evaluate import mean_terms
from hsetvae.observe import Observed, double_batches, paired_lines
from hsetvae.report import write_report
from hsetvae.simulate import simulate
from hsetvae.train import train

TINY = dict(width=16, latent=4, feedforward=16, batch_size=8, pretrain_epochs=0, free_bits=0.0)


@pytest.fixture(scope="module")
def measures(small_run):
    run, cohort, parts = small_run
    return diagnose(run, cohort, parts.test)


def changed(run, change):
    """The run with its model changed by hand."""
    model = copy.deepcopy(run.model)
    with torch.no_grad():
        change(model)
    return dataclasses.replace(run, model=model)


# --- known answers ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_heavy_kl_weight_collapses_the_posterior_and_the_advice_says_so(measures, tmp_path):
    cohort = simulate(60, seed=3).cohort
    config = BASELINE.but(**TINY | dict(batch_size=4), beta=50.0, epochs=16, lr=1e-2, lr_schedule="cosine", clip="norm")
    config = config.but(class_weight=0.0)  # so that the bound selects the weights that are kept, and not the outcome
    run = train(config, cohort, split(cohort, 0), tmp_path / "run", progress=False)
    found = diagnose(run, cohort)
    assert found["au_ratio"] == 0 and found["collapsed"] > 0.9 and found["kl"] < 0.05 and abs(found["mi"]) < 0.05
    assert found["mean_sigma"] > 0.9, "which is why mean sigma is no measure of collapse"
    assert measures["au_ratio"] > 0.5 and measures["kl"] > 1, "at a small weight the same model keeps its units"
    first = advise(found)[0]
    assert first.rule == "collapse" and "collapsed" in first.finding and "--set beta=10.0" in first.command
    assert first.finding in write_report(run, found, tmp_path / "report").read_text()


def test_a_sharp_and_informative_posterior_has_every_unit_active(small_run):
    run, cohort, parts = small_run

    def sharpen(model):
        for posterior in model.setvae.posteriors:
            mu, logvar = posterior[-1].weight.chunk(2)
            mu.copy_(torch.randn(mu.shape, generator=torch.Generator().manual_seed(0)))
            logvar.zero_()
            posterior[-1].bias[len(posterior[-1].bias) // 2 :] = -12.0
        for prior in model.setvae.priors:
            for parameter in prior.parameters():
                parameter.zero_()

    found = diagnose(changed(run, sharpen), cohort, parts.test)
    assert found["au_ratio"] == 1 and found["collapsed"] == 0 and found["mean_sigma"] < 0.01
    assert 0.98 * found["mi_cap"] < found["mi"] <= found["mi_cap"] == np.log(found["mi_sets"])
    assert found["noise_share"] < 0.01
    assert not {"collapse", "few_active_units", "noisy_state"} & {a.rule for a in advise(found)}


def test_a_history_that_adds_nothing_scores_zero_past(small_run):
    run, cohort, parts = small_run

    def forget(model):
        for layer in model.history.layers:
            for part in (layer.attention, layer.feedforward):
                for parameter in part.parameters():
                    parameter.zero_()

    found = diagnose(changed(run, forget), cohort, parts.test)
    assert found["s_past"] == 0 and found["s_cur"] == pytest.approx(1)
    assert found["update_size"] == 0 and found["zh_cosine"] == pytest.approx(1)
    assert "unused_history" in {a.rule for a in advise(found)}


def test_a_run_that_learned_nothing_equals_its_untrained_twin(tmp_path):
    cohort = simulate(30, seed=3).cohort
    run = train(BASELINE.but(**TINY, epochs=1, lr=0.0), cohort, split(cohort, 0), tmp_path / "run", progress=False)
    found = diagnose(run, cohort)
    assert found["untrained"] == {name: found[name] for name in found["untrained"]}


@pytest.mark.parametrize("where", "zh")
def test_a_true_state_is_found_where_it_is_and_a_random_one_nowhere(where, small_run):
    run, cohort, parts = small_run
    everything = double_batches(cohort, run.standardiser, run.config.max_sets)
    random = np.random.default_rng(0).standard_normal((len(cohort.hours), 2))
    state = getattr(Observed(run.model, everything, seed=0), where)[:, :2]
    assert diagnose(run, cohort, parts.test, state=state)[f"state_{where}"] > 0.95
    assert diagnose(run, cohort, parts.test, state=random)[f"state_{where}"] < 0.05


# --- what is measured, and what is not touched ------------------------------------------------------------------------


def test_measures_are_json_the_same_twice_and_of_the_stays_asked_for(small_run, measures):
    run, cohort, parts = small_run
    again = diagnose(run, cohort, parts.test)
    assert json.loads(json.dumps(measures, allow_nan=False)) == json.loads(json.dumps(again))
    assert measures["stays"] == len(parts.test) and measures["sets"] == len(cohort.subset(parts.test).hours)
    assert diagnose(run, cohort) == again, "without an index: the stays that the run has not seen"


def test_a_diagnosis_leaves_the_run_as_it_was(small_run):
    run, cohort, parts = small_run
    before = copy.deepcopy(run.model.state_dict())
    diagnose(run, cohort, parts.test)
    for name, tensor in run.model.state_dict().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]), name
    assert not run.model.training


def test_what_cannot_be_diagnosed_is_refused_in_words(small_run, tmp_path):
    run, cohort, parts = small_run
    with pytest.raises(UserError, match=r"state has shape \(3, 2\): give one row for each of"):
        diagnose(run, cohort, parts.test, state=np.zeros((3, 2)))
    baseline = train_baseline("logistic", cohort, parts, tmp_path / "baseline")
    with pytest.raises(UserError, match="this is a baseline, which has no sets"):
        diagnose(baseline, cohort)


def test_levels_add_up(measures):
    assert measures["kl"] == pytest.approx(sum(level["kl"] for level in measures["levels"]))
    for level in measures["levels"]:
        assert level["kl"] == pytest.approx(sum(level["kl_dimensions"]))
        assert list(level["au"].values()) == sorted(level["au"].values(), reverse=True)
        assert level["au"]["0.01"] == sum(v > 0.01 for v in level["variance_dimensions"])


def test_no_stays_are_refused_and_unknown_outcomes_are_left_out(small_run):
    run, cohort, parts = small_run
    with pytest.raises(UserError, match="no stay to diagnose"):
        diagnose(run, cohort, np.array([], dtype=int))
    found = diagnose(run, dataclasses.replace(cohort, outcome=None), parts.test)
    assert found["scores"] is None and found["calibration"] is None and found["au_ratio"] is not None


def test_stays_of_one_set_have_no_past_to_swap_and_no_probe(small_run):
    run, cohort, _ = small_run
    first = cohort.first_set[:-1]
    events = np.concatenate([np.arange(cohort.first_event[m], cohort.first_event[m + 1]) for m in first])
    size = np.diff(cohort.first_event)[first]
    short = dataclasses.replace(
        cohort, first_set=np.arange(len(cohort) + 1), first_event=np.concatenate([[0], np.cumsum(size)]),
        hours=cohort.hours[first], variable=cohort.variable[events], value=cohort.value[events],
    )  # fmt: skip
    found = diagnose(run, short, np.arange(20))
    assert found["s_past"] is found["noise_share"] is found["probe_gain"] is None and found["kl"] > 0
    assert "unused_history" not in {a.rule for a in advise(found)}


# --- the network laid open -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def observed(small_run):
    run, cohort, parts = small_run
    part = cohort.subset(parts.test)
    return Observed(run.model, double_batches(part, run.standardiser, run.config.max_sets), seed=0), part


def test_the_pieces_called_one_by_one_give_what_the_model_gives(small_run, observed):
    run, *_ = small_run
    seen, part = observed
    terms, logits = mean_terms(run.model, part, np.arange(len(part)), run.standardiser, run.config)
    own = seen.distortion(seen.latents.z)
    assert own["current"] == pytest.approx(terms["distortion_current"], rel=1e-4)
    assert own["next"] == pytest.approx(terms["distortion_next"], rel=1e-4)
    assert np.allclose(seen.logits, logits, atol=1e-4)
    assert np.allclose(
        pd.Series(seen.pooling).groupby(np.repeat(np.arange(len(part)), np.diff(part.first_set))).sum(), 1
    )


def test_what_a_level_adds_is_exchanged_and_what_was_said_above_is_kept(observed):
    seen, _ = observed
    latents, M = seen.latents, len(seen.z)
    order = np.random.default_rng(3).permutation(M)
    top = latents.z.shape[1] - 1
    for level in range(top + 1):
        assert torch.allclose(seen.exchanged(level, np.arange(M)), latents.z, atol=1e-9), "its own is no exchange"
    moved = seen.exchanged(top, order)
    assert torch.equal(moved[:, top], latents.z[order, top]), "nothing was said above the deepest level"
    assert not torch.allclose(moved[:, 0], latents.z[:, 0], atol=1e-3), "the level below has heard it"
    silent = copy.copy(seen)
    mu = latents.mu.clone()
    mu[:, 0] = latents.prior_mu[:, 0]
    silent.latents = latents._replace(mu=mu, z=mu)
    assert torch.allclose(silent.exchanged(0, order), mu, atol=1e-9), "a level that adds nothing is missed by nobody"
    assert np.var(mu[:, 0].numpy(), axis=0).max() > 0.01, "although its dimensions count as active"


def test_swapping_nothing_changes_nothing(observed):
    seen, part = observed
    lines = paired_lines(part, np.random.default_rng(0))
    z = seen.latents.z
    own = seen.last_states(lines, (z, "own"), (z, "own"))
    cut = np.concatenate(
        [line.sets["own"].numpy()[(line.batch.column == line.last[line.batch.row]).numpy()] for line in lines]
    )
    assert np.allclose(own, seen.h[cut], atol=1e-6), "h at a set does not depend on what comes after it"


def test_partners_are_other_stays_at_the_same_places(observed):
    _, part = observed
    stay = np.repeat(np.arange(len(part)), np.diff(part.first_set))
    place = np.arange(len(stay)) - part.first_set[stay]
    lines = paired_lines(part, np.random.default_rng(1))
    assert sum(len(line.last) for line in lines) > len(part)
    for line in lines:
        own, other = line.sets["own"].numpy(), line.sets["other"].numpy()
        assert (stay[own] != stay[other]).all() and (place[own] == place[other]).all()
        assert np.allclose(line.batch.hours[line.batch.row, line.batch.column], part.hours[own])
        assert len(set(zip(line.batch.row.tolist(), stay[other].tolist(), strict=True))) == len(line.last)
