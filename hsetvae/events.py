"""The one event format, `stay, hours, variable, value`, read with every check into a Cohort, and written back.

Parquet or CSV (also gzipped), told apart by content.  Whatever is dropped or averaged is counted in the Report;
whatever cannot be meant raises a UserError that names file, row and stay.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .cohort import Cohort
from .config import UserError
from .files import folder_atomically, replaced_atomically
from .gather import PER_STAY, VOCABULARY, Gathered
from .mapped import Rows, made, open_mapped, parts_of, place_of, write_mapped
from .tables import cut, files, read_pieces

EVENTS = ("stay", "hours", "variable", "value")


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
    Events beyond the memory they may take (HSETVAE_MEMORY in GiB, default 1) are sorted into files beside the table,
    once, and the same cohort is read from there whenever a batch needs them.
    Raises UserError for a damaged file, a missing column, a time that is negative, no number or beyond 1e6 hours, a
    value that is no number or beyond 1e12, an outcome that is not 0 or 1, a stay with two outcomes, a row without a
    stay, an outcome table none of whose stays has events.
    """
    if not isinstance(events, (str, os.PathLike)):
        raise UserError(
            f"events are a {type(events).__name__}: give the path of a table (df.to_parquet(FILE) writes one)"
        )
    sources = [*files(events), *(files(outcomes) if outcomes is not None else [])]
    for asked in (variables, None):
        found = open_mapped(place_of(events, sources, asked))
        if found and (variables is None or found[0].variables == tuple(variables)):
            return found[0], Report.of(*found)
    folder = place_of(events, sources, variables)
    with contextlib.ExitStack() as stack:
        table = Gathered(variables, Rows(lambda: stack.enter_context(made(folder))))
        for piece in read_pieces(events, EVENTS, PER_STAY):
            table.add(piece)
        table.end(events, outcomes)
        table.counts["file without a line break at its end: was it cut?"] = sum(map(cut, sources))
        if not table.rows.file:
            cohort = table.build(slice(None), table.rows.in_memory(table.place))
            return cohort, Report.of(cohort, table.counts)
        parts = table.rows.sorted_parts(table.place, table.events)
        blocks = (table.build(stays, columns) for stays, columns in parts)
        write_mapped(table.rows.file.parent, blocks, parts_of(table.events)[-1] + 1, table.counts)
    cohort, counts = open_mapped(folder)
    return cohort, Report.of(cohort, counts)


# --- writing ---------------------------------------------------------------------------------------------------------


def write_cohort(cohort: Cohort, path: str | os.PathLike) -> None:
    """One Parquet table with one row per event, replaced atomically; `read_cohort` gives the same cohort back.

    Outcome, probability and group repeat in each row of their stay.  Stays come back sorted by id.
    Raises UserError when an id occurs twice.
    """
    with replaced_atomically(path) as file:
        pq.write_table(_table(cohort), file, compression="zstd")


def write_cohorts(cohorts: Iterable[Cohort], path: str | os.PathLike) -> None:
    """The same for a cohort that comes in pieces: one file if `path` ends in .parquet, a folder with one each if it has
    no ending.

    Never holds two of the pieces; the folder is there when all are.  Raises UserError for another ending, and when the
    folder has files already.
    """
    path = Path(path)
    if path.suffix not in (".parquet", ""):
        raise UserError(f"{path}: give a file whose name ends in .parquet, or a folder whose name has no ending")
    if path.suffix:
        with replaced_atomically(path) as file, contextlib.ExitStack() as stack:
            writer = None
            for cohort in cohorts:
                table = _table(cohort)
                writer = writer or stack.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
                writer.write_table(table)
        return
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is no empty folder: choose another --out")
    with folder_atomically(path) as folder:
        for i, cohort in enumerate(cohorts):
            write_cohort(cohort, folder / f"part-{i:05d}.parquet")


def _table(cohort: Cohort) -> pa.Table:
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
    return pa.table(columns).replace_schema_metadata({VOCABULARY: json.dumps(cohort.variables)})
