"""Atomic files: whoever reads a path finds the old content or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from .config import UserError

PARTIAL = ".partial"  # how an unfinished file ends
UNFINISHED = ".partial-"  # how an unfinished folder begins
DAY = 24 * 3600  # seconds; no folder takes that long to fill
LOCK = ".lock"  # in a folder that a process has for itself
PATIENCE = 10  # seconds; what a killed worker leaves behind lives for a moment


def remove_partial(folder: Path) -> None:
    """Remove what a kill in the middle of a write left in a folder, and nothing below: others may be writing there."""
    for path in folder.glob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def refuse_file(folder: Path) -> None:
    """UserError when what shall be a folder, or lie in one, is a file."""
    if taken := next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None):
        raise UserError(f"{taken} is a file: a run needs a folder, choose another --out")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, made where it is missing, for this process alone, until the block or the process ends.

    Raises UserError when another process has it, and when the system refuses.
    """
    refuse_file(folder)
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise UserError(
            f"another process is writing the run {folder}: wait until it has ended, or choose another --out"
        ) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose another place") from None
    try:
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        lock.release()


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Replace the file by one with this content.  Raises UserError as `replaced_atomically` does."""
    with replaced_atomically(path) as file:
        file.write(content)


@contextlib.contextmanager
def folder_atomically(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place `folder` when nothing went wrong; the first of several makers wins.

    What a killed maker left beside it is removed after a day.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):  # another maker has just put it in its place
            if time.time() - left.stat().st_mtime > DAY:
                shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    partial.mkdir()
    try:
        yield partial
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def replaced_atomically(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write beside the target, which is flushed to disk and then replaces it: safe against a kill.

    Raises UserError when the system refuses: a folder of that name, no permission, a full disk.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "xb") as file:  # who may read it is the user's to say (umask): these are patients
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another place") from None
    finally:
        with contextlib.suppress(OSError):  # a parent that is a file
            partial.unlink(missing_ok=True)
