"""Invariance, causality, closed forms and gradients of the model, in float64 where equality is claimed."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plain import encode_one_by_one

from hsetvae.attention import Attention, rotate, time_angles
from hsetvae.config import BASELINE, IMPROVED, RECOMMENDED
from hsetvae.data import Batch, Standardiser, Windows, collate
from hsetvae.decoders import SetPrediction, chamfer, chamfer_from, dense, hungarian, squared_distances
from hsetvae.history import TimeEncoder
from hsetvae.model import HSetVAE, has_next, initialise
from hsetvae.objective import objective
from hsetvae.setvae import kl_divergence
from hsetvae.simulate import simulate

SMALL = dict(width=16, latent=6, feedforward=16)
VARIANTS = {
    "baseline": BASELINE.but(**SMALL),
    "improved": IMPROVED.but(**SMALL),
    "recommended": RECOMMENDED.but(**SMALL),
    "reference": BASELINE.but(
        **SMALL, event_embedding="product", decoder="chamfer", target="current", posterior="independent"
    ),
    "three levels, inducing points, hungarian": IMPROVED.but(
        **SMALL, levels=3, inducing_points=3, decoder="hungarian", pooling="query", position="rotate_inputs"
    ),
}


@pytest.fixture(scope="module")
def cohort():
    return simulate(12, seed=3).cohort


@pytest.fixture(scope="module")
def standardiser(cohort):
    return Standardiser.fit(cohort, np.arange(len(cohort)))


def double(batch):
    windows = dataclasses.replace(batch.windows, value=batch.windows.value.double())
    return dataclasses.replace(batch, hours=batch.hours.double(), outcome=batch.outcome.double(), windows=windows)


def build(config, cohort, seed=0):
    model = HSetVAE(config, len(cohort.variables))
    initialise(model, config, seed)
    return model.double().eval()


def outputs(output):
    """Everything that must agree, stay by stay, in an order that does not depend on padding."""
    missed = [distortion[:, None] for distortion in output.distortion.values()]
    sets = torch.cat([t.flatten(1) for t in (output.z, output.kl, *missed)], 1)
    return output.logits, output.h[output.row, output.column], output.pooling[output.row, output.column], sets


def assert_same(a, b):
    for x, y in zip(outputs(a), outputs(b), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_batch_of_stays_is_the_stays_one_by_one(name, cohort, standardiser):
    config = VARIANTS[name]
    model = build(config, cohort)
    whole = model(double(collate(cohort, np.arange(5), standardiser, config.max_sets)), sample=False)
    singles = [model(double(collate(cohort, [i], standardiser, config.max_sets)), sample=False) for i in range(5)]
    for x, parts in zip(outputs(whole), zip(*map(outputs, singles), strict=True), strict=True):
        torch.testing.assert_close(x, torch.cat(parts), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", VARIANTS)
def test_grouping_sets_by_size_equals_encoding_them_one_by_one(name, cohort, standardiser):
    model = build(VARIANTS[name], cohort)
    batch = double(collate(cohort, np.arange(4), standardiser, 256))
    torch.testing.assert_close(model.setvae.features(batch), encode_one_by_one(model.setvae, batch), rtol=0, atol=1e-10)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31), name=st.sampled_from([n for n in VARIANTS if "hungarian" not in n]))
def test_permuting_events_and_padding_with_garbage_changes_nothing(cohort, standardiser, seed, name):
    rng = np.random.default_rng(seed)
    model = build(VARIANTS[name], cohort)
    batch = double(collate(cohort, np.arange(4), standardiser, 256))
    w = batch.windows
    n, c = w.set.shape
    extra = int(rng.integers(0, 3))
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(c + extra), (n, 1)), axis=1))
    garbage = torch.from_numpy(rng.integers(0, len(cohort.variables), (n, c + extra)))
    loud = torch.full((n, c + extra), 1e6, dtype=torch.float64)
    owner = torch.nn.functional.pad(w.set, (0, extra), value=-1)
    garbage[:, :c], loud[:, :c] = torch.where(w.real, w.variable, garbage[:, :c]), torch.where(w.real, w.value, 1e6)
    windows = Windows(*(t.gather(1, order) for t in (garbage, loud, owner)), w.sets)
    moved = dataclasses.replace(batch, windows=windows)
    assert_like = outputs(model(batch, sample=False)), outputs(model(moved, sample=False))
    for x, y in zip(*assert_like, strict=True):
        if model.config.decoder == "likelihood" or x.ndim < 2 or x.shape[1] == model.config.width:
            torch.testing.assert_close(x, y, rtol=0, atol=1e-9)


def test_more_padding_in_time_changes_nothing(cohort, standardiser):
    model = build(VARIANTS["improved"], cohort)
    batch = double(collate(cohort, np.arange(4), standardiser, 256))
    wider = dataclasses.replace(
        batch,
        hours=torch.nn.functional.pad(batch.hours, (0, 5), value=9e9),
        real=torch.nn.functional.pad(batch.real, (0, 5)),
    )
    assert_same(model(batch, sample=False), model(wider, sample=False))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["baseline", "improved"])
def test_h_at_t_has_exactly_no_gradient_from_later_sets(name, training, cohort, standardiser):
    config = VARIANTS[name].but(dropout=0.0)
    model = build(config, cohort).train(training)
    batch = double(collate(cohort, [0], standardiser, 256))
    tokens = torch.randn(1, batch.size, config.width, dtype=torch.float64, requires_grad=True)
    h = model.history(tokens, batch)
    middle = batch.size // 2
    # not h.sum(): after a LayerNorm the sum over features is constant
    (gradient,) = torch.autograd.grad(h[0, middle] @ torch.randn(config.width, dtype=torch.float64), tokens)
    assert (gradient[0, middle + 1 :] == 0).all()
    assert (gradient[0, : middle + 1] != 0).any(-1).all()


def test_the_relaxed_mask_leaks_the_future_in_training_and_only_there(cohort, standardiser):
    config = VARIANTS["improved"].but(dropout=0.0, future_leak=0.3)
    model = build(config, cohort)
    batch = double(collate(cohort, [0], standardiser, 256))
    tokens = torch.randn(1, batch.size, config.width, dtype=torch.float64, requires_grad=True)
    for training in (True, False):
        torch.manual_seed(0)
        h = model.train(training).history(tokens, batch)
        (gradient,) = torch.autograd.grad(h[0, 0] @ torch.randn(config.width, dtype=torch.float64), tokens)
        assert bool((gradient[0, 1:] != 0).any()) is training


def times(hours: torch.Tensor) -> Batch:
    """One stay with sets at `hours` (1, T), of which nothing else is known."""
    row, real = torch.zeros(hours.shape[1], dtype=torch.long), torch.ones_like(hours, dtype=torch.bool)
    return Batch(["a"], hours, real, torch.zeros(1), None, hours.shape[1], row, torch.arange(hours.shape[1]))


def test_rotary_logits_depend_on_differences_of_time_only():
    torch.manual_seed(0)
    attention = Attention(16, 2).double()
    x = torch.randn(6, 16, dtype=torch.float64)
    hours = torch.rand(1, 6, dtype=torch.float64).cumsum(1) * 8
    a, b, c = (attention.over_time(x, times(h), None, time_angles(h, 8)) for h in (hours, hours + 13.7, hours * 2))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert (a - c).abs().max() > 1e-3


def test_rotating_the_inputs_is_not_relative():
    torch.manual_seed(0)
    attention = Attention(16, 2).double()
    x = torch.randn(6, 16, dtype=torch.float64)
    hours = torch.rand(1, 6, dtype=torch.float64).cumsum(1) * 8
    a, b = (attention.over_time(rotate(x, time_angles(h, 16)[0]), times(h), None, None) for h in (hours, hours + 13.7))
    assert (a - b).abs().max() > 1e-3


def test_rotation_keeps_lengths():
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    turned = rotate(x, time_angles(torch.rand(3, 5, dtype=torch.float64) * 48, 8))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_the_time_encoder_still_tells_hours_apart_after_two_days():
    torch.manual_seed(0)
    encoder = TimeEncoder(64)
    early, late = encoder(torch.tensor([[1.0, 40.0]]))[0], encoder(torch.tensor([[2.0, 44.0]]))[0]
    assert ((early - late).abs().amax(-1) > 1e-3).all()


@pytest.mark.parametrize("pooling", ["mean", "last", "dot", "query"])
def test_pooling_weights_are_a_distribution_over_real_sets(pooling, cohort, standardiser):
    model = build(VARIANTS["improved"].but(pooling=pooling), cohort)
    batch = double(collate(cohort, np.arange(6), standardiser, 256))
    weights = model(batch, sample=False).pooling
    torch.testing.assert_close(weights.sum(1), torch.ones(6, dtype=torch.float64))
    assert (weights[~batch.real] == 0).all()
    count = batch.real.sum(1)
    if pooling == "mean":
        torch.testing.assert_close(weights.amax(1), 1 / count.double())
    if pooling == "last":
        assert (weights.argmax(1) == count - 1).all() and (weights.amax(1) == 1).all()


def test_kl_agrees_with_torch_distributions():
    mu, logvar, prior_mu, prior_logvar = torch.randn(4, 200, dtype=torch.float64)
    q = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    p = torch.distributions.Normal(prior_mu, (0.5 * prior_logvar).exp())
    expected = torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(kl_divergence(mu, logvar, prior_mu, prior_logvar), expected)


def test_what_is_masked_is_hidden_from_the_encoder_and_said_by_the_decoders(cohort, standardiser):
    config = VARIANTS["recommended"].but(masking=0.6, dropout=0.0, statistics_dropout=0.0, future_leak=0.0)
    model = build(config, cohort).train()
    batch = double(collate(cohort, np.arange(4), standardiser, 256))
    seen = batch.windows.masked(0.6, torch.Generator().manual_seed(1))
    without = dataclasses.replace(batch, windows=seen)
    masked = model(batch, False, torch.Generator().manual_seed(1))
    model.setvae.masking = 0.0
    assert not torch.equal(masked.mu, model(batch, False).mu)
    torch.testing.assert_close(masked.mu, model(without, False).mu, rtol=0, atol=1e-10)
    told = model.decode(masked.h, batch)["current"]
    torch.testing.assert_close(masked.distortion["current"], told, rtol=0, atol=1e-10)
    assert not torch.allclose(told, model.decode(masked.h, without)["current"])
    model.setvae.masking = 0.6
    assert torch.equal(model.eval()(batch, False).mu, model(batch, False).mu), "only training hides events"


def test_the_sampled_scale_is_the_charged_scale(cohort, standardiser):
    config = VARIANTS["improved"].but(posterior_noise=0.5, levels=1)
    model = build(config, cohort).train()
    batch = double(collate(cohort, np.arange(2), standardiser, 256))
    torch.manual_seed(0)
    latents = model.set_latents(batch, True, torch.Generator().manual_seed(1))
    noise = torch.Generator().manual_seed(1)
    torch.randn(latents.mu[:, 0].shape, generator=noise, dtype=torch.float64)  # the draw that made logvar noisy
    epsilon = torch.randn(latents.mu[:, 0].shape, generator=noise, dtype=torch.float64)
    torch.testing.assert_close(latents.z[:, 0], latents.mu[:, 0] + (0.5 * latents.logvar[:, 0]).exp() * epsilon)


def test_the_likelihood_is_a_density_over_values_and_presence(cohort, standardiser):
    model = build(VARIANTS["improved"], cohort)
    batch = double(collate(cohort, [0, 1], standardiser, 256))
    output = model(batch, sample=False)
    states = output.h[output.row, output.column]
    p: SetPrediction = model.decoders["current"](states)
    present, value = dense(batch, len(cohort.variables))
    presence = torch.distributions.Bernoulli(logits=p.presence).log_prob(present.double())
    values = torch.distributions.Normal(p.mean, (0.5 * p.logvar).exp()).log_prob(value)
    expected = -(presence + torch.where(present, values, 0.0)).sum(1)
    torch.testing.assert_close(output.distortion["current"], expected)
    follows = has_next(batch).nonzero().squeeze(1)
    assert (output.distortion["next"][follows] > 0).any() and not output.distortion["next"][~output.has_next].any()


@pytest.mark.parametrize("n", range(1, 7))
def test_chamfer_and_hungarian_agree_with_brute_force(n):
    torch.manual_seed(n)
    x, y = torch.randn(2, 1, n + 2, 3, dtype=torch.float64)
    real = (torch.arange(n + 2) < n)[None]
    cost = torch.cdist(x[0, :n], y[0, :n]).square()
    both_ways = (cost.amin(0).sum() + cost.amin(1).sum()) / n
    torch.testing.assert_close(chamfer_from(squared_distances(x, y), real)[0], both_ways)
    best = min(sum(cost[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(n))) / n
    torch.testing.assert_close(hungarian(x, y, real)[0], best)


def test_a_network_that_has_diverged_shows_it_in_the_distance():
    x = torch.tensor([[[0.0, float("nan")], [1.0, 2.0]]])
    assert not hungarian(x, torch.zeros(1, 2, 2), torch.ones(1, 2, dtype=torch.bool)).isfinite().any()


def test_sets_without_a_next_one_have_nothing_to_match():
    assert hungarian(torch.zeros(0, 3, 2), torch.zeros(0, 3, 2), torch.zeros(0, 3, dtype=torch.bool)).shape == (0,)


def test_chamfer_cannot_count_copies_and_hungarian_can():
    once = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]])
    twice = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    real = torch.ones(1, 3, dtype=torch.bool)
    assert chamfer_from(squared_distances(once, twice), real).item() == pytest.approx(0, abs=1e-6)
    assert hungarian(once, twice, real).item() == pytest.approx(2 / 3, abs=1e-6)


def test_gradients_of_the_set_distances_are_finite_at_zero():
    x = torch.zeros(1, 3, 4, requires_grad=True)
    chamfer(x, torch.zeros(1, 3, 4), torch.tensor([[True, True, False]])).sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", ["baseline", "improved", "reference"])
def test_every_parameter_gets_a_gradient_within_three_steps(name, cohort, standardiser):
    # independent levels decode the deepest one only: the lower posteriors are reached through their KL alone, and there
    # only above the free-bits floor
    config = VARIANTS[name].but(free_bits=0.0)
    model = HSetVAE(config, len(cohort.variables)).train()
    initialise(model, config, 0)
    batch = collate(cohort, np.arange(12), standardiser, 256)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    touched = set()
    for step in range(1, 4):
        optimizer.zero_grad()
        objective(model(batch, True, torch.Generator().manual_seed(step)), batch, config, 30, 40).total.backward()
        touched |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        optimizer.step()
    assert {n for n, _ in model.named_parameters()} - touched == set()


def test_targets_of_the_set_distances_do_not_move(cohort):
    model = HSetVAE(VARIANTS["reference"], len(cohort.variables))
    assert "decoders.current.directions" not in dict(model.named_parameters())
    lengths = model.decoders["current"].directions.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_arms_that_differ_in_one_module_start_equal_everywhere_else(cohort):
    models = {}
    for pooling, position in [("mean", "rotary"), ("query", "index+time")]:
        config = VARIANTS["improved"].but(pooling=pooling, position=position)
        models[pooling] = HSetVAE(config, len(cohort.variables))
        initialise(models[pooling], config, seed=5)
    a, b = (m.state_dict() for m in models.values())
    shared = a.keys() & b.keys()
    assert len(shared) > 60 and all(torch.equal(a[n], b[n]) for n in shared)
    assert b.keys() - a.keys() == {"head.query", "embed.index.weight"} | {
        f"embed.time.net.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")
    }
