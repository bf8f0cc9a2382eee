"""Errors of values are those of what a run says, beside bars that see neither the value nor the future."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from hsetvae.config import UserError
from hsetvae.generate import forecast
from hsetvae.skill import _bars, skill


@pytest.fixture(scope="module")
def table(small_run):
    run, cohort, parts = small_run
    return skill(run, cohort, parts.test)


def test_every_variable_has_a_row_for_each_task_in_natural_units(small_run, table):
    run, cohort, parts = small_run
    part = cohort.subset(parts.test)
    assert list(dict.fromkeys(table.task)) == ["imputation", "forecast"]
    assert set(table.variable) <= set(cohort.variables) and not table.duplicated(["task", "variable"]).any()
    first = np.isin(np.repeat(np.arange(len(part.hours)), np.diff(part.first_event)), part.first_set[:-1])
    assert table.n[table.task == "forecast"].sum() == (~first).sum(), "all sets but the first of a stay"
    assert table.n[table.task == "imputation"].sum() == (np.diff(part.first_event) > 1).sum(), "one event a set"
    heart = table[(table.task == "forecast") & (table.variable == "HR")].iloc[0]
    values = part.value[(part.variable == cohort.variables.index("HR")) & ~first]
    assert heart["mean"] == pytest.approx(np.abs(values - run.standardiser.mean[cohort.variables.index("HR")]).mean())
    assert 5 < heart.model < 25, "beats per minute"


def test_skill_is_measured_against_the_better_bar(table):
    assert np.allclose(table.skill, 1 - table.model / table[["last", "mean"]].min(axis=1))


def test_the_last_value_is_the_last_one_shown_in_the_same_stay(small_run):
    run, cohort, _ = small_run
    part = cohort.subset(np.arange(5))
    rng = np.random.default_rng(0)
    shown = rng.random(len(part.value)) < 0.5
    found = _bars(run, part, np.ones(len(shown), dtype=bool), shown)
    stay = np.repeat(np.arange(5), np.diff(part.first_event[part.first_set]))
    for i in rng.choice(len(shown), 200, replace=False):
        before = [j for j in range(i) if stay[j] == stay[i] and part.variable[j] == part.variable[i] and shown[j]]
        expected = part.value[before[-1]] if before else run.standardiser.mean[part.variable[i]]
        assert found["last"][i] == expected


def test_a_forecast_does_not_see_the_set_that_it_is_scored_on(small_run):
    """The error of the last set is that of `forecast` from the stay without it."""
    run, cohort, parts = small_run
    one = cohort.subset(parts.test[:1])
    shorter = one.until(one.hours[-2])
    said = forecast(run, shorter).set_index("variable")["mean"]
    last = slice(one.first_event[-2], None)
    names = [one.variables[v] for v in one.variable[last]]
    errors = pd.Series(np.abs(said[names].to_numpy() - one.value[last]), index=names)
    with_last, without_last = (
        t[t.task == "forecast"].set_index("variable") for t in (skill(run, one), skill(run, shorter))
    )
    for name in names:
        total = with_last.n[name] * with_last.model[name]
        before = without_last.n[name] * without_last.model[name] if name in without_last.index else 0.0
        assert total - before == pytest.approx(errors[name], rel=1e-3, abs=1e-3)


def test_where_a_bar_makes_no_error_there_is_no_skill_to_speak_of(small_run):
    run, cohort, parts = small_run
    flat = dataclasses.replace(cohort, value=run.standardiser.mean[cohort.variable])
    table = skill(run, flat, parts.test)
    assert np.allclose(table[["last", "mean"]], 0) and table.skill.isna().all() and (table.model > 0).all()


def test_what_says_no_values_is_refused(small_run):
    run, cohort, parts = small_run
    with pytest.raises(UserError, match="no stay to fill"):
        skill(run, cohort, np.array([], dtype=int))
    slots = dataclasses.replace(run, config=run.config.but(decoder="chamfer"))
    with pytest.raises(UserError, match=r"decoder=chamfer.* says no values"):
        skill(slots, cohort, parts.test)
