"""Atomic files: whoever reads a path finds the old content or the new one, never a part."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .config import UserError

PARTIAL = ".partial"  # how an unfinished file ends


def remove_partial(folder: Path) -> None:
    """Remove what a kill in the middle of a write left in a folder and below."""
    for path in folder.rglob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def refuse_file(folder: Path) -> None:
    """UserError when what shall be a folder, or lie in one, is a file."""
    if taken := next((p for p in (folder, *folder.parents) if p.exists() and not p.is_dir()), None):
        raise UserError(f"{taken} is a file: a run needs a folder, choose another --out")


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Write beside the target, flush to disk, then replace: safe against a kill at any moment.

    Raises UserError when the system refuses: a folder of that name, no permission, a full disk.
    """
    path = Path(path)
    try:
        _write(path, content)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another place") from None


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
