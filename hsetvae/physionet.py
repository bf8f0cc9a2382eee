"""The PhysioNet/CinC Challenge 2012: 12,000 intensive-care stays of 48 hours, outcome in-hospital death.

https://physionet.org/content/challenge-2012/1.0.0/ ; Silva et al., Computing in Cardiology 39:245-248 (2012);
Goldberger et al., Circulation 101:e215-e220 (2000).  Open access.  Sets a, b and c hold 4,000 stays each.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
import re
import tarfile
import urllib.parse
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

from .cohort import Cohort
from .config import UserError
from .download import check, fetch
from .events import Report
from .gather import build
from .tables import Piece

SOURCE = "https://physionet.org/files/challenge-2012/1.0.0/"
SETS = ("a", "b", "c")
DESCRIPTORS = ("Age", "Gender", "Height", "ICUType1", "ICUType2", "ICUType3", "ICUType4", "Weight")
HEADER = b"Time,Parameter,Value"

# --- how values are cleaned: all of it is here -----------------------------------------------------------------------


class Rule(NamedTuple):
    """Values of one variable from `low` to `high` (both included) are multiplied by `factor`, or dropped."""

    variable: str  # "" = every variable
    low: float
    high: float
    factor: float | None  # None = the value is dropped
    why: str

    def __str__(self) -> str:
        what = "dropped" if self.factor is None else f"multiplied by {self.factor:.3g}"
        span = f"= {self.low:g}" if self.low == self.high else f"from {self.low:g} to {self.high:g}"
        return f"values {f'of {self.variable} ' if self.variable else ''}{span} {what} ({self.why})"


RULES = (
    Rule("", -1, -1, None, "-1 means not recorded"),
    Rule("pH", 650, 800, 0.01, "decimal point left out"),
    Rule("pH", 65, 80, 0.1, "decimal point misplaced"),
    Rule("Height", 1.2, 2.3, 100, "given in metres"),
    Rule("Height", 305, 584, 1 / 2.54, "centimetres converted as if they were inches"),
)
# After these corrections a value outside is dropped: wide limits of what a living adult can show.  Zeros of pressures,
# heart rate and breathing are disconnected sensors here far more often than they are true.
LIMITS = {
    "DiasABP": (10, 200), "HR": (10, 300), "Height": (120, 230), "K": (1, 15), "MAP": (10, 250), "Mg": (0.1, 15),
    "NIDiasABP": (10, 200), "NIMAP": (10, 250), "NISysABP": (20, 300), "PaCO2": (5, 200), "PaO2": (10, 700),
    "RespRate": (3, 80), "SaO2": (20, 100), "SysABP": (20, 300), "Temp": (20, 45), "Urine": (0, 5000),
    "WBC": (0.01, 500), "Weight": (20, 400), "pH": (6.5, 8),
}  # fmt: skip


def _clean(variable: np.ndarray, value: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray, dict]:
    """Apply the rules -> corrected values, which to keep, how often each rule was used."""
    value, keep, counts = value.copy(), variable >= 0, {}
    place = {name: i for i, name in enumerate(names)}
    for rule in RULES:
        hit = keep & (value >= rule.low) & (value <= rule.high)
        if rule.variable:
            hit &= variable == place.get(rule.variable, -1)
        if rule.factor is None:
            keep &= ~hit
        else:
            value[hit] *= rule.factor
        counts[str(rule)] = hit.sum()
    low, high = np.transpose([LIMITS.get(name, (-math.inf, math.inf)) for name in names])
    outside = keep & ((value < low[variable]) | (value > high[variable]))
    number = np.bincount(variable[outside], minlength=len(names))
    for name in sorted(set(names) & set(LIMITS)):
        counts["values of {} outside {:g} to {:g} dropped".format(name, *LIMITS[name])] = number[place[name]]
    return value, keep & ~outside, counts


# --- reading ---------------------------------------------------------------------------------------------------------


def load_challenge2012(
    source: str | os.PathLike = SOURCE,
    sets: Sequence[str] = ("a", "b"),
    clean: bool = True,
    progress: bool = True,
    cache: str | os.PathLike | None = None,
) -> tuple[Cohort, Report]:
    """Stays of the given sets; `cohort.group` is the letter of the set, the outcome is in-hospital death.

    `source` is a folder with set-a.tar.gz, Outcomes-a.txt ... or the https address of one, whose files are then kept
    in `cache` (default: the user's cache folder), in a folder there unless it is SOURCE; interrupted downloads are
    continued.  ICUType, a category, becomes the variables ICUType1 to ICUType4 with value 1.  `clean=False` keeps every
    value as it was typed.
    Raises UserError for an unknown set, a missing, damaged or changed file, a row that is no event.
    """
    for letter in sets:
        if letter not in SETS:
            raise UserError(f'there is no set "{letter}" in Challenge 2012: choose among {", ".join(SETS)}')
    if not sets or len(set(sets)) < len(sets):
        raise UserError(f"sets = {', '.join(sets)}: name each wanted set once")
    folder = _folder(source, sets, progress, cache)
    counts: dict[str, int] = {}
    records: list[tuple[str, str, int]] = []  # record id, set, number of rows
    rows = io.BytesIO()
    for letter in sets:
        for record, text in _texts(folder / f"set-{letter}.tar.gz"):
            records.append((record, letter, text.count(b"\n")))
            rows.write(text)
    if not rows.tell():
        raise UserError(f"the archives of {folder} hold no records: is it the Challenge 2012?")
    ids, letters, lengths = (np.array(column) for column in zip(*records, strict=True))
    stay = np.repeat(np.arange(len(ids)), lengths)
    hours, parameter, value, names = _parse(rows.getvalue(), stay, ids)
    variable, value, names = _as_variables(parameter, value, names, counts)
    keep = variable >= 0
    if clean:
        value, keep, used = _clean(variable, value, names)
        counts |= used
    left = np.bincount(stay[keep], minlength=len(ids)) > 0
    if not left.any():
        raise UserError(f"the {len(ids)} records of {folder} hold no events: is it the Challenge 2012?")
    outcomes = {}
    for letter in sets:
        outcomes |= _outcomes(folder / f"Outcomes-{letter}.txt")
    outcome, group = np.array([outcomes.get(record, math.nan) for record in ids.tolist()]), letters[left]
    order = np.argsort(ids[left])  # by text, as everywhere
    place = np.empty(len(ids), dtype=np.int64)
    place[np.flatnonzero(left)[order]] = np.arange(len(order))
    cohort, averaged = build(
        ids[left][order],
        tuple(names),
        place[stay[keep]],
        hours[keep],
        variable[keep],
        value[keep],
        outcome=outcome[left][order],
        group=group[order],
    )
    counts["events averaged into another of the same stay, time and variable"] = averaged
    counts["records without any event, dropped"] = (~left).sum()
    counts["records of the outcome tables without a record file, dropped"] = len(outcomes.keys() - set(ids.tolist()))
    counts["stays without a known outcome"] = np.isnan(cohort.outcome).sum()
    series = keep & ((hours > 0) | ~np.isin(names, DESCRIPTORS)[variable])
    counts["stays without a time series, kept with their descriptors"] = len(cohort) - len(np.unique(stay[series]))
    for letter in sets:
        died = cohort.outcome[cohort.group == letter]
        counts[f"deaths among the {len(died):,} stays of set {letter}"] = np.nansum(died)
    return cohort, Report.of(cohort, counts)


def _folder(source: str | os.PathLike, sets: Sequence[str], progress: bool, cache: str | os.PathLike | None) -> Path:
    """The folder with the files of `sets`, all present and as their checksums say; downloaded if need be."""
    remote = "://" in os.fspath(source)
    if remote:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = Path(cache) if cache else home / "hsetvae" / "physionet2012"
        if (source := os.fspath(source).rstrip("/")) != SOURCE.rstrip("/"):  # what another one has may be other files
            folder /= urllib.parse.quote(source, safe="")
    else:
        folder = Path(source)
    for letter in sets:
        for name in (f"set-{letter}.tar.gz", f"Outcomes-{letter}.txt"):
            if remote and not (folder / name).exists():
                fetch(f"{source}/{name}", folder / name, progress)
            if not (folder / name).is_file():
                raise UserError(f"{folder} has no {name}: give a folder that has it, or --source {SOURCE}")
            check(folder / name)
    return folder


def _texts(path: Path) -> Iterator[tuple[str, bytes]]:
    """Record id and rows of every record of an archive, read once from front to back; each row ends with a newline."""
    try:
        with gzip.open(path) as packed, tarfile.open(fileobj=packed, mode="r|") as archive:
            for member in archive:
                record = Path(member.name).stem
                if not (member.isfile() and member.name.endswith(".txt") and record.isdigit()):
                    continue
                lines = archive.extractfile(member).read().replace(b"\r", b"").split(b"\n")
                if lines[0].strip() != HEADER:
                    raise UserError(f"{path}, record {record}: the first row is not {HEADER.decode()}")
                yield record, b"".join(line + b"\n" for line in lines[1:] if line)
            while packed.read(1 << 20):  # to the end, where gzip says whether all of it came
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path} is damaged or cut ({error}): delete it and fetch it again") from None


def _parse(text: bytes, stay: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Rows `HH:MM,Parameter,Value` -> hours, parameter (code, -1 = no name), value (NaN = none), sorted names."""
    types = {"Time": pa.string(), "Parameter": pa.string(), "Value": pa.float64()}
    try:
        table = pa.csv.read_csv(
            io.BytesIO(text),
            read_options=pa.csv.ReadOptions(column_names=list(types)),
            parse_options=pa.csv.ParseOptions(quote_char=False),  # a line is a row, whatever it holds
            convert_options=pa.csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=True),
        )
    except pa.ArrowInvalid as error:
        raise UserError(f"a record of Challenge 2012 holds a row that is no event: {error}") from None
    piece = Piece("Challenge 2012", 0, table)
    time, times = piece.codes("Time")
    parts = [re.fullmatch(r"(\d+):([0-5]\d)", text) for text in times.tolist()]
    hours = np.array([int(p[1]) + int(p[2]) / 60 if p else math.nan for p in parts] + [math.nan])[time]
    if np.isnan(hours).any():
        raise UserError(f"record {ids[stay[np.isnan(hours).argmax()]]} has a row whose time is not HH:MM")
    parameter, names = piece.codes("Parameter")
    return hours, parameter, table.column("Value").to_numpy(), names.tolist()


