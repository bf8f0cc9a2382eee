"""A suite: models that compete on the same splits of one table, declared in a file, run, and recorded.

A record is one entrant on one split: record.json says what it was and what it cost, probabilities.npz keeps what it
predicted for every validation and test stay.  Scores, averages and comparisons are computed from these.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from . import lineup
from .config import PRESETS, Config, UserError, nearest
from .data import split
from .declaration import check_shares, content_hash
from .designs import file_hash, modules_hash, refuse_other_code
from .entrants import KINDS, compete, fewer, known_stays
from .files import write_atomically
from .jobs import host_facts, reachable, run_jobs
from .lineup import AVERAGE, Entrant
from .study import HASHES, each_once, ended_record, published_ids, read_record, runs_folder
from .toml import all_of, checked, read_toml

PLACE = ["design", "entrant", "seed", "status"]  # where a published row belongs
# kind -> fingerprint of its code as it is loaded (`refuse_other_code`)
LOADED = {name: modules_hash(kind.modules) for name, kind in KINDS.items()}


# --- declaration -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Suite:
    """A declaration as read from TOML.  `folder` holds results/ and runs/, `designs` says how many splits each has."""

    folder: Path
    name: str
    title: str
    data: Path
    outcomes: Path | None
    groups: tuple[str, ...]
    shares: tuple[float, float, float]
    designs: dict[str, tuple[int, tuple[Entrant, ...]]]  # name -> number of splits, entrants

    def overlap(self, e: Entrant) -> float:
        """Test stays per stay that `e` learns from (see `statistics.t_interval`); the simple models and a refit learn
        from the validation stays, too, networks without a refit do not."""
        training, validation, scored = self.shares
        selects = e.kind in ("model", "gru-d") and not e.refit
        return scored / (e.share * (training + validation * (not selects)))

    def design(self, name: str = "") -> tuple[str, int, tuple[Entrant, ...]]:
        """Name, number of splits and entrants of a design; the first one when the name is empty."""
        name = name or next(iter(self.designs))
        if name not in self.designs:
            raise UserError(
                f'this suite has no design "{name}"{nearest(name, self.designs)}: {", ".join(self.designs)}'
            )
        return name, *self.designs[name]


def load_suite(name: str, data: str = "", outcomes: str | os.PathLike | None = None) -> Suite:
    """Read ablations/NAME.toml, or the file `name`; `data` and `outcomes` put other tables in the declared one's place.

    Raises UserError with the table and the key that are wrong.
    """
    path = Path(name) if name.endswith(".toml") else Path("ablations", f"{name}.toml")
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a declared suite, or call from the project's folder")
    try:
        declared = checked(str(path), read_toml(path), lineup.DECLARED)
        for name in lineup.DESIGNS.keys() & declared.keys():
            declared[name] = all_of(f"{path}, [{name}]", declared[name], lineup.DESIGNS[name])
        entrants = [lineup.entrant(path, name, table) for name, table in declared["entrants"].items()]
        against, folder = declared["against"], path.resolve().parent
        table = tuple(dataclasses.replace(e, against=e.against or against * (e.name != against)) for e in entrants)
        designs = {"table": (declared["splits"], table)}
        if "ladder" in declared:
            designs["ladder"] = declared["ladder"]["splits"], lineup.ladder(path, declared["ladder"], table)
        if "curve" in declared:
            designs["curve"] = declared["curve"]["splits"], lineup.curve(path, declared["curve"], table)
        if "tradeoff" in declared:
            designs["tradeoff"] = declared["tradeoff"]["splits"], lineup.tradeoff(path, declared["tradeoff"], table)
        suite = Suite(
            folder=folder, name=path.stem, title=declared["title"], data=_place(folder, declared["data"], data),
            outcomes=Path(outcomes).resolve() if outcomes else None, groups=tuple(declared.get("groups", ())),
            shares=tuple(declared["shares"]), designs=designs,
        )  # fmt: skip
    except KeyError as error:
        raise UserError(f"{path} lacks the entry {error}") from None
    check_shares(str(path), suite.shares)
    for design, (splits, entrants) in designs.items():
        if splits < 1:
            raise UserError(f"{path}: design {design} has {splits} splits, and needs one at least")
        lineup.check(path, entrants)
    return suite


def _place(folder: Path, declared: str, other: str) -> Path:
    return Path(other).resolve() if other else (folder / declared).resolve()


# --- runs ------------------------------------------------------------------------------------------------------------


def jobs_of(suite: Suite, design: str = "", table: str = "") -> list[dict[str, Any]]:
    """Everything that workers need for the runs of a design, split by split: an interrupted suite holds whole splits.

    `table` is the hash of the suite's table when that is not at hand (`table_key`); UserError when it is absent, too.
    """
    _, splits, entrants = suite.design(design)
    data, _, outcomes = (table or table_key(suite)).partition("+")
    files = {"data": data, "outcomes": outcomes or None}
    jobs = []
    for seed in range(splits):
        for e in (e for e in entrants if e.kind != AVERAGE):
            settings = identifying = e.settings
            if e.kind == "model":
                config = PRESETS[e.preset].but(**e.settings)
                settings = config.to_dict() | {"refit": e.refit}
                changed = {name: value for name, (value, _) in config.differences(Config()).items()}
                identifying = changed | {"refit": e.refit}  # a new setting that is off leaves the runs what they were
            modules = KINDS[e.kind].modules
            code = modules_hash(modules)
            id_ = content_hash([e.kind, identifying, seed, suite.shares, e.share, suite.groups, files, code])
            facts = {"id": id_, "kind": e.kind, "seed": seed, "settings": json.dumps(e.settings), "preset": e.preset,
                     "share": e.share}  # fmt: skip
            jobs.append({
                "facts": facts, "entrant": e.name, "settings": settings, "data": str(suite.data), "code": code,
                "outcomes": str(suite.outcomes or ""), "groups": suite.groups, "shares": suite.shares,
                "out": str((runs_folder(suite) / id_).resolve()),
            })  # fmt: skip
    return jobs


def table_key(suite: Suite) -> str:
    """Hash of what is in the files of the suite's table, wherever they lie; UserError when one is absent."""
    return "+".join(_file_key(path) for path in (suite.data, suite.outcomes) if path)


