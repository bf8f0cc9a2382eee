"""Decoders p(x | h) of one set: an exact likelihood, and two set distances that have no unit.

A clinical set holds a variable at most once, so "which variables are present" (Bernoulli each) and "their values given
presence" (Gaussian each) is an exact likelihood in nats.  The Chamfer and Hungarian forms decode slots and compare
them with fixed target vectors; they match many-to-one and one-to-one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from .config import Config, stream
from .data import Batch

LOGVAR_FLOOR = -6.0  # SD of a value at least 0.05 standardised units: entry noise, keeps the density bounded
TARGET_WIDTH = 32  # width of a slot; 41 variables in 32 random directions stay well apart
EPSILON = 1e-8  # inside roots: the gradient of a norm at 0 stays finite


class SetPrediction(NamedTuple):
    """p(x | h) for M sets over V variables: presence logits, mean and log variance of the standardised value."""

    presence: Tensor
    mean: Tensor
    logvar: Tensor


class LikelihoodDecoder(nn.Module):
    """-log p(x | h) in nats per set: presence of every variable, value of the present ones."""

    def __init__(self, config: Config, variables: int) -> None:
        super().__init__()
        self.tanh = config.tanh_output
        self.net = nn.Sequential(
            nn.Linear(config.width, config.width), nn.GELU(), nn.Linear(config.width, 3 * variables)
        )

    def forward(self, h: Tensor) -> SetPrediction:
        """h (M, D) -> SetPrediction of (M, V) tensors."""
        presence, mean, logvar = self.net(h).chunk(3, dim=-1)
        mean = torch.tanh(mean) if self.tanh else mean  # S8: a z-score beyond ±1 cannot be said any more
        return SetPrediction(presence, mean, LOGVAR_FLOOR + F.softplus(logvar - LOGVAR_FLOOR))

    def distortion(self, h: Tensor, batch: Batch, target: Tensor) -> Tensor:
        """-log p of set `target[m]` given h[m] -> nats (m,)."""
        p = self(h)
        present, value = dense(batch, p.mean.shape[-1])
        present, value = present[target], value[target]
        presence = F.binary_cross_entropy_with_logits(p.presence, present.to(p.presence.dtype), reduction="none")
        gaussian = 0.5 * (math.log(2 * math.pi) + p.logvar + (value - p.mean).square() * torch.exp(-p.logvar))
        return (presence + torch.where(present, gaussian, 0.0)).sum(-1)


def dense(batch: Batch, variables: int) -> tuple[Tensor, Tensor]:
    """All sets as rows: present (M, V) bool and standardised value (M, V), 0 where absent."""
    w, places = batch.windows, batch.size * variables
    place = torch.where(w.real, w.set * variables + w.variable, places).flatten()  # padding goes to a place of its own
    present = w.real.new_zeros(places + 1).index_fill(0, place, True)
    values = w.value.new_zeros(places + 1).index_copy(0, place, w.value.flatten())
    return tuple(t[:-1].view(batch.size, variables) for t in (present, values))


class SlotDecoder(nn.Module):
    """h and a slot's sinusoidal code -> the slot's vector; compared with value times the variable's direction.

    Directions are fixed random unit vectors: a trainable target would shrink to zero by itself.
    """

    def __init__(self, config: Config, variables: int) -> None:
        super().__init__()
        E = TARGET_WIDTH
        self.distance = SET_DISTANCES[config.decoder]
        self.tanh = config.tanh_output
        self.net = nn.Sequential(nn.Linear(config.width + E, config.width), nn.GELU(), nn.Linear(config.width, E))
        generator = torch.Generator().manual_seed(stream(0, "directions"))
        self.register_buffer("directions", F.normalize(torch.randn(variables, E, generator=generator), dim=-1))

    def forward(self, h: Tensor, slots: int) -> Tensor:
        """h (n, D) -> (n, slots, E)."""
        code = slot_codes(slots, TARGET_WIDTH).to(h)
        x = torch.cat([h.unsqueeze(1).expand(-1, slots, -1), code.expand(len(h), -1, -1)], dim=-1)
        out = self.net(x)
        return torch.tanh(out) if self.tanh else out

    def distortion(self, h: Tensor, batch: Batch, target: Tensor) -> Tensor:
        """Distance of set `target[m]` from what h[m] decodes to, as many slots as events -> (m,), no unit."""
        variable, value, real = (t[target] for t in side_by_side(batch))
        y = self.directions[variable] * value.unsqueeze(-1)
        return self.distance(self(h, real.shape[1]), y, real)


def side_by_side(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """All sets in one block, padded on the right to the K events of the largest: variable, value, real (M, K)."""
    sets, variable, value = (
        t[batch.windows.real] for t in (batch.windows.set, batch.windows.variable, batch.windows.value)
    )
    order, count = sets.argsort(stable=True), batch.events()
    real = torch.arange(int(count.max()), device=count.device) < count.unsqueeze(1)
    return *(t.new_zeros(real.shape).masked_scatter(real, t[order]) for t in (variable, value)), real


def slot_codes(slots: int, features: int) -> Tensor:
    """Sinusoidal codes (slots, features) that tell the slots of a set apart (Vaswani et al. 2017)."""
    rate = 10000.0 ** -(torch.arange(0, features, 2) / features)
    angle = torch.arange(slots).unsqueeze(1) * rate
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(n, K, E), (n, K, E) -> (n, K, K) by one matrix product, clamped at 0 against rounding."""
    return (x.square().sum(-1).unsqueeze(2) + y.square().sum(-1).unsqueeze(1) - 2 * x @ y.mT).clamp_min(0)


