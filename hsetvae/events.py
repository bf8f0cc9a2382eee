"""The event table `stay, hours, variable, value`: into a Cohort and back."""

from __future__ import annotations

import numpy as np

from .data import Cohort


def build(
    stays: np.ndarray,
    variables: tuple[str, ...],
    stay: np.ndarray,
    hours: np.ndarray,
    variable: np.ndarray,
    value: np.ndarray,
    **per_stay: np.ndarray | None,
) -> tuple[Cohort, int]:
    """Cohort of an event table in any order, given as codes into `stays` and `variables` -> cohort, events averaged.

    A variable that occurs twice in a set is averaged.  Every stay needs an event.
    """
    if not _sorted_and_unique(stay, hours, variable):
        order = np.lexsort((value, variable, hours, stay))  # by value too: the mean must not depend on row order
        stay, hours, variable, value = stay[order], hours[order], variable[order], value[order]
    new_set = np.ones(len(stay), dtype=bool)
    new_set[1:] = (stay[1:] != stay[:-1]) | (hours[1:] != hours[:-1])
    new_event = new_set.copy()
    new_event[1:] |= variable[1:] != variable[:-1]
    event_at, set_at = np.flatnonzero(new_event), np.flatnonzero(new_set)
    averaged = len(stay) - len(event_at)
    if averaged:
        value = np.add.reduceat(value, event_at) / np.diff(np.append(event_at, len(stay)))
    cohort = Cohort(
        variables=tuple(variables),
        stays=np.asarray(stays, dtype=str),
        first_set=np.searchsorted(stay[set_at], np.arange(len(stays) + 1)),
        first_event=np.searchsorted(event_at, np.append(set_at, len(stay))),
        hours=hours[set_at] + 0.0,  # -0.0 becomes 0.0
        variable=variable[event_at].astype(np.int16),
        value=value,
        **per_stay,
    )
    return cohort, averaged


def _sorted_and_unique(stay: np.ndarray, hours: np.ndarray, variable: np.ndarray) -> bool:
    later = variable[1:] > variable[:-1]
    later = np.where(hours[1:] == hours[:-1], later, hours[1:] > hours[:-1])
    return bool(np.where(stay[1:] == stay[:-1], later, stay[1:] > stay[:-1]).all())
