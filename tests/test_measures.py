"""The instruments on cases with known answers."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsetvae.config import UserError
from hsetvae.measures import (
    active_units,
    calibration_table,
    collapsed,
    debiased_cka,
    effective_sets,
    floor_shares,
    gradient_health,
    linear_vae_optimum,
    mean_cosine,
    mutual_information,
    noise_share,
    past_swap,
    ridge_r2,
    unit_variance,
)

# --- the linear VAE --------------------------------------------------------------------------------------------------

EIGENVALUES = np.array([20.0, 9.0, 4.0, 1.5, 0.6, 0.3])
NOISE = 0.5


def train_linear_vae(beta: float) -> tuple[np.ndarray, np.ndarray]:
    """A linear VAE trained on data with exactly the covariance diag(EIGENVALUES) -> posterior means, KL (N, Z)."""
    Z = len(EIGENVALUES)
    rng = np.random.default_rng(0)
    white = rng.standard_normal((200, Z))
    white = np.linalg.qr(white - white.mean(0))[0] * math.sqrt(200)
    data = torch.from_numpy(white * np.sqrt(EIGENVALUES))
    torch.manual_seed(0)
    encoder, decoder = (torch.randn(Z, Z, dtype=torch.float64).mul(0.3).requires_grad_() for _ in range(2))
    logvar = torch.zeros(Z, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [encoder, decoder, logvar], max_iter=1000, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def kl() -> torch.Tensor:
        return 0.5 * ((data @ encoder.T) ** 2 + logvar.exp() - 1 - logvar)  # (N, Z)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        error = (data - data @ encoder.T @ decoder.T).square().sum(1).mean() + (decoder**2 @ logvar.exp()).sum()
        total = error / (2 * NOISE) + beta * kl().sum(1).mean()
        total.backward()
        return total

    optimizer.step(loss)
    return (data @ encoder.T).detach().numpy(), kl().detach().numpy()


@pytest.mark.parametrize("beta", [0.5, 1.0, 5.0, 12.0])
def test_a_trained_linear_vae_has_the_active_units_and_the_kl_of_the_closed_form(beta):
    mu, kl = train_linear_vae(beta)
    optimum = linear_vae_optimum(EIGENVALUES, NOISE, beta)
    assert active_units(mu) == optimum.active == int((EIGENVALUES > beta * NOISE).sum())
    assert kl.mean(0).sum() == pytest.approx(optimum.kl.sum(), rel=0.01)
    assert np.sort(kl.mean(0)) == pytest.approx(np.sort(optimum.kl), rel=0.01, abs=1e-3)
    assert collapsed(kl).sum() == len(EIGENVALUES) - optimum.active


def test_the_closed_form_keeps_the_order_and_the_scale_of_its_posterior():
    optimum = linear_vae_optimum([4.0, 0.1, 1.0], noise=0.5, beta=1.0)
    assert optimum.sigma**2 == pytest.approx([0.125, 1.0, 0.5])
    assert optimum.kl == pytest.approx([0.5 * math.log(8), 0.0, 0.5 * math.log(2)])


@pytest.mark.parametrize(("eigenvalues", "noise", "beta"), [([1.0], 0.0, 1.0), ([1.0], 1.0, 0.0), ([-1.0], 1.0, 1.0)])
def test_a_linear_vae_without_noise_price_or_covariance_is_refused(eigenvalues, noise, beta):
    with pytest.raises(UserError, match="positive"):
        linear_vae_optimum(eigenvalues, noise, beta)


# --- collapse --------------------------------------------------------------------------------------------------------


def test_a_collapsed_posterior_has_no_active_unit_and_a_sharp_one_has_all():
    rng = np.random.default_rng(0)
    assert active_units(np.zeros((1000, 16))) == 0
    assert active_units(rng.standard_normal((1000, 16))) == 16


def test_every_instrument_tells_a_dead_posterior_from_a_sharp_one():
    rng, N, Z = np.random.default_rng(0), 1000, 8
    means = rng.standard_normal((N, Z))
    for alive, sigma in ((0, 1.0), (Z, 0.05)):
        mu = means * (alive > 0) * math.sqrt(1 - sigma**2)  # the aggregate of the posteriors is the prior
        logvar = np.full((N, Z), 2 * math.log(sigma))
        kl = 0.5 * (mu**2 + np.exp(logvar) - 1 - logvar)
        z = mu + sigma * rng.standard_normal((N, Z))
        assert active_units(mu) == alive and collapsed(kl).sum() == Z - alive
        assert floor_shares(kl, 0.2) == ((1.0, 0.0) if alive == 0 else (0.0, 0.0))
        assert mutual_information(z, mu, logvar) == pytest.approx(0.0 if alive == 0 else math.log(N), abs=1e-6)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 60), scale=st.floats(0, 30), spread=st.floats(0, 5))
@settings(max_examples=60, deadline=None)
def test_no_posterior_has_more_information_than_the_logarithm_of_the_number_of_sets(seed, n, scale, spread):
    rng = np.random.default_rng(seed)
    mu, logvar = scale * rng.standard_normal((n, 3)), spread * rng.standard_normal((n, 3))
    z = mu + np.exp(0.5 * logvar) * rng.standard_normal((n, 3))
    assert mutual_information(z, mu, logvar) <= math.log(n) + 1e-9


@given(offset=st.floats(-1e6, 1e6), alive=st.integers(0, 8))
@settings(max_examples=30, deadline=None)
def test_active_units_do_not_depend_on_where_the_means_lie(offset, alive):
    mu = np.zeros((500, 8))
    mu[:, :alive] = np.random.default_rng(1).normal(0, 0.2, (500, alive))
    assert active_units(mu + offset) == alive


def test_the_variance_of_a_unit_keeps_its_digits_beside_a_large_mean():
    mu = np.tile([[0.9], [1.1]], (50, 1)).astype(np.float64) + 1e7
    assert unit_variance(mu) == pytest.approx([0.01], rel=1e-6)


def test_thresholds_of_active_units_are_nested():
    mu = np.random.default_rng(0).standard_normal((4000, 4)) * np.sqrt([0.02, 0.07, 0.15, 0.5])
    assert [active_units(mu, t) for t in (0.01, 0.05, 0.1, 0.2)] == [4, 3, 2, 1]


def test_eps_delta_collapse_allows_a_share_delta_of_exceptions():
    kl = np.zeros((1000, 3))
    kl[:10, 1] = 1.0  # 1 % of the sets
    kl[:11, 2] = 1.0
    assert collapsed(kl).tolist() == [True, True, False]
    assert collapsed(kl, eps=2.0).all() and not collapsed(kl, delta=0.0)[1]


def test_dimensions_at_the_floor_are_told_from_those_that_are_dead_or_alive():
    kl = np.tile([0.0, 0.1, 0.105, 2.0], (10, 1))
    assert floor_shares(kl, 0.1) == (0.75, 0.5)
    assert floor_shares(kl, 0.0) == (0.0, 0.0)


def test_a_floor_on_the_level_is_compared_with_the_level():
    kl = np.tile([0.0, 0.4, 0.0, 0.0], (10, 1))  # 0.1 nats a dimension
    assert floor_shares(kl, 0.1, "level") == (1.0, 1.0)
    assert floor_shares(kl, 0.05, "level") == (0.0, 0.0)


# --- information -----------------------------------------------------------------------------------------------------


def channel(nats: float, n: int, Z: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws from a Gaussian channel with I(x; z) = `nats`: q(z | x) = N(x, s²), x standard normal."""
    rng = np.random.default_rng(3)
    variance = 1 / math.expm1(2 * nats / Z)
    mu = rng.standard_normal((n, Z))
    return mu + math.sqrt(variance) * rng.standard_normal((n, Z)), mu, np.full((n, Z), math.log(variance))


