"""Stays of sets of events as flat arrays, in memory or in files, and what identifies them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .config import UserError

AT_ONCE = 2**20  # events that a pass over all stays takes at a time


@dataclass(frozen=True, eq=False)
class Cohort:
    """Stays as flat arrays: S stays, M sets, E events.  Every stay has a set, every set an event.

    The sets of stay i are `first_set[i]:first_set[i+1]`, in time; the events of set m are
    `first_event[m]:first_event[m+1]`, by variable, each variable once.
    """

    variables: tuple[str, ...]  # sorted names
    stays: np.ndarray  # (S,) ids as text
    first_set: np.ndarray  # (S+1,) int64
    first_event: np.ndarray  # (M+1,) int64
    hours: np.ndarray  # (M,) float64, since the start of the stay
    variable: np.ndarray  # (E,) int16, index into `variables`
    value: np.ndarray  # (E,) float64, natural units
    outcome: np.ndarray | None = None  # (S,) float64, 0 or 1, NaN where unknown
    probability: np.ndarray | None = None  # (S,) true outcome probability, of simulated stays
    group: np.ndarray | None = None  # (S,) text, for example the set letter of a public data set

    def __len__(self) -> int:
        return len(self.stays)

    def positions(self, index: np.ndarray | None = None) -> np.ndarray:
        """Positions of stays (n,): all by default, those that a mask (S,) marks, or `index` itself.

        Raises UserError for a mask of another length and for positions that the cohort does not have.
        """
        index = np.arange(len(self)) if index is None else np.asarray(index)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise UserError(f"a mask of shape {index.shape} does not mark {len(self)} stays: give one entry a stay")
            return np.flatnonzero(index)
        if index.ndim != 1 or (len(index) and not np.issubdtype(index.dtype, np.integer)):
            raise UserError("stays are chosen by their positions, whole numbers, or by a mask with one entry a stay")
        if wrong := [i for i in (index.min(initial=0), index.max(initial=0)) if not 0 <= i < max(len(self), 1)]:
            raise UserError(f"there is no stay {wrong[0]}: the table has {len(self)}, counted from 0")
        return index.astype(np.int64)

    def subset(self, index: np.ndarray) -> Cohort:
        """The stays of `index`, in that order."""
        index = np.asarray(index, dtype=np.int64)
        sets, first_set = ragged_rows(self.first_set, index)
        events, first_event = ragged_rows(self.first_event, sets)
        per_stay = {
            name: None if getattr(self, name) is None else getattr(self, name)[index]
            for name in ("stays", "outcome", "probability", "group")
        }
        return dataclasses.replace(
            self, first_set=first_set, first_event=first_event, hours=self.hours[sets],
            variable=self.variable[events], value=self.value[events], **per_stay,
        )  # fmt: skip

    def until(self, hours: float | np.ndarray) -> Cohort:
        """Every stay as it was known at `hours`: a number, or one per stay (S,).  Held in memory.

        A stay without a set until then keeps its first one, so that every stay can be scored.
        """
        if not np.issubdtype(np.asarray(hours).dtype, np.number) or not (np.asarray(hours) >= 0).all():
            raise UserError(f"a stay cannot be cut at {hours!r}: give hours since its start, from 0 on")
        limit = np.repeat(np.broadcast_to(hours, len(self)), np.diff(self.first_set))
        kept = self.hours <= limit
        kept[self.first_set[:-1]] = True
        events, first_event = ragged_rows(self.first_event, np.flatnonzero(kept))
        return dataclasses.replace(
            self, first_set=np.concatenate([[0], np.cumsum(kept)])[self.first_set], first_event=first_event,
            hours=self.hours[kept], variable=self.variable[events], value=self.value[events],
        )  # fmt: skip

    def fingerprints(self) -> list[str]:
        """Content hash of each stay's events, whatever its id and whatever other variables the cohort knows."""
        names = np.array([int(_hash(name.encode())[:15], 16) for name in self.variables], dtype=np.int64)
        found = []
        for part in self.parts():
            hours = np.repeat(part.hours, np.diff(part.first_event))
            events = np.stack([hours.view(np.int64), names[part.variable], part.value.view(np.int64)], axis=1)  # (E, 3)
            bounds = part.first_event[part.first_set]
            found += [_hash(events[a:b].tobytes()) for a, b in itertools.pairwise(bounds)]
        return found

    def absent(self) -> list[str]:
        """Variables without an event."""
        count = np.zeros(len(self.variables), dtype=np.int64)
        for part in self.parts():
            count += np.bincount(part.variable, minlength=len(count))
        return [name for name, n in zip(self.variables, count, strict=True) if not n]

    def parts(self) -> Iterator[Cohort]:
        """All stays, in order, in cohorts of about AT_ONCE events."""
        number = self.first_event[self.first_set[1:]] // AT_ONCE  # (S,)
        for part in np.split(np.arange(len(self)), np.flatnonzero(np.diff(number)) + 1):
            yield self.subset(part)

    def key(self) -> str:
        """Content hash of the whole: ids, events, outcomes, probabilities, groups."""
        digest = hashlib.blake2b(digest_size=16)
        _feed(digest, repr(self.variables).encode())
        for f in dataclasses.fields(self)[1:]:
            array = getattr(self, f.name)
            text = array is not None and array.dtype.kind in "UOT"
            _feed(digest, repr(array.tolist()).encode() if text else b"" if array is None else array)
        return digest.hexdigest()


def _hash(part: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, part)
    return digest.hexdigest()


def _feed(digest, part: bytes | np.ndarray) -> None:
    """Length and content, so that neighbours cannot trade bytes; an array may be larger than memory."""
    digest.update((part.nbytes if isinstance(part, np.ndarray) else len(part)).to_bytes(8, "big"))
    for start in range(0, len(part), AT_ONCE):
        digest.update(bytes(part[start : start + AT_ONCE]))


def joined(cohorts: list[Cohort]) -> Cohort:
    """The stays of several cohorts one after another; all have the same variables and the same per-stay columns."""
    columns = {}
    for f in dataclasses.fields(Cohort)[1:]:
        parts = [getattr(cohort, f.name) for cohort in cohorts]
        if f.name.startswith("first_"):  # offsets: each cohort's begin where those before it end
            starts = np.cumsum([0, *(part[-1] for part in parts[:-1])])
            parts = [np.zeros(1, np.int64), *(part[1:] + start for part, start in zip(parts, starts, strict=True))]
        columns[f.name] = None if parts[0] is None else np.concatenate(parts)
    return Cohort(cohorts[0].variables, **columns)


def ragged_rows(first: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of all items of the rows `index` of a ragged array with offsets `first`, and their own offsets."""
    count = first[index + 1] - first[index]
    offsets = np.concatenate([[0], np.cumsum(count)])
    return np.arange(offsets[-1]) + np.repeat(first[index] - offsets[:-1], count), offsets
