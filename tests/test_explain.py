"""An explanation names what moves the prediction: exactly where the drivers are known, elsewhere more than chance."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from hsetvae.config import BASELINE, UserError
from hsetvae.data import Standardiser
from hsetvae.evaluate import predict
from hsetvae.explain import deletion, deletion_ratio, explain, without
from hsetvae.simulate import EMISSIONS, simulate

KNOWN, FROM = "HR", 12.0  # what drives the prediction of the network below: this variable, from this hour on


class Known(nn.Module):
    """logit = sum of the standardised values of one variable from some hour on."""

    def __init__(self, variable: int) -> None:
        super().__init__()
        self.variable = variable

    def forward(self, batch, sample: bool, decode: bool):
        w = batch.windows
        sets = w.set[w.real]
        counts = (w.variable[w.real] == self.variable) & (batch.hours[batch.row, batch.column][sets] >= FROM)
        return SimpleNamespace(
            logits=torch.zeros(len(batch.stay)).index_add(0, batch.row[sets], w.value[w.real] * counts)
        )


@pytest.fixture(scope="module")
def known():
    """A run whose drivers are known, and its cohort."""
    cohort = simulate(20, seed=3).cohort
    standardiser = Standardiser.fit(cohort, np.arange(len(cohort)))
    model = Known(cohort.variables.index(KNOWN))
    facts = {"config": BASELINE, "variables": cohort.variables, "standardiser": standardiser}
    return SimpleNamespace(model=model, history=pd.DataFrame({"bce": [0.7]}), **facts), cohort


def test_the_contributions_are_the_known_drivers_and_nothing_else(known):
    run, cohort = known
    table = explain(run, cohort, cohort.stays[4], window=6)
    drives = (table.variable == KNOWN) & (table.hours >= FROM)
    mean, scale = (getattr(run.standardiser, name)[cohort.variables.index(KNOWN)] for name in ("mean", "scale"))
    expected = table.events * (table.value - mean) / scale  # no value is so far off that it is cut
    assert drives.any() and np.allclose(table.contribution[drives], expected[drives], atol=1e-4)
    assert np.allclose(table.contribution[~drives], 0, atol=1e-5)
    assert table.attrs["logit"] == pytest.approx(table.contribution.sum(), abs=1e-4)
    assert set(table.variable[: drives.sum()]) == {KNOWN}, "the strongest first"


def test_every_event_of_the_stay_is_in_one_row(known):
    run, cohort = known
    one = cohort.subset(np.array([7]))
    for window in (0.5, 6.0, 1000.0):
        table = explain(run, cohort, cohort.stays[7], window)
        assert table.events.sum() == len(one.value) and (table.stay == one.stays[0]).all()
        assert (table.value * table.events).sum() == pytest.approx(one.value.sum())
    assert len(table) == len(np.unique(one.variable)) and not table.variable.duplicated().any()


def test_a_contribution_is_what_the_prediction_loses_without_the_events(recommended_run):
    run, cohort, parts = recommended_run
    one = cohort.subset(parts.test[:1])
    row = explain(run, cohort, one.stays[0], window=1000).iloc[0]
    gone = without(one, one.variable == cohort.variables.index(row.variable))
    (before,), (after,) = predict(run, one), predict(run, gone)
    lost = np.log(before / (1 - before)) - np.log(after / (1 - after))
    assert row.contribution == pytest.approx(lost, abs=1e-4) and abs(lost) > 0.01


def test_leaving_events_out_leaves_no_empty_set(known):
    _, cohort = known
    removed = np.random.default_rng(0).random(len(cohort.value)) < 0.7
    left = without(cohort, removed)
    assert len(left.value) == (~removed).sum() and np.array_equal(left.value, cohort.value[~removed])
    assert (np.diff(left.first_event) > 0).all() and left.first_event[-1] == len(left.value)
    assert left.first_set[-1] == len(left.hours) < len(cohort.hours)
    hours = np.repeat(cohort.hours, np.diff(cohort.first_event))[~removed]
    assert np.array_equal(np.repeat(left.hours, np.diff(left.first_event)), hours)


@pytest.fixture(scope="module")
def whole_stays(recommended_run) -> pd.DataFrame:
    """What each variable contributed over whole stays that the run has not seen."""
    run, cohort, parts = recommended_run
    tables = [explain(run, cohort, cohort.stays[i], window=1000) for i in parts.test[:40]]
    return pd.concat(tables, ignore_index=True)


def test_what_says_nothing_of_the_true_state_drives_less_than_what_says_most(whole_stays):
    size = whole_stays.contribution.abs().groupby(whole_stays.variable).mean()
    assert size[["Na", "Gender"]].mean() < 0.7 * size[["HR", "MAP", "Lactate", "RespRate", "SaO2"]].mean()


@pytest.mark.parametrize("variable", ["Lactate", "RespRate", "HR", "MAP", "SysABP", "SaO2"])
def test_values_of_a_sicker_state_speak_for_the_outcome(variable, whole_stays):
    part = whole_stays[whole_stays.variable == variable]
    worse = np.sign(EMISSIONS[variable][3] + EMISSIONS[variable][4])  # the side on which the state is worse
    assert worse * part.value.corr(part.contribution, method="spearman") > 0


# --- the deletion test -----------------------------------------------------------------------------------------------


def test_removing_the_known_drivers_moves_the_prediction_more_than_chance(known):
    run, cohort = known
    table = deletion(run, cohort, np.arange(10), share=0.05)
    for against in ("events_at_random", "cells_at_random"):
        ratio, low, high = deletion_ratio(table, against)
        assert 2 < low < ratio < high


def test_removing_the_named_events_moves_a_trained_network_more_than_chance(recommended_run):
    run, cohort, parts = recommended_run
    table = deletion(run, cohort, parts.test[:12], window=12)
    assert len(table) == 12 and (table.events >= 1).all()
    for against in ("events_at_random", "cells_at_random"):
        ratio, low, high = deletion_ratio(table, against)
        assert 1 < low < ratio < high
    assert table.equals(deletion(run, cohort, parts.test[:12], window=12)), "decided by its seed"


def test_a_deletion_test_takes_a_mask_and_passes_over_what_has_nothing_to_name(known):
    run, cohort = known
    mask = np.isin(np.arange(len(cohort)), [3, 7])
    assert deletion(run, cohort, mask).equals(deletion(run, cohort, np.array([3, 7])))
    first_set = cohort.until(0.0)
    later = ~np.isin(np.arange(len(first_set.value)), first_set.first_event[:-1])
    assert not len(deletion(run, without(first_set, later))), "one event a stay"
    with pytest.raises(UserError, match="windows of more than 0 hours"):
        deletion(run, cohort, window=0)


def test_what_was_known_at_an_hour_is_what_is_explained(known):
    run, cohort = known
    at_6 = explain(run, cohort, cohort.stays[4], until=6)
    assert at_6.equals(explain(run, cohort.until(6), cohort.stays[4])) and at_6.hours.max() <= 6


def test_a_ratio_is_that_of_the_sums():
    table = pd.DataFrame({"named": [1.0, 3.0], "events_at_random": [1.0, 1.0]})
    assert deletion_ratio(table)[0] == 2 and deletion_ratio(table)[1:] == (1, 3)


# --- wrong turns -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_explained_is_refused(known):
    run, cohort = known
    with pytest.raises(UserError, match='no stay "nobody": its 20 stays are'):
        explain(run, cohort, "nobody")
    with pytest.raises(UserError, match="windows of more than 0 hours"):
        explain(run, cohort, cohort.stays[0], window=0)
    lonely = dataclasses.replace(
        cohort.subset(np.array([0])), first_set=np.array([0, 1]), first_event=np.array([0, 1]),
        hours=np.zeros(1), variable=np.zeros(1, dtype=np.int16), value=np.ones(1),
    )  # fmt: skip
    with pytest.raises(UserError, match="would have no event left"):
        explain(run, lonely, lonely.stays[0])
