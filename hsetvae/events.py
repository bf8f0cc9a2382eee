"""The one event format, `stay, hours, variable, value`, read with every check into a Cohort, and written back.

Parquet or CSV (also gzipped), told apart by content.  Whatever is dropped or averaged is counted in the Report;
whatever cannot be meant raises a UserError that names file, row and stay.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from .config import UserError
from .data import Cohort
from .files import write_atomically

EVENTS = ("stay", "hours", "variable", "value")
PER_STAY = ("outcome", "probability", "group")  # optional columns, constant within a stay
LARGEST_HOURS = 1e6  # a hundred years: beyond it lie seconds, dates as numbers, and damaged rows
LARGEST_VALUE = 1e12  # no clinical unit gives larger numbers: beyond it lie placeholders and damaged rows
GZIP = b"\x1f\x8b"  # how a gzipped file begins
VOCABULARY = b"hsetvae.variables"  # Parquet metadata: names of all variables, also of those without an event


@dataclass
class Report:
    """What a reader found, and how much of what it dropped, changed or averaged."""

    stays: int
    sets: int
    events: int
    variables: int
    with_outcome: int | None  # stays whose outcome is 1; None when the table has no outcomes
    counts: dict[str, int] = field(default_factory=dict)  # what happened -> how often; never 0

    @classmethod
    def of(cls, cohort: Cohort, counts: dict[str, int]) -> Report:
        outcomes = None if cohort.outcome is None else int(np.nansum(cohort.outcome))
        sizes = (len(cohort), len(cohort.hours), len(cohort.value), len(cohort.variables))
        return cls(*sizes, outcomes, {what: int(n) for what, n in counts.items() if n})

    def lines(self) -> list[str]:
        """The report as text, one fact a line."""
        deaths = "no outcomes" if self.with_outcome is None else f"{self.with_outcome:,} with the outcome"
        total = (
            f"{self.stays:,} stays ({deaths}), {self.sets:,} sets, {self.events:,} events of {self.variables} variables"
        )
        return [total, *(f"  {n:,} {what}" for what, n in self.counts.items())]


# --- reading ---------------------------------------------------------------------------------------------------------


def read_cohort(
    events: str | os.PathLike, outcomes: str | os.PathLike | None = None, variables: Sequence[str] | None = None
) -> tuple[Cohort, Report]:
    """Read an event table, and a table `stay, outcome` if the events do not carry their outcomes.

    `hours` count from the start of the stay; an outcome is 0, 1 or empty (unknown).  Ids stay text: 007 is not 7.
    With `variables` (those of a trained run) the cohort has exactly these, and events of others are dropped.
    Dropped and counted: events without a variable name, events of unknown variables, stays without events.
    Averaged and counted: a variable that occurs twice at one time.
    Raises UserError for a damaged file, a missing column, a time that is negative, no number or beyond 1e6 hours, a
    value that is no number or beyond 1e12, an outcome that is not 0 or 1, a stay with two outcomes, a row without a
    stay, an outcome table none of whose stays has events.
    """
    table = _read(events, EVENTS)
    listed = None if outcomes is None else _read(outcomes, ("stay", "outcome"))
    counts = {"file without a line break at its end: was it cut?": sum(map(_cut, filter(None, (events, outcomes))))}
    stay, stays = codes(events, table, "stay")
    _refuse(events, stay < 0, "has no stay id: give each event one")
    variable, names = codes(events, table, "variable")
    per_stay = {name: _per_stay(events, table, name, stay, stays) for name in PER_STAY if name in table.column_names}
    counts["events without a variable name dropped"] = (variable < 0).sum()
    if variables is None:
        stored = json.loads((table.schema.metadata or {}).get(VOCABULARY, b"[]"))
        variables = sorted({*names.tolist(), *stored})
    place = {name: i for i, name in enumerate(variables)}
    target = np.array([place.get(name, -1) for name in names.tolist()] + [-1])  # the last one answers for code -1
    unknown = (variable >= 0) & (target[variable] < 0)
    strange = names[np.unique(variable[unknown])].tolist()
    label = f"events of {len(strange)} unknown variables dropped ({', '.join(strange[:5])}{' …' * (len(strange) > 5)})"
    counts[label] = unknown.sum()
    keep = target[variable] >= 0
    if not keep.any():
        raise UserError(f"{events} has no event that can be used (of {table.num_rows} rows; {label})")

    def wrong(bad: np.ndarray, text: str) -> None:
        at = int(np.argmax(bad & keep))
        _refuse(events, bad & keep, f'(stay "{stays[stay[at]]}", variable "{names[variable[at]]}") {text}')

    hours, value = _numbers(events, table, "hours"), _numbers(events, table, "value")
    wrong(~np.isfinite(hours), "has a time that is not a finite number: give hours since the start of the stay")
    wrong(hours < 0, "has a negative time: give hours since the start of the stay, or drop what came before it")
    wrong(
        hours > LARGEST_HOURS,
        f"has a time beyond {LARGEST_HOURS:g} hours: give hours since the start of the stay, not a date or seconds",
    )
    wrong(~np.isfinite(value), "has a value that is not a finite number: correct it or drop the row")
    wrong(np.abs(value) > LARGEST_VALUE, f"has a value beyond {LARGEST_VALUE:g}: correct it or drop the row")
    known = np.bincount(stay[keep], minlength=len(stays)) > 0
    counts["stays dropped because none of their events is left"] = (~known).sum()
    if listed is not None:
        per_stay["outcome"], without = _outcomes(outcomes, listed, stays)
        counts["stays of the outcome table without events, dropped"] = without
    if "outcome" in per_stay:
        counts["stays without a known outcome"] = np.isnan(per_stay["outcome"][known]).sum()
    cohort, averaged = build(
        stays[known],
        tuple(variables),
        (np.cumsum(known) - 1)[stay[keep]],
        hours[keep],
        target[variable[keep]],
        value[keep],
        **{name: column[known] for name, column in per_stay.items()},
    )
    counts["events averaged into another of the same stay, time and variable"] = averaged
    return cohort, Report.of(cohort, counts)


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
    if not _sorted_and_unique(stay, hours, variable):
        order = np.lexsort((value, variable, hours, stay))  # by value too: the mean must not depend on row order
        stay, hours, variable, value = stay[order], hours[order], variable[order], value[order]
    new_set = np.ones(len(stay), dtype=bool)
    new_set[1:] = (stay[1:] != stay[:-1]) | (hours[1:] != hours[:-1])
    new_event = new_set.copy()
    new_event[1:] |= variable[1:] != variable[:-1]
    event_at, set_at = np.flatnonzero(new_event), np.flatnonzero(new_set)
    averaged = len(stay) - len(event_at)
    if averaged:
        value = np.add.reduceat(value, event_at) / np.diff(np.append(event_at, len(stay)))
    cohort = Cohort(
        variables=tuple(variables),
        stays=np.asarray(stays, dtype=str),
        first_set=np.searchsorted(stay[set_at], np.arange(len(stays) + 1)),
        first_event=np.searchsorted(event_at, np.append(set_at, len(stay))),
        hours=hours[set_at] + 0.0,  # -0.0 becomes 0.0
        variable=variable[event_at].astype(np.int16),
        value=value,
        **per_stay,
    )
    return cohort, averaged


def _sorted_and_unique(stay: np.ndarray, hours: np.ndarray, variable: np.ndarray) -> bool:
    later = variable[1:] > variable[:-1]
    later = np.where(hours[1:] == hours[:-1], later, hours[1:] > hours[:-1])
    return bool(np.where(stay[1:] == stay[:-1], later, stay[1:] > stay[:-1]).all())


def _read(path: str | os.PathLike, needed: Sequence[str]) -> pa.Table:
    """The table of a Parquet or CSV file; a CSV's columns are text, so that no id or name is reinterpreted."""
    as_text = pa.csv.ConvertOptions(
        column_types=dict.fromkeys((*EVENTS, *PER_STAY), pa.string()), null_values=[""], strings_can_be_null=True
    )
    try:
        with open(path, "rb") as file:
            start = file.read(4)
        if start == b"PAR1":
            with pq.ParquetFile(path) as file:
                table = file.read()
        else:
            with pa.input_stream(os.fspath(path), compression="gzip" if start[:2] == GZIP else None) as file:
                table = pa.csv.read_csv(file, convert_options=as_text)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path} is not a file: give the path of a Parquet or CSV table") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path} cannot be read, it is damaged, cut or no table: {error} "
            "(what is read is Parquet, or comma-separated text in UTF-8)"
        ) from None
    for name in needed:
        if table.column_names.count(name) != 1:
            raise UserError(
                f'{path} needs one column "{name}": the columns are {", ".join(needed)}, separated by commas; '
                f"the file has {', '.join(table.column_names)}"
            )
    if not table.num_rows:
        raise UserError(f"{path} has no rows")
    return table


