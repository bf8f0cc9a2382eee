"""From a cohort of ragged stays to a batch of tensors: splits, standardiser, collation.

A stay is a sequence of sets, a set is all (variable, value) events of one time.  Everything ragged is kept flat, with
offsets: no Python loop runs over sets or events.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .cohort import Cohort
from .config import UserError, nearest, stream

CLIP = 10.0  # |z| of an event is at most this: an entry error of 1,000 SD must not outweigh all other events of a batch
TAIL = 0.01  # share of events at either end that mean and SD see only as that quantile, for the same reason
FITTED = 5_000_000  # events that a standardiser is fitted on at most
WINDOW = 32  # cells of a window: sets attend side by side in it; products of 6 x 6 take twice the time


# --- splits ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Split:
    """Index arrays into the stays of a cohort, disjoint and sorted."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(
    cohort: Cohort,
    seed: int,
    shares: tuple[float, float, float] = (0.6, 0.2, 0.2),
    fit: Sequence[str] | None = None,
    score: Sequence[str] | None = None,
) -> Split:
    """Split by stay, stratified by outcome, decided by `seed` -> Split.

    With `fit` and/or `score` (names of groups) the test stays are the groups of `score` (default: all others), and
    training and validation share the groups of `fit` (default: all others) as `shares[0] : shares[1]`.
    Raises UserError for unknown or overlapping groups and when a part would be empty.
    """
    if len(shares) != 3 or not all(0 <= share <= 1 for share in shares) or not sum(shares) > 0:
        raise UserError(f"shares are three numbers from 0 to 1, to learn, to select and to test; they are {shares}")
    if isinstance(fit, str) or isinstance(score, str):
        raise UserError(f'fit = {fit!r}, score = {score!r}: give lists of groups, such as ["a", "b"]')
    rng = np.random.default_rng(stream(seed, "split"))
    if fit is None and score is None:
        parts = _stratified(cohort, np.arange(len(cohort)), shares, rng)
    else:
        inside, outside = _groups(cohort, fit, score)
        train, validation = _stratified(cohort, inside, shares[:2], rng)
        parts = [train, validation, outside]
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if not len(part):
            raise UserError(f"the split of {len(cohort)} stays leaves none for {name}: give more stays")
    return Split(*(np.sort(part) for part in parts))


def _stratified(cohort: Cohort, index: np.ndarray, shares: Sequence[float], rng) -> list[np.ndarray]:
    outcome = np.zeros(len(cohort)) if cohort.outcome is None else np.nan_to_num(cohort.outcome, nan=-1)
    cuts = np.cumsum(shares)[:-1] / np.sum(shares)
    parts = []
    for level in np.unique(outcome[index]):
        members = rng.permutation(index[outcome[index] == level])
        parts.append(np.split(members, np.rint(cuts * len(members)).astype(int)))
    return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]


