"""The declaration of a study: TOML -> questions, endpoints, controls, designs, budgets.

It says what is claimed, what judges the claim, what is expected and what would matter, before anything runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import PRESETS, Config, UserError, nearest
from .controls import LABELS
from .toml import checked, made, read_toml

# What the tables of a declaration hold that fill no dataclass.
TABLES = dict.fromkeys(("budgets", "designs", "endpoints", "questions", "controls", "tables"), dict[str, Any])
DECLARED = TABLES | {
    "title": str, "preset": str, "factorial": tuple[str, ...], "path": tuple[str, ...], "data": dict[str, Any],
    "settings": dict[str, Any],
}  # fmt: skip
DATA = {"source": str, "outcomes": str, "stays": int, "shares": tuple[float, float, float]}
BUDGET = {"replicates": int, "stays": int, "settings": dict[str, Any]}
SHARES = (0.6, 0.2, 0.2)  # to learn from, to select, to test, where a study names none: those of run.ipynb
MADE_OF = {"factorial": "factorial", "leave": "path", "roadmap": "path"}  # design -> the list that its arms are made of
AT_MOST_ONE = {"auroc", "auprc", "accuracy", "brier", "au_ratio", "diverged"}
AT_LEAST_NOTHING = AT_MOST_ONE | {"mi", "kl_per_set", "mean_sigma", "s_past", "gradient_jump"}


@dataclass(frozen=True)
class Endpoint:
    """A measure with its family, unit and smallest effect of interest `delta`."""

    name: str
    family: str
    delta: float
    unit: str
    text: str

    def room(self, value: float, direction: int) -> float:
        """How far the measure can move from a value: up (direction 1) or down (-1); infinite where nothing ends it."""
        if direction > 0:
            return 1 - value if self.name in AT_MOST_ONE else math.inf
        return value if self.name in AT_LEAST_NOTHING else math.inf


@dataclass(frozen=True)
class Question:
    """A claim: two settings, the endpoint that judges it, the claimed direction and the reason, all beforehand.

    `expected` is our own prediction of the sign, 0 for none, which may differ from the claim.  `changed` may name a
    preset.  With a `bound` the arm is not compared with a reference but with that value of the endpoint.
    """

    name: str
    claim: str
    endpoint: str
    direction: int
    expected: int
    why: str
    changed: dict[str, Any]
    reference: dict[str, Any] = field(default_factory=dict)
    bound: float | None = None
    ledger: tuple[str, ...] = ()
    mechanism: tuple[str, ...] = ()


@dataclass(frozen=True)
class Control:
    """An arm whose answer is known: the mean of `measure` must lie within `between`, or equal the reference's.

    `labels` "shuffled" or "leaked" alters the outcomes that the arm learns from (see `controls`).
    """

    name: str
    claim: str
    measure: str
    between: tuple[float, float] | None = None  # None: all numbers must equal the reference's as published
    changed: dict[str, Any] = field(default_factory=dict)
    labels: str = "true"
    ledger: tuple[str, ...] = ()


@dataclass(frozen=True)
class Design:
    """Which arms a study runs: a function of `designs.DESIGNS` by name, its usual budget, settings of all its arms."""

    name: str
    budget: str
    settings: dict[str, Any] = field(default_factory=dict)
    random_orders: int = 0  # of a roadmap, beside the declared order
    seed: int = 0  # decides the random orders


@dataclass(frozen=True)
class Table:
    """Another event table on which the study runs as well, and the budget that a design has there.

    `source` is relative to the declaration, `budgets` are by design.
    """

    name: str
    source: str
    budgets: dict[str, str]


@dataclass(frozen=True, eq=False)
class Study:
    """A declaration as read from the TOML `file`, beside which lie run.ipynb, results/ and runs/."""

    file: Path
    title: str
    preset: str
    factorial: tuple[str, ...]  # questions that are crossed
    path: tuple[str, ...]  # questions that lead from the preset to its improvement, in the order of the claims
    data: dict[str, Any]
    settings: dict[str, Any]
    budgets: dict[str, dict[str, Any]]
    designs: dict[str, Design]
    endpoints: dict[str, Endpoint]
    questions: dict[str, Question]
    controls: dict[str, Control]
    tables: dict[str, Table]
    key: str  # hash of the declaration without budgets and other tables
    elsewhere: str = ""  # name of the data when they are not the declared ones
    home: Study | None = None  # then: the same study on the declared ones

    @property
    def folder(self) -> Path:
        return self.file.parent

    @property
    def overlap(self) -> float:
        """Test stays per stay learned from where replicates split the same stays anew, 0 where each draws its own."""
        learned, _, scored = self.data.get("shares", SHARES)
        return 0.0 if self.data["source"] == "simulated" else scored / learned

    @property
    def notebook(self) -> Path:
        return self.folder / "run.ipynb"

    @property
    def options(self) -> str:
        """The words of a command that name this study and its table, each after a blank."""
        named = "" if self.file == Path("ablations/study.toml").resolve() else f" --study {shlex.quote(str(self.file))}"
        files = {"source": "--data", "outcomes": "--outcomes"} if self.elsewhere else {}
        return named + "".join(f" {o} {shlex.quote(self.data[file])}" for file, o in files.items() if file in self.data)

    def design(self, name: str = "") -> Design:
        """The design of that name; the first one declared when empty."""
        name = name or next(iter(self.designs))
        if name not in self.designs:
            raise UserError(
                f'study {self.title!r} has no design "{name}"{nearest(name, self.designs)}: '
                f"it declares {', '.join(self.designs)}"
            )
        return self.designs[name]

    def budget(self, name: str) -> dict[str, Any]:
        if name not in self.budgets:
            raise UserError(
                f'study {self.title!r} has no budget "{name}"{nearest(name, self.budgets)}: '
                f"it declares {', '.join(self.budgets)}"
            )
        return self.budgets[name]

    def on(self, data: str | os.PathLike, outcomes: str | os.PathLike | None = None) -> Study:
        """The same study on another event table, by its place in `folder`, at the budgets declared for its name."""
        files = {"source": data} | ({"outcomes": outcomes} if outcomes else {})
        name = Path(data).stem
        budgets = self.tables[name].budgets if name in self.tables else {}
        return dataclasses.replace(
            self,
            elsewhere=name,
            home=self,
            data={which: str((self.folder / file).resolve()) for which, file in files.items()},
            designs={n: dataclasses.replace(d, budget=budgets.get(n, d.budget)) for n, d in self.designs.items()},
        )

    def config(self, design: str = "", budget: str = "") -> Config:
        """The settings that all arms of a design share, with those of a budget if one is named."""
        config = PRESETS[self.preset].but(**self.settings).but(**self.design(design).settings)
        return config.but(**self.budget(budget).get("settings", {})) if budget else config


def load_study(
    path: str | os.PathLike = "ablations/study.toml", data: str = "", outcomes: str | os.PathLike | None = None
) -> Study:
    """Read a declaration and check every name in it.  Raises UserError with the table and the key that are wrong.

    `data` (an event table) and `outcomes` put another data set in the place of the declared one.
    """
    path = Path(path)
    if outcomes and not data:
        raise UserError(f"--outcomes {outcomes} belongs to another table of events: name it, too, with --data")
    for file in (data, outcomes):
        if file and not Path(file).is_file():
            folder = f"{file} is a folder: a study reads one file of events"
            raise UserError(
                folder if Path(file).is_dir() else f"{file} does not exist: it should be the table to study"
            )
    declared = read_toml(path)
    checked(str(path), declared, DECLARED)
    checked(f"{path}, [data]", declared.get("data", {}), DATA)
    for name, budget in declared.get("budgets", {}).items():
        checked(f"{path}, [budgets.{name}]", budget, BUDGET)
    # a budget declares no claim, and its settings are among those of its runs: a new one leaves old records as they are
    key = content_hash({name: value for name, value in declared.items() if name not in ("budgets", "tables")})
    try:
        preset, budgets = declared["preset"], dict(declared["budgets"])
        questions = {name: _spelled_out(path, preset, name, t) for name, t in _table(declared, "questions")}
        study = Study(
            file=path.resolve(),
            title=declared["title"],
            preset=preset,
            factorial=tuple(declared.get("factorial", ())),
            path=tuple(declared.get("path", ())),
            data=dict(declared["data"]),
            settings=dict(declared.get("settings", {})),
            budgets=budgets,
            designs=_all(Design, path, "designs", declared),
            endpoints=_all(Endpoint, path, "endpoints", declared),
            questions=_all(Question, path, "questions", {"questions": questions}),
            controls=_all(Control, path, "controls", declared),
            tables=_all(Table, path, "tables", declared),
            key=key,
        )
    except KeyError as error:
        raise UserError(f"{path} lacks the entry {error}") from None
    _check(study, path)
    return study.on(Path(data).resolve(), outcomes and Path(outcomes).resolve()) if data else study


def content_hash(value: Any) -> str:
    """16 hex digits of a value that JSON can hold."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def _table(declared: dict, name: str):
    return declared.get(name, {}).items()


