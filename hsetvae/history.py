"""Latents over time -> history-aware states: tokens from z, position and time, then a causal Transformer.

h_t may depend on sets 1..t only; the relaxed mask (ledger M5) is the one labelled exception, in training only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, Dropout, rotate, time_angles
from .config import Config
from .data import Batch
from .summary import Summary

TIME_UNIT = 24.0  # hours; the time encoder ends in Tanh and would be saturated within the first hour by minutes


class TimeEncoder(nn.Module):
    """Hours (B, T) -> (B, T, D) as the ledger's M2 has it: Linear(1→D/4) → ReLU → Linear(D/4→D) → Tanh."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, width // 4), nn.ReLU(), nn.Linear(width // 4, width), nn.Tanh())

    def forward(self, hours: Tensor) -> Tensor:
        return self.net(hours.unsqueeze(-1) / TIME_UNIT)


class PositionTable(nn.Embedding):
    """Learned position of a set in its stay (M1), drawn small beside the tokens, as in GPT-2."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)


class Tokens(nn.Module):
    """Latents of the sets -> tokens (B, T, D), with position and time added where the scheme adds them.

    Schemes: none · index (M1) · index+time (M1, M2) · rotary (M3: queries and keys turn inside the Transformer) ·
    rotate_inputs (the seed's form: the tokens are turned once, which is not relative).
    """

    def __init__(self, config: Config, used: int) -> None:
        super().__init__()
        self.position = config.position
        self.project = nn.Linear(used, config.width)
        if config.position in ("index", "index+time"):
            self.index = PositionTable(config.max_sets, config.width)
        if config.position == "index+time":
            self.time = TimeEncoder(config.width)

    def forward(self, z: Tensor, batch: Batch) -> Tensor:
        """z (M, used) -> (B, T, D); padding is 0."""
        x = self.project(z)  # (M, D)
        if self.position in ("index", "index+time"):
            x = x + self.index(batch.column)
        if self.position == "index+time":
            x = x + self.time(batch.hours[batch.row, batch.column])
        if self.position == "rotate_inputs":
            x = rotate(x, time_angles(batch.hours[batch.row, batch.column], x.shape[-1]))
        return batch.padded(x)


class Layer(nn.Module):
    """One Transformer layer; LayerNorm before (pre) or after (post) each of its two parts (M4)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        D = config.width
        self.pre = config.norm == "pre"
        self.attention = Attention(D, config.heads)
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        activation = nn.GELU() if config.activation == "gelu" else nn.ReLU()
        self.feedforward = nn.Sequential(
            nn.Linear(D, config.feedforward), activation, Dropout(config.dropout), nn.Linear(config.feedforward, D)
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, batch: Batch, mask: Tensor | None, angles: Tensor | None) -> Tensor:
        def attend(y: Tensor) -> Tensor:
            return self.dropout(self.attention.over_time(y, batch, mask, angles))

        if self.pre:
            x = x + attend(self.norm1(x))
            return x + self.dropout(self.feedforward(self.norm2(x)))
        x = self.norm1(x + attend(x))
        return self.norm2(x + self.dropout(self.feedforward(x)))


class HistoryTransformer(nn.Module):
    """Causal Transformer: tokens (B, T, D) -> h (B, T, D), 0 on padding."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.final = nn.LayerNorm(config.width) if config.norm == "pre" else nn.Identity()
        self.rotary, self.leak = config.position == "rotary", config.future_leak
        self.features = config.width // config.heads

    def forward(self, tokens: Tensor, batch: Batch) -> Tensor:
        angles = time_angles(batch.hours, self.features) if self.rotary else None
        mask = self.relaxed_mask(batch.real) if self.training and self.leak else None
        x = batch.flat(tokens)
        for layer in self.layers:
            x = layer(x, batch, mask, angles)
        return batch.padded(self.final(x))

    def relaxed_mask(self, real: Tensor) -> Tensor:
        """The past, and a random share `future_leak` of the real future, drawn anew each step -> (B, 1, T, T).

        Two layers with a leak see almost the whole future: this arm is evaluated with the strict mask.
        Without it no key mask is needed, since padding is on the right and the causal mask hides it.
        """
        T = real.shape[1]
        strict = torch.ones(T, T, dtype=torch.bool, device=real.device).tril()
        leaked = torch.rand(real.shape[0], T, T, device=real.device) < self.leak
        return (strict | (leaked & real[:, None, :])).unsqueeze(1)


def pool_mean(tokens: Tensor, h: Tensor, real: Tensor, query: Tensor | None) -> Tensor:
    return torch.zeros_like(h[..., 0])


def pool_last(tokens: Tensor, h: Tensor, real: Tensor, query: Tensor | None) -> Tensor:
    last = real.sum(1, keepdim=True) - 1
    seen = torch.arange(real.shape[1], device=real.device) == last
    return torch.zeros_like(h[..., 0]).masked_fill(~seen, float("-inf"))


def pool_dot(tokens: Tensor, h: Tensor, real: Tensor, query: Tensor | None) -> Tensor:
    """The ledger's M6, attention by h·z, scaled as attention is (Vaswani et al. 2017)."""
    return pool_dot_unscaled(tokens, h, real, query) / h.shape[-1] ** 0.5


def pool_dot_unscaled(tokens: Tensor, h: Tensor, real: Tensor, query: Tensor | None) -> Tensor:
    """M6 to the letter: without a scale the softmax is sharper and looks at fewer sets (`effective_sets`)."""
    return (h * tokens).sum(-1)


def pool_query(tokens: Tensor, h: Tensor, real: Tensor, query: Tensor | None) -> Tensor:
    return h @ query / h.shape[-1] ** 0.5


POOLINGS = {
    "mean": pool_mean,
    "last": pool_last,
    "dot": pool_dot,
    "dot_unscaled": pool_dot_unscaled,
    "query": pool_query,
}


class OutcomeHead(nn.Module):
    """Pooling of h over the stay, beside it the statistics of each variable, and a logit for the outcome (M6, M7)."""

    def __init__(self, config: Config, variables: int) -> None:
        super().__init__()
        D = config.width
        self.summary = Summary(config, variables) if config.statistics else None
        features = D + (self.summary.width if self.summary else 0)
        self.pooling = config.pooling
        self.query = nn.Parameter(torch.zeros(D)) if config.pooling == "query" else None
        if config.head == "mlp":
            self.net = nn.Sequential(nn.Linear(features, D), nn.GELU(), Dropout(config.dropout), nn.Linear(D, 1))
        else:
            self.net = nn.Sequential(nn.Linear(features, 1))

    def forward(self, tokens: Tensor, h: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """-> logits (B,), and the weights of the sets (B, T), which sum to 1 per stay and are 0 on padding."""
        scores = POOLINGS[self.pooling](tokens, h, batch.real, self.query)
        weights = F.softmax(scores.masked_fill(~batch.real, float("-inf")), dim=1)
        seen = (weights.unsqueeze(-1) * h).sum(1)  # (B, D)
        if self.summary is not None:
            seen = torch.cat([seen, self.summary(batch)], dim=-1)
        return self.net(seen).squeeze(1), weights
