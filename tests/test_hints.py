"""What is said about a table beside its numbers: each hint where it belongs, none on a table that is in order."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from hsetvae import hints
from hsetvae.config import UserError
from hsetvae.data import Standardiser, split
from hsetvae.simulate import simulate


@pytest.fixture(scope="module")
def cohort():
    return simulate(40, seed=1).cohort


def test_a_table_in_order_gets_no_hint(cohort):
    every = np.arange(len(cohort))
    assert hints.of_table(cohort) == [] == hints.of_units(cohort, Standardiser.fit(cohort, every))
    assert hints.of_outcomes(cohort, every) == [] == hints.late(cohort, every, [1e6])


def test_hours_that_may_be_seconds_and_variables_that_may_be_one_are_named(cohort):
    seconds = dataclasses.replace(cohort, hours=cohort.hours * 3600)
    assert "are these seconds or minutes?" in hints.of_table(seconds)[0]
    names = list(cohort.variables)
    names[1] = f"{names[0].upper()} "
    (said,) = hints.of_table(dataclasses.replace(cohort, variables=tuple(names)))
    assert said == f'"{names[0]}", "{names[1]}" differ in blanks or case only: one variable?'


def test_a_variable_in_another_unit_is_named_once(cohort):
    standardiser = Standardiser.fit(cohort, np.arange(len(cohort)))
    code = cohort.variables.index("Temp")
    value = np.where(cohort.variable == code, cohort.value * 9 / 5 + 32, cohort.value)
    (said,) = hints.of_units(dataclasses.replace(cohort, value=value), standardiser)
    assert said.startswith('half of the values of "Temp" are above') and said.endswith("another unit?")


@pytest.mark.parametrize(
    "outcome, said", [(np.nan, "will predict nothing"), (0.0, "all training stays have outcome 0")]
)
def test_a_run_that_cannot_learn_to_predict_is_told_before_it_starts(cohort, outcome, said):
    given = dataclasses.replace(cohort, outcome=np.full(len(cohort), outcome))
    assert said in hints.of_outcomes(given, split(cohort, 0).train)[0]


def test_scores_of_one_outcome_and_of_few_are_explained():
    assert hints.of_scores(np.array([0.0, 0.0, np.nan])) == ["no AUROC and no AUPRC: all 2 scored stays have outcome 0"]
    assert hints.of_scores(np.array([1.0] + [0.0] * 50))[0].startswith("1 of the 51 scored stays")
    assert hints.of_scores(np.repeat([0.0, 1.0], 20)) == []


def test_stays_left_out_for_their_events_are_counted(cohort):
    class Run:
        stays = pd.DataFrame({"stay": cohort.stays, "fingerprint": cohort.fingerprints(), "part": "train"})

    renamed = dataclasses.replace(cohort, stays=np.array([f"new {i}" for i in range(len(cohort))]))
    (said,) = hints.whose(Run, renamed, np.array([], dtype=int))
    assert said.startswith("40 of 40 stays are left out because they have, under other ids, exactly the events")


def test_all_stays_that_are_too_long_are_counted_before_any_is_predicted(cohort):
    longest = int(np.diff(cohort.first_set).max())
    hints.refuse_long(cohort, longest)
    with pytest.raises(UserError, match=rf"1 of 40 stays have more .*at most {longest}\): leave them out, cut all"):
        hints.refuse_long(cohort, longest - 1)


def test_nothing_that_is_read_is_written_over(tmp_path):
    run, folder, table = tmp_path / "run", tmp_path / "tables", tmp_path / "events.csv"
    run.mkdir(), folder.mkdir(), table.touch()
    for written, read in ((table, table), (folder / "new.csv", folder), (run / "stays.csv", table)):
        with pytest.raises(UserError, match="is read here, and would be lost: choose another name"):
            hints.refuse_over(written, ".csv", run, read, None)
    hints.refuse_over(run / "predictions.csv", ".csv", run, table, None)
    hints.refuse_over(None, ".csv", run, table)
    with pytest.raises(UserError, match=r"p.parquet would hold CSV: give it a name that ends in .csv"):
        hints.refuse_over(tmp_path / "p.parquet", ".csv", run, table)
