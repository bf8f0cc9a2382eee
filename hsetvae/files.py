"""Atomic files: whoever reads a path finds the old content or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Replace the file by one with this content."""
    with replaced_atomically(path) as file:
        file.write(content)


@contextlib.contextmanager
def replaced_atomically(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write beside the target, which is flushed to disk and then replaces it: safe against a kill."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