def _spelled_out(path: Path, preset: str, name: str, table: dict) -> dict:
    """A question whose `changed` names a preset gets all settings in which that preset differs from the study's."""
    if not isinstance(table, dict):
        raise UserError(f"{path}, [questions.{name}] = {table!r} must be a table")
    for one in (preset, table.get("changed")):
        if isinstance(one, str) and one not in PRESETS:
            raise UserError(f'{path}: preset "{one}" is not one of {", ".join(PRESETS)}')
    if not isinstance(table.get("changed"), str):
        return table
    between = PRESETS[table["changed"]].differences(PRESETS[preset])
    old, new = ({name: pair[i] for name, pair in between.items()} for i in (1, 0))
    return {**table, "reference": old, "changed": new}


def _all(kind, path: Path, name: str, declared: dict) -> dict:
    return {one: made(kind, f"{path}, [{name}.{one}]", one, table) for one, table in _table(declared, name)}


def check_shares(where: str, shares: Sequence[float]) -> None:
    """UserError unless these are the three shares of a split."""
    if len(shares) != 3 or any(s <= 0 for s in shares) or not math.isclose(sum(shares), 1):
        what = "to learn from, to select and to test"
        raise UserError(f"{where}: shares must be three numbers above 0 that add up to 1, {what}; they are {shares}")


