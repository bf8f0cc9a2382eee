"""Table files, read in pieces of a bounded size: Parquet or CSV (also gzipped), told apart by content, or a folder of
Parquet files.  What cannot be meant raises a UserError that names file, row and column.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from .config import UserError

ROWS_AT_ONCE = 2**20  # rows of a Parquet piece
BYTES_AT_ONCE = 2**25  # bytes of a CSV piece
GZIP = b"\x1f\x8b"  # how a gzipped file begins
PARQUET = b"PAR1"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
NUMBERS = {
    "hours": "hours since the start of the stay", "value": "a number, or leave the row out",
    "outcome": "1 or 0, or nothing where it is unknown", "probability": "a number from 0 to 1, or nothing",
}  # fmt: skip


class Piece(NamedTuple):
    """Some rows of a table file, one after another."""

    path: str | os.PathLike
    row: int  # rows of the file before the first one
    table: pa.Table

    def refuse(self, bad: np.ndarray, text: str) -> None:
        """UserError at the first row where `bad` (N,) is True; what follows in later pieces is not counted."""
        if bad.any():
            others = int(bad.sum()) - 1
            more = f" (and {others:,} more row{'s' * (others > 1)})" if others else ""
            row = self.row + int(np.argmax(bad)) + 1
            raise UserError(f"{self.path}, row {row} (the header not counted) {text}{more}")

    def codes(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """A column of ids or names as codes (N,) into its sorted distinct texts; -1 where it is empty.

        Raises UserError when the column holds neither text nor whole numbers, and for a text of several lines.
        """
        column = self.table.column(name)
        encoded = pa.types.is_dictionary(column.type)
        kind = column.type.value_type if encoded else column.type
        texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
        if not (pa.types.is_integer(kind) or any(is_text(kind) for is_text in texts)):
            raise UserError(f"{self.path}: column {name} holds {kind}: write it as text or as whole numbers")
        column = (column if encoded else column.dictionary_encode()).unify_dictionaries().combine_chunks()
        texts = np.array(column.dictionary.cast(pa.string()).to_pylist(), dtype=str)
        names = np.unique(texts[np.char.strip(texts) != ""])
        code = column.indices.cast(pa.int64()).fill_null(-1).to_numpy()  # other tools count without a sign
        broken = np.array([len(text.splitlines()) > 1 for text in texts.tolist()] + [False])
        self.refuse(broken[code], f"has a {name} of several lines: a quotation mark that opens there closes rows later")
        if len(names) == len(texts) and (names == texts).all():  # sorted already, as our own tables are
            return code, names
        place = {text: i for i, text in enumerate(names.tolist())}
        return np.array([place.get(text, -1) for text in texts.tolist()] + [-1])[code], names

    def numbers(self, name: str, wanted: np.ndarray | None = None) -> np.ndarray:
        """A column as float64, NaN where it is empty or not `wanted` (N,): what stands there is not read."""
        column = self.table.column(name)
        if wanted is not None and not wanted.all():
            column = pc.if_else(pa.array(wanted), column, pa.scalar(None, column.type))
        try:
            return column.cast(pa.float64(), safe=False).to_numpy()
        except pa.ArrowNotImplementedError:
            raise UserError(
                f"{self.path}: column {name} holds {column.type}: write {NUMBERS.get(name, 'a number')}"
            ) from None
        except pa.ArrowInvalid:
            bad = np.array([not _is_number(text) for text in column.to_pylist()])
            at, advice = int(np.argmax(bad)), f"write {NUMBERS.get(name, 'a number')}"
            if re.fullmatch(r"[+-]?\d+,\d+", str(column[at]).strip()):
                advice = "write a decimal point instead of the comma"
            where = f'(stay "{self.table.column("stay")[at]}") ' * ("stay" in self.table.column_names)
            self.refuse(bad, f'{where}has {name} "{column[at]}", which is not a number: {advice}')
            raise


def _is_number(text: str | None) -> bool:
    try:
        return text is None or pa.scalar(text).cast(pa.float64()) is not None
    except pa.ArrowInvalid:
        return False


def files(path: str | os.PathLike) -> list[Path]:
    """The files of a table: itself, or the Parquet files of a folder by name."""
    path = Path(path)
    found = sorted(path.glob("*.parquet")) if path.is_dir() else [path] * path.is_file()
    if not found and path.is_dir():
        raise UserError(f"{path} is a folder without .parquet files: give the path of a table")
    if not found:
        raise UserError(f"{path} is not a file: give the path of a Parquet or CSV table, or a folder of .parquet files")
    return found


def read_pieces(path: str | os.PathLike, needed: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Piece]:
    """The columns `needed` and, where they exist, `optional` of a table, in order, a bounded number of rows at a time.

    A CSV's columns are text, so that no id or name is reinterpreted.  Raises UserError for a missing or damaged file,
    a missing column, a file without rows.
    """
    for file in files(path):
        row = 0
        try:
            read = _parquet if _start(file) == PARQUET else _csv
            for table in read(file, needed, optional):
                if table.num_rows:
                    yield Piece(file, row, table)
                row += table.num_rows
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{file} cannot be read, it is damaged, cut or no table: {error} "
                "(what is read is Parquet, or comma-separated text in UTF-8)"
            ) from None
        if not row:
            raise UserError(f"{file} has no rows")


def read_whole(path: str | os.PathLike, needed: Sequence[str]) -> Piece:
    """The columns `needed` of a small table, as one piece."""
    tables = [piece.table for piece in read_pieces(path, needed)]
    try:
        return Piece(path, 0, pa.concat_tables(tables, promote_options="permissive"))
    except pa.ArrowException as error:
        raise UserError(f"the files of {path} do not fit together: {error}") from None


def cut(path: Path) -> bool:
    """Whether a plain CSV lacks its last line break; cut Parquet and gzip files do not open at all."""
    start = _start(path)
    with open(path, "rb") as content:
        content.seek(-1, os.SEEK_END)
        return start != PARQUET and start[:2] != GZIP and content.read(1) not in b"\r\n"


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)


def _wanted(file: Path, names: Sequence[str], needed: Sequence[str], optional: Sequence[str]) -> list[str]:
    for name in needed:
        if names.count(name) != 1:
            other = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), "")
            hint = f' (separated by "{other}": save it with commas, and with decimal points)' if other else ""
            raise UserError(
                f'{file} needs one column "{name}": the columns are {", ".join(needed)}, separated by commas; '
                f"the file has {', '.join(names)}{hint}"
            )
    return [name for name in (*needed, *optional) if name in names]


def _parquet(file: Path, needed: Sequence[str], optional: Sequence[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(file) as content:
        wanted = _wanted(file, content.schema_arrow.names, needed, optional)
        for batch in content.iter_batches(ROWS_AT_ONCE, columns=wanted):
            yield pa.Table.from_batches([batch]).replace_schema_metadata(content.schema_arrow.metadata)


def _csv(file: Path, needed: Sequence[str], optional: Sequence[str]) -> Iterator[pa.Table]:
    packed = "gzip" if _start(file)[:2] == GZIP else None

    def opened(stream, **columns) -> pa.csv.CSVStreamingReader:
        as_text = pa.csv.ConvertOptions(
            column_types=dict.fromkeys((*needed, *optional), pa.string()), null_values=[""], strings_can_be_null=True,
            **columns,
        )  # fmt: skip
        return pa.csv.open_csv(stream, pa.csv.ReadOptions(block_size=BYTES_AT_ONCE), convert_options=as_text)

    with pa.input_stream(os.fspath(file), compression=packed) as stream:
        start = stream.read(BYTES_AT_ONCE).lstrip(b"\r\n").split(b"\n", 1)[0]
    if start.startswith(UTF16):
        raise UserError(f"{file} is text in UTF-16: save it as CSV in UTF-8")
    if not (header := next(csv.reader([start.decode("utf-8-sig", errors="replace").rstrip("\r")]), [])):
        raise UserError(f"{file} is empty, and no table")
    wanted = _wanted(file, header, needed, optional)
    with pa.input_stream(os.fspath(file), compression=packed) as stream:
        yield from (pa.Table.from_batches([batch]) for batch in opened(stream, include_columns=wanted))