def _file_key(path: Path) -> str:
    if path.is_dir():
        raise UserError(f"{path} is a folder: a suite reads one file of events, Parquet or CSV")
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: name a table with --data FILE; `hsetvae data physionet2012 --sets a,b --out FILE` "
            "writes that of Challenge 2012"
        )
    return file_hash(path, path.stat().st_mtime_ns)


def execute(job: dict[str, Any]) -> dict[str, Any]:
    """Run one entrant on one split unless its record is there -> its record; what goes wrong is in it."""
    folder, seed = Path(job["out"]), job["facts"]["seed"]
    if finished := ended_record(folder):
        return finished
    started, found, error = time.monotonic(), {}, ""
    try:
        refuse_other_code(job["code"], modules_hash, KINDS[job["facts"]["kind"]].modules)
        cohort = known_stays(job["data"], job["outcomes"], tuple(job["groups"]))
        parts = fewer(split(cohort, seed, tuple(job["shares"])), job["facts"]["share"], seed)
        result, peak = compete(job["facts"]["kind"], job["settings"], cohort, parts, seed, folder)
        kept = {"validation": result.validation, "test": result.test, "validation_index": parts.validation,
                "test_index": parts.test, "validation_outcome": cohort.outcome[parts.validation],
                "test_outcome": cohort.outcome[parts.test],
                **{f"test_{hour}": p for hour, p in result.earlier.items()}}  # fmt: skip
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **kept)
        write_atomically(folder / "probabilities.npz", buffer.getvalue())
        found = {**result.facts, "peak_mib": round(peak), "train_stays": len(parts.train)}
        (folder / "error.txt").unlink(missing_ok=True)  # of an earlier try
    except Exception as problem:  # whatever a library raises is the result of this entrant, and the others go on
        error = f"{type(problem).__name__}: {problem}".splitlines()[0]
        write_atomically(folder / "error.txt", traceback.format_exc().encode())
    # a training that was killed counts its seconds over all attempts
    return write_record(job, error, max(time.monotonic() - started, found.get("seconds_training", 0.0)), found)


def write_record(job: dict, error: str, seconds: float, found: dict) -> dict[str, Any]:
    """The record of a run, written last: without it the run is not finished."""
    status = {"status": "failed" if error else "finished", "error": error, "seconds": round(seconds, 2)}
    record = {**job["facts"], **status, **found, **host_facts()}
    write_atomically(Path(job["out"]) / "record.json", json.dumps(record, indent=1).encode())
    return record