def test_mutual_information_is_within_one_nat_of_eight_at_four_thousand_sets():
    assert 7.0 < mutual_information(*channel(8.0, 4000, 2)) < math.log(4000)


@pytest.mark.parametrize("nats", [0.5, 2.0, 4.0])
def test_mutual_information_far_below_its_cap_is_exact(nats):
    assert mutual_information(*channel(nats, 2000, 3)) == pytest.approx(nats, abs=0.15)


def test_mutual_information_never_exceeds_the_logarithm_of_the_number_of_sets():
    for nats in (6.0, 20.0, 200.0):
        assert mutual_information(*channel(nats, 300, 4)) <= math.log(300)
    assert mutual_information(*channel(200.0, 300, 4)) == pytest.approx(math.log(300))


def test_a_posterior_equal_to_its_prior_carries_no_information():
    z = np.random.default_rng(0).standard_normal((1200, 8))
    assert mutual_information(z, np.zeros_like(z), np.zeros_like(z)) == pytest.approx(0.0, abs=1e-9)


def test_mutual_information_in_chunks_equals_the_sum_written_out():
    z, mu, logvar = channel(2.0, 600, 2)
    logvar = logvar + np.random.default_rng(0).normal(0, 0.3, logvar.shape)
    q = torch.distributions.Normal(torch.from_numpy(mu), torch.from_numpy(logvar).mul(0.5).exp())
    log_q = q.log_prob(torch.from_numpy(z)[:, None]).sum(-1)  # (N, N)
    by_hand = (log_q.diagonal() - log_q.logsumexp(1)).mean() + math.log(600)
    assert mutual_information(z + 50, mu + 50, logvar) == pytest.approx(float(by_hand), abs=1e-9)


# --- similarity ------------------------------------------------------------------------------------------------------


def test_debiased_cka_of_independent_features_is_near_zero_where_the_biased_one_is_not():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 72, 256))
    assert abs(debiased_cka(x, y)) < 0.05
    k, m = ((a - a.mean(0)) @ (a - a.mean(0)).T for a in (x, y))
    assert (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()) > 0.7


def test_debiased_cka_ignores_rotation_scale_and_shift():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 12))
    rotation = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    assert debiased_cka(x, 3 * x @ rotation + 5) == pytest.approx(1.0)


def test_cka_of_constant_features_is_not_a_number():
    assert math.isnan(debiased_cka(np.ones((10, 3)), np.random.default_rng(0).standard_normal((10, 3))))


