"""The objective: raw terms of an Output, their schedules and weights, applied here and only here.

total = [r(s) · distortion + beta(s) · KL(with floor and level weights)] / n + w(s) · BCE + two regularisers.
Distortion and KL are means over the sets of the batch, in nats per set; n is the mean number of events of a set, so
that w weighs the outcome of a stay against one event, however large the sets; BCE is the mean over the stays.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import Config
from .data import Batch
from .model import Output


@dataclass(frozen=True)
class Terms:
    """The sum that is differentiated, and every number that explains it: raw terms, then weights."""

    total: Tensor
    values: dict[str, Tensor | float]


def warmup_steps(config: Config, total: int) -> float:
    """`beta_warmup` is a share of all steps, or a number of steps when it is above 1."""
    return config.beta_warmup * total if config.beta_warmup <= 1 else config.beta_warmup


def beta_at(config: Config, step: int, total: int) -> float:
    """KL weight at a step: linear warm-up (H5) times the cycle (H6), up to `beta` (H1).

    A cycle rises linearly over its first half and stays at 1 for the second (Fu et al. 2019).
    """
    warmup = warmup_steps(config, total)
    ramp = min(1.0, step / warmup) if warmup else 1.0
    cycle = 1.0
    if config.beta_cycles:
        length = max(total, 1) / config.beta_cycles
        cycle = min(1.0, 2 * (step % length) / length)
    return config.beta * ramp * cycle


def reconstruction_weight_at(config: Config, step: int, total: int) -> float:
    """L4: 1 → 0.5 over the first half of the steps (10,000 of an assumed 20,000), else 1."""
    return 1 - 0.5 * min(1.0, step / (0.5 * total)) if config.dynamic_weights else 1.0


def class_weight_at(config: Config, step: int, total: int) -> float:
    """L4: 0 → w over the first quarter of the steps (5,000 of an assumed 20,000), else w."""
    return config.class_weight * min(1.0, step / (0.25 * total)) if config.dynamic_weights else config.class_weight


def floored_kl(kl: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """KL per level after free bits (H3), and the share of the dimensions (or levels) whose mean KL is below the floor.

    kl (M, L, Z) -> (L,), scalar.  The floor acts on the batch mean, per dimension or on a level's sum, and the two
    forms hold the same budget: `free_bits` nats per dimension (Kingma et al. 2016).
    """
    mean = kl.mean(0)  # (L, Z)
    floor = config.free_bits
    if config.free_bits_per == "level":
        mean, floor = mean.sum(-1, keepdim=True), floor * kl.shape[-1]  # (L, 1)
    return mean.clamp_min(floor).sum(-1), (mean < floor).float().mean()


def level_weights(config: Config, levels: int) -> Tensor:
    """L3: l/L for level l = 1 … L, so the deepest level pays in full, or 1 for every level."""
    return torch.arange(1, levels + 1) / levels if config.level_weights == "depth" else torch.ones(levels)


def outcome_loss(logits: Tensor, outcome: Tensor, smoothing: float) -> Tensor:
    """Binary cross-entropy of logits (B,) in nats per stay against y(1 − ε) + ε/2 (L5).

    Stays without a known outcome do not count.
    """
    known = ~outcome.isnan()
    target = (outcome * (1 - smoothing) + smoothing / 2)[known]
    total = F.binary_cross_entropy_with_logits(logits[known], target, reduction="sum")
    return total / known.sum().clamp_min(1)


def objective(output: Output, batch: Batch, config: Config, step: int, total: int) -> Terms:
    """Terms of one batch at step `step` of `total`.

    In evaluation call it with `config.but(label_smoothing=0.0)`: smoothing belongs to training.
    """
    current = output.distortion.get("current", output.logits.new_zeros(1)).mean()
    following = output.distortion.get("next", output.logits.new_zeros(1))
    following = following.sum() / output.has_next.sum().clamp_min(1)
    levels = output.kl.shape[1]
    floored, floor_share = floored_kl(output.kl, config)
    kl_charged = (floored * level_weights(config, levels).to(floored)).sum()
    bce = outcome_loss(output.logits, batch.outcome, config.label_smoothing)
    variance, mean = output.logvar.square().mean(), output.mu.square().mean()
    beta = beta_at(config, step, total)
    reconstruction = reconstruction_weight_at(config, step, total)
    w = class_weight_at(config, step, total)
    events = batch.windows.real.sum() / batch.size
    per_event = events if config.decoder == "likelihood" else 1.0  # the set distances are means over events already
    sum_of_terms = (
        (reconstruction * (current + following) + beta * kl_charged) / per_event
        + w * bce
        + config.variance_weight * variance
        + config.mean_weight * mean
    )
    per_level = output.kl.detach().sum(-1).mean(0)  # (L,) nats per set
    return Terms(
        sum_of_terms,
        {
            "total": sum_of_terms.detach(),
            "distortion_current": current.detach(),
            "distortion_next": following.detach(),
            "kl": per_level.sum(),
            **{f"kl_level{level + 1}": per_level[level] for level in range(levels)},
            "kl_weighted": beta * kl_charged.detach(),
            "events_per_set": events,
            "bce": bce.detach(),
            "variance_term": variance.detach(),
            "mean_term": mean.detach(),
            "floor_share": floor_share,
            "beta": beta,
            "reconstruction_weight": reconstruction,
            "class_weight": w,
        },
    )
