"""Designs: which arms a study runs and what is compared with what; arms × replicates -> runs with a content hash.

A design is a pure function of the declaration.  Arms with the same settings are one arm, and runs with the same
settings, data, replicate and code are one run, whichever designs ask for them.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .config import PRESETS, Config, UserError, nearest, stream
from .declaration import Design, Question, Study, content_hash

# What decides the numbers of a run.  A changed comment or docstring changes nothing, a changed line of code does.
CODE = (
    "attention baselines cohort config controls data decoders diagnostics evaluate events gather history mapped "
    "measures model objective observe optim runs scores setvae simulate stays summary tables teacher train"
).split()


@dataclass(frozen=True)
class Arm:
    """A name, the settings in which the arm differs from its design's common ones, and its labels (see `controls`)."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    labels: str = "true"


@dataclass(frozen=True)
class Contrast:
    """A question (or control) asked of two arms; without a `reference` the question's bound takes its place."""

    question: str
    changed: Arm
    reference: Arm | None


@dataclass(frozen=True)
class Spec:
    """One run: an arm in a replicate, the whole configuration, the data, and the hash of all of it."""

    id: str
    arm: Arm
    replicate: int
    config: Config
    data: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.arm.name}, replicate {self.replicate}"


# --- designs: declaration -> contrasts -------------------------------------------------------------------------------


def _merged(questions: Iterable[Question], side: str) -> dict[str, Any]:
    return {name: value for q in questions for name, value in getattr(q, side).items()}


def factorial(study: Study, design: Design) -> Iterator[Contrast]:
    """All combinations of the factors; each effect is seen at every combination of the other factors."""
    factors = [study.questions[name] for name in study.factorial]

    def arm(on: list[Question]) -> Arm:
        return Arm(
            " + ".join(q.name for q in on) or "reference", _merged(factors, "reference") | _merged(on, "changed")
        )

    for levels in itertools.product((False, True), repeat=len(factors)):
        on = [q for q, level in zip(factors, levels, strict=True) if level]
        for q in on:
            yield Contrast(q.name, arm(on), arm([other for other in on if other is not q]))


def add_one_in(study: Study, design: Design) -> Iterator[Contrast]:
    """Every question alone, against the preset with the question's own reference settings, or against its bound."""
    for q in study.questions.values():
        reference = Arm(f"reference of {q.name}", q.reference)
        yield Contrast(q.name, Arm(q.name, q.reference | q.changed), reference if q.bound is None else None)


def leave_one_out(study: Study, design: Design) -> Iterator[Contrast]:
    """The whole path against the path without one of its steps."""
    path = [study.questions[name] for name in study.path]
    whole = Arm("whole path", _merged(path, "changed"))
    for q in path:
        yield Contrast(q.name, whole, Arm(f"without {q.name}", whole.settings | q.reference))


def roadmap(study: Study, design: Design) -> Iterator[Contrast]:
    """The steps of the path one by one, in the declared order and in random ones; each against the one before."""
    rng = np.random.default_rng(stream(design.seed, "roadmap"))
    orders = {"declared order": list(study.path)}
    orders |= {f"random order {k + 1}": rng.permutation(study.path).tolist() for k in range(design.random_orders)}
    start = _merged((study.questions[name] for name in study.path), "reference")
    for title, order in orders.items():
        before = Arm("reference", start)
        for k, name in enumerate(order, 1):
            after = Arm(f"{title}, step {k}: {name}", before.settings | study.questions[name].changed)
            yield Contrast(name, after, before)
            before = after


def controls(study: Study, design: Design) -> Iterator[Contrast]:
    """Arms whose answers are known, beside the reference."""
    for c in study.controls.values():
        yield Contrast(c.name, Arm(c.name, c.changed, c.labels), Arm("reference"))


DESIGNS = {
    "factorial": factorial, "add": add_one_in, "leave": leave_one_out, "roadmap": roadmap, "controls": controls
}  # fmt: skip


@functools.lru_cache(maxsize=64)
def plan(study: Study, design: str = "") -> tuple[tuple[Arm, ...], tuple[Contrast, ...]]:
    """The arms of a design, each once, and its contrasts, both in order.

    Raises UserError for an unknown design and for a question that changes nothing.
    """
    declared = study.design(design)
    if declared.name not in DESIGNS:
        raise UserError(f'no design is called "{declared.name}"{nearest(declared.name, DESIGNS)}: {", ".join(DESIGNS)}')
    base, arms = study.config(design), {}

    def once(arm: Arm) -> Arm:
        changes = {name: new for name, (new, _) in base.but(**arm.settings).differences(base).items()}
        plain = Arm(arm.name if changes or arm.labels != "true" else "reference", changes, arm.labels)
        return arms.setdefault(json.dumps([changes, arm.labels], sort_keys=True), plain)

    contrasts = []
    for c in DESIGNS[declared.name](study, declared):
        reference = once(c.reference) if c.reference else None
        contrasts.append(Contrast(c.question, once(c.changed), reference))
        if contrasts[-1].changed == reference:
            raise UserError(f'"{c.question}" changes nothing in design {declared.name}: {c.changed.settings}')
    return tuple(arms.values()), tuple(contrasts)


