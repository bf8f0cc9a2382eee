"""What the command line looks at beside its numbers: whose stays a table holds and what in it looks like a mistake, a
line of stderr each, on which nothing that is computed depends; and what it refuses before it computes anything."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from .cohort import Cohort
from .config import UserError

LONG = 1000.0  # hours, six weeks: half of the stays of a table are seldom longer
FAR = 3.0  # standard deviations of the training values from their mean
FEW = 20  # values say little of their variable's unit
RARE = 5  # stays with the rarer outcome, below which an interval means little
SHOWN = 5  # names in a line


def listed(names: list[str]) -> str:
    """Some of the names, quoted, and how many there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(f'"{name}"' for name in names[:SHOWN]) + more


def of_table(cohort: Cohort) -> list[str]:
    """Hours that may be seconds, and variables that may be one."""
    said, alike = [], defaultdict(list)
    half = float(np.median(cohort.hours[cohort.first_set[1:] - 1]))
    if half > LONG:
        said.append(f"half of the stays last longer than {half:,.0f} hours: are these seconds or minutes?")
    for name in cohort.variables:
        alike["".join(name.split()).casefold()].append(name)
    said += [f"{listed(names)} differ in blanks or case only: one variable?" for names in alike.values() if names[1:]]
    return said


def of_units(cohort: Cohort, standardiser) -> list[str]:
    """Variables whose values lie far from what a run has learned from."""
    import pandas as pd

    if not isinstance(cohort.value, np.ndarray):  # a table larger than memory is not read once more for a hint
        return []
    found = pd.Series(cohort.value).groupby(cohort.variable).agg(["median", "size"])
    known = found.assign(mean=standardiser.mean[found.index], sd=standardiser.scale[found.index])
    known = known[(found["size"] >= FEW) & (standardiser.count[found.index] >= FEW)]
    far = known[(known["median"] - known["mean"]).abs() > FAR * known["sd"]]
    return [
        f'half of the values of "{cohort.variables[row.Index]}" are {"above" if row.median > row.mean else "below"} '
        f"{row.median:.4g}, where the run has learned from values around {row.mean:.4g} (SD {row.sd:.3g}): another "
        "unit?"
        for row in far.itertuples()
    ]


def of_outcomes(cohort: Cohort, train: np.ndarray) -> list[str]:
    """What a model that learns from the stays `train` will not learn to predict."""
    outcome = np.full(len(train), np.nan) if cohort.outcome is None else cohort.outcome[train]
    known = outcome[~np.isnan(outcome)]
    if not len(known):
        return ["no training stay has a known outcome: the run learns what sets look like, and will predict nothing"]
    if known.min() == known.max():
        return [f"all training stays have outcome {known[0]:.0f}: the run cannot learn to predict the other one"]
    return []


def seen(loaded, cohort: Cohort, index: np.ndarray) -> list[str]:
    """How many of the stays `index` the run knows."""
    asked = cohort.subset(cohort.positions(index))
    if n := len(asked) - len(loaded.unseen(asked)):
        return [
            f"the run has learned from, or was selected on, {n} of these {len(asked)} stays: "
            "what it says of them says nothing of how it does on new ones"
        ]
    return []


def whose(loaded, cohort: Cohort, index: np.ndarray) -> list[str]:
    """How many of the unseen stays `index` are the run's test stays, and how many others were left out, and why."""
    # text that numpy sorts; objects it would compare each with all others
    ids, prints = (loaded.stays[name].to_numpy(dtype=str) for name in ("stay", "fingerprint"))
    tested, said = (loaded.stays.part == "test").to_numpy(), []
    own = int(np.isin(cohort.stays[index], ids[tested]).sum())
    if 0 < own < len(index):
        said.append(f"{own} of these {len(index)} stays are the run's own test stays")
    left = np.setdiff1d(np.arange(len(cohort)), index)
    if not len(left):
        return said
    by_id = np.isin(cohort.stays[left], ids[~tested])
    by_events = np.isin(np.array(cohort.fingerprints())[left], prints[~tested])
    if others := int((by_id & ~by_events).sum()):
        said.append(
            f"{others} stays are left out because the run has learned from, or was selected on, stays of these "
            "ids, though with other events: if they are other patients, give them other ids, or use --split all"
        )
    if twins := int((by_events & ~by_id).sum()):
        said.append(
            f"{twins} of {len(cohort)} stays are left out because they have, under other ids, exactly the events of "
            "stays that the run has learned from, or was selected on: if they are other patients, use --split all"
        )
    return said


def late(cohort: Cohort, index: np.ndarray, hours: list[float]) -> list[str]:
    """Stays that begin after an hour at which they are asked for."""
    begun = cohort.hours[cohort.first_set[index]]
    return [
        f"{n} stays have no event until hour {hour:g}: their first set stands in for it"
        for hour in hours
        if (n := int((begun > hour).sum()))
    ]


def of_scores(outcome: np.ndarray) -> list[str]:
    """Why there is no AUROC, and where an interval means little."""
    known = outcome[~np.isnan(outcome)]
    if len(known) and known.min() == known.max():
        return [f"no AUROC and no AUPRC: all {len(known)} scored stays have outcome {known[0]:.0f}"]
    if len(known) and (rarer := int(min(known.sum(), len(known) - known.sum()))) < RARE:
        return [f"{rarer} of the {len(known)} scored stays have the rarer outcome: the intervals mean little"]
    return []


def refuse_long(cohort: Cohort, max_sets: int) -> None:
    """UserError that names all stays that a model has too few positions for, and what can be done."""
    sets = np.diff(cohort.first_set)
    if len(long := np.flatnonzero(sets > max_sets)):
        raise UserError(
            f"{len(long)} of {len(cohort)} stays have more sets than max_sets = {max_sets} "
            f"({listed([str(stay) for stay in cohort.stays[long]])}; at most {sets.max()}): leave them out, cut all "
            f"stays with --until HOUR, or train with --set max_sets={sets.max()}"
        )


def refuse_over(written: Path | None, ending: str, run: Path, *read: Path | str | None) -> None:
    """UserError when a file to write has another ending, is one of the tables that are read, or is the run's own."""
    if written is None:
        return
    from .stays import STAYS

    if written.suffix.lower() != ending:
        raise UserError(f"{written} would hold {ending[1:].upper()}: give it a name that ends in {ending}")
    place = written.resolve()
    tables = [Path(table).resolve() for table in read if table]
    own = place.parent == run.resolve() and place.name in (STAYS, "history.csv")
    if own or any(place == table or (table.is_dir() and table in place.parents) for table in tables):
        raise UserError(f"{written} is read here, and would be lost: choose another name to write to")
