"""Masked attention, the blocks of the Set Transformer (Lee et al. 2019), and rotary angles (Su et al. 2021).

Masks are boolean and True means real, everywhere; a query with no real key gets 0, forward and backward.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Entries are 0 with probability p in training and otherwise divided by 1 − p, as in `nn.Dropout`.

    Draws 16 random bits an entry: `nn.Dropout` draws a double each on one CPU thread, a tenth of a training step.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.p):
            return x
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        return x * (bits >= round(self.p * 2**16) - 2**15).to(x.dtype).mul_(1 / (1 - self.p))


class Attention(nn.Module):
    """Multi-head attention Attn(X, Y): queries from X (n, Q, D), keys and values from Y (n, K, D) -> (n, Q, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, y: Tensor, mask: Tensor | None = None, causal: bool = False, angles: Tensor | None = None
    ) -> Tensor:
        """`mask` is True where a query may look at a key, broadcastable to (n, heads, Q, K); `angles` (n, T, D/heads/2)
        rotate queries and keys, so that the logits depend on differences of time only."""
        q = self._split(self.query(x))  # (n, heads, Q, D/heads)
        k, v = map(self._split, self.key_value(y).chunk(2, dim=-1))  # (n, heads, K, D/heads)
        if angles is not None:
            q, k = rotate(q, angles.unsqueeze(1)), rotate(k, angles.unsqueeze(1))
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return self.out(a.transpose(1, 2).flatten(2))  # (n, Q, D)

    def over_sets(self, x: Tensor, y: Tensor, groups: list[Tensor], queries: int | None, keys: int | None) -> Tensor:
        """The same within sets whose rows lie flat, one after another: x (rows, D), y (rows, D) -> like x.

        `groups` are masks (n, K) of sets of similar size; a set has `queries` rows in x and `keys` rows in y, or with
        None its K cells.  Everything but the attention itself runs on all rows at once.
        """
        rows_x = [real.numel() if queries is None else len(real) * queries for real in groups]
        rows_y = [real.numel() if keys is None else len(real) * keys for real in groups]
        parts = zip(groups, self.query(x).split(rows_x), self.key_value(y).split(rows_y), strict=True)
        out = []
        for real, q, kv in parts:
            q, kv = (t.view(len(real), -1, t.shape[-1]) for t in (q, kv))
            k, v = map(self._split, kv.chunk(2, dim=-1))
            mask = real[:, None, None, :] if keys is None else None
            a = F.scaled_dot_product_attention(self._split(q), k, v, attn_mask=mask)
            out.append(a.transpose(1, 2).flatten(2).flatten(0, 1))
        return self.out(torch.cat(out))

    def pool(self, seed: Tensor, x: Tensor, groups: list[Tensor]) -> Tensor:
        """`over_sets` for the same single query of every set: seed (1, D), cells x (C, D) -> sets (M, D).

        A logit is linear in the cell and so is a value, so both projections move out of the sum over cells: the key's
        onto the seed (once), the value's onto the pooled cells (once per set).  That is C·D·heads instead of 2·C·D².
        """
        h, D = self.heads, x.shape[-1]
        key, value = self.key_value.weight.view(2, h, D // h, D)
        query = self.query(seed).view(h, 1, D // h) * (D // h) ** -0.5
        logits = x @ (query @ key).view(h, D).mT  # (C, h); the key's bias shifts all cells alike
        cells = [real.numel() for real in groups]
        out = []
        for real, cell, logit in zip(groups, x.split(cells), logits.split(cells), strict=True):
            weight = logit.view(*real.shape, h).masked_fill(~real.unsqueeze(-1), float("-inf")).softmax(dim=1)
            out.append(weight.mT @ cell.view(*real.shape, D))  # (n, h, D)
        pooled = (torch.cat(out).transpose(0, 1) @ value.mT).transpose(0, 1)  # (M, h, D/h)
        return self.out(pooled.flatten(1) + self.key_value.bias[D:])

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MAB(nn.Module):
    """Multihead attention block: MAB(X, Y) = LN(H + FF(H)), H = LN(X + Attn(X, Y, Y)).

    With `residual=False` (ledger S2, before) the two sums lose their first term.
    """

    def __init__(self, width: int, heads: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.attention = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.norm2 = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, y: Tensor, groups: list[Tensor], queries: int | None = None, keys: int | None = None
    ) -> Tensor:
        """Rows of X and Y as in `Attention.over_sets` -> like X."""
        return self.after(x, self.attention.over_sets(x, y, groups, queries, keys))

    def after(self, x: Tensor, a: Tensor) -> Tensor:
        """What follows the attention a of X."""
        h = self.norm1(x + a if self.residual else a)
        f = self.feedforward(h)
        return self.norm2(h + f if self.residual else f)


class SAB(nn.Module):
    """Set attention block: every element looks at every element, SAB(X) = MAB(X, X)."""

    def __init__(self, width: int, heads: int, residual: bool) -> None:
        super().__init__()
        self.block = MAB(width, heads, residual)

    def forward(self, x: Tensor, groups: list[Tensor]) -> Tensor:
        return self.block(x, x, groups)


class ISAB(nn.Module):
    """Induced set attention block: MAB(X, MAB(I, X)) with m learned inducing points I; O(nm) instead of O(n²)."""

    def __init__(self, width: int, heads: int, residual: bool, points: int) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.empty(points, width))
        self.reset_parameters()
        self.gather = MAB(width, heads, residual)
        self.spread = MAB(width, heads, residual)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.points, std=self.points.shape[-1] ** -0.5)

    def forward(self, x: Tensor, groups: list[Tensor]) -> Tensor:
        m = len(self.points)
        summary = self.gather(self.points.repeat(sum(map(len, groups)), 1), x, groups, queries=m)  # (M m, D)
        return self.spread(x, summary, groups, keys=m)


class PMA(nn.Module):
    """Pooling by multihead attention with one learned seed s: MAB(s, X), cells (C, D) -> sets (M, D)."""

    def __init__(self, width: int, heads: int, residual: bool) -> None:
        super().__init__()
        self.seed = nn.Parameter(torch.empty(1, width))
        self.reset_parameters()
        self.block = MAB(width, heads, residual)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.seed, std=self.seed.shape[-1] ** -0.5)

    def forward(self, x: Tensor, groups: list[Tensor]) -> Tensor:
        return self.block.after(self.seed, self.block.attention.pool(self.seed, x, groups))


def time_angles(hours: Tensor, features: int) -> Tensor:
    """Rotary angles (…, features/2) in radians for times in hours, wavelengths 1 to 1,000 hours.

    The band covers what a clinical stay holds: from neighbouring sets (minutes to an hour) to a stay of weeks.
    """
    pairs = features // 2
    exponent = torch.arange(pairs, device=hours.device, dtype=hours.dtype) / max(pairs - 1, 1)
    return hours.unsqueeze(-1) * (2 * math.pi * 1000.0**-exponent)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Turn each pair (x_2i, x_2i+1) of x (…, F) by angles (…, F/2): the rotary embedding R_t x."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
