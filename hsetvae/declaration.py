"""The declaration of a study: TOML -> questions, endpoints, budgets -> runs, each with a content hash.

It says what is claimed, what judges the claim and what would matter, before anything runs.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import PRESETS, Config, UserError, nearest

# What decides the numbers of a run.  A changed comment or docstring changes nothing, a changed line of code does.
CODE = (
    "attention config data decoders diagnostics evaluate events history measures model objective observe optim runs "
    "scores setvae simulate train"
).split()


@dataclass(frozen=True)
class Endpoint:
    """A measure with its family, unit and smallest effect of interest `delta`."""

    name: str
    family: str
    delta: float
    unit: str
    text: str


@dataclass(frozen=True)
class Question:
    """A claim: two settings, the endpoint that judges it, the claimed direction and the reason, all beforehand."""

    name: str
    claim: str
    endpoint: str
    direction: int
    why: str
    changed: dict[str, Any]
    reference: dict[str, Any] = dataclasses.field(default_factory=dict)
    ledger: tuple[str, ...] = ()
    mechanism: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A declaration as read from TOML.  `folder` holds run.ipynb, results/ and runs/."""

    folder: Path
    title: str
    preset: str
    factorial: tuple[str, ...]
    data: dict[str, Any]
    settings: dict[str, Any]
    budgets: dict[str, dict[str, Any]]
    endpoints: dict[str, Endpoint]
    questions: dict[str, Question]
    key: str  # hash of the declaration

    @property
    def notebook(self) -> Path:
        return self.folder / "run.ipynb"

    def config(self, budget: str) -> Config:
        """The settings that all arms of a budget share."""
        return PRESETS[self.preset].but(**self.settings).but(**self.budget(budget).get("settings", {}))

    def budget(self, name: str) -> dict[str, Any]:
        if name not in self.budgets:
            raise UserError(
                f'study {self.title!r} has no budget "{name}"{nearest(name, self.budgets)}: '
                f"it declares {', '.join(self.budgets)}"
            )
        return self.budgets[name]


@dataclass(frozen=True)
class Spec:
    """One run of a study: an arm (question -> "reference" or "changed") in a replicate, and its content hash."""

    id: str
    arm: dict[str, str]
    replicate: int
    changes: dict[str, Any]  # settings that differ from the study's reference
    config: Config
    data: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{', '.join(f'{k}={v}' for k, v in self.changes.items()) or 'reference'}, replicate {self.replicate}"


# --- declaration -----------------------------------------------------------------------------------------------------


def load_study(path: str | os.PathLike = "ablations/study.toml") -> Study:
    """Read a declaration and check every name in it.  Raises UserError with the table and the key that are wrong."""
    path = Path(path)
    try:
        declared = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    endpoints = {name: _made(Endpoint, path, f"endpoints.{name}", name, t) for name, t in _table(declared, "endpoints")}
    questions = {name: _made(Question, path, f"questions.{name}", name, t) for name, t in _table(declared, "questions")}
    try:
        study = Study(
            folder=path.resolve().parent,
            title=declared["title"],
            preset=declared["preset"],
            factorial=tuple(declared["factorial"]),
            data=dict(declared["data"]),
            settings=dict(declared.get("settings", {})),
            budgets=dict(declared["budgets"]),
            endpoints=endpoints,
            questions=questions,
            key=_hash(declared),
        )
    except KeyError as error:
        raise UserError(f"{path} lacks the entry {error}") from None
    _check(study, path)
    return study


def _table(declared: dict, name: str):
    return declared.get(name, {}).items()


def _made(kind, path: Path, where: str, name: str, table: dict):
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in table:
        if key not in fields:
            raise UserError(f'{path}, [{where}]: unknown key "{key}"{nearest(key, fields)}')
    lacking = [n for n, f in fields.items() if n != "name" and n not in table and _required(f)]
    if lacking:
        raise UserError(f"{path}, [{where}] lacks {', '.join(lacking)}")
    return kind(name=name, **{key: tuple(v) if isinstance(v, list) else v for key, v in table.items()})


