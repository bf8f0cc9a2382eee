"""Keep published records when the code changes and the numbers do not.

A record counts for the code that made it, so that one changed line makes all of them stale.  Often the line changes no
number: a new choice beside the old ones, a faster way to the same sum.  Then it is enough to show it.  The code before
the change, in a checkout of its own, and the present code make the same small runs on this machine; what comes out
the same digit for digit keeps its records, wherever these were made.  What only a longer run reaches is not seen.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from .config import UserError
from .declaration import Study
from .designs import code_hash, expand
from .entrants import known_stays
from .events import write_cohort
from .files import write_atomically
from .jobs import host_facts
from .study import (
    HASHES,
    HOST,
    csv_of,
    published,
    published_ids,
    published_records,
    records_of,
    replicated,
    runs_folder,
)
from .suite import Suite, published_rows
from .suite import published as published_table

SMALL = "smoke"  # the budget of a study's small runs, on its declared data
STAYS = 600  # of a suite's table, in its small runs on one split
COSTS = {*HOST, "stays_per_second", "peak_mib"}  # differ between equal runs
HERE = Path(__file__).resolve().parents[1]
COMMAND = "from hsetvae.cli import main; main()"
CODE = "import pathlib, sys; from hsetvae.designs import code_hash; print(code_hash(pathlib.Path(sys.argv[1])))"
IDS = (
    "import json, sys; from hsetvae.suite import jobs_of, load_suite; suite = load_suite(*sys.argv[1:]); "
    "print(json.dumps([[d, j['entrant'], j['facts']['seed'], j['facts']['id'], j['out']] "
    "for d in suite.designs for j in jobs_of(suite, d)]))"
)
MODEL = (
    "from hsetvae.designs import modules_hash; from hsetvae.entrants import KINDS; "
    "print(modules_hash(KINDS['model'].modules))"
)
ROWS = (
    "import sys; from hsetvae.standings import rows_of; from hsetvae.suite import load_suite; "
    "print(rows_of(load_suite(*sys.argv[2:]), sys.argv[1]).to_json(orient='records', double_precision=15))"
)


@dataclass(frozen=True)
class Confirmed:
    """How many arms or entrants kept their records, how many records that are, and of the others what differs."""

    arms: int
    records: int
    differences: tuple[str, ...]


def confirm(study: Study, budget: str, before: Path, workers: int = 1) -> Confirmed:
    """Let the arms of a budget keep those published records that the code in the checkout `before` has made.

    Both codes make the runs of every arm at the study's budget SMALL.  The published table, and that of a replication,
    are written anew: records of arms whose runs are the same count as records of the present code.
    UserError when the checkout is none, or when the table has no record of its code that fits the declaration.
    """
    code = _answer(before, CODE, _in(before, study.notebook))
    table = published_records(study, budget)
    ended = published_ids(table) if len(table) else set()
    heirs: dict[str, str] = {}  # id of a record -> its id for the present code
    same, differences, judged = set(), {}, set()
    for design in study.designs:
        pairs = zip(expand(study, budget, design, code), expand(study, budget, design), strict=True)
        pairs = [(old.id, new) for old, new in pairs if old.id in ended - judged and old.id != new.id]
        if not pairs:
            continue
        arms = {new.arm.name for _, new in pairs}
        words = _of_arms(study.home or study, design, arms, before, code, workers)
        for old, new in pairs:
            judged.add(old)
            if words[new.arm.name]:
                differences[new.arm.name] = words[new.arm.name]
            else:
                heirs[old] = new.id
                same.add(new.arm.name)
    if not heirs and not differences:
        raise UserError(f"{published(study, budget)} has no records of the code in {before} that fit the declaration")
    for path in (published(study, budget), replicated(study, budget)):
        if path.exists():
            table = pd.read_csv(path, dtype=HASHES)
            table.loc[table["id"].isin(heirs), "code"] = code_hash(study.notebook)
            table["id"] = table["id"].replace(heirs)
            write_atomically(path, csv_of(table.drop_duplicates("id")).encode())
    return Confirmed(len(same), len(heirs), tuple(f"{name}: {words}" for name, words in differences.items()))


def _of_arms(study: Study, design: str, arms: set[str], before: Path, code: str, workers: int) -> dict[str, str]:
    """Arm -> which number of its small runs differs between the codes, "" when none does; of `arms`, as the code before
    need not know those that came with the present one."""
    runs = {"HSETVAE_RUNS": str(runs_folder(study).resolve())}
    words = ["--design", design, "--budget", SMALL, "--workers", str(workers)]
    for root in (before, HERE):
        declared = study.file if root == HERE else _in(before, study.file)
        _call(root, ["study", "run", "--study", str(declared), *words], runs)
    found: dict[str, str] = {}
    pairs = zip(expand(study, SMALL, design, code), expand(study, SMALL, design), strict=True)
    for old, new in (pair for pair in pairs if pair[1].arm.name in arms):
        records = [records_of(study, [spec.id]).to_dict("records") for spec in (old, new)]
        if not all(records):
            raise UserError(f"the code in {before if not records[0] else HERE} has made no run {new.name} of {design}")
        found[new.arm.name] = found.get(new.arm.name) or _differs(records[0][0], records[1][0])
    return found


def confirm_suite(suite: Suite, before: Path, workers: int = 1) -> Confirmed:
    """Let the entrants of a suite keep those published rows that the code in the checkout `before` has made.

    Both codes run every entrant of the designs that have rows on one split of STAYS stays.  What is published about
    single models, in tables beside that of the suite, is kept where no model differs.  UserError as in `confirm`.
    """
    file = suite.folder / f"{suite.name}.toml"
    declared = {before: _in(before, file), HERE: file}
    table, places = published_rows(suite), {}
    for root, path in declared.items():
        said = json.loads(_answer(root, IDS, path, suite.data, *([suite.outcomes] if suite.outcomes else [])))
        places[root] = {(design, entrant, seed): id_ for design, entrant, seed, id_, _ in said}
    place_of = {id_: (d, e, s) for d, e, s, id_ in table[["design", "entrant", "seed", "id"]].itertuples(index=False)}
    heirs = {id_: places[HERE].get(place, id_) for id_, place in place_of.items() if places[before].get(place) == id_}
    heirs = {old: new for old, new in heirs.items() if old != new}
    if not heirs:
        raise UserError(f"{published_table(suite)} has no rows of the code in {before} that fit the declaration")
    words = _of_entrants(suite, declared, sorted({place_of[old][0] for old in heirs}), workers)
    reasons = {old: words[place_of[old][:2]] for old in heirs}
    differences = {place_of[old][1]: reason for old, reason in reasons.items() if reason}
    heirs = {old: new for old, new in heirs.items() if not reasons[old]}
    entrants = set(table.loc[table["id"].isin(heirs), "entrant"])
    parts = table["id"].str.split("+")  # of an average
    table["id"] = ["+".join(heirs.get(part, part) for part in ids) for ids in parts]
    write_atomically(published_table(suite), csv_of(table).encode())
    models = {e.name for design in suite.designs for e in suite.design(design)[2] if e.kind == "model"}
    if models & entrants and not models & differences.keys():
        _keep_models(suite, before)
    return Confirmed(len(entrants), len(heirs), tuple(f"{name}: {words}" for name, words in differences.items()))


def _keep_models(suite: Suite, before: Path) -> None:
    """Let rows about single models, which name the fingerprint of the models' code before, name the present one."""
    old, new = (_answer(root, MODEL).encode() for root in (before, HERE))
    for path in published_table(suite).parent.glob(f"{suite.name}_*.csv"):
        if old in (text := path.read_bytes()):
            write_atomically(path, text.replace(old, new))


