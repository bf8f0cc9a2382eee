"""What the page on decoding sets beside the model: guesses at hidden values, and a stranger's nats for the next set."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hsetvae.data import Standardiser
from hsetvae.simulate import EMISSIONS, Simulation


def given_state(name: str, state: np.ndarray) -> np.ndarray:
    """Median of a variable in patients of this state."""
    _, mean, sd, *loading, logarithmic = EMISSIONS[name]
    x = mean + sd * (state @ np.array(loading))
    return np.exp(x) if logarithmic else x


def guesses(
    simulation: Simulation, hidden: np.ndarray, train: np.ndarray, answers: pd.DataFrame, standardiser: Standardiser
) -> pd.DataFrame:
    """What the model and its rivals guess of the hidden events (natural units); a row for each of the `answers`."""
    cohort = simulation.cohort
    of_set = np.repeat(np.arange(len(cohort.hours)), np.diff(cohort.first_event))
    of_stay = np.repeat(np.arange(len(cohort)), np.diff(cohort.first_set))[of_set]
    table = pd.DataFrame({
        "stay": cohort.stays[of_stay], "hours": cohort.hours[of_set],
        "variable": np.array(cohort.variables, dtype=object)[cohort.variable],
        "seen": np.where(hidden, np.nan, cohort.value),
    })  # fmt: skip
    table["last"] = table.groupby(["stay", "variable"])["seen"].ffill()
    learned = np.isin(of_stay, train)
    medians = pd.Series(cohort.value[learned]).groupby(table["variable"][learned].to_numpy()).median()
    table["median"] = table["variable"].map(medians)
    table["state"] = table["median"]  # age and sex, of which the state says nothing
    for name in EMISSIONS:
        rows = table["variable"] == name
        table.loc[rows, "state"] = given_state(name, simulation.state[of_set[rows]])
    asked = answers.merge(table[hidden], on=["stay", "hours", "variable"])
    average = standardiser.mean[[cohort.variables.index(name) for name in asked["variable"]]]
    return pd.DataFrame({
        "the model": asked["mean"], "mean of the variable": average, "median of the variable": asked["median"],
        "carried forward, else the median": asked["last"].fillna(asked["median"]),
        "knows the true state": asked["state"],
    })  # fmt: skip


def stranger(learned: tuple[np.ndarray, np.ndarray], asked: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Nats of each asked set for who knows, of the learned sets, every variable's share, mean and spread.

    Both are (present, value), each with a row per set and a column per variable.
    """
    present, value = learned
    share = present.mean(0).clip(1e-3, 1 - 1e-3)
    mean = (value * present).sum(0) / present.sum(0).clip(1)
    spread = np.sqrt((((value - mean) ** 2) * present).sum(0) / present.sum(0).clip(1)) + 0.05
    present, value = asked
    presence = -np.where(present > 0, np.log(share), np.log(1 - share)).sum(1)
    gaussian = 0.5 * np.log(2 * np.pi * spread**2) + (value - mean) ** 2 / (2 * spread**2)
    return presence + (present * gaussian).sum(1)
