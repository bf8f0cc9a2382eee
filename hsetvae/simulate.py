"""A simulated intensive-care cohort whose latent state and true outcome probability are known.

A stay lasts 18 to 48 hours.  Its latent state is two-dimensional, circulation and breathing, in SD of the population
and larger when worse; each follows an Ornstein-Uhlenbeck process around the stay's own level.  Visits come more often
when the patient is sicker, and a visit measures panels of variables together.  The outcome depends on the whole
trajectory: on the mean burden of breathing, on the hours of failing circulation, and on the state at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from .cohort import Cohort, joined
from .config import UserError, stream
from .gather import build

STEP = 0.1  # hours; the grid of the latent path and of the visits
LONGEST, SHORTEST = 48.0, 18.0  # hours
RELAXATION = 4.0  # hours after which a deviation from the stay's own level has faded to 1/e
LEVEL_SD = 0.4  # SD between stays of the own level; the path adds the rest to a total variance of 1
THRESHOLD = 1.0  # SD; the hours above it count
PREVALENCE = 0.14  # of the outcome, as in Challenge 2012
VISITS = 0.6  # per hour, at a state of 0
WARD_SD = 0.4  # SD between stays of the log rate of visits: habits of a ward, they say nothing about the patient
NIGHT = 0.25, 8  # rate of visits at night relative to the day; hours of a night
BLOCK = 10_000  # stays drawn together: about half a GiB; each block has random streams of its own
WEIGHTS = 1.8, 0.2, 1.8  # log odds of the outcome per SD of history, current state, time
INFORMATIVE = 0.4  # log rate of visits per SD of the state
ENTRY_ERRORS = 0.002  # share of values with a slipped decimal point

# name: panel, mean, SD, loading on circulation, loading on breathing, logarithmic (mean and SD are then of the log)
EMISSIONS = {
    "HR": ("vitals", 88, 16, 0.6, 0.3, False),
    "SysABP": ("vitals", 120, 20, -0.7, 0.0, False),
    "MAP": ("vitals", 80, 14, -0.7, 0.0, False),
    "RespRate": ("vitals", 19, 5, 0.1, 0.6, False),
    "SaO2": ("vitals", 96, 2.2, 0.0, -0.6, False),
    "Temp": ("vitals", 37, 0.8, 0.2, 0.2, False),
    "Urine": ("vitals", 4.4, 0.8, -0.5, 0.0, True),
    "GCS": ("neuro", 11, 3, -0.3, -0.3, False),
    "pH": ("gas", 7.38, 0.07, -0.4, -0.5, False),
    "PaO2": ("gas", 4.8, 0.4, 0.0, -0.7, True),
    "PaCO2": ("gas", 40, 8, 0.0, 0.6, False),
    "HCO3": ("gas", 23, 4, -0.4, 0.1, False),
    "Lactate": ("gas", 0.6, 0.5, 0.8, 0.1, True),
    "Creatinine": ("chemistry", 0.2, 0.6, 0.5, 0.0, True),
    "BUN": ("chemistry", 3.1, 0.6, 0.4, 0.0, True),
    "Glucose": ("chemistry", 4.9, 0.3, 0.3, 0.1, True),
    "K": ("chemistry", 4.1, 0.6, 0.2, 0.0, False),
    "Na": ("chemistry", 139, 4, 0.0, 0.0, False),
    "Platelets": ("chemistry", 5.2, 0.5, -0.3, 0.0, True),
    "WBC": ("chemistry", 2.5, 0.4, 0.3, 0.1, True),
}
# panel: chance at a visit, chance that one of its variables is recorded
PANELS = {"vitals": (0.75, 0.7), "neuro": (0.3, 1.0), "gas": (0.2, 0.9), "chemistry": (0.1, 0.95)}


@dataclass(frozen=True)
class Simulation:
    """A cohort with `cohort.probability` = true outcome probability, and the truth behind it."""

    cohort: Cohort
    state: np.ndarray  # (M, 2) latent state at each set: circulation, breathing; SD of the population


def simulate(
    stays: int = 1000,
    seed: int = 0,
    history_weight: float = WEIGHTS[0],
    current_weight: float = WEIGHTS[1],
    time_weight: float = WEIGHTS[2],
    informative: float = INFORMATIVE,
) -> Simulation:
    """Draw `stays` stays of one population; another seed draws other stays.

    The weights are log odds of the outcome per population SD of: the mean burden of breathing over the stay (history),
    the state at the end (current), the hours that circulation is beyond its threshold (time).  `informative` is the
    log rate of visits per SD of the state; 0 = visits say nothing.  A constant makes the outcome's prevalence 14 %.
    Raises UserError unless `stays` is at least 1 and the knobs are finite.
    """
    blocks = list(simulate_blocks(stays, seed, (history_weight, current_weight, time_weight), informative))
    cohort = blocks[0].cohort if len(blocks) == 1 else joined([block.cohort for block in blocks])
    return Simulation(cohort, np.concatenate([block.state for block in blocks]))


def simulate_blocks(
    stays: int, seed: int = 0, weights: tuple[float, float, float] = WEIGHTS, informative: float = INFORMATIVE
) -> Iterator[Simulation]:
    """The stays of `simulate`, BLOCK of them at a time: any number of stays in bounded memory."""
    if stays < 1:
        raise UserError(f"stays = {stays}: simulate at least 1 stay")
    if not np.isfinite([*weights, informative]).all():
        raise UserError(f"the weights {weights} and informative = {informative} must be finite numbers")
    for first in range(0, stays, BLOCK):
        yield _block(first, min(BLOCK, stays - first), seed, weights, informative)


def _block(first: int, stays: int, seed: int, weights: tuple[float, float, float], informative: float) -> Simulation:
    """`stays` stays from number `first` on."""
    names = () if first == 0 else (first,)
    parts = ("path", "visits", "events", "end")
    rng = {part: np.random.default_rng(stream(seed, "simulate", part, *names)) for part in parts}
    path, length, age = _paths(stays, rng["path"])
    logit = _features(path, length) @ np.array(weights) + _constant(weights)
    probability = expit(logit)
    outcome = (rng["end"].random(stays) < probability).astype(float)

    hours = np.arange(path.shape[1]) * STEP  # (G,)
    habit = WARD_SD * rng["visits"].standard_normal((stays, 1))
    asleep = (hours + rng["visits"].uniform(0, 24, (stays, 1))) % 24 < NIGHT[1]  # (S, G): they enter at any time of day
    rate = STEP * VISITS * np.exp(informative * path.mean(axis=2) + habit) * np.where(asleep, NIGHT[0], 1)
    visited = (rng["visits"].random(rate.shape) < rate) & (hours <= length[:, None])
    visited[:, 0] = True
    stay, step = np.nonzero(visited)  # (M,) each
    cohort = build(
        stays=np.array([f"s{seed}-{i:06d}" for i in range(first, first + stays)]),
        **_events(stay, step, path[stay, step], age, rng["events"]),
        outcome=outcome,
        probability=probability,
    )[0]
    of_set = np.repeat(np.arange(stays), np.diff(cohort.first_set))
    return Simulation(cohort, path[of_set, np.rint(cohort.hours / STEP).astype(int)])


def _paths(stays: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latent paths (S, G, 2) on the grid, length of each stay (S,) in hours, age (S,) in years."""
    age = rng.normal(64, 16, stays).clip(16, 90).round()
    length = rng.uniform(SHORTEST, LONGEST, stays)
    old = (age[:, None] - 64) / 16
    level = LEVEL_SD * (0.3 * old + np.sqrt(1 - 0.3**2) * rng.standard_normal((stays, 2)))  # older patients are sicker
    keep = np.exp(-STEP / RELAXATION)
    own = np.sqrt(1 - LEVEL_SD**2)  # SD of the path around its level
    noise = rng.standard_normal((round(LONGEST / STEP) + 1, stays, 2)) * own
    noise[1:] *= np.sqrt(1 - keep**2)
    for t in range(1, len(noise)):
        noise[t] += keep * noise[t - 1]
    return level[:, None] + noise.transpose(1, 0, 2), length, age