def _of_entrants(
    suite: Suite, declared: dict[Path, Path], designs: list[str], workers: int
) -> dict[tuple[str, str], str]:
    """Design and entrant -> what differs between the codes, "" when nothing does."""
    made: list[dict] = []
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        cohort = known_stays(str(suite.data), str(suite.outcomes or ""), suite.groups)
        events = Path(folder) / "events.parquet"
        write_cohort(cohort.subset(np.arange(min(STAYS, len(cohort)))), events)
        for place, (root, path) in zip(("before", "now"), declared.items(), strict=True):
            small = Path(folder) / place / path.name
            small.parent.mkdir()
            small.write_text(_smaller(path.read_text()))
            runs = {"HSETVAE_RUNS": str(Path(folder) / place / "runs")}
            options = ["--suite", str(small), "--data", str(events), "--workers", str(workers)]
            for design in designs:
                _call(root, ["study", "run", *options, "--design", design], runs)
            said = json.loads(_answer(root, IDS, small, events, more=runs))
            made.append({(design, entrant): Path(out) for design, entrant, _, _, out in said if design in designs})
            found = [row for d in designs for row in json.loads(_answer(root, ROWS, d, small, events, more=runs))]
            rows.append({(row["design"], row["entrant"]): row for row in found})
        then, now = rows
        return {place: _entrant_differs(made[0].get(place), out, then.get(place), now.get(place))
                for place, out in made[1].items()}  # fmt: skip