def _as_variables(parameter: np.ndarray, value: np.ndarray, names: list[str], counts: dict[str, int]):
    """Parameters -> variables: RecordID is none, ICUType is four -> code (-1 = no event), value, sorted names."""
    kinds = [f"ICUType{k}" for k in (1, 2, 3, 4)]
    variables = sorted({*names, *kinds} - {"RecordID", "ICUType"})
    place = {name: i for i, name in enumerate(variables)}
    variable = np.array([place.get(name, -1) for name in names] + [-1])[parameter]
    unit = np.flatnonzero(parameter == names.index("ICUType")) if "ICUType" in names else np.empty(0, dtype=int)
    known = unit[np.isin(value[unit], (1, 2, 3, 4))]
    variable[known] = np.array([-1] + [place[kind] for kind in kinds])[value[known].astype(int)]
    value = value.copy()
    value[known] = 1
    counts["rows without a parameter name dropped"] = (parameter < 0).sum()
    counts["rows with an ICUType other than 1 to 4 dropped"] = len(unit) - len(known)
    counts["rows without a number as value dropped"] = ((variable >= 0) & ~np.isfinite(value)).sum()
    return np.where(np.isfinite(value), variable, -1), value, variables


def _outcomes(path: Path) -> dict[str, float]:
    """Record id -> in-hospital death, 0 or 1."""
    outcomes = {}
    with open(path, newline="") as file:
        for i, row in enumerate(csv.DictReader(file)):
            record, death = row.get("RecordID"), row.get("In-hospital_death")
            if not record or death not in ("0", "1") or record in outcomes:
                raise UserError(
                    f"{path}, row {i + 1} (the header not counted): RecordID {record!r} with In-hospital_death "
                    f"{death!r} is not a new record with 0 or 1; is the file damaged or cut?"
                )
            outcomes[record] = float(death)
    return outcomes
