"""Declarations in TOML, checked against what they fill: what is wrong is named with its table and key."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import UserError, nearest

WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.  UserError when it is none."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def checked(where: str, table: Any, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a table, lists as tuples.  UserError for an unknown key and for a value of another type.

    `kinds` are types as annotations write them: str, float, tuple[str, ...], dict[str, Any], float | None.
    """
    if not isinstance(table, dict):
        raise UserError(f"{where} = {table!r} must be a table")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    for key, value in values.items():
        if key not in kinds:
            raise UserError(f'{where}: unknown key "{key}"{nearest(key, kinds)}')
        if not _fits(value, kinds[key]):
            raise UserError(f"{where}: {key} = {table[key]!r} must be {_words(kinds[key])}")
    return values


def all_of(where: str, table: Any, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """`checked`, and a UserError for a key that is lacking."""
    values = checked(where, table, kinds)
    _refuse_lacking(where, [key for key in kinds if key not in values])
    return values


def made(kind, where: str, name: str, table: Any):
    """A dataclass from a table of TOML; UserError as in `checked`, and for a key that is lacking."""
    hints = typing.get_type_hints(kind)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.name != "name"}
    values = checked(where, table, fields)
    lacking = [f.name for f in dataclasses.fields(kind) if f.name in fields.keys() - values.keys() and _required(f)]
    _refuse_lacking(where, lacking)
    return kind(name=name, **values)


def _refuse_lacking(where: str, lacking: list[str]) -> None:
    if lacking:
        raise UserError(f"{where} lacks {', '.join(lacking)}")


def _required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _fits(value: Any, kind: Any) -> bool:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return any(_fits(value, one) for one in args)
    if origin is tuple:
        lengths = args[-1] is ... or len(value) == len(args) if isinstance(value, tuple) else False
        return lengths and all(_fits(one, args[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(one, args[1]) for one in value.values())
    return kind is Any or type(value) is kind or (kind is float and type(value) is int)


def _words(kind: Any) -> str:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return " or ".join(_words(one) for one in args if one is not types.NoneType)
    if origin is tuple:
        return f"a list of {'' if args[-1] is ... else f'{len(args)} '}{'texts' if args[0] is str else 'numbers'}"
    return "a table of tables" if origin is dict and args[1] is not Any else WORDS[origin or kind]