def test_cosine_of_rows_ignores_their_size_and_counts_zeros_as_zero():
    a = np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    assert mean_cosine(a, np.array([[5.0, 0.0], [0.0, -1.0], [1.0, 1.0]])) == pytest.approx(0.0)
    assert mean_cosine(a[:2], 7 * a[:2]) == pytest.approx(1.0)


# --- use of history --------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
OWN, OTHER = [(RNG.standard_normal((500, 6, 4)), RNG.standard_normal((500, 4))) for _ in range(2)]
PROJECTION = RNG.standard_normal((4, 9))


def test_past_swap_is_exactly_zero_for_a_map_without_memory():
    assert past_swap(lambda past, now: np.tanh(now @ PROJECTION), OWN, OTHER) == (0.0, 1.0)


def test_past_swap_is_exactly_one_for_a_map_that_sees_the_past_only():
    assert past_swap(lambda past, now: np.cumsum(past, 1)[:, -1] @ PROJECTION, OWN, OTHER) == (1.0, 0.0)


def test_past_swap_shares_out_a_sum_of_both():
    s_past, s_now = past_swap(lambda past, now: 2 * past[:, -1] + now, OWN, OTHER)
    assert s_past == pytest.approx(0.8, abs=0.03) and s_now == pytest.approx(0.2, abs=0.03)


def test_past_swap_of_a_constant_state_is_not_a_number():
    assert all(map(math.isnan, past_swap(lambda past, now: np.ones_like(now), OWN, OTHER)))


def test_noise_share_is_zero_without_noise_and_one_with_nothing_else():
    h, again, other = np.random.default_rng(0).standard_normal((3, 4000, 8))
    assert noise_share(h, h, other) == 0.0
    assert noise_share(h, again, other) == pytest.approx(1.0, abs=0.05)
    assert noise_share(h, h + 0.5 * again, other) == pytest.approx(0.125, abs=0.02)


def test_a_probe_finds_what_is_there_and_nothing_that_is_not():
    rng = np.random.default_rng(0)
    x, group = rng.standard_normal((900, 10)), np.repeat(np.arange(90), 10)
    target = np.stack([x @ rng.standard_normal(10), rng.standard_normal(900)], axis=1)
    there, absent = ridge_r2(x, target, group)
    assert there > 0.99 and absent < 0.02


def test_a_probe_that_could_only_know_stays_by_heart_scores_nothing():
    rng = np.random.default_rng(0)
    identity = np.repeat(rng.standard_normal((40, 64)), 10, axis=0)  # tells every stay from every other
    target = np.repeat(rng.standard_normal((40, 1)), 10, axis=0)
    assert ridge_r2(identity, target, np.repeat(np.arange(40), 10))[0] < 0.1


def test_a_probe_of_too_few_stays_says_so():
    assert np.isnan(ridge_r2(np.ones((9, 2)), np.ones((9, 1)), np.repeat(np.arange(3), 3))).all()


def test_effective_sets_count_what_the_head_looks_at():
    weights = np.array([0.25, 0.25, 0.25, 0.25, 1.0, 0.0, 0.5, 0.5])
    assert effective_sets(weights, np.array([0, 0, 0, 0, 1, 1, 2, 2])) == pytest.approx([4, 1, 2])


# --- training and calibration ----------------------------------------------------------------------------------------


def test_gradient_health_reads_norms_clipping_and_skips_from_the_table():
    history = pd.DataFrame(
        {
            "step": [10, 20, 30],
            "gradient_norm": [1.0, 2.0, 20.0],
            "gradient_norm_clipped": [0.5, 0.5, 0.5],
            "clipped": [1.0, 1.0, 0.4],
            "gradient_cosine": [1.0, 0.8, 0.6],
            "skipped": [0, 3, 0],
        }
    )
    health = gradient_health(history)
    assert health["largest_over_median"] == 10 and health["norm_clipped"] == 0.5
    assert health["clipped"] == pytest.approx(0.8) and health["cosine"] == pytest.approx(0.8)
    assert health["skipped"] == 3 and health["skipped_share"] == pytest.approx(0.1)


def test_calibration_bins_hold_equal_numbers_and_cover_the_truth():
    rng = np.random.default_rng(0)
    probability = rng.random(5000)
    table = calibration_table((rng.random(5000) < probability).astype(float), probability)
    assert table.stays.sum() == 5000 and table.stays.between(490, 510).all()
    inside = (table.low <= table.predicted) & (table.predicted <= table.high)
    assert inside.sum() >= 8 and (table.predicted.diff().dropna() > 0).all()


def test_calibration_merges_bins_that_ties_make_equal():
    table = calibration_table(np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.3, 0.3, 0.3, 0.9]))
    assert table.predicted.tolist() == pytest.approx([0.3, 0.9]) and table.stays.tolist() == [3, 1]


def test_a_run_that_skipped_every_step_has_no_norms_and_says_how_many():
    health = gradient_health(pd.DataFrame({"step": [10, 20], "skipped": [10.0, 10.0]}))
    assert math.isnan(health["norm"]) and health["skipped_share"] == 1.0
