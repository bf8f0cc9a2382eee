"""A network laid open for measuring: posterior means, dropout off, float64, the pieces of the model called one by one.

set latents → tokens → history → decode: between any two of them something can be swapped, namely latents between sets,
the past between stays, one posterior draw for another.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .cohort import Cohort
from .config import stream
from .data import Batch, Standardiser, collate
from .evaluate import EVALUATION_BATCH
from .model import HSetVAE, has_next
from .setvae import Latents

PLACES = (0.25, 0.5, 0.75, 1.0)  # where in a stay the past is swapped
CHUNK = 128  # swapped stays per pass


def double_batches(cohort: Cohort, standardiser: Standardiser, max_sets: int) -> list[Batch]:
    """All stays of the cohort, in order, as float64 batches."""
    parts = np.split(np.arange(len(cohort)), range(EVALUATION_BATCH, len(cohort), EVALUATION_BATCH))
    return [_double(collate(cohort, part, standardiser, max_sets)) for part in parts]


def _double(batch: Batch) -> Batch:
    windows = dataclasses.replace(batch.windows, value=batch.windows.value.double())
    return dataclasses.replace(batch, hours=batch.hours.double(), outcome=batch.outcome.double(), windows=windows)


class Observed:
    """One network on the M sets of `batches`: Latents at the posterior means, and what follows from them.

    z (M, used) and h (M, D) are the states before and after the history, residual (M, D) what h would be if the
    history added nothing, pooling (M,) the weights of the sets in the outcome head, logits (B,).
    """

    def __init__(self, model: HSetVAE, batches: list[Batch], seed: int) -> None:
        self.model, self.batches, self.seed = copy.deepcopy(model).cpu().double().eval(), batches, seed
        self.latents = self.draw(sample=False)
        passed = [self._pass(batch, z) for batch, z in self._batched(self.latents.z)]
        self.h, self.residual, self.pooling, self.logits = (torch.cat(t).numpy() for t in zip(*passed, strict=True))
        self.z = self.model.setvae.passed_on(self.latents.z).numpy()

    @torch.no_grad()
    def exchanged(self, level: int, order: np.ndarray) -> Tensor:
        """z (M, L, Z) where every set adds to the prior of one level what set `order` adds there; the levels below
        start from priors that have heard it."""
        z, shift = self.latents.z.clone(), self.latents.mu - self.latents.prior_mu
        for below in reversed(range(level + 1)):
            prior_mu, _ = self.model.setvae.prior(below, list(z[:, below + 1 :].unbind(1)), z[:, below])
            z[:, below] = prior_mu + (shift[order, below] if below == level else shift[:, below])
        return z

    @torch.no_grad()
    def draw(self, sample: bool, name: str = "") -> Latents:
        """Latents of all sets: the posterior means, or one draw from the posterior under a named stream."""
        noise = torch.Generator().manual_seed(stream(self.seed, "posterior", name))
        found = [self.model.set_latents(batch, sample, noise) for batch in self.batches]
        return Latents(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))

    def _batched(self, z: Tensor) -> Iterator[tuple[Batch, Tensor]]:
        return zip(self.batches, z.split([batch.size for batch in self.batches]), strict=True)

    @torch.no_grad()
    def _pass(self, batch: Batch, z: Tensor) -> tuple[Tensor, ...]:
        tokens = self.model.tokens(z, batch)
        h = self.model.history(tokens, batch)
        logits, weights = self.model.head(tokens, h, batch)
        of_set = batch.row, batch.column
        return h[of_set], residual_stream(self.model.history, tokens)[of_set], weights[of_set], logits

    @torch.no_grad()
    def distortion(self, z: Tensor) -> dict[str, float]:
        """Mean distortion per set with latents z (M, L, Z), for each target; the next set where there is one."""
        sums = dict.fromkeys(self.model.decoders, 0.0)
        for batch, part in self._batched(z):
            h = self.model.history(self.model.tokens(part, batch), batch)
            for name, missed in self.model.decode(h, batch).items():
                sums[name] += float(missed.sum())
        sets = {"current": len(z), "next": sum(int(has_next(batch).sum()) for batch in self.batches)}
        return {name: total / max(sets[name], 1) for name, total in sums.items()}

    @torch.no_grad()
    def last_states(self, lines: list[Line], past: tuple[Tensor, str], now: tuple[Tensor, str]) -> np.ndarray:
        """h at the current set of each line -> (n, D); `past` and `now` are (latents of all sets, whose sets)."""
        states = []
        for line in lines:
            column = line.last[line.batch.row]
            current = (line.batch.column == column)[:, None, None]
            z = torch.where(current, now[0][line.sets[now[1]]], past[0][line.sets[past[1]]])
            h = self.model.history(self.model.tokens(z, line.batch), line.batch)
            states.append(h[torch.arange(len(line.last)), line.last])
        return torch.cat(states).numpy()


def residual_stream(history, tokens: Tensor) -> Tensor:
    """What the Transformer returns when attention and feed-forward add nothing: the tokens, normalised as h is."""
    for layer in history.layers:
        tokens = tokens if layer.pre else layer.norm2(layer.norm1(tokens))
    return history.final(tokens)


class Line(NamedTuple):
    """n stays cut after a set, at their own times, beside the sets of a partner put at the same times."""

    batch: Batch  # times only, no events
    last: Tensor  # (n,) column of the current set
    sets: dict[str, Tensor]  # "own" and "other" -> (P,) which of the cohort's sets stands at each place


def paired_lines(cohort: Cohort, rng: np.random.Generator) -> list[Line]:
    """Every stay cut at PLACES of its length, each with a random other stay that has as many sets or more."""
    count = np.diff(cohort.first_set)
    cuts = [np.stack([np.arange(len(count)), np.ceil(p * (count - 1)).astype(int)], axis=1) for p in PLACES]
    stay, last = np.unique(np.concatenate(cuts), axis=0).T
    order = np.argsort(-count, kind="stable")  # longest first
    rank = np.argsort(order, kind="stable")
    able = np.searchsorted(-count[order], -last, side="left")  # so many stays reach beyond `last`
    kept = np.flatnonzero((last > 0) & (able > 1))
    stay, last, able = stay[kept], last[kept], able[kept]
    draw = rng.integers(0, able - 1)
    partner = order[draw + (draw >= rank[stay])]  # never itself
    by_length = np.argsort(last, kind="stable")
    chunks = np.split(by_length, range(CHUNK, len(by_length), CHUNK)) if len(by_length) else []
    return [_line(cohort, stay[chunk], partner[chunk], last[chunk]) for chunk in chunks]


def _line(cohort: Cohort, stay: np.ndarray, partner: np.ndarray, last: np.ndarray) -> Line:
    row = np.repeat(np.arange(len(stay)), last + 1)
    column = np.arange(len(row)) - np.repeat(np.cumsum(last + 1) - last - 1, last + 1)
    own, other = (torch.from_numpy(cohort.first_set[who][row] + column) for who in (stay, partner))
    hours, real = torch.zeros(len(stay), last.max() + 1).double(), torch.zeros(len(stay), last.max() + 1).bool()
    row, column = torch.from_numpy(row), torch.from_numpy(column)
    hours[row, column], real[row, column] = torch.from_numpy(cohort.hours)[own], True
    unknown = torch.full((len(stay),), math.nan).double()
    batch = Batch(cohort.stays[stay].tolist(), hours, real, unknown, None, len(row), row, column)
    return Line(batch, torch.from_numpy(last), {"own": own, "other": other})