def _groups(cohort: Cohort, fit: Sequence[str] | None, score: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    if cohort.group is None:
        raise UserError("this table has no column group: fit and score need one, with one name per stay")
    known = sorted(set(cohort.group.tolist()))
    for name in [*(fit or []), *(score or [])]:
        if name not in known:
            raise UserError(f'there is no group "{name}" (there are {", ".join(known)}){nearest(name, known)}')
    fit = [g for g in known if g not in score] if fit is None else fit
    score = [g for g in known if g not in fit] if score is None else score
    if both := sorted(set(fit) & set(score)):
        raise UserError(f"group {', '.join(both)} is both fitted and scored: a stay may be used for one of them only")
    if not (fit and score):
        raise UserError(f"nothing is left to {'score' if fit else 'fit'}: the table has the groups {', '.join(known)}")
    return np.flatnonzero(np.isin(cohort.group, fit)), np.flatnonzero(np.isin(cohort.group, score))


def batches(n: int, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Positions 0..n-1 in random order, cut into batches: a function of (seed, epoch) and of nothing else."""
    order = np.random.default_rng(stream(seed, "batches", epoch)).permutation(n)
    return [order[start : start + batch_size] for start in range(0, n, batch_size)]


def with_shorter(cohort: Cohort, share: float, seed: int) -> Cohort:
    """The stays, and a random `share` of them a second time, up to a random hour, uniform over the stay.

    The whole stays remain: a model that predicts at any hour should not have seen fewer of them.
    """
    rng, S = np.random.default_rng(seed), len(cohort)
    again = np.flatnonzero(rng.random(S) < share)
    both = cohort.subset(np.concatenate([np.arange(S), again]))
    first, last = cohort.hours[cohort.first_set[again]], cohort.hours[cohort.first_set[again + 1] - 1]
    return both.until(np.concatenate([np.full(S, np.inf), first + rng.random(len(again)) * (last - first)]))


# --- standardised values ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Standardiser:
    """z = (x - mean) / scale per variable, kept within ±CLIP; fitted on training stays only.

    Mean and SD are winsorised: the outermost 1 % of a variable's events count as its 1 % and 99 % quantile.  A constant
    variable has scale 1.  A variable unseen in training has z = 0 (its presence counts, its value says nothing yet)
    and is named in `unseen`.
    """

    variables: tuple[str, ...]
    mean: np.ndarray  # (V,) natural units
    scale: np.ndarray  # (V,) natural units
    count: np.ndarray  # (V,) events it was fitted on

    @property
    def unseen(self) -> tuple[str, ...]:
        return tuple(name for name, n in zip(self.variables, self.count, strict=True) if n == 0)

    @classmethod
    def fit(cls, cohort: Cohort, index: np.ndarray) -> Standardiser:
        """Statistics of the stays `index`; no other stay is read.

        Stays with more than FITTED events in all are represented by some of them, drawn at random until they hold that
        many: enough for two digits of the mean of a variable that is a thousandth of the events.
        """
        part = cohort.subset(at_most(cohort, np.asarray(index, dtype=np.int64), FITTED))
        order = np.argsort(part.variable, kind="stable")
        bounds = np.searchsorted(part.variable[order], np.arange(len(cohort.variables) + 1))
        mean, scale = np.zeros(len(bounds) - 1), np.ones(len(bounds) - 1)
        for v in np.flatnonzero(np.diff(bounds)):
            x = part.value[order[bounds[v] : bounds[v + 1]]]
            # the order statistics inside the tails: at least the outermost event on either side never counts
            low, high = sorted((np.quantile(x, TAIL, method="higher"), np.quantile(x, 1 - TAIL, method="lower")))
            inner = x.clip(low, high)
            mean[v] = inner.mean()
            # a constant has an SD of rounding error only; a variable that is rarely not constant needs the whole
            scale[v] = next((y.std() for y in (inner, x) if y.std() > 1e-9 * np.abs(y).max()), 1.0)
        return cls(cohort.variables, mean, scale, np.diff(bounds))

    def standardise(self, variable: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Natural units -> z, float32."""
        z = (value - self.mean[variable]) / self.scale[variable]
        return np.where(self.count[variable] > 0, z.clip(-CLIP, CLIP), 0).astype(np.float32)

    def transform(self, cohort: Cohort) -> np.ndarray:
        """z of every event of the cohort -> (E,) float32.  Raises UserError when the variables differ."""
        self._check(cohort)
        return self.standardise(cohort.variable, cohort.value)

    def inverse(self, variable: np.ndarray, z: np.ndarray) -> np.ndarray:
        """z -> natural units."""
        return self.mean[variable] + self.scale[variable] * z

    def _check(self, cohort: Cohort) -> None:
        if self.variables != cohort.variables:
            other = sorted(set(self.variables) ^ set(cohort.variables))
            raise UserError(
                f"this table's variables are not those the values were standardised with (different: "
                f"{', '.join(other[:5])}): read it with read_cohort(events, outcomes, variables=run.variables)"
            )

    def to_dict(self) -> dict[str, list]:
        arrays = {name: getattr(self, name).tolist() for name in ("mean", "scale", "count")}
        return {"variables": list(self.variables), **arrays}

    @classmethod
    def from_dict(cls, d: dict[str, list]) -> Standardiser:
        numbers = (np.array(d["mean"], dtype=float), np.array(d["scale"], dtype=float), np.array(d["count"], dtype=int))
        return cls(tuple(d["variables"]), *numbers)


def at_most(cohort: Cohort, index: np.ndarray, events: int) -> np.ndarray:
    """`index`, or when its stays hold more than `events` a random part of it that holds about so many."""
    count = cohort.first_event[cohort.first_set[index + 1]] - cohort.first_event[cohort.first_set[index]]
    if count.sum() <= events:
        return index
    order = np.random.default_rng(stream(0, "standardiser")).permutation(len(index))
    return index[np.sort(order[np.cumsum(count[order]) <= events])]


# --- batches of tensors ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Windows:
    """W windows of c cells: whole sets, one after another, and some cells of padding behind the last one."""

    variable: Tensor  # (W, c) int64, 0 on padding
    value: Tensor  # (W, c) float32 standardised, 0 on padding
    set: Tensor  # (W, c) int64, which of the batch's M sets the event belongs to, -1 on padding
    sets: Tensor  # (W, S) int64, the sets of the window, -1 where it has fewer than S

    @property
    def real(self) -> Tensor:
        """(W, c) bool, False on padding."""
        return self.set >= 0

    def masked(self, share: float, generator: torch.Generator | None = None) -> Windows:
        """As if a random `share` of the events of a random half of the sets had not been measured.

        Every set keeps at least one event.  The draws are made on the CPU, the same on every device.
        """
        M, owner = int(self.sets.max()) + 1, self.set.clamp_min(0)
        half = torch.rand(M, generator=generator).to(owner.device) < 0.5
        draw = torch.rand(owner.shape, generator=generator).to(owner.device).masked_fill(~self.real, -1.0)
        last = draw.new_zeros(M).scatter_reduce(0, owner.flatten(), draw.flatten(), "amax")  # the one that stays
        hidden = half[owner] & (draw < share) & (draw < last[owner])
        variable, value = (t.masked_fill(hidden, 0) for t in (self.variable, self.value))
        return Windows(variable, value, self.set.masked_fill(hidden, -1), self.sets)

    def to(self, device: str | torch.device) -> Windows:
        return _moved(self, device)


@dataclass(frozen=True, eq=False)
class Batch:
    """B stays with M sets, at most T in one stay.  Set m is the `column[m]`-th of stay `row[m]`."""

    stay: list[str]  # (B,)
    hours: Tensor  # (B, T) float32, 0 on padding
    real: Tensor  # (B, T) bool, right-padded
    outcome: Tensor  # (B,) float32, NaN where unknown
    windows: Windows | None  # the events; None where only the times of the sets are of interest
    size: int  # M
    row: Tensor  # (M,) int64
    column: Tensor  # (M,) int64

    def padded(self, x: Tensor) -> Tensor:
        """A row for every set (M, F) -> (B, T, F), 0 on padding."""
        B, T = self.real.shape
        return x.new_zeros(B * T, x.shape[-1]).index_copy(0, self.row * T + self.column, x).view(B, T, -1)

    def flat(self, x: Tensor) -> Tensor:
        """(B, T, F) -> a row for every set (M, F)."""
        return x.flatten(0, 1).index_select(0, self.row * x.shape[1] + self.column)

    def events(self) -> Tensor:
        """Number of events of each set -> (M,) int64."""
        return torch.bincount(self.windows.set[self.windows.real], minlength=self.size)

    def to(self, device: str | torch.device) -> Batch:
        return dataclasses.replace(_moved(self, device), windows=self.windows and self.windows.to(device))


def _moved(item, device):
    tensors = {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}
    return dataclasses.replace(item, **{n: t.to(device) for n, t in tensors.items() if isinstance(t, Tensor)})


def longest_stay(cohort: Cohort, index: np.ndarray, max_sets: int) -> int:
    """Number of sets of the longest of the stays `index`.  Raises UserError when it is more than `max_sets`."""
    index = np.asarray(index, dtype=np.int64)
    count = cohort.first_set[index + 1] - cohort.first_set[index]
    T = int(count.max(initial=0))
    if T > max_sets:
        raise UserError(
            f'stay "{cohort.stays[index[count.argmax()]]}" has {T} sets, more than max_sets = {max_sets}: '
            f"train with --set max_sets={T}, or leave this stay out"
        )
    return T


def collate(cohort: Cohort, index: np.ndarray, standardiser: Standardiser, max_sets: int) -> Batch:
    """The stays `index` as one Batch; sets ordered by stay, then time.

    Raises UserError when a stay has more than `max_sets` sets, or the cohort other variables than the standardiser.
    """
    standardiser._check(cohort)
    T = longest_stay(cohort, index, max_sets)
    part = cohort.subset(index)  # the only reading of a cohort that may lie in files
    count = np.diff(part.first_set)
    B, M = len(part), len(part.hours)
    row = np.repeat(np.arange(B), count)
    column = np.arange(M) - part.first_set[row]
    hours, real = np.zeros((B, T), dtype=np.float32), np.zeros((B, T), dtype=bool)
    hours[row, column], real[row, column] = part.hours, True
    outcome = np.full(B, np.nan) if part.outcome is None else part.outcome
    z = standardiser.standardise(part.variable, part.value)
    return Batch(
        stay=part.stays.tolist(),
        hours=torch.from_numpy(hours),
        real=torch.from_numpy(real),
        outcome=torch.from_numpy(outcome.astype(np.float32)),
        windows=_windows(part, z),
        size=M,
        row=torch.from_numpy(row),
        column=torch.from_numpy(column),
    )


def _windows(cohort: Cohort, z: np.ndarray) -> Windows:
    """The sets of the cohort, with standardised values z (E,), in windows of WINDOW cells, or of the largest set's."""
    size = np.diff(cohort.first_event)
    width = max(WINDOW, int(size.max()))
    window, first, slot = pack(size, width)
    shape, slots = (window.max() + 1, width), (window.max() + 1, slot.max() + 1)
    variable, value = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    of_cell, of_slot = np.full(shape, -1), np.full(slots, -1)
    of_slot[window, slot] = np.arange(len(size))
    within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)  # place of an event in its set
    cell = np.repeat(window * width + first, size) + within
    variable.flat[cell], value.flat[cell] = cohort.variable, z
    of_cell.flat[cell] = np.repeat(np.arange(len(size)), size)
    return Windows(*(torch.from_numpy(a) for a in (variable, value, of_cell, of_slot)))


def pack(size: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Put whole sets of `size` (n,) events into few windows of `width` cells -> window, first cell and slot of each.

    The largest sets first, each to the emptiest window (Graham 1969), a round of windows at a time: they end equally
    full and with a similar number of sets.  The loop runs over rounds, some dozens of them, not over sets.
    """
    order = np.argsort(-size, kind="stable")
    ordered = size[order]
    window, first, slot = np.zeros((3, len(size)), dtype=np.int64)
    free = np.full(-(-int(size.sum()) // width), width)
    held = np.zeros_like(free)
    done = 0
    while done < len(order):
        k = ordered[done]
        alike = int(np.searchsorted(-ordered, -k, side="right")) - done  # sets of this size still to be placed
        open_ = np.argsort(-free, kind="stable")
        open_ = open_[free[open_] >= k][:alike]
        if not len(open_):
            more = -(-alike // (width // k))
            free, held = np.append(free, np.full(more, width)), np.append(held, np.zeros(more, dtype=held.dtype))
            continue
        placed = order[done : done + len(open_)]
        window[placed], first[placed], slot[placed] = open_, width - free[open_], held[open_]
        free[open_] -= k
        held[open_] += 1
        done += len(open_)
    return window, first, slot