def run_suite(
    suite: Suite,
    workers: int,
    scheduler: str | None = None,
    design: str = "",
    progress: bool = True,
    published: bool = False,
) -> int:
    """Run every entrant of a design on every split that has no record yet; returns how many failed.

    `workers` and `scheduler` are those of `run_jobs`.  With `published`, runs in the published table count as ended.
    Safe to interrupt and to call again.
    """
    if scheduler is not None:
        reachable(scheduler)
    jobs = jobs_of(suite, design)
    skipped = elsewhere(suite, jobs, design) if published else set()
    jobs = list({job["facts"]["id"]: job for job in jobs if job["facts"]["id"] not in skipped}.values())
    waiting = [job for job in jobs if ended_record(Path(job["out"])) is None]
    if waiting:  # a table that does not fit is said once, not by every job
        known_stays(str(suite.data), str(suite.outcomes or ""), suite.groups)
    names = {job["facts"]["id"]: job["entrant"] for job in jobs}

    def said(done: int, record: dict) -> str:
        ended = f"{names[record['id']]}, split {record['seed']}: {record['status']} in {span(record['seconds'])}"
        left = f"{span(seconds_left(jobs))} of work" if scheduler else span(seconds_left(jobs) / workers)
        return f"{ended}; about {left} left"

    run_jobs(execute, waiting, len(jobs), workers, scheduler, progress,
             lost=lambda job, error: write_record(job, error, 0.0, {}), said=said)  # fmt: skip
    failed = [(job, r) for job in jobs if (r := record_of(job))["status"] != "finished"]
    for job, record in failed:
        print(
            f"failed: {job['entrant']}, split {job['facts']['seed']}: {record['error']} ({job['out']})", file=sys.stderr
        )
    return len(failed)


def span(seconds: float) -> str:
    """A duration for people."""
    if np.isnan(seconds):
        return "an unknown time"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


# --- records ---------------------------------------------------------------------------------------------------------


def record_of(job: dict) -> dict[str, Any] | None:
    """The record of a job that has ended, well or not."""
    return read_record(Path(job["out"]))


def published(suite: Suite) -> Path:
    return suite.folder / "results" / f"{suite.name}_suite.csv"


def published_rows(suite: Suite) -> pd.DataFrame:
    """The published table of all designs, whatever code or data it is of; empty where there is none."""
    path = published(suite)
    return pd.read_csv(path, dtype=HASHES) if path.exists() else pd.DataFrame(columns=["id", "table", *PLACE])


def fitting(suite: Suite, rows: pd.DataFrame, here: bool = True) -> pd.DataFrame:
    """The published rows that hold the run of their place by the present code and settings, whatever their design: on
    the suite's table of events or, when that is not looked for `here`, on the one that the last row saw."""
    if not len(rows):
        return rows
    table = "" if here else rows["table"].iloc[-1]
    known = {(design, *place): id_ for design in suite.designs for place, id_ in ids_of(suite, design, table).items()}
    places = rows[["design", "entrant", "seed"]].itertuples(index=False, name=None)
    return rows[[known.get(place) == id_ for place, id_ in zip(places, rows["id"], strict=True)]]


def ids_of(suite: Suite, design: str, table: str = "") -> dict[tuple[str, int], str]:
    """Entrant and split of a design -> id of its run; of an average those of its parts, joined by "+"."""
    ids = {(job["entrant"], job["facts"]["seed"]): job["facts"]["id"] for job in jobs_of(suite, design, table)}
    _, splits, entrants = suite.design(design)
    averages = [(e, seed) for e in entrants if e.kind == AVERAGE for seed in range(splits)]
    return ids | {(e.name, seed): "+".join(ids[name, seed] for name in e.of) for e, seed in averages}


def placed(suite: Suite, rows: pd.DataFrame, design: str, here: bool = True) -> pd.DataFrame:
    """The published rows, whatever their design, that hold a run of this design, as rows of this one: designs share
    runs.  `here` as in `fitting`."""
    if not len(rows):
        return rows
    table = "" if here else rows["table"].iloc[-1]
    known = {row["id"]: row for row in each_once(rows).to_dict("records")}
    facts = {job["facts"]["id"]: job["facts"] for job in jobs_of(suite, design, table)}
    return pd.DataFrame(
        [known[id_] | facts.get(id_, {}) | {"design": design, "entrant": entrant, "seed": seed}
         for (entrant, seed), id_ in ids_of(suite, design, table).items() if id_ in known],
        columns=rows.columns,
    )  # fmt: skip


def elsewhere(suite: Suite, jobs: list[dict], design: str = "") -> set[str]:
    """The jobs that need not run here: they are published, and so are the averages that need their probabilities."""
    ids, asked = published_ids(published_rows(suite)), ids_of(suite, design).values()
    wanted = {part for id_ in asked if "+" in id_ and id_ not in ids for part in id_.split("+")}
    return ids & {job["facts"]["id"] for job in jobs} - wanted


def seconds_left(jobs: list[dict]) -> float:
    """What those of the jobs that have no record take one after another, each as long as its entrant took so far, or as
    the mean of all where it has not run yet; NaN when nothing has."""
    runs = pd.DataFrame([(job["entrant"], record_of(job)) for job in jobs], columns=["entrant", "record"])
    took = runs["record"].map(lambda r: r["seconds"] if r and r["status"] == "finished" else np.nan).astype(float)
    usual = took.groupby(runs["entrant"]).transform("mean").fillna(took.mean())
    return float(usual[runs["record"].isna()].sum(skipna=False))