def _smaller(declaration: str) -> str:
    """A suite with one split, and with few trials of whatever is tuned."""
    return re.sub(r"\btrials = \d+", "trials = 3", re.sub(r"(?m)^splits = \d+", "splits = 1", declaration))


def _entrant_differs(then: Path | None, now: Path, row_then: dict | None, row_now: dict | None) -> str:
    """What differs between two runs of an entrant, in the folders and as rows of a table with their scores."""
    if then is None:
        return "is not in the declaration before"
    if row_then is None or row_now is None:
        return "was not run by both"
    if words := _differs(row_then, row_now):
        return words
    with np.load(then / "probabilities.npz") as a, np.load(now / "probabilities.npz") as b:
        different = [name for name in a.files if not np.array_equal(a[name], b[name])]
    return f"other probabilities in {', '.join(different)}" if different else ""


def _differs(then: dict, now: dict) -> str:
    """Which facts of two runs are not the same, in words; "" when all are.  A run that failed shows nothing."""
    if then["status"] != "finished" or now["status"] != "finished":
        return f"{then['status']} before and {now['status']} now ({now['error'] or then['error']})"
    names = [name for name in then if name not in COSTS | {*host_facts()}]
    different = [name for name in names if not _same(then[name], now.get(name))]
    if not different:
        return ""
    name = different[0]
    return f"{len(different)} of {len(names)} numbers differ, {name} was {then[name]} and is {now.get(name)}"


def _same(a: object, b: object) -> bool:
    return a == b or (pd.isna(a) and pd.isna(b))


# --- the code of a checkout ------------------------------------------------------------------------------------------


def _in(before: Path, file: Path) -> Path:
    """The same file in a checkout; its folder lies beside the package."""
    path = before.resolve() / file.parent.name / file.name
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: --before names a checkout of the code that made the records, as "
            "`git worktree add FOLDER COMMIT` makes one"
        )
    return path


def _with(root: Path, more: dict[str, str]) -> dict[str, str]:
    """The environment in which a new process, wherever it starts, takes the package from a checkout."""
    return os.environ | {"PYTHONPATH": str(root.resolve()), "PYTHONSAFEPATH": "1"} | more


def _answer(root: Path, code: str, *words: object, more: dict[str, str] | None = None) -> str:
    """What a line of Python prints where the package is that of a checkout."""
    command = [sys.executable, "-c", code, *map(str, words)]
    said = subprocess.run(command, env=_with(root, more or {}), capture_output=True, text=True)
    if said.returncode:
        raise UserError(f"the code in {root} cannot be used: {said.stderr.strip().splitlines()[-1]}")
    return said.stdout.strip()


def _call(root: Path, words: Iterable[str], more: dict[str, str]) -> None:
    """A command of the package in a checkout; its progress is shown, and what failed is seen in the records."""
    subprocess.run([sys.executable, "-c", COMMAND, *words], env=_with(root, more), stdout=subprocess.DEVNULL)
