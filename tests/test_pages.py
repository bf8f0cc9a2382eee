"""Helpers of single pages: the units of values, and the rivals of the page on decoding."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import bernoulli, norm

from hsetvae.data import Standardiser
from hsetvae.simulate import EMISSIONS, simulate

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("pages")


def test_units_are_those_of_the_glossary():
    import showruns

    clinic = (ROOT / "book" / "glossary.md").read_text().split("## The clinic")[1]
    entries = dict(re.findall(r"^(\S.*)\n((?:  .*\n)+)", clinic, flags=re.M))
    assert set(showruns.UNITS) == set(simulate(stays=1).cohort.variables)
    for name, unit in showruns.UNITS.items():
        said = entries[name].lower() + entries[name].replace(" (deep coma)", "")
        assert unit == "–" or unit in said, f"the glossary gives {name} another unit"


def test_a_unit_that_nobody_has_told_is_the_readers(monkeypatch):
    import showruns

    shown = []
    monkeypatch.setattr("bookkit.table", shown.append)
    showruns.in_units(pd.DataFrame({"variable": ["Temp", "Mood"], "mean": [37.0, np.nan]}), showruns.UNITS)
    assert shown[0].to_numpy().tolist() == [["Temp", "degrees Celsius", 37.0], ["Mood", "yours", "–"]]


def test_no_rival_but_the_one_who_knows_the_state_is_told_what_is_hidden():
    from rivals import guesses

    simulation = simulate(stays=20)
    cohort = simulation.cohort
    hidden = np.random.default_rng(0).random(len(cohort.value)) < 0.2
    of_set = np.repeat(np.arange(len(cohort.hours)), np.diff(cohort.first_event))
    of_stay = np.repeat(np.arange(20), np.diff(cohort.first_set))[of_set]
    answers = pd.DataFrame({
        "stay": cohort.stays[of_stay], "hours": cohort.hours[of_set],
        "variable": np.array(cohort.variables, dtype=object)[cohort.variable], "value": cohort.value, "mean": 0.0,
    })[hidden & (of_stay >= 10)]  # fmt: skip
    train = np.arange(10)
    found = guesses(simulation, hidden, train, answers, Standardiser.fit(cohort, train))
    assert len(found) == len(answers) and not found.isna().any().any()
    carried = found["carried forward, else the median"]
    for place, row in enumerate(answers.itertuples()):
        own = (cohort.stays[of_stay] == row.stay) & (cohort.variable == cohort.variables.index(row.variable))
        earlier = cohort.value[own & (cohort.hours[of_set] < row.hours) & ~hidden]
        expected = earlier[-1] if len(earlier) else found["median of the variable"][place]
        assert carried[place] == expected


def test_who_knows_the_state_guesses_its_median():
    from rivals import given_state

    for name, (_, mean, *_, logarithmic) in EMISSIONS.items():
        assert given_state(name, np.zeros(2)) == pytest.approx(np.exp(mean) if logarithmic else mean)


def test_a_stranger_pays_the_nats_of_the_average_set():
    from rivals import stranger

    rng = np.random.default_rng(0)
    present, value = rng.random((50, 3)) < 0.5, rng.normal(size=(50, 3))
    share = present.mean(0)
    nats = -bernoulli.logpmf(present, share)
    for v in range(3):
        seen = value[present[:, v], v]
        nats[:, v] -= present[:, v] * norm.logpdf(value[:, v], seen.mean(), seen.std() + 0.05)
    assert stranger((present, value), (present, value)) == pytest.approx(nats.sum(1))