def _check(study: Study, path: Path) -> None:
    if not study.designs:
        raise UserError(f"{path} declares no design: add a table such as [designs.add] with its budget")
    for design, listed in MADE_OF.items():
        if design in study.designs and not getattr(study, listed):
            raise UserError(f"{path}: [designs.{design}] has no arms, because {listed} names no question")
    for listed in ("factorial", "path"):
        for name in getattr(study, listed):
            if name not in study.questions:
                raise UserError(f'{path}: {listed} names "{name}", and there is no [questions.{name}]')
    for q in study.questions.values():
        where = f"{path}, [questions.{q.name}]"
        if q.endpoint not in study.endpoints:
            raise UserError(f'{where}: unknown endpoint "{q.endpoint}"{nearest(q.endpoint, study.endpoints)}')
        if q.direction not in (1, -1):
            raise UserError(f"{where}: direction must be 1 or -1, it is {q.direction}")
        if q.expected not in (1, 0, -1):
            raise UserError(f"{where}: expected must be 1, 0 or -1, it is {q.expected}")
        if q.name in study.factorial + study.path and q.changed.keys() != q.reference.keys():
            raise UserError(f"{where}: a factor or a step needs the same settings in `reference` and `changed`")
        for settings in (q.reference, q.changed):
            _settings(study, settings, where)
    for c in study.controls.values():
        where = f"{path}, [controls.{c.name}]"
        if c.between and not c.between[0] <= c.between[1]:
            raise UserError(f"{where}: between = {list(c.between)} has its lower end first")
        _settings(study, c.changed, where)
        if c.labels not in LABELS:
            raise UserError(f'{where}: labels "{c.labels}" are not one of {", ".join(LABELS)}')
    for e in study.endpoints.values():
        if not e.delta > 0:
            raise UserError(f"{path}, [endpoints.{e.name}]: delta must be above 0, it is {e.delta}")
    check_shares(f"{path}, [data]", study.data.get("shares", SHARES))
    if "source" not in study.data:
        raise UserError(f'{path}, [data] lacks source: "simulated", or the path of an event table')
    for name, facts in study.budgets.items():
        if facts.get("replicates", 0) < 1:
            raise UserError(f"{path}, [budgets.{name}] needs replicates = a whole number above 0")
        if study.data["source"] == "simulated" and "stays" not in study.data | facts:
            raise UserError(f"{path}: neither [data] nor [budgets.{name}] says how many stays are simulated")
        if (stays := (study.data | facts).get("stays", 1)) < 1:
            raise UserError(f"{path}, [budgets.{name}]: a replicate of {stays} stays has none to learn from")
        for design in study.designs:
            study.config(design, name)  # Config checks every setting
    for design in study.designs.values():
        study.budget(design.budget)
    for table in study.tables.values():
        if table.name != Path(table.source).stem:
            raise UserError(
                f"{path}, [tables.{table.name}]: a table is called like its file, and its is {table.source}"
            )
        for design, budget in table.budgets.items():
            study.design(design)
            study.budget(budget)


def _settings(study: Study, settings: dict[str, Any], where: str) -> None:
    try:
        PRESETS[study.preset].but(**settings)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