def chamfer_from(cost: Tensor, real: Tensor) -> Tensor:
    """Mean over the real elements of each side of the distance to the nearest element of the other -> (n,)."""
    pair = real.unsqueeze(2) & real.unsqueeze(1)
    cost = cost.masked_fill(~pair, float("inf"))
    nearest = torch.where(real, cost.amin(2), 0.0).sum(1) + torch.where(real, cost.amin(1), 0.0).sum(1)
    return nearest / real.sum(1)


def chamfer(x: Tensor, y: Tensor, real: Tensor) -> Tensor:
    """The ledger's loss: direction + magnitude + 3 · full vector, minus 0.1 · variance of the reconstruction."""
    size_x, size_y = (t.square().sum(-1, keepdim=True).add(EPSILON).sqrt() for t in (x, y))
    direction = chamfer_from(squared_distances(x / size_x, y / size_y), real)
    magnitude = chamfer_from((size_x - size_y.mT).square(), real)
    count = real.sum(1)[:, None, None]
    mean = torch.where(real.unsqueeze(-1), x, 0.0).sum(1, keepdim=True) / count
    spread = torch.where(real.unsqueeze(-1), (x - mean).square(), 0.0).mean(-1).sum(1) / count[:, 0, 0]
    return direction + magnitude + 3 * chamfer_from(squared_distances(x, y), real) - 0.1 * spread


def hungarian(x: Tensor, y: Tensor, real: Tensor) -> Tensor:
    """Mean squared distance under the best one-to-one matching of slots and events (Kuhn 1955) -> (n,)."""
    cost = squared_distances(x, y)
    if not len(cost):  # no set has a next one
        return cost.new_zeros(0)
    far = cost.detach().amax() + 1  # padding matches padding
    padded = real.unsqueeze(2) != real.unsqueeze(1)
    plain = torch.where(padded, far, cost.detach()).masked_fill(~real.unsqueeze(2) & ~real.unsqueeze(1), 0.0)
    # scipy solves one set at a time: the only loop over sets, 1.7 µs a set, in an arm that is not the default
    plain = plain.nan_to_num()  # a network that has diverged has any matching, and shows it in its distance
    match = torch.stack([torch.as_tensor(linear_sum_assignment(c)[1]) for c in plain.cpu().double().numpy()])
    matched = cost.gather(2, match.to(cost.device).unsqueeze(-1)).squeeze(-1)
    return torch.where(real, matched, 0.0).sum(1) / real.sum(1)


SET_DISTANCES = {"chamfer": chamfer, "hungarian": hungarian}


def make_decoder(config: Config, variables: int) -> nn.Module:
    return LikelihoodDecoder(config, variables) if config.decoder == "likelihood" else SlotDecoder(config, variables)
