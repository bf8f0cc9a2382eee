"""Controls of a study: outcomes altered on purpose, so that the right answer is known.

Cohort and replicate in, cohort out.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from .cohort import Cohort
from .config import UserError, stream
from .gather import build

LEAK = "Outcome"  # variable of the leaked label


def shuffled(cohort: Cohort, replicate: int) -> Cohort:
    """Outcomes dealt out to other stays: nothing is left to predict, the AUROC must be 0.5."""
    order = np.random.default_rng(stream(replicate, "shuffled labels")).permutation(len(cohort))
    return dataclasses.replace(cohort, outcome=cohort.outcome[order], probability=None)


def leaked(cohort: Cohort, replicate: int) -> Cohort:
    """The outcome as an event of every set: the AUROC must be 1.  Stays without a known outcome have no such event."""
    if LEAK in cohort.variables:
        raise UserError(f'this table has a variable "{LEAK}" already: rename it to use the control with leaked labels')
    names = tuple(sorted([*cohort.variables, LEAK]))
    code = np.array([names.index(name) for name in cohort.variables])
    of_set = np.repeat(np.arange(len(cohort)), np.diff(cohort.first_set))  # (M,) stay
    of_event = np.repeat(np.arange(len(cohort.hours)), np.diff(cohort.first_event))  # (E,) set
    known = ~np.isnan(cohort.outcome[of_set])
    events = {
        "stay": np.concatenate([of_set[of_event], of_set[known]]),
        "hours": np.concatenate([cohort.hours[of_event], cohort.hours[known]]),
        "variable": np.concatenate([code[cohort.variable], np.full(known.sum(), names.index(LEAK))]),
        "value": np.concatenate([cohort.value, cohort.outcome[of_set[known]]]),
    }
    per_stay = {"outcome": cohort.outcome, "probability": None, "group": cohort.group}
    return build(stays=cohort.stays, variables=names, **events, **per_stay)[0]


LABELS = {"true": lambda cohort, replicate: cohort, "shuffled": shuffled, "leaked": leaked}