def _features(path: np.ndarray, length: np.ndarray) -> np.ndarray:
    """What the outcome depends on, standardised -> (S, 3): mean burden, end state, hours beyond threshold."""
    circulation, breathing = path[..., 0], path[..., 1]
    during = np.arange(path.shape[1]) * STEP <= length[:, None]  # (S, G)
    burden = (np.logaddexp(0, 2 * breathing) * during).sum(axis=1) / during.sum(axis=1)  # relief counts little
    end = path[np.arange(len(path)), during.sum(axis=1) - 1].mean(axis=1)
    hours = ((circulation > THRESHOLD) & during).sum(axis=1) * STEP
    return (np.stack([burden, end, hours], axis=1) - [1.07, 0.0, 5.2]) / [0.61, 0.71, 5.5]


@functools.lru_cache
def _constant(weights: tuple[float, float, float]) -> float:
    """The log odds that give the population (here 4,000 stays that are in no cohort) the wanted prevalence."""
    path, length, _ = _paths(4000, np.random.default_rng(stream(0, "simulate", "reference")))
    logit = _features(path, length) @ np.array(weights)
    return brentq(lambda c: expit(logit + c).mean() - PREVALENCE, -logit.max() - 50, 50 - logit.min())


def _events(stay: np.ndarray, step: np.ndarray, state: np.ndarray, age: np.ndarray, rng) -> dict[str, np.ndarray]:
    """What is recorded at the visits, and age and sex at hour 0: columns of an event table, as codes."""
    variables = tuple(sorted([*EMISSIONS, "Age", "Gender"]))
    code = {name: i for i, name in enumerate(variables)}
    stays, everyone = len(age), np.arange(len(age))
    table = [
        (everyone, np.zeros(stays), np.full(stays, code["Age"]), age),
        (everyone, np.zeros(stays), np.full(stays, code["Gender"]), rng.integers(0, 2, stays).astype(float)),
    ]
    ordered = {panel: rng.random(len(stay)) < chance for panel, (chance, _) in PANELS.items()}
    for name, (panel, mean, sd, *loading, logarithmic) in EMISSIONS.items():
        recorded = np.flatnonzero(ordered[panel] & (rng.random(len(stay)) < PANELS[panel][1]))
        n = len(recorded)
        own = np.sqrt(1 - np.square(loading).sum())  # so that `sd` is the SD of all of it
        x = mean + sd * (state[recorded] @ np.array(loading) + own * rng.standard_normal(n))
        x = np.exp(x) if logarithmic else x
        slipped = rng.random(n) < ENTRY_ERRORS
        x = np.where(slipped, x * rng.choice([0.1, 10.0], n), x)
        table.append((stay[recorded], step[recorded] * STEP, np.full(n, code[name]), x))
    columns = (np.concatenate(column) for column in zip(*table, strict=True))
    return {"variables": variables, **dict(zip(("stay", "hours", "variable", "value"), columns, strict=True))}
