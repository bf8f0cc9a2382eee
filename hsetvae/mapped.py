"""Cohorts larger than the memory they may take: events sorted on disk once, then read where a batch needs them.

A mapped cohort is a folder with one file per array.  Per stay it costs some hundred bytes of memory (id, outcome,
offset), per event nothing: whoever takes events gets a copy, and pages already read are given back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import mmap
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .cohort import Cohort
from .config import UserError
from .files import folder_atomically, write_atomically
from .progress import Progress

MEMORY = "HSETVAE_MEMORY"  # environment variable: GiB of events that may be in memory, default 1
EVENT = np.dtype([("stay", np.int32), ("hours", np.float64), ("variable", np.int32), ("value", np.float64)])
EVENTS_AT_ONCE = 2**21  # events that are sorted together; sorting takes about ten times their 24 bytes
WINDOW = 2**16  # bytes that a kernel maps around the one that is read
WINDOWS_AT_ONCE = 512  # of them after which an array gives its pages back: 32 MiB
FORMAT = 1  # of the folder; a folder of another format is made anew
ARRAYS = {"first_event": np.int64, "hours": np.float64, "variable": np.int16, "value": np.float64}  # one file each


def budget() -> float:
    """Bytes of events that may be in memory."""
    text = os.environ.get(MEMORY, "1")
    try:
        gib = float(text)
    except ValueError:
        gib = -1.0
    if not gib >= 0:
        raise UserError(f"{MEMORY}={text} is not a number of GiB: set it to 1, 0.5 …")
    return gib * 2**30


class Mapped(np.memmap):
    """A flat array in a file.  What is taken from it is a copy, and its pages are given back from time to time.

    Pages of a file count as memory of the process for as long as they are mapped, whoever may need it more.
    """

    read = 0  # windows since pages were given back

    def __getitem__(self, key):
        if isinstance(key, np.ndarray) and key.dtype == bool:
            key = np.flatnonzero(key)
        if not (isinstance(key, np.ndarray) and key.ndim == 1 and len(key)):
            found = np.array(super().__getitem__(key), subok=False)[()]
            self._took(found.nbytes // WINDOW + 1)
            return found
        window = key * self.itemsize // WINDOW
        visited = np.cumsum(np.append(1, window[1:] != window[:-1]))  # windows, for each entry
        found = np.empty(len(key), self.dtype)
        bounds = np.searchsorted(visited, np.arange(0, visited[-1] + WINDOWS_AT_ONCE, WINDOWS_AT_ONCE), side="right")
        for start, stop in itertools.pairwise(bounds):
            found[start:stop] = super().__getitem__(key[start:stop])
            self._took(visited[stop - 1] - visited[start] + 1)
        return found

    def _took(self, windows: int) -> None:
        self.read += windows
        if self.read >= WINDOWS_AT_ONCE and hasattr(mmap, "MADV_DONTNEED"):
            self._mmap.madvise(mmap.MADV_DONTNEED)
            self.read = 0


# --- events of a table, gathered in its order ------------------------------------------------------------------------


class Rows:
    """Events of a table in its order, `stay` and `variable` as codes: in memory up to the budget, then in a file."""

    def __init__(self, folder: Callable[[], Path]) -> None:
        self.folder, self.budget, self.events = folder, budget(), 0
        self.kept: list[tuple[np.ndarray, ...]] = []
        self.file: Path | None = None

    def add(self, *columns: np.ndarray) -> None:
        """Columns stay, hours, variable, value (n,) each."""
        self.events += len(columns[0])
        self.kept.append(columns)
        if self.file is None and self.events * EVENT.itemsize > self.budget:
            self.file = self.folder() / "events"
        if self.file:
            with open(self.file, "ab") as file:
                for part in self.kept:
                    _packed(part).tofile(file)
            self.kept = []

    def in_memory(self, place: np.ndarray) -> tuple[np.ndarray, ...]:
        """All columns; `place` (codes,) is the position of each stay."""
        stay, *columns = (np.concatenate(parts) for parts in zip(*self.kept, strict=True))
        return stay if (place == np.arange(len(place))).all() else place[stay], *columns

    def sorted_parts(self, place: np.ndarray, count: np.ndarray) -> Iterator[tuple[slice, tuple[np.ndarray, ...]]]:
        """The events of neighbouring stays together: yields (which stays, their columns), in order of stay.

        `place` (codes,) is the position of each stay and `count` (S,) the number of events there.
        """
        part_of = parts_of(count)
        names = [self.file.with_name(f"part{i}") for i in range(part_of[-1] + 1)]
        for events in self._read():
            events["stay"] = place[events["stay"]]
            part = part_of[events["stay"]]
            order = np.argsort(part, kind="stable")
            bounds = np.flatnonzero(np.diff(part[order], prepend=-1))
            for chunk in np.split(events[order], bounds[1:]):
                if len(chunk):
                    with open(names[part_of[chunk["stay"][0]]], "ab") as file:
                        chunk.tofile(file)
        self.file.unlink()
        for i, name in enumerate(names):
            events = np.fromfile(name, EVENT)
            name.unlink()
            stays = slice(*np.searchsorted(part_of, [i, i + 1]))
            yield stays, (events["stay"] - stays.start, *(np.ascontiguousarray(events[n]) for n in EVENT.names[1:]))

    def _read(self) -> Iterator[np.ndarray]:
        with open(self.file, "rb") as file:
            while len(events := np.fromfile(file, EVENT, EVENTS_AT_ONCE)):
                yield events


def parts_of(count: np.ndarray) -> np.ndarray:
    """Which part each stay belongs to (S,): neighbours share one until it holds EVENTS_AT_ONCE of their `count`."""
    return np.unique(np.cumsum(count) // EVENTS_AT_ONCE, return_inverse=True)[1]


def _packed(columns: tuple[np.ndarray, ...]) -> np.ndarray:
    events = np.empty(len(columns[0]), EVENT)
    for name, column in zip(EVENT.names, columns, strict=True):
        events[name] = column
    return events


# --- the folder of a mapped cohort -----------------------------------------------------------------------------------


def place_of(table: str | os.PathLike, sources: Sequence[Path], variables: Sequence[str] | None) -> Path:
    """Where the mapped form of a table lies: beside it, under the size and time of the files it is made from."""
    facts = [(str(s.resolve()), s.stat().st_size, s.stat().st_mtime_ns) for s in sources]
    asked = variables and list(variables)
    key = hashlib.blake2b(repr((FORMAT, facts, asked)).encode(), digest_size=8).hexdigest()
    table = Path(table).resolve()
    return table.with_name(f"{table.name}.mapped") / key


@contextlib.contextmanager
def made(folder: Path) -> Iterator[Path]:
    """`folder_atomically`, with a UserError where the system refuses a folder there."""
    with contextlib.ExitStack() as stack:
        try:
            partial = stack.enter_context(folder_atomically(folder))
        except OSError as error:
            raise UserError(
                f"this table is larger than {MEMORY} allows, and its events cannot be written to {folder.parent} "
                f"({error.strerror}): move the table to a folder you can write to, or set {MEMORY} (GiB) higher"
            ) from None
        yield partial


def write_mapped(folder: Path, blocks: Iterable[Cohort], parts: int, counts: dict[str, int]) -> None:
    """Write cohorts one after another as one; all have the same variables and the same per-stay columns.

    `parts` is how many there are; `counts` is kept beside them, as it is after the last one.
    """
    offset = dict.fromkeys(("first_set", "first_event"), 0)
    per_stay: dict[str, list] = {}
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in ARRAYS}
        bar = stack.enter_context(Progress(parts, 0, True, "sorting events"))
        np.zeros(1, ARRAYS["first_event"]).tofile(files["first_event"])
        for done, block in enumerate(blocks):
            for name in ("hours", "variable", "value"):
                getattr(block, name).astype(ARRAYS[name], copy=False).tofile(files[name])
            (block.first_event[1:] + offset["first_event"]).tofile(files["first_event"])
            for f in dataclasses.fields(Cohort):
                if f.name not in ARRAYS and f.name != "variables" and getattr(block, f.name) is not None:
                    column = getattr(block, f.name)
                    column = column[1:] + offset["first_set"] if f.name == "first_set" else column
                    per_stay.setdefault(f.name, []).append(column)
            offset["first_set"] += len(block.hours)
            offset["first_event"] += len(block.value)
            bar.update(done + 1, {})
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    per_stay["first_set"].insert(0, np.zeros(1, np.int64))
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.concatenate(columns) for name, columns in per_stay.items()})
    write_atomically(folder / "stays.npz", buffer.getvalue())
    write_atomically(folder / "facts.json", json.dumps({"variables": block.variables, "counts": counts}).encode())


def open_mapped(folder: Path) -> tuple[Cohort, dict[str, int]] | None:
    """The mapped cohort of a folder, and its counts; None when there is no folder, UserError when it is damaged."""
    if not folder.is_dir():
        return None
    try:
        facts = json.loads((folder / "facts.json").read_text())
        arrays = {name: Mapped(folder / name, dtype, mode="r") for name, dtype in ARRAYS.items()}
        with np.load(folder / "stays.npz", allow_pickle=False) as stays:
            cohort = Cohort(variables=tuple(facts["variables"]), **arrays, **stays)
        sizes = cohort.first_set[-1] == len(cohort.hours) and cohort.first_event[-1] == len(cohort.value)
        if not (sizes and len(cohort.variable) == len(cohort.value)):
            raise ValueError("its files do not fit together")
        return cohort, facts["counts"]
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{folder} is damaged ({error}): delete it, and it is made from the table again") from None
