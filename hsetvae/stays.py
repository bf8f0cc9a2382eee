"""Who a run has learned from: the table stays.csv of its folder, and which stays of another table it has not seen."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pandas as pd

from .cohort import Cohort
from .config import UserError
from .data import Split
from .files import write_atomically

STAYS = "stays.csv"
PARTS = ("train", "validation", "test")


def stays_of(cohort: Cohort, split: Split) -> pd.DataFrame:
    """The stays of a split: a row for each with its id `stay`, its `part` and the `fingerprint` of its events."""
    parts = [getattr(split, name) for name in PARTS]
    index, prints = np.concatenate(parts), np.array(cohort.fingerprints(), dtype=object)
    part = np.repeat(PARTS, [len(p) for p in parts])
    return pd.DataFrame({"stay": cohort.stays[index], "part": part, "fingerprint": prints[index]})


def hash_of(stays: pd.DataFrame) -> str:
    """Content hash of the table, as its file holds it."""
    return _hash(_content(stays))


def write_stays(folder: Path, stays: pd.DataFrame) -> None:
    write_atomically(folder / STAYS, _content(stays))


def read_stays(folder: Path, expected: str) -> pd.DataFrame:
    """The table of a folder.  UserError when it is not the one with the hash `expected`: a stay that is lacking there
    would count as unseen."""
    content = (folder / STAYS).read_bytes()
    if _hash(content) != expected:
        raise UserError(
            f"{folder / STAYS} is not as the training wrote it, so nobody can say which stays the run has seen: "
            "bring the file back, or train the run again in another folder"
        )
    return pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)


def _content(stays: pd.DataFrame) -> bytes:
    return stays.to_csv(index=False, lineterminator="\n").encode()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def unseen(stays: pd.DataFrame, cohort: Cohort) -> np.ndarray:
    """Index of the stays of `cohort` that a run with the table `stays` neither trained on nor was selected on.

    Seen is what has the id or the events of a learned stay: the same patient, whatever was corrected or renamed.  The
    run's own test stays are unseen, also one whose events another stay has, too.
    """
    own = stays.part == "test"
    tested = set(zip(stays.stay[own], stays.fingerprint[own], strict=True))
    ids, prints = set(stays.stay[~own]), set(stays.fingerprint[~own])
    pairs = zip(cohort.stays.tolist(), cohort.fingerprints(), strict=True)
    found = [i for i, (id_, print_) in enumerate(pairs)
             if (id_, print_) in tested or not (id_ in ids or print_ in prints)]  # fmt: skip
    return np.array(found, dtype=np.int64)
