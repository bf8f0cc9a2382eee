"""What decides an update besides the gradient: learning-rate schedule, parameter groups, clipping, stages."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .config import Config


def lr_at(config: Config, step: int, total: int) -> float:
    """Learning rate at a step, before the factor of a parameter group (T3).

    `restarts` are four cosine cycles, each twice as long as the one before: 1 + 2 + 4 + 8 fifteenths of the steps.
    """
    warmup = config.lr_warmup * total
    ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return config.lr * ramp * LR_SCHEDULES[config.lr_schedule](step / total)


def _restarts(share: float) -> float:
    cycle = min(int(math.log2(share * 15 + 1)), 3)
    start = (2**cycle - 1) / 15
    return _cosine((share - start) / (2**cycle / 15))


def _cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


LR_SCHEDULES = {"constant": lambda share: 1.0, "cosine": _cosine, "restarts": _restarts}


def parameter_groups(model: nn.Module, config: Config) -> list[dict]:
    """AdamW groups: the SetVAE learns at `setvae_lr_scale` of the rate (T1); only matrices decay (T2)."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith("setvae."), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "scale": config.setvae_lr_scale if in_setvae else 1.0,
            "weight_decay": config.weight_decay if matrix else 0.0,
        }
        for (in_setvae, matrix), parameters in groups.items()
    ]


def clip_none(gradients: list[Tensor], norm: Tensor, at: float) -> tuple[Tensor, Tensor]:
    return norm, torch.ones_like(norm)


def clip_value(gradients: list[Tensor], norm: Tensor, at: float) -> tuple[Tensor, Tensor]:
    """Clamp every entry to ±at: the direction changes."""
    raw = [g.clone() for g in gradients]
    torch._foreach_clamp_min_(gradients, -at)
    torch._foreach_clamp_max_(gradients, at)
    after = torch.nn.utils.get_total_norm(gradients)
    dot = torch.stack([(a * b).sum() for a, b in zip(raw, gradients, strict=True)]).sum()
    return after, dot / (norm * after).clamp_min(1e-30)


def clip_norm(gradients: list[Tensor], norm: Tensor, at: float) -> tuple[Tensor, Tensor]:
    """Scale the whole gradient to norm ≤ at: the direction stays (Pascanu et al. 2013)."""
    scale = (at / norm.clamp_min(1e-30)).clamp_max(1.0)
    torch._foreach_mul_(gradients, scale)
    return norm * scale, torch.ones_like(norm)


CLIPS = {"none": clip_none, "value": clip_value, "norm": clip_norm}


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, step: int, averaging: float) -> None:
    """Move the weights of `average`, a copy, towards the model's after the update `step` (Polyak & Juditsky 1992).

    By 1 − `averaging` of the way; further in the beginning, where n / (9 + n) is kept, n being the updates before this.
    """
    kept = min(averaging, step / (9 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - kept)


def set_stage(model: nn.Module, config: Config, step: int, total: int) -> None:
    """A2: a third of the steps each for head and decoders, then also the Transformer, then everything."""
    if config.stages == "joint":
        return
    stage = min(3 * step // total, 2)
    parts = ["head.", "decoders.", *(["embed.", "history."] if stage > 0 else []), *(["setvae."] if stage > 1 else [])]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(parts)))
