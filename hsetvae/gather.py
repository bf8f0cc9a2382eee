"""From the pieces of an event table, each checked, to a Cohort: ids and names in order, events sorted, sets found."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Sequence

import numpy as np

from .cohort import Cohort
from .config import UserError
from .mapped import Rows
from .tables import Piece, read_whole

PER_STAY = ("outcome", "probability", "group")  # optional columns, constant within a stay
LARGEST_HOURS = 1e6  # a hundred years: beyond it lie seconds, dates as numbers, and damaged rows
LARGEST_VALUE = 1e12  # no clinical unit gives larger numbers: beyond it lie placeholders and damaged rows
VOCABULARY = b"hsetvae.variables"  # Parquet metadata: names of all variables, also of those without an event
UNKNOWN, UNSEEN = -1, -2  # in per-stay columns: empty, and not met yet
AVERAGED = "events averaged into another of the same stay, time and variable"
MOST_VARIABLES = np.iinfo(np.int16).max  # their codes are 16 bits wide
UNKNOWN_VARIABLES = "events of unknown variables"


def build(
    stays: np.ndarray,
    variables: tuple[str, ...],
    stay: np.ndarray,
    hours: np.ndarray,
    variable: np.ndarray,
    value: np.ndarray,
    **per_stay: np.ndarray | None,
) -> tuple[Cohort, int]:
    """Cohort of an event table in any order, given as codes into `stays` and `variables` -> cohort, events averaged.

    A variable that occurs twice in a set is averaged.  Every stay needs an event.
    """
    new_set = _changes(stay) | _changes(hours)
    if not _sorted_and_unique(stay, hours, variable, new_set):
        order = np.lexsort((value, variable, hours, stay))  # by value too: the mean must not depend on row order
        stay, hours, variable, value = stay[order], hours[order], variable[order], value[order]
        new_set = _changes(stay) | _changes(hours)
    set_at = np.flatnonzero(new_set)
    first_event = np.append(set_at, len(stay))
    event_at = np.flatnonzero(new_set | _changes(variable))
    averaged = len(stay) - len(event_at)
    if averaged:
        value = np.add.reduceat(value, event_at) / np.diff(np.append(event_at, len(stay)))
        variable, first_event = variable[event_at], np.searchsorted(event_at, first_event)
    cohort = Cohort(
        variables=tuple(variables),
        stays=np.asarray(stays, dtype=str),
        first_set=np.searchsorted(stay[set_at], np.arange(len(stays) + 1)),
        first_event=first_event,
        hours=hours[set_at] + 0.0,  # -0.0 becomes 0.0
        variable=variable.astype(np.int16),
        value=value,
        **per_stay,
    )
    return cohort, averaged


def _sorted_and_unique(stay: np.ndarray, hours: np.ndarray, variable: np.ndarray, new_set: np.ndarray) -> bool:
    at = np.flatnonzero(new_set)
    stay, hours = stay[at], hours[at]
    later = np.where(stay[1:] == stay[:-1], hours[1:] > hours[:-1], stay[1:] > stay[:-1])
    return bool(later.all() and (new_set[1:] | (variable[1:] > variable[:-1])).all())


def _changes(column: np.ndarray) -> np.ndarray:
    """Whether an entry differs from the one before it; the first one does."""
    return np.append(True, column[1:] != column[:-1])


class Gathered:
    """What the pieces of an event table have shown so far, with stays and variables as codes in order of appearance.

    After `end`, `stays` are the sorted ids of those with events, `place` leads from a code to its position there, and
    `events` counts the events at each position.
    """

    def __init__(self, variables: Sequence[str] | None, rows: Rows) -> None:
        self.asked, self.rows, self.read, self.counts = variables, rows, 0, collections.Counter()
        self.ids, self.names, self.groups = {}, {}, {}  # text -> code
        self.stored: set[str] = set()  # variables that the file lists, also those without an event
        self.unknown: set[str] = set()
        self.events = np.zeros(0, dtype=np.int64)  # kept ones of each code
        self.per_stay: dict[str, np.ndarray] = {}  # (codes,), UNKNOWN where empty

    def add(self, piece: Piece) -> None:
        """Check a piece and keep its events."""
        self.read += piece.table.num_rows
        stay, ids = piece.codes("stay")
        piece.refuse(stay < 0, "has no stay id: give each event one")
        variable, names = piece.codes("variable")
        self.stored |= set(json.loads((piece.table.schema.metadata or {}).get(VOCABULARY, b"[]")))
        known = np.array([self.asked is None or name in self.asked for name in names.tolist()] + [False])
        keep = known[variable]
        self.unknown |= set(names[~known[:-1]].tolist())
        self.counts["events without a variable name dropped"] += int((variable < 0).sum())
        self.counts[UNKNOWN_VARIABLES] += int(((variable >= 0) & ~keep).sum())

        def wrong(bad: np.ndarray, text: str) -> None:
            if (bad & keep).any():
                at = int(np.argmax(bad & keep))
                piece.refuse(bad & keep, f'(stay "{ids[stay[at]]}", variable "{names[variable[at]]}") {text}')

        hours, value = piece.numbers("hours", keep), piece.numbers("value", keep)
        wrong(~np.isfinite(hours), "has a time that is not a finite number: give hours since the start of the stay")
        wrong(hours < 0, "has a negative time: give hours since the start of the stay, or drop what came before it")
        wrong(
            hours > LARGEST_HOURS,
            f"has a time beyond {LARGEST_HOURS:g} hours: give hours since the start of the stay, not a date or seconds",
        )
        wrong(~np.isfinite(value), "has a value that is not a finite number: correct it or drop the row")
        wrong(np.abs(value) > LARGEST_VALUE, f"has a value beyond {LARGEST_VALUE:g}: correct it or drop the row")
        stay, variable = _recoded(stay, ids, self.ids), _recoded(variable, names, self.names)
        start = np.flatnonzero(np.diff(stay, prepend=-1))  # runs of rows of one stay
        for name in PER_STAY:
            if name in piece.table.column_names:
                column = _column(piece, name, self.groups)
                seen = self.per_stay.get(name, np.zeros(0, dtype=column.dtype))
                self.per_stay[name] = _constant(piece, name, column, stay, start, seen, self.ids)
        columns = stay, hours, variable, value
        columns = columns if keep.all() else tuple(column[keep] for column in columns)
        number = np.bincount(columns[0], minlength=len(self.ids))
        number[: len(self.events)] += self.events
        self.events = number
        self.rows.add(*columns)

    def end(self, path: str | os.PathLike, outcomes: str | os.PathLike | None) -> None:
        """All pieces are there: ids and names sorted, outcomes joined."""
        strange = sorted(self.unknown)
        label = (
            f"events of {len(strange)} unknown variables dropped ({', '.join(strange[:5])}{' …' * (len(strange) > 5)})"
        )
        self.counts[label] = self.counts.pop(UNKNOWN_VARIABLES)
        if not self.rows.events:
            raise UserError(f"{path} has no event that can be used (of {self.read:,} rows; {label})")
        found = np.array(list(self.ids))
        order = np.argsort(found)
        order = order[self.events[order] > 0]
        self.counts["stays dropped because none of their events is left"] = len(found) - len(order)
        self.stays, self.events = found[order], self.events[order]
        self.place = np.full(len(found), -1, dtype=np.int32)
        self.place[order] = np.arange(len(order))
        names = sorted({*self.names, *self.stored}) if self.asked is None else self.asked
        if len(names) > MOST_VARIABLES:
            raise UserError(f"{path} has {len(names):,} variables, and more than {MOST_VARIABLES:,} are too many: is "
                            "the column variable that of the names?")  # fmt: skip
        target = {name: i for i, name in enumerate(names)}
        self.variables = tuple(names)
        self.target = np.array([target.get(name, -1) for name in self.names], dtype=np.int16)
        whole = {name: _grown(column, len(found)) for name, column in self.per_stay.items()}
        self.columns = {name: _known(column[order], list(self.groups)) for name, column in whole.items()}
        if outcomes is not None:
            outcome, self.counts["stays of the outcome table without events, dropped"] = _outcomes(outcomes, found)
            own, outcome = self.columns.get("outcome"), outcome[order]
            if own is not None:
                self.counts["stays whose outcome in the event table is another, overruled"] = int(
                    ((own != outcome) & ~(np.isnan(own) & np.isnan(outcome))).sum()
                )
            self.columns["outcome"] = outcome
        if "outcome" in self.columns:
            self.counts["stays without a known outcome"] = int(np.isnan(self.columns["outcome"]).sum())

    def build(self, stays: slice, columns: tuple[np.ndarray, ...]) -> Cohort:
        """The cohort of some neighbouring stays, given all their events."""
        stay, hours, variable, value = columns
        of_stay = {name: column[stays] for name, column in self.columns.items()}
        cohort, averaged = build(
            self.stays[stays], self.variables, stay, hours, self.target[variable], value, **of_stay
        )
        self.counts[AVERAGED] += averaged
        return cohort


def _recoded(code: np.ndarray, names: np.ndarray, place: dict[str, int]) -> np.ndarray:
    """Codes into `names` as codes of `place`, which takes up new names; -1 stays -1."""
    to = np.array([place.setdefault(name, len(place)) for name in names.tolist()] + [-1], dtype=np.int32)
    return code if (to[:-1] == np.arange(len(names))).all() else to[code]


def _column(piece: Piece, name: str, groups: dict[str, int]) -> np.ndarray:
    """A per-stay column of a piece as numbers or codes, UNKNOWN where it is empty."""
    if name == "group":
        return _recoded(*piece.codes(name), groups)
    column = piece.numbers(name)
    limits = "0, 1 or empty (unknown)" if name == "outcome" else "between 0 and 1"
    empty = np.isnan(column)
    fine = (column == 0) | (column == 1) if name == "outcome" else (column >= 0) & (column <= 1)
    bad = ~(fine | empty)
    if bad.any():
        at, (stay, ids) = int(np.argmax(bad)), piece.codes("stay")
        piece.refuse(bad, f'(stay "{ids[stay[at]]}") has {name} {column[at]:g}: it must be {limits}')
    return np.where(empty, UNKNOWN, column)


def _constant(
    piece: Piece,
    name: str,
    column: np.ndarray,
    stay: np.ndarray,
    start: np.ndarray,
    seen: np.ndarray,
    ids: dict[str, int],
) -> np.ndarray:
    """`seen` (codes,) with what the piece adds; UserError when a stay has two values.  `start`: runs of one stay."""
    seen = _grown(seen, len(ids))
    who, first = stay[start], column[start]
    new = seen[who] == UNSEEN
    seen[who[new][::-1]] = first[new][::-1]  # the last assignment wins: the first row of each stay
    differs = np.append(False, column[1:] != column[:-1])
    differs[start] = seen[who] != first
    if differs.any():
        who = list(ids)[stay[np.argmax(differs)]]
        piece.refuse(differs, f'gives stay "{who}" another {name} than its first row: one stay has one {name}')
    return seen


def _grown(column: np.ndarray, codes: int) -> np.ndarray:
    """A per-stay column with a place for every code there is by now."""
    return np.concatenate([column, np.full(codes - len(column), UNSEEN, dtype=column.dtype)])


def _known(column: np.ndarray, groups: list[str]) -> np.ndarray:
    """Numbers with NaN, or names of groups with "", where it is UNKNOWN or was never seen."""
    if column.dtype.kind == "i":
        return np.array([*groups, ""])[np.maximum(column, UNKNOWN)]
    return np.where(column < 0, np.nan, column)


def _outcomes(path: str | os.PathLike, stays: np.ndarray) -> tuple[np.ndarray, int]:
    """The outcome of each of `stays` (NaN where unknown), and how many stays of the table have no events."""
    table = read_whole(path, ("stay", "outcome"))
    stay, listed = table.codes("stay")
    table.refuse(stay < 0, "has no stay id: give each outcome one")
    number = np.bincount(stay)
    if (number > 1).any():
        raise UserError(
            f'{path} lists stay "{listed[np.argmax(number > 1)]}" more than once '
            f"({(number > 1).sum()} such stays): keep one row per stay"
        )
    outcome = np.empty(len(listed))
    outcome[stay] = _column(table, "outcome", {})
    place = np.searchsorted(listed, stays).clip(max=len(listed) - 1)
    there = listed[place] == stays
    if not there.any():
        raise UserError(
            f'{path} and the events have no stay in common: it lists "{listed[0]}", the events "{stays[0]}"; '
            "ids are compared as text, so 7 is not 007"
        )
    strange, without = listed[~np.isin(listed, stays)], stays[~there]
    bare = {_bare(stay): stay for stay in without.tolist()}
    if twin := next((stay for stay in strange.tolist() if _bare(stay) in bare), None):
        raise UserError(
            f'{path} lists "{twin}", the events "{bare[_bare(twin)]}", and neither table has both: ids are compared as '
            "text, so 7 is not 007, and a blank counts; write each id in one way"
        )
    return _known(np.where(there, outcome[place], UNKNOWN), []), len(strange)


def _bare(stay: str) -> str:
    """An id without what spreadsheets take away or leave behind."""
    return stay.strip().lstrip("0").removesuffix(".0")