def _required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _check(study: Study, path: Path) -> None:
    if study.preset not in PRESETS:
        raise UserError(f'{path}: preset "{study.preset}" is not one of {", ".join(PRESETS)}')
    for name in study.factorial:
        if name not in study.questions:
            raise UserError(f'{path}: factorial names "{name}", and there is no [questions.{name}]')
    for q in study.questions.values():
        where = f"{path}, [questions.{q.name}]"
        if q.endpoint not in study.endpoints:
            raise UserError(f'{where}: unknown endpoint "{q.endpoint}"{nearest(q.endpoint, study.endpoints)}')
        if q.direction not in (1, -1):
            raise UserError(f"{where}: direction must be 1 or -1, it is {q.direction}")
        if q.name in study.factorial and q.changed.keys() != q.reference.keys():
            raise UserError(f"{where}: a factor needs the same settings in `reference` and `changed`")
    for e in study.endpoints.values():
        if not e.delta > 0:
            raise UserError(f"{path}, [endpoints.{e.name}]: delta must be above 0, it is {e.delta}")
    for budget, facts in study.budgets.items():
        if not isinstance(facts.get("replicates"), int) or facts["replicates"] < 1:
            raise UserError(f"{path}, [budgets.{budget}] needs replicates = a whole number above 0")
        expand(study, budget, hashed=False)  # every setting is checked by Config


def expand(study: Study, budget: str, hashed: bool = True) -> list[Spec]:
    """All runs of a budget: the factorial crossed, then the other arms; replicate by replicate, so that an
    interrupted suite holds whole replicates.  `hashed=False` leaves the ids empty."""
    factors = [study.questions[name] for name in study.factorial]
    arms = []
    for levels in itertools.product(("reference", "changed"), repeat=len(factors)):
        arms.append({q.name: level for q, level in zip(factors, levels, strict=True)})
    plain = {q.name: "reference" for q in factors}
    arms += [{**plain, name: "changed"} for name in study.questions if name not in study.factorial]
    base = study.config(budget)
    base = base.but(**{k: v for q in factors for k, v in q.reference.items()})
    data = study.data | ({"stays": study.budget(budget)["stays"]} if "stays" in study.budget(budget) else {})
    code = code_hash(study.notebook) if hashed else ""
    data_key = _data_key(study, data) if hashed else ""
    specs = []
    for replicate in range(study.budget(budget)["replicates"]):
        for arm in arms:
            changes = {k: v for name, level in arm.items() if level == "changed"
                       for k, v in study.questions[name].changed.items()}  # fmt: skip
            config = base.but(**changes)
            key = _hash([config.to_dict(), replicate, data_key, code]) if hashed else ""
            specs.append(Spec(key, arm, replicate, changes, config, data))
    return specs


def _data_key(study: Study, data: dict[str, Any]) -> str:
    """The declaration of simulated data, or the content of a file."""
    if data["source"] == "simulated":
        return _hash(data)
    path = study.folder / data["source"]
    if not path.is_file():
        raise UserError(
            f"the study's data {path} does not exist: write it with `hsetvae data`, or change [data] source"
        )
    return _hash([data, hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()])


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


@functools.lru_cache
def code_hash(notebook: Path) -> str:
    """Hash of the code that decides a run's numbers: its modules without docstrings, and the notebook's cells."""
    package = Path(__file__).parent
    trees = [ast.parse((package / f"{name}.py").read_text()) for name in CODE]
    cells = json.loads(notebook.read_text())["cells"]
    trees += [ast.parse("".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    for tree in trees:
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                if isinstance(getattr(body[0].value, "value", None), str):
                    node.body = body[1:]
    return _hash([ast.dump(tree) for tree in trees])
