"""Every term of the objective and every schedule against closed forms; clipping does what its name says."""

import math

import pytest
import torch

from hsetvae.config import BASELINE, IMPROVED
from hsetvae.objective import (
    beta_at,
    class_weight_at,
    floored_kl,
    level_weights,
    outcome_loss,
    reconstruction_weight_at,
)
from hsetvae.optim import CLIPS, lr_at


def test_beta_rises_linearly_to_its_maximum_and_stays():
    config = BASELINE.but(beta=0.4, beta_warmup=0.25)
    assert [beta_at(config, s, 100) for s in (0, 5, 25, 99)] == pytest.approx([0, 0.08, 0.4, 0.4])
    assert beta_at(config.but(beta_warmup=5000), 2500, 20_000) == pytest.approx(0.2)
    assert beta_at(config.but(beta_warmup=0.0), 0, 100) == 0.4


def test_each_cycle_rises_over_its_first_half():
    config = BASELINE.but(beta=1.0, beta_cycles=4)
    assert [beta_at(config, s, 400) for s in (0, 25, 50, 99, 100, 125, 150)] == pytest.approx([0, 0.5, 1, 1, 0, 0.5, 1])
    both = config.but(beta_warmup=0.5)
    assert beta_at(both, 150, 400) == pytest.approx(0.75)


def test_dynamic_weights_are_shares_of_the_run():
    assert [reconstruction_weight_at(IMPROVED, s, 100) for s in (0, 25, 50, 99)] == [1, 0.75, 0.5, 0.5]
    assert [class_weight_at(IMPROVED, s, 100) for s in (0, 10, 25, 99)] == [0, 0.4, 1, 1]
    assert reconstruction_weight_at(BASELINE, 70, 100) == 1 and class_weight_at(BASELINE, 0, 100) == 0.5


def test_learning_rate_schedules():
    assert lr_at(BASELINE, 77, 100) == BASELINE.lr
    cosine = BASELINE.but(lr_schedule="cosine", lr=1.0, lr_warmup=0.0)
    assert [lr_at(cosine, s, 100) for s in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    restarts = BASELINE.but(lr_schedule="restarts", lr=1.0, lr_warmup=0.0)
    starts = [lr_at(restarts, s, 1500) for s in (0, 100, 300, 700)]
    assert starts == pytest.approx([1, 1, 1, 1])
    assert [lr_at(restarts, s, 1500) for s in (50, 200, 500, 1100)] == pytest.approx([0.5] * 4)
    assert lr_at(cosine.but(lr_warmup=0.1), 4, 100) == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 0.04)))


def test_free_bits_hold_the_batch_mean_at_the_floor():
    kl = torch.tensor([[[0.05, 0.4]], [[0.01, 0.6]]])  # two sets, one level, two dimensions: means .03 and .5
    per_dimension, share = floored_kl(kl, BASELINE.but(free_bits=0.2))
    assert per_dimension.item() == pytest.approx(0.2 + 0.5) and share.item() == 0.5
    per_level, share = floored_kl(kl, BASELINE.but(free_bits=0.2, free_bits_per="level"))
    assert per_level.item() == pytest.approx(0.53) and share.item() == 0  # .53 is above 2 × .2
    nothing, _ = floored_kl(kl, BASELINE.but(free_bits=0.0))
    assert nothing.item() == pytest.approx(0.53)


def test_below_the_floor_the_kl_has_no_gradient():
    kl = torch.full((3, 1, 2), 0.01, requires_grad=True)
    floored_kl(kl, BASELINE.but(free_bits=0.2))[0].sum().backward()
    assert (kl.grad == 0).all()


def test_deeper_levels_weigh_more():
    assert level_weights(IMPROVED, 4).tolist() == [0.25, 0.5, 0.75, 1.0]
    assert level_weights(BASELINE, 3).tolist() == [1, 1, 1]


def test_smoothed_labels_and_unknown_outcomes():
    logits = torch.tensor([2.0, -1.0, 5.0])
    outcome = torch.tensor([1.0, 0.0, math.nan])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:2], torch.tensor([0.95, 0.05]))
    assert outcome_loss(logits, outcome, 0.1).item() == pytest.approx(expected.item())
    assert outcome_loss(logits, torch.full((3,), math.nan), 0.0).item() == 0


def test_value_clipping_turns_the_gradient_and_norm_clipping_does_not():
    raw = torch.tensor([3.0, 0.3, -4.0])
    for name, expected in {"none": raw, "value": raw.clamp(-1, 1), "norm": raw / raw.norm()}.items():
        g = raw.clone()
        after, cosine = CLIPS[name]([g], g.norm(), 1.0)
        torch.testing.assert_close(g, expected)
        assert after.item() == pytest.approx(expected.norm().item())
        between = torch.nn.functional.cosine_similarity(raw, expected, dim=0).item()
        assert cosine.item() == pytest.approx(between, abs=1e-6)


def test_a_small_gradient_is_not_scaled_up():
    g = torch.tensor([0.01, 0.02])
    CLIPS["norm"]([g], g.norm(), 0.5)
    torch.testing.assert_close(g, torch.tensor([0.01, 0.02]))
