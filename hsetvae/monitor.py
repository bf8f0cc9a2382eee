"""The diagnosis of a run in training: measures after every epoch, and one warning for each finding that stays.

The measures are those of `diagnostics` on a few validation stays, the findings and their thresholds those of `advice`.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd

from .advice import (
    collapse,
    jumping_gradient,
    paid_for_nothing,
    skipped_steps,
    tried,
    turned_gradient,
    unused_history,
    unused_level,
)
from .cohort import Cohort
from .config import Config, stream
from .data import Split, Standardiser
from .diagnostics import glance
from .model import HSetVAE

# How long a finding must last before it is said, as a share of the planned epochs: latents that fall silent in one
# epoch often speak again in the next, and history is learned after the sets themselves.
WATCHED = {
    skipped_steps: 0.0, collapse: 0.1, paid_for_nothing: 0.1, unused_level: 0.25, unused_history: 0.5,
    turned_gradient: 0.1, jumping_gradient: 0.1,
}  # fmt: skip
LASTING = 3  # epochs in a row at the least, except for what a single epoch proves
SHARE = 0.01  # sets that are looked at, as a share of the sets of an epoch: so the look costs little in any cohort
SETS = (100, 1000)  # and their number is within these bounds


class TrainingWarning(UserWarning):
    """Something has begun, and stays, that `diagnose` would report of the finished run."""


class Monitor:
    """Looks at a network after each epoch, on the same few validation stays, without touching anything of it."""

    def __init__(self, name: str, cohort: Cohort, split: Split, standardiser: Standardiser, config: Config, seed: int):
        sets, order = np.diff(cohort.first_set), np.random.default_rng(stream(seed, "monitored stays"))
        index = order.permutation(split.validation)
        most = np.clip(SHARE * sets[split.train].sum(), *SETS)
        index = index[np.cumsum(sets[index]) - sets[index] < most]
        self.name, self.cohort, self.standardiser = name, cohort.subset(np.sort(index)), standardiser
        self.config, self.seed = config, seed

    def look(self, model: HSetVAE, history: list[dict], lasted: dict[str, int]) -> dict[str, float]:
        """Columns for the last row of `history`; TrainingWarning for what lasts, once for each finding.

        `lasted` holds for how many epochs each finding has lasted, is brought up to date, and belongs to what a resumed
        run must know.
        """
        m = glance(model, self.cohort, self.standardiser, self.config, pd.DataFrame(history), self.seed)
        whole = ("au_ratio", "at_floor", "mean_sigma", *(name for name in m if name.startswith("decoder_use_")))
        row = {name: m[name] for name in whole}
        row |= {f"au_ratio_level{level['level']}": level["au_ratio"] for level in m["levels"]}
        if None in [m["kl"], m["mi"], *row.values()]:
            return {}  # numbers that overflow are the loop's to report
        for rule, share in WATCHED.items():
            enough = max(LASTING, math.ceil(share * self.config.epochs)) if share else 1
            seen, before = rule(m), lasted.get(rule.__name__, 0)
            if before < enough:
                lasted[rule.__name__] = before + 1 if seen else 0
                if lasted[rule.__name__] == enough:
                    where = f"{self.name}, epoch {history[-1]['epoch']}: "
                    text = f"{where}{seen.finding} Evidence: {seen.evidence}. {tried(seen.remedy)}"
                    warnings.warn(text, TrainingWarning, stacklevel=5)  # the line that called `train`
        row["s_past"] = math.nan if m["s_past"] is None else m["s_past"]
        return {f"validation_{name}": value for name, value in row.items()}
