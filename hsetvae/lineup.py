"""Who competes in a suite: entrants as declared, the ladder of ingredients, the curve over numbers of stays, and what
one setting trades for what."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import PRESETS, UserError, nearest
from .entrants import KINDS
from .toml import all_of, made

AVERAGE = "average"  # the kind of an entrant without a run of its own: the mean of the probabilities of others
CORE = "core"  # the model of a ladder without all of its ingredients

# What the tables of a declaration hold that fill no dataclass.
TABLES = dict.fromkeys(("entrants", "curve", "tradeoff", "ladder"), dict[str, Any])
DECLARED = TABLES | {
    "title": str, "data": str, "groups": tuple[str, ...], "shares": tuple[float, float, float], "splits": int,
    "against": str,
}  # fmt: skip
DESIGNS = {
    "curve": {"entrants": tuple[str, ...], "shares": tuple[float, ...], "splits": int},
    "tradeoff": {"whole": str, "setting": str, "values": tuple[Any, ...], "splits": int},
    "ladder": {"whole": str, "splits": int, "ingredients": dict[str, Any]},
}
INGREDIENT = {"title": str, "off": dict[str, Any]}


@dataclass(frozen=True)
class Entrant:
    """One row of the table: a kind of `entrants.KINDS` with settings, or the average of the entrants `of`.

    A "model" starts from `preset`; with `refit` it learns anew from training and validation stays before it scores the
    test stays.  It is compared with the entrant `against`.  It learns from and selects on a `share` of the stays that a
    split gives it.
    """

    name: str
    title: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    preset: str = ""
    of: tuple[str, ...] = ()
    against: str = ""
    share: float = 1.0
    refit: bool = False


def entrant(path: Path, name: str, table: dict) -> Entrant:
    where = f"{path}, [entrants.{name}]"
    entrant = made(Entrant, where, name, table)
    kinds = [*KINDS, AVERAGE]
    if entrant.kind not in kinds:
        raise UserError(
            f'{where}: kind "{entrant.kind}" is not one of {", ".join(kinds)}{nearest(entrant.kind, kinds)}'
        )
    if not 0 < entrant.share <= 1:
        raise UserError(f"{where}: share is above 0 and at most 1, and here it is {entrant.share}")
    if entrant.refit and entrant.kind != "model":
        raise UserError(f"{where}: refit is for models; a simple model always learns from validation stays, too")
    if entrant.kind == "model":
        _config(path, entrant)
    elif entrant.kind == AVERAGE:
        if not entrant.of:
            raise UserError(f"{where}: an average needs the entrants that it is made `of`")
    else:
        kind, given = KINDS[entrant.kind], entrant.settings.keys()
        if lacking := kind.needs - given:
            raise UserError(f"{where}: settings lack {', '.join(sorted(lacking))}")
        if not kind.takes_more and (unknown := given - kind.needs):
            raise UserError(f'{where}: {entrant.kind} has no setting "{min(unknown)}"')
    return entrant


def _config(path: Path, entrant: Entrant):
    if entrant.preset not in PRESETS:
        raise UserError(f'{path}, {entrant.name}: preset "{entrant.preset}" is not one of {", ".join(PRESETS)}')
    try:
        return PRESETS[entrant.preset].but(**entrant.settings)
    except UserError as error:
        raise UserError(f"{path}, {entrant.name}: {error}") from None


def ladder(path: Path, ladder: dict, table: tuple[Entrant, ...]) -> tuple[Entrant, ...]:
    """The whole model, it without each ingredient, the model without all of them, and that with each one added.

    None is refitted: that doubles what a ladder costs, and says nothing about an ingredient.
    """
    whole, off = _whole(path, "ladder", ladder["whole"], table), {}
    present = _config(path, whole)
    for name, ingredient in ladder["ingredients"].items():
        all_of(f"{path}, [ladder.ingredients.{name}]", ingredient, INGREDIENT)
        arm = dataclasses.replace(
            whole, name=f"[ladder.ingredients.{name}]", settings=whole.settings | ingredient["off"]
        )
        if _config(path, arm) == present:
            raise UserError(f"{path}, [ladder.ingredients.{name}] changes nothing: it is off in {whole.name}")
        if twice := off.keys() & ingredient["off"].keys():
            raise UserError(f"{path}, [ladder.ingredients.{name}]: {min(twice)} belongs to another ingredient, too")
        off |= ingredient["off"]

    def arm(name: str, title: str, settings: dict, against: str) -> Entrant:
        return Entrant(name, title, "model", whole.settings | settings, whole.preset, (), against)

    arms = [
        dataclasses.replace(whole, against="", refit=False),
        arm(CORE, f"{whole.title} without all of these", off, whole.name),
    ]
    for name, one in ladder["ingredients"].items():
        kept = {key: value for key, value in off.items() if key not in one["off"]}
        arms += [
            arm(f"without {name}", f"without {one['title']}", one["off"], whole.name),
            arm(f"{CORE} + {name}", f"only {one['title']}", kept, CORE),
        ]
    return tuple(arms)


def _whole(path: Path, design: str, name: str, table: tuple[Entrant, ...]) -> Entrant:
    whole = next((e for e in table if e.name == name), None)
    if whole is None or whole.kind != "model":
        raise UserError(f'{path}, [{design}]: whole = "{name}" is not an entrant of kind "model"')
    return whole


def tradeoff(path: Path, tradeoff: dict, table: tuple[Entrant, ...]) -> tuple[Entrant, ...]:
    """The whole model at several values of one setting, each compared with the value that it has; none is refitted."""
    whole, setting = _whole(path, "tradeoff", tradeoff["whole"], table), tradeoff["setting"]
    arms = [
        dataclasses.replace(whole, name=f"{setting} {value}", title=f"{setting} {value}",
                            settings=whole.settings | {setting: value}, against="", refit=False)
        for value in tradeoff["values"]
    ]  # fmt: skip
    present = [arm for arm in arms if _config(path, arm) == _config(path, whole)]
    if len(present) != 1:
        raise UserError(f"{path}, [tradeoff]: values need the {setting} that {whole.name} has, once")
    return tuple(dataclasses.replace(arm, against=present[0].name * (arm != present[0])) for arm in arms)


def curve(path: Path, curve: dict, table: tuple[Entrant, ...]) -> tuple[Entrant, ...]:
    """Some entrants at several shares of the stays, each compared at its share with the first of them."""
    found = {e.name: e for e in table}
    if not curve["entrants"]:
        raise UserError(f"{path}, [curve]: entrants are empty: name one at least")
    if unknown := [name for name in curve["entrants"] if name not in found]:
        raise UserError(f'{path}, [curve]: there is no entrant "{unknown[0]}"{nearest(unknown[0], found)}')
    if wrong := [share for share in curve["shares"] if not 0 < share <= 1]:
        raise UserError(f"{path}, [curve]: shares are above 0 and at most 1, and one of them is {wrong[0]}")
    first = curve["entrants"][0]

    def at(name: str, share: float) -> str:
        return f"{name} at {share:g}"

    return tuple(
        dataclasses.replace(found[name], name=at(name, share), share=share,
                            title=f"{found[name].title}, {100 * share:g} %", against=at(first, share) * (name != first))
        for share in curve["shares"] for name in curve["entrants"]
    )  # fmt: skip


def check(path: Path, entrants: tuple[Entrant, ...]) -> None:
    names = [e.name for e in entrants if e.kind != AVERAGE]
    for e in entrants:
        if unknown := [name for name in (*e.of, *filter(None, [e.against])) if name not in names]:
            raise UserError(
                f'{path}, {e.name}: there is no entrant "{unknown[0]}" with a run{nearest(unknown[0], names)}'
            )
