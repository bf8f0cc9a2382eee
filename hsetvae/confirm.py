"""Keep published records when the code changes and the numbers do not: one run of every arm is made again.

A record counts for the code that made it, so that one changed line makes all of them stale.  Often the line changes no
number (a new choice beside the old ones, a faster way to the same sum).  Then it is enough to make one run of every arm
again, in a replicate drawn at random: an arm whose run repeats digit for digit keeps its records, and one whose run
does not has to run again.

Another kind of processor rounds otherwise, and what it makes repeats no published record.  There a checkout of the code
that made the records makes the same runs beside the present one, and the two are compared.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .config import UserError, stream
from .declaration import Study, content_hash
from .designs import Spec, code_hash, expand
from .files import write_atomically
from .jobs import host_facts
from .study import HOST, as_published, csv_of, published, published_ids, published_records, records_of, runs_folder
from .sweep import jobs_of, run_notebooks, run_specs


@dataclass(frozen=True)
class Confirmed:
    """How many arms kept their records, how many records that are, and of the others what differs."""

    arms: int
    records: int
    differences: tuple[str, ...]


def confirm(
    study: Study,
    budget: str,
    workers: int = 1,
    scheduler: str | None = None,
    progress: bool = True,
    before: Path | None = None,
) -> Confirmed:
    """Make one run of every arm of a budget again whose published records are of other code, and keep what repeats.

    A run is compared with its published record, or with what the code in the checkout `before` makes of it here, which
    must be the code of the records.
    The published table is written anew: records of confirmed arms count as records of the present code.
    UserError when the table has no record of other code that fits the present declaration.
    """
    if before and scheduler:
        raise UserError("the code before the change runs in processes of this machine: leave --scheduler out")
    table = published_records(study, budget)
    codes = {_code_of(before, study)} if before else set(table.get("code", ()))
    earlier = _earlier(study, budget, table, codes - {code_hash(study.notebook)})
    if not earlier:
        what = f"of the code in {before}" if before else "of other code"
        raise UserError(f"{published(study, budget)} has no records {what} that fit the present declaration")
    of_arm: dict[str, list[str]] = {}
    for old, spec in earlier.items():
        of_arm.setdefault(content_hash([spec.config.to_dict(), spec.data]), []).append(old)
    rng = np.random.default_rng(stream(0, "confirm", code_hash(study.notebook)))
    drawn = {arm: str(rng.choice(sorted(olds))) for arm, olds in of_arm.items()}
    again = {old: earlier[old] for old in drawn.values()}
    then = _made_by(before, study, again, workers, progress) if before else table
    run_specs(study, list(again.values()), workers, scheduler, progress)

    then, kept, differences = then.set_index("id"), {}, []
    now = as_published(records_of(study, [spec.id for spec in again.values()])).set_index("id")
    for arm, old in drawn.items():
        spec = earlier[old]
        if words := _differs(then.loc[old], now.loc[spec.id]):
            differences.append(f"{spec.name}: {words}")
        else:
            kept |= {one: earlier[one].id for one in of_arm[arm]}
    confirmed = table["id"].isin(kept)
    table.loc[confirmed, "code"] = code_hash(study.notebook)
    table["id"] = table["id"].replace(kept)
    write_atomically(published(study, budget), csv_of(table.drop_duplicates("id")).encode())
    return Confirmed(len(drawn) - len(differences), len(kept), tuple(differences))


def _earlier(study: Study, budget: str, table: pd.DataFrame, codes: set[str]) -> dict[str, Spec]:
    """Published id -> the run of the present code that would take its place, for records of some other codes."""
    ended, found = published_ids(table), {}
    for code in codes:
        for design in study.designs:
            pairs = zip(expand(study, budget, design, code), expand(study, budget, design), strict=True)
            found = {old.id: new for old, new in pairs if old.id in ended} | found  # the first design gives the name
    return found


def _notebook_of(before: Path, study: Study) -> Path:
    return before.resolve() / study.folder.name / study.notebook.name


def _code_of(before: Path, study: Study) -> str:
    """The hash of the code in a checkout."""
    notebook, ask = _notebook_of(before, study), "import sys, pathlib, hsetvae.designs as d; "
    if not notebook.is_file():
        raise UserError(
            f"{notebook} does not exist: --before names a checkout of the code that made the records, as "
            "`git worktree add FOLDER COMMIT` makes one"
        )
    ask += "print(d.code_hash(pathlib.Path(sys.argv[1])))"
    answer = subprocess.run([sys.executable, "-c", ask, notebook], env=os.environ | _using(before), capture_output=True)
    if answer.returncode:
        raise UserError(f"the code in {before} cannot be used: {answer.stderr.decode().strip().splitlines()[-1]}")
    return answer.stdout.decode().strip()


def _using(before: Path) -> dict[str, str]:
    """The environment in which a new process takes the package from a checkout, wherever it starts."""
    return {"PYTHONPATH": str(before.resolve()), "PYTHONSAFEPATH": "1"}


def _made_by(before: Path, study: Study, runs: dict[str, Spec], workers: int, progress: bool) -> pd.DataFrame:
    """The records of some runs, by published id, that the code in a checkout makes here."""
    jobs = jobs_of(study, list(runs.values()))
    for old, job in zip(runs, jobs, strict=True):
        job["notebook"] = str(_notebook_of(before, study))
        job["parameters"]["out"] = str((runs_folder(study) / old).resolve())
        job["facts"]["id"] = old
    with _environment(_using(before)):  # the kernels of the workers start in it
        run_notebooks(jobs, workers, None, progress)
    return as_published(records_of(study, list(runs)))


@contextlib.contextmanager
def _environment(more: dict[str, str]) -> Iterator[None]:
    """With `more` among the variables of the environment."""
    kept = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def _differs(before: pd.Series, now: pd.Series) -> str:
    """Which numbers of a run are not what they were, in words; "" when all are the same."""
    if now["status"] != before["status"]:
        return f"{before['status']} before and {now['status']} now ({now['error']})"
    measures = [name for name in before.index if name not in {*HOST, *host_facts()}]
    different = [name for name in measures if not _same(before[name], now.get(name))]
    if not different:
        return ""
    name = different[0]
    return f"{len(different)} of {len(measures)} numbers differ, {name} was {before[name]} and is {now.get(name)}"


def _same(a: object, b: object) -> bool:
    return a == b or (pd.isna(a) and pd.isna(b))
