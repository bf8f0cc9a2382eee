"""The simulated cohort: what its description promises."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import QuantileTransformer

from hsetvae.baselines import summary_features
from hsetvae.config import UserError
from hsetvae.scores import auroc
from hsetvae.simulate import EMISSIONS, LONGEST, PREVALENCE, THRESHOLD, simulate


@pytest.fixture(scope="module")
def many():
    return simulate(4000, seed=11)


def test_the_same_seed_gives_the_same_stays_and_another_seed_others(simulation):
    again, other = simulate(), simulate(seed=1)
    assert simulation.cohort.key() == again.cohort.key()
    assert simulation.state.tobytes() == again.state.tobytes()
    assert not set(simulation.cohort.stays) & set(other.cohort.stays)
    assert not set(simulation.cohort.fingerprints()) & set(other.cohort.fingerprints())


def test_sizes_are_near_those_of_intensive_care(many):
    cohort = many.cohort
    sets, events = np.diff(cohort.first_set), np.diff(cohort.first_event)
    assert 14 <= sets.mean() <= 18 and 5 <= events.mean() <= 7 and len(cohort.variables) == 22
    assert abs(cohort.probability.mean() - PREVALENCE) < 0.01 and abs(cohort.outcome.mean() - PREVALENCE) < 0.02
    assert cohort.hours.min() == 0 and cohort.hours.max() <= LONGEST and np.isfinite(cohort.value).all()


def test_age_and_sex_are_events_at_hour_0_of_every_stay(simulation):
    cohort = simulation.cohort
    sets = np.repeat(np.arange(len(cohort.hours)), np.diff(cohort.first_event))
    for name in ("Age", "Gender"):
        at = cohort.variable == cohort.variables.index(name)
        assert at.sum() == len(cohort) and (cohort.hours[sets[at]] == 0).all()


def test_outcomes_follow_the_true_probability(many):
    cohort = many.cohort
    assert auroc(cohort.outcome, cohort.probability) > 0.9
    for low, high in ((0, 0.1), (0.1, 0.4), (0.4, 1)):
        part = (cohort.probability >= low) & (cohort.probability < high)
        assert cohort.outcome[part].mean() == pytest.approx(cohort.probability[part].mean(), abs=0.05)


def test_last_values_say_something_the_whole_stay_much_more_and_the_truth_most(many):
    cohort = many.cohort
    X, names = summary_features(cohort, np.arange(len(cohort)))
    learn, test = np.arange(len(cohort)) < 2000, np.arange(len(cohort)) >= 2000
    X[:, np.isnan(X).all(axis=0)] = 0
    values = np.nan_to_num(QuantileTransformer(output_distribution="normal").fit(X[learn]).transform(X))

    def score(columns):
        model = LogisticRegression(C=0.01, max_iter=500).fit(values[learn][:, columns], cohort.outcome[learn])
        return auroc(cohort.outcome[test], model.predict_proba(values[test][:, columns])[:, 1])

    last = score(np.array([name.startswith("last ") for name in names]))
    whole = score(np.ones(len(names), dtype=bool))
    truth = auroc(cohort.outcome[test], cohort.probability[test])
    assert 0.68 < last < 0.8 and last + 0.06 < whole < truth - 0.03


def test_visits_are_denser_when_the_patient_is_sicker_unless_told_not_to_be():
    def rate_and_severity(simulation):
        row = np.repeat(np.arange(len(simulation.cohort)), np.diff(simulation.cohort.first_set))
        severity = np.bincount(row, simulation.state.mean(axis=1)) / np.bincount(row)
        return np.corrcoef(np.bincount(row), severity)[0, 1]

    assert rate_and_severity(simulate(2000, informative=0.8)) > 0.2
    assert abs(rate_and_severity(simulate(2000, informative=0.0))) < 0.08


def test_the_state_is_that_of_each_set(simulation):
    cohort, state = simulation.cohort, simulation.state
    assert state.shape == (len(cohort.hours), 2)
    sets = np.repeat(np.arange(len(cohort.hours)), np.diff(cohort.first_event))
    for name in ("SysABP", "RespRate", "Lactate", "PaO2"):
        at = cohort.variable == cohort.variables.index(name)
        value = np.log(cohort.value[at]) if EMISSIONS[name][-1] else cohort.value[at]
        inner = (value > np.quantile(value, 0.01)) & (value < np.quantile(value, 0.99))  # without the entry errors
        loading = EMISSIONS[name][3:5]
        found = [np.corrcoef(value[inner], state[sets[at]][inner, k])[0, 1] for k in (0, 1)]
        assert found == pytest.approx(loading, abs=0.12)


@pytest.mark.parametrize("knob", ["history_weight", "current_weight", "time_weight"])
def test_each_weight_changes_the_outcome_and_not_the_events(knob, simulation):
    changed = simulate(**{knob: 0.0}).cohort
    assert changed.fingerprints() == simulation.cohort.fingerprints()
    assert np.abs(changed.probability - simulation.cohort.probability).max() > 0.1
    assert abs(changed.probability.mean() - PREVALENCE) < 0.02


def test_elapsed_hours_matter_and_not_only_the_order_of_sets():
    """With the time weight alone, hours tell more of the outcome than numbers or shares of sets, the truth at hand."""
    simulation = simulate(3000, history_weight=0, current_weight=0, time_weight=1)
    cohort = simulation.cohort
    row = np.repeat(np.arange(len(cohort)), np.diff(cohort.first_set))
    gap = np.where(np.append(row[1:] != row[:-1], True), 0, np.append(np.diff(cohort.hours), 0))  # to the next set
    beyond = simulation.state[:, 0] > THRESHOLD
    around = (gap + np.append(0, gap[:-1])) / 2
    hours, number, sets = np.bincount(row, around * beyond), np.bincount(row, beyond), np.bincount(row)
    logit = np.log(cohort.probability / (1 - cohort.probability))
    by_hours, by_number, by_share = (np.corrcoef(logit, x)[0, 1] for x in (hours, number, number / sets))
    assert by_hours > 0.85 and by_hours > max(by_number, by_share) + 0.04


def test_there_are_entry_errors_but_few(many):
    cohort = many.cohort
    temperature = cohort.value[cohort.variable == cohort.variables.index("Temp")]
    slipped = ((temperature < 10) | (temperature > 100)).mean()
    assert 0.0005 < slipped < 0.005


@pytest.mark.parametrize("wrong", [{"stays": 0}, {"time_weight": float("nan")}, {"informative": float("inf")}])
def test_impossible_knobs_are_refused(wrong):
    with pytest.raises(UserError, match=r"stays = 0|finite"):
        simulate(**wrong)


def test_one_stay_and_extreme_weights_work():
    assert len(simulate(1).cohort) == 1
    assert np.isfinite(simulate(5, history_weight=300, time_weight=-300).cohort.probability).all()