def _cut(path: str | os.PathLike) -> bool:
    """Whether a plain CSV lacks its last line break; cut Parquet and gzip files do not open at all."""
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(-1, os.SEEK_END)
        return start != b"PAR1" and start[:2] != GZIP and file.read(1) not in b"\r\n"


def _refuse(path: str | os.PathLike, bad: np.ndarray, text: str) -> None:
    if bad.any():
        more = f" (and {bad.sum() - 1:,} more rows)" if bad.sum() > 1 else ""
        raise UserError(f"{path}, row {np.argmax(bad) + 1} (the header not counted) {text}{more}")


def codes(path: str | os.PathLike, table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of ids or names as codes (N,) into its sorted distinct texts; -1 where it is empty.

    Raises UserError, naming `path`, when the column holds neither text nor whole numbers.
    """
    column = table.column(name)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"{path}: column {name} holds {kind}: write it as text or as whole numbers")
    column = column.cast(pa.string()).dictionary_encode().combine_chunks()
    texts = np.array(column.dictionary.to_pylist(), dtype=str)
    code = column.indices.fill_null(-1).to_numpy()
    names = np.unique(texts[np.char.strip(texts) != ""])
    place = {text: i for i, text in enumerate(names.tolist())}
    return np.array([place.get(text, -1) for text in texts.tolist()] + [-1])[code], names


def _numbers(path: str | os.PathLike, table: pa.Table, name: str) -> np.ndarray:
    """A column as float64, NaN where it is empty."""
    column = table.column(name)
    try:
        return column.cast(pa.float64(), safe=False).to_numpy()
    except pa.ArrowNotImplementedError:
        raise UserError(f"{path}: column {name} holds {column.type}: write it as numbers") from None
    except pa.ArrowInvalid:
        bad = np.array([not _is_number(text) for text in column.to_pylist()])
        _refuse(path, bad, f'has {name} "{column[int(np.argmax(bad))]}", which is not a number')
        raise


def _is_number(text: str | None) -> bool:
    try:
        return text is None or pa.scalar(text).cast(pa.float64()) is not None
    except pa.ArrowInvalid:
        return False


def _per_stay(path: str | os.PathLike, table: pa.Table, name: str, stay: np.ndarray, stays: np.ndarray) -> np.ndarray:
    """A column that is constant within a stay -> (S,)."""
    first = np.zeros(len(stays), dtype=np.int64)
    first[stay[::-1]] = np.arange(len(stay))[::-1]  # the last assignment wins: the first row of each stay
    if name == "group":
        column, names = codes(path, table, name)
        found = np.append(names, "")[column[first]]
    else:
        column = _numbers(path, table, name)
        found = column[first]
        limits = "0, 1 or empty (unknown)" if name == "outcome" else "between 0 and 1"
        bad = ~np.isin(column, (0, 1)) if name == "outcome" else ~((column >= 0) & (column <= 1))
        bad &= ~np.isnan(column)
        at = int(np.argmax(bad))
        _refuse(path, bad, f'(stay "{stays[stay[at]]}") has {name} {column[at]:g}: it must be {limits}')
    differs = (column != column[first][stay]) & ((column == column) | (column[first][stay] == column[first][stay]))
    at = int(np.argmax(differs))
    _refuse(path, differs, f'gives stay "{stays[stay[at]]}" another {name} than its first row: one stay has one {name}')
    return found


def _outcomes(path: str | os.PathLike, table: pa.Table, stays: np.ndarray) -> tuple[np.ndarray, int]:
    """The outcome of each of `stays` (NaN where unknown), and how many stays of the table have no events."""
    stay, listed = codes(path, table, "stay")
    _refuse(path, stay < 0, "has no stay id: give each outcome one")
    number = np.bincount(stay)
    if (number > 1).any():
        raise UserError(
            f'{path} lists stay "{listed[np.argmax(number > 1)]}" more than once '
            f"({(number > 1).sum()} such stays): keep one row per stay"
        )
    outcome = _per_stay(path, table, "outcome", stay, listed)
    place = np.searchsorted(listed, stays).clip(max=len(listed) - 1)
    there = listed[place] == stays
    if not there.any():
        raise UserError(
            f'{path} and the events have no stay in common: it lists "{listed[0]}", the events "{stays[0]}"; '
            "ids are compared as text, so 7 is not 007"
        )
    return np.where(there, outcome[place], np.nan), int((~np.isin(listed, stays)).sum())


# --- writing ---------------------------------------------------------------------------------------------------------


def write_cohort(cohort: Cohort, path: str | os.PathLike) -> None:
    """One Parquet table with one row per event, replaced atomically; `read_cohort` gives the same cohort back.

    Outcome, probability and group repeat in each row of their stay.  Stays come back sorted by id.
    Raises UserError when an id occurs twice.
    """
    ids, number = np.unique(cohort.stays, return_counts=True)
    if (number > 1).any():
        raise UserError(f'stay "{ids[np.argmax(number > 1)]}" occurs more than once: give each stay an id of its own')
    sets = np.repeat(np.arange(len(cohort.hours)), np.diff(cohort.first_event))
    stay = np.repeat(np.arange(len(cohort)), np.diff(cohort.first_set))[sets]

    def text(codes: np.ndarray, names: Sequence[str]) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(list(names), pa.string()))

    columns = {
        "stay": text(stay, cohort.stays.tolist()),
        "hours": cohort.hours[sets],
        "variable": text(cohort.variable, cohort.variables),
        "value": cohort.value,
    }
    for name in PER_STAY:
        column = getattr(cohort, name)
        if column is not None and name == "group":
            names, codes = np.unique(column, return_inverse=True)
            columns[name] = text(codes[stay], names.tolist())
        elif column is not None:
            columns[name] = column[stay]
    table = pa.table(columns).replace_schema_metadata({VOCABULARY: json.dumps(cohort.variables)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())
