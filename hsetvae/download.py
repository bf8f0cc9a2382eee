"""Large files over http that survive a broken connection, and the checksums that say they are what was written."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from .config import UserError
from .files import write_atomically

CHECKSUMS = "SHA256SUMS"  # beside the files, in the format of sha256sum
CHUNK = 1 << 16  # bytes
ASKS_TO_WAIT = (408, 429)  # too slow, too many: the server wants to be asked again
PATIENCE = 5  # attempts in a row without a new byte
WAIT = 1.0  # seconds after the first such attempt, then 3, 7 ...; none after an attempt that brought bytes


def fetch(url: str, path: Path, progress: bool = True, wait: float = WAIT) -> None:
    """Download `url` to `path`: continues a partial download, shows progress, records the SHA-256 beside it.

    Raises UserError when the server refuses or stays silent; what has arrived is kept for the next call.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    failures, have = 0, _size(partial)
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task(path.name, total=None)
        while True:
            try:
                if _receive(url, partial, lambda done, total: bar.update(task, completed=done, total=total)):
                    break
                error = "the connection was closed early"
            except urllib.error.HTTPError as problem:
                if problem.code == 416 and have:  # more bytes here than there: not a part of this file
                    partial.unlink()
                elif problem.code < 500 and problem.code not in ASKS_TO_WAIT:
                    raise UserError(
                        f"{url}: the server answers {problem.code} {problem.reason}: check the address"
                    ) from None
                error = f"{problem.code} {problem.reason}"
            except (urllib.error.URLError, http.client.HTTPException, OSError) as problem:
                error = str(getattr(problem, "reason", problem)) or type(problem).__name__
            failures, have = (0 if _size(partial) > have else failures + 1), _size(partial)
            if failures == PATIENCE:
                raise UserError(
                    f"{url} cannot be fetched ({error}); {have:,} bytes are kept in {partial}: "
                    "call again to go on, or give a folder that has the file"
                )
            time.sleep(wait * (2**failures - 1))
    _record(path, partial)
    os.replace(partial, path)


def _receive(url: str, partial: Path, show) -> bool:
    """One request for what is missing -> whether the file is whole now."""
    have = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        if answer.status != 206:  # the server sends the whole file
            have = 0
        length = answer.headers.get("Content-Length")
        total = None if length is None else have + int(length)
        with open(partial, "ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                show(have, total)
            file.flush()
            os.fsync(file.fileno())
    return total is None or have == total


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _recorded(folder: Path) -> dict[str, str]:
    """File name -> SHA-256 as recorded in a folder."""
    if not (folder / CHECKSUMS).exists():
        return {}
    lines = (line.split(maxsplit=1) for line in (folder / CHECKSUMS).read_text().splitlines())
    return {parts[1].lstrip("*"): parts[0] for parts in lines if len(parts) == 2}


def _record(path: Path, content: Path) -> None:
    """Note the checksum of `content` under the name of `path`, before the file gets that name."""
    sums = _recorded(path.parent) | {path.name: _digest(content)}
    text = "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    write_atomically(path.parent / CHECKSUMS, text.encode())


def check(path: Path) -> None:
    """UserError when the folder records another checksum for this file; files without a record pass."""
    if _recorded(path.parent).get(path.name, digest := _digest(path)) != digest:
        raise UserError(f"{path} is not the file that {CHECKSUMS} beside it describes: delete it and fetch it again")
