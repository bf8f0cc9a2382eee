"""What a run says about sets: in natural units, about what was asked, and never from what it was not shown."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from hsetvae.config import BASELINE, UserError
from hsetvae.data import split
from hsetvae.generate import forecast, impute, reconstruct, sample
from hsetvae.simulate import simulate
from hsetvae.train import train


def measured(cohort) -> pd.DataFrame:
    """The cohort as a table of events: stay, hours, variable, value."""
    sets = np.repeat(np.arange(len(cohort.hours)), np.diff(cohort.first_event))
    stay = np.repeat(np.arange(len(cohort)), np.diff(cohort.first_set))[sets]
    names = np.array(cohort.variables, dtype=object)[cohort.variable]
    return pd.DataFrame(
        {"stay": cohort.stays[stay], "hours": cohort.hours[sets], "variable": names, "value": cohort.value}
    )


# --- reconstruct -----------------------------------------------------------------------------------------------------


def test_a_reconstruction_says_every_variable_of_every_set(small_run):
    run, cohort, parts = small_run
    said = reconstruct(run, cohort, parts.test)
    part = cohort.subset(parts.test)
    assert len(said) == len(part.hours) * len(cohort.variables) and list(dict.fromkeys(said.stay)) == list(part.stays)
    assert said.presence.between(0, 1).all() and (said.sd > 0).all()
    one_set = said.iloc[: len(cohort.variables)]
    assert tuple(one_set.variable) == cohort.variables and one_set.hours.nunique() == 1


def test_a_reconstruction_knows_which_variables_a_set_holds(small_run):
    """Better than an oracle that knows how often each variable is measured and nothing of the set."""
    run, cohort, parts = small_run
    table = measured(cohort.subset(parts.test))
    both = reconstruct(run, cohort, parts.test).merge(table, how="left", on=["stay", "hours", "variable"])
    there = both.value.notna()
    assert there.sum() == len(table)

    def surprise(presence):
        return -np.log(np.where(there, presence, 1 - presence)).mean()

    assert surprise(both.presence) < 0.9 * surprise(there.groupby(both.variable).transform("mean").clip(0.001, 0.999))


def test_a_reconstruction_is_in_natural_units(small_run):
    run, cohort, parts = small_run
    said, table = reconstruct(run, cohort, parts.test), measured(cohort)
    for name in ("HR", "Temp", "SysABP", "pH"):
        typical = table.value[table.variable == name]
        assert abs(said["mean"][said.variable == name].mean() - typical.mean()) < typical.std()


# --- impute ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hidden(small_run):
    """One event of every set with at least two events."""
    _, cohort, _ = small_run
    size = np.diff(cohort.first_event)
    hide = np.zeros(len(cohort.value), dtype=bool)
    hide[cohort.first_event[:-1][size > 1]] = True
    return hide


def test_an_imputation_returns_what_was_hidden_beside_what_the_model_says(small_run, hidden):
    run, cohort, parts = small_run
    said = impute(run, cohort, hidden)
    table = measured(cohort)[hidden].reset_index(drop=True)
    assert said[["stay", "variable", "value"]].equals(
        table[["stay", "variable", "value"]].astype(said.dtypes[["stay"]])
    )
    assert np.allclose(said.hours, table.hours) and (said.sd > 0).all() and np.isfinite(said["mean"]).all()
    some = impute(run, cohort, hidden, parts.test)
    expected = said[said.stay.isin(cohort.stays[parts.test])].reset_index(drop=True)
    assert some[["stay", "variable", "value"]].equals(expected[["stay", "variable", "value"]])
    assert np.allclose(some["mean"], expected["mean"], rtol=1e-4, atol=1e-4)


def test_an_imputation_does_not_see_what_is_hidden(small_run, hidden):
    run, cohort, _ = small_run
    other = dataclasses.replace(cohort, value=np.where(hidden, cohort.value * 1.5 + 1, cohort.value))
    one, two = (impute(run, c, hidden) for c in (cohort, other))
    assert not np.allclose(one.value, two.value) and one["mean"].equals(two["mean"]) and one.sd.equals(two.sd)


def test_an_imputation_sees_the_rest_of_the_set(small_run, hidden):
    run, cohort, _ = small_run
    scale = run.standardiser.scale[cohort.variable]
    other = dataclasses.replace(cohort, value=np.where(hidden, cohort.value, cohort.value + scale))
    assert not np.allclose(impute(run, cohort, hidden)["mean"], impute(run, other, hidden)["mean"])


def test_hiding_a_whole_set_or_a_wrong_shape_is_refused(small_run):
    run, cohort, _ = small_run
    with pytest.raises(UserError, match=r"\d+ sets would have no event left.*use forecast"):
        impute(run, cohort, np.ones(len(cohort.value), dtype=bool))
    with pytest.raises(UserError, match="it needs one entry per event"):
        impute(run, cohort, np.zeros(3, dtype=bool))


# --- forecast --------------------------------------------------------------------------------------------------------


def test_a_forecast_is_one_set_after_the_last_of_each_stay(small_run):
    run, cohort, parts = small_run
    said = forecast(run, cohort, parts.test)
    part = cohort.subset(parts.test)
    V = len(cohort.variables)
    assert said.stay[::V].tolist() == part.stays.tolist() and len(said) == len(part) * V
    assert np.allclose(said.hours[::V], part.hours[part.first_set[1:] - 1])
    assert said.presence.between(0, 1).all() and (said.sd > 0).all()


def test_a_forecast_hangs_on_the_stay_itself_and_on_its_last_set(small_run):
    run, cohort, _ = small_run
    last = np.zeros(len(cohort.value), dtype=bool)
    last[cohort.first_event[cohort.first_set[1] - 1] : cohort.first_event[cohort.first_set[1]]] = (
        True  # of the first stay
    )
    moved = np.where(last, cohort.value + 2 * run.standardiser.scale[cohort.variable], cohort.value)
    before, after = (forecast(run, c)["mean"].to_numpy() for c in (cohort, dataclasses.replace(cohort, value=moved)))
    V = len(cohort.variables)
    assert not np.allclose(before[:V], after[:V]) and np.allclose(before[V:], after[V:])


# --- sample ----------------------------------------------------------------------------------------------------------


def test_drawn_sets_look_like_measured_ones(small_run):
    run, cohort, _ = small_run
    drawn, table = sample(run, 2000, seed=1), measured(cohort)
    assert set(drawn.variable) <= set(cohort.variables) and drawn.set.between(0, 1999).all()
    assert not drawn.duplicated(["set", "variable"]).any(), "a variable occurs once in a set"
    per_set = len(table) / len(cohort.hours)
    assert 0.5 * per_set < len(drawn) / 2000 < 2 * per_set
    for name in ("HR", "Temp", "SysABP"):
        typical = table.value[table.variable == name]
        assert abs(drawn.value[drawn.variable == name].median() - typical.median()) < typical.std()


def test_draws_are_decided_by_their_seed(small_run):
    run, *_ = small_run
    assert sample(run, 20, seed=1).equals(sample(run, 20, seed=1))
    assert not sample(run, 20, seed=1).equals(sample(run, 20, seed=2))
    assert (sample(run, 5, hours=3.0).hours == 3.0).all()


# --- what cannot be said ---------------------------------------------------------------------------------------------


def test_a_run_says_only_what_it_was_trained_to_say(tmp_path):
    cohort = simulate(30, seed=1).cohort
    tiny = BASELINE.but(width=16, latent=4, feedforward=16, epochs=1, pretrain_epochs=0)
    runs = {
        name: train(tiny.but(**{name: value}), cohort, split(cohort, 0), tmp_path / name, progress=False)
        for name, value in (("decoder", "chamfer"), ("target", "current"))
    }
    nothing = np.zeros(len(cohort.value), dtype=bool)
    for say in (reconstruct, forecast, lambda run, c: impute(run, c, nothing), lambda run, c: sample(run, 2)):
        with pytest.raises(UserError, match=r"decoder=chamfer.* train one with decoder=likelihood"):
            say(runs["decoder"], cohort)
    with pytest.raises(UserError, match=r"cannot say the next set: .* target=next or both"):
        forecast(runs["target"], cohort)
    assert len(reconstruct(runs["target"], cohort)) and impute(runs["target"], cohort, nothing).empty


def test_no_stay_and_other_variables_are_refused(small_run):
    run, cohort, _ = small_run
    for say in (reconstruct, forecast):
        with pytest.raises(UserError, match="index of stays is empty"):
            say(run, cohort, np.array([], dtype=int))
        with pytest.raises(UserError, match="variables"):
            say(run, dataclasses.replace(cohort, variables=(*cohort.variables[:-1], "zz")))