# --- runs ------------------------------------------------------------------------------------------------------------


def expand(study: Study, budget: str = "", design: str = "", code: str = "", table: str = "") -> list[Spec]:
    """All runs of a design at a budget (its own when empty): replicate by replicate, so that an interrupted suite holds
    whole replicates.  A run's place in this list is its index; `code` is the hash of the code that makes them, the
    present one when empty, and `table` that of the study's table when it is not at hand (`table_hash`).

    A setting at its default does not enter the id of a run: a new one that is off leaves the runs what they were.
    A budget scales what all arms share: where one side of a question has the study's own value, that side has the
    budget's.
    """
    budget = budget or study.design(design).budget
    facts = study.budget(budget)
    base, code, table = study.config(design, budget), code or code_hash(study.notebook), table or table_hash(study)
    data = study.data
    if data["source"] == "simulated":
        data = data | ({"stays": facts["stays"]} if "stays" in facts else {})
    else:  # a table has the stays that it has
        data = {name: value for name, value in data.items() if name != "stays"}
    found = []
    for arm in plan(study, design)[0]:
        own = data | ({"labels": arm.labels} if arm.labels != "true" else {})
        config = base.but(**arm.settings)
        settings = {name: value for name, (value, _) in config.differences(Config()).items()}
        found.append((arm, config, own, [settings, _data_key(own, table), code]))
    return [
        Spec(content_hash([what[0], replicate, *what[1:]]), arm, replicate, config, own)
        for replicate in range(facts["replicates"])
        for arm, config, own, what in found
    ]


FILES = ("source", "outcomes")  # what of a study's data names files


def table_hash(study: Study) -> str:
    """What is in the files of the study's data, wherever they lie; "" for simulated data."""
    paths = [study.folder / study.data[name] for name in FILES if study.data.get(name, "simulated") != "simulated"]
    for path in paths:
        if not path.is_file():
            raise UserError(f"the study's data {path} does not exist: write it with `hsetvae data`, or change [data]")
    return "+".join(file_hash(path, path.stat().st_mtime_ns) for path in paths)


def _data_key(data: dict[str, Any], table: str) -> str:
    """The declaration of the data, with the content of a table in the place of its files."""
    if not table:
        return content_hash(data)
    return content_hash([{name: value for name, value in data.items() if name not in FILES}, *table.split("+")])


@functools.lru_cache
def file_hash(path: Path, modified: int) -> str:
    """Hash of a file's content; `modified`, its time of change in ns, tells when to read it again."""
    with path.open("rb") as file:  # piece by piece: a table may be larger than memory
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()


def _names(node: ast.AST) -> set[str]:
    """What an assignment assigns to; nothing for another statement."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


@functools.lru_cache
def code_hash(notebook: Path) -> str:
    """Hash of the code that decides a run's numbers: its modules without docstrings, and the notebook's cells.

    The presets do not belong to it: their values are among the settings of a run, which are hashed beside the code.
    """
    cells = json.loads(notebook.read_text())["cells"]
    return _trees_hash(_modules(CODE), ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"])


@functools.lru_cache
def modules_hash(names: tuple[str, ...]) -> str:
    """Hash of the code of some modules, without docstrings, comments and presets."""
    return _trees_hash(_modules(names), [])


def refuse_other_code(code: str, hashed: Callable, of: Any) -> None:
    """RuntimeError unless `code` is the hash of the code that this process has loaded and of what a new one would load.

    `hashed`, a function with a cache, was first called of this soon after the code was loaded.
    """
    if {code} != {hashed(of), hashed.__wrapped__(of)}:
        raise RuntimeError("the code has changed since this process loaded it: start anew, also a cluster's workers")


def _modules(names: Iterable[str]) -> list[ast.Module]:
    package = Path(__file__).parent
    trees = {name: ast.parse((package / f"{name}.py").read_text()) for name in names}
    if config := trees.get("config"):
        presets = {"PRESETS", *(name.upper() for name in PRESETS)}
        config.body = [node for node in config.body if not _names(node) & presets]
    return list(trees.values())


def _trees_hash(trees: list[ast.Module], cells: list[str]) -> str:
    trees = trees + [ast.parse(cell) for cell in cells]
    for tree in trees:
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
                if isinstance(getattr(body[0].value, "value", None), str):
                    node.body = body[1:]
    return content_hash([_dumped(tree) for tree in trees])


def _dumped(tree: ast.AST) -> str:
    """`ast.dump` in the words of Python 3.11: 3.12 added `type_params` to functions, and its first releases an empty
    text beside a format that is computed; 3.13 leaves out empty lists."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            node.values = [part for part in node.values if not (isinstance(part, ast.Constant) and part.value == "")]
    shown = {"show_empty": True} if sys.version_info >= (3, 13) else {}
    return ast.dump(tree, **shown).replace(", type_params=[]", "")
