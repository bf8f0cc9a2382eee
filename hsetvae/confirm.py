"""Keep published records when the code changes and the numbers do not: one run of every arm is made again.

A record counts for the code that made it, so that one changed line makes all of them stale.  Often the line changes no
number (a new choice beside the old ones, a faster way to the same sum).  Then it is enough to make one run of every arm
again, in a replicate drawn at random: an arm whose run repeats digit for digit keeps its records, and one whose run
does not has to run again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from .config import UserError, stream
from .declaration import Study, content_hash
from .designs import Spec, code_hash, expand
from .files import write_atomically
from .jobs import host_facts
from .study import HOST, as_published, csv_of, published, published_ids, published_records, records_of
from .sweep import run_specs


@dataclass(frozen=True)
class Confirmed:
    """How many arms kept their records, how many records that are, and of the others what differs."""

    arms: int
    records: int
    differences: tuple[str, ...]


def confirm(
    study: Study, budget: str, workers: int = 1, scheduler: str | None = None, progress: bool = True
) -> Confirmed:
    """Make one run of every arm of a budget again whose published records are of other code, and keep what repeats.

    The published table is written anew: records of confirmed arms count as records of the present code.
    UserError when the table has no record of other code that fits the present declaration.
    """
    table = published_records(study, budget)
    earlier = _earlier(study, budget, table)
    if not earlier:
        raise UserError(f"{published(study, budget)} has no records of other code that fit the present declaration")
    of_arm: dict[str, list[str]] = {}
    for old, spec in earlier.items():
        of_arm.setdefault(content_hash([spec.config.to_dict(), spec.data]), []).append(old)
    rng = np.random.default_rng(stream(0, "confirm", code_hash(study.notebook)))
    drawn = {arm: str(rng.choice(sorted(olds))) for arm, olds in of_arm.items()}
    run_specs(study, [earlier[old] for old in drawn.values()], workers, scheduler, progress)

    before, kept, differences = table.set_index("id"), {}, []
    now = as_published(records_of(study, [earlier[old].id for old in drawn.values()])).set_index("id")
    for arm, old in drawn.items():
        spec = earlier[old]
        if words := _differs(before.loc[old], now.loc[spec.id]):
            differences.append(f"{spec.name}: {words}")
        else:
            kept |= {one: earlier[one].id for one in of_arm[arm]}
    confirmed = table["id"].isin(kept)
    table.loc[confirmed, "code"] = code_hash(study.notebook)
    table["id"] = table["id"].replace(kept)
    write_atomically(published(study, budget), csv_of(table.drop_duplicates("id")).encode())
    return Confirmed(len(drawn) - len(differences), len(kept), tuple(differences))


def _earlier(study: Study, budget: str, table: pd.DataFrame) -> dict[str, Spec]:
    """Published id -> the run of the present code that would take its place, for records of other code."""
    ended, found = published_ids(table), {}
    for code in set(table.get("code", ())) - {code_hash(study.notebook)}:
        for design in study.designs:
            pairs = zip(expand(study, budget, design, code), expand(study, budget, design), strict=True)
            found = {old.id: new for old, new in pairs if old.id in ended} | found  # the first design gives the name
    return found


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
