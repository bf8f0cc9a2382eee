"""Masked attention, the blocks of the Set Transformer (Lee et al. 2019), and rotary angles (Su et al. 2021).

Masks are boolean and True means real, everywhere.  Sets lie side by side in windows (`data.Windows`), and what a query
may not look at is hidden by a number that is added to the logits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Batch, Windows

HIDDEN = -1e9  # logit of a key that a query may not look at; finite, so that an empty slot gives no NaN


class Places(NamedTuple):
    """Where the M sets of a batch stand in its windows: what attention within sets needs to know of them.

    W windows of c cells and S slots each; 0 is visible, HIDDEN is not.
    """

    within: Tensor  # (W, c, c) from a cell to the cells of its set
    into: Tensor  # (W, S, c) from a slot to the cells of the set that stands there
    slot: Tensor  # (M,) of each set, among the W·S slots

    @classmethod
    def of(cls, windows: Windows, sets: int) -> Places:
        owner = windows.set.unsqueeze(1)
        within, into = owner != windows.set.unsqueeze(2), owner != windows.sets.unsqueeze(2)
        return cls(_hide(within), _hide(into), windows.sets.flatten().argsort()[-sets:])


def _hide(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, HIDDEN)


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

    def over_time(self, x: Tensor, batch: Batch, mask: Tensor | None, angles: Tensor | None) -> Tensor:
        """Self-attention between the sets of each stay: x (M, D) -> (M, D).

        `mask` is True where a query may look at a key, broadcastable to (B, heads, T, T), or None for the past and the
        present; `angles` (B, T, D/heads/2) rotate queries and keys, so that the logits depend on differences of time
        only.  Padding is on the right, so that the causal mask hides it.
        """
        joined = self._joined(x, self.query.weight, self.query.bias)
        q, k, v = map(self._split, batch.padded(joined).chunk(3, dim=-1))  # (B, heads, T, D/heads)
        if angles is not None:
            q, k = rotate(q, angles.unsqueeze(1)), rotate(k, angles.unsqueeze(1))
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out(batch.flat(a.transpose(1, 2).flatten(2)))

    def over_sets(self, x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        """Attention within W windows whose rows lie flat: x (W·queries, D), y (W·keys, D) -> like x.

        `hidden` (W, queries, keys) says what the rows of x may not see of those of y; x may be y.  Everything but the
        attention itself runs on all rows at once, and that head by head on strided pieces: a product over all heads
        copies its operands.
        """
        h, D = self.heads, x.shape[-1]
        scale = (D // h) ** -0.5
        query = self.query.weight * scale, self.query.bias * scale
        parts = [self._joined(x, *query)] if x is y else [F.linear(x, *query), self.key_value(y)]
        pieces = [c for p in parts for c in p.view(len(hidden), -1, p.shape[-1]).split(D // h, dim=-1)]
        triples = zip(pieces[:h], pieces[h : 2 * h], pieces[2 * h :], strict=True)
        heads = [torch.baddbmm(hidden.to(q), q, k.mT).softmax(-1) @ v for q, k, v in triples]
        return self.out(torch.cat(heads, dim=-1).flatten(0, 1))

    def _joined(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Queries by the given projection, keys and values of the same rows, side by side: (rows, D) -> (rows, 3 D)."""
        return F.linear(x, torch.cat([weight, self.key_value.weight]), torch.cat([bias, self.key_value.bias]))

    def pool(self, seed: Tensor, x: Tensor, places: Places) -> Tensor:
        """`over_sets` for the same single query of every set: seed (1, D), cells x (C, D) -> sets (M, D).

        A logit is linear in the cell and so is a value, so both projections move out of the sum over cells: the key's
        onto the seed (once), the value's onto the pooled cells (once per set).  That is C·D·heads instead of 2·C·D².
        """
        h, D = self.heads, x.shape[-1]
        key, value = self.key_value.weight.view(2, h, D // h, D)
        query = self.query(seed).view(h, 1, D // h) * (D // h) ** -0.5
        logits = x @ (query @ key).view(h, D).mT  # (C, h); the key's bias shifts all cells alike
        W, S, c = places.into.shape
        hidden = places.into.to(logits).unsqueeze(1)
        weight = (logits.view(W, c, h).mT.unsqueeze(2) + hidden).softmax(-1)  # (W, h, S, c)
        pooled = (weight.flatten(1, 2) @ x.view(W, c, D)).flatten(0, 1)  # a row for each window, head and slot
        first = places.slot + places.slot // S * (h - 1) * S  # row of the first head
        rows = first + S * torch.arange(h, device=x.device).unsqueeze(1)  # (h, M)
        pooled = pooled.index_select(0, rows.flatten()).view(h, -1, D) @ value.mT  # (h, M, D/h)
        return self.out(pooled.transpose(0, 1).flatten(1) + self.key_value.bias[D:])

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

    def forward(self, x: Tensor, y: Tensor, hidden: Tensor) -> Tensor:
        """Rows of X and Y as in `Attention.over_sets` -> like X."""
        return self.after(x, self.attention.over_sets(x, y, hidden))

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

    def forward(self, x: Tensor, places: Places) -> Tensor:
        return self.block(x, x, places.within)


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

    def forward(self, x: Tensor, places: Places) -> Tensor:
        m = len(self.points)
        into = places.into.repeat_interleave(m, dim=1)  # every slot has the m points
        summary = self.gather(self.points.repeat(into.shape[:2].numel() // m, 1), x, into)  # m rows a slot
        return self.spread(x, summary, into.mT)


class PMA(nn.Module):
    """Pooling by multihead attention with one learned seed s: MAB(s, X), cells (C, D) -> sets (M, D)."""

    def __init__(self, width: int, heads: int, residual: bool) -> None:
        super().__init__()
        self.seed = nn.Parameter(torch.empty(1, width))
        self.reset_parameters()
        self.block = MAB(width, heads, residual)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.seed, std=self.seed.shape[-1] ** -0.5)

    def forward(self, x: Tensor, places: Places) -> Tensor:
        return self.block.after(self.seed, self.block.attention.pool(self.seed, x, places))


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
