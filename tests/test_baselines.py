"""Summary features against pandas, and baselines that learn, keep out of the test stays and come back equal."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from hsetvae.baselines import (
    MODELS,
    STATISTICS,
    fit_baselines,
    fitted,
    is_baseline,
    load_baseline,
    summary_features,
    train_baseline,
)
from hsetvae.config import UserError
from hsetvae.data import Split, split
from hsetvae.scores import auroc
from hsetvae.simulate import simulate


@pytest.fixture(scope="module")
def small():
    return simulate(200, seed=9).cohort


def test_summary_features_are_those_of_the_long_table(small):
    index = np.array([7, 3, 11])
    X, names = summary_features(small, index)
    V = len(small.variables)
    assert X.shape == (3, len(STATISTICS) * V) and len(names) == X.shape[1]
    for row, i in enumerate(index):
        one = small.subset([i])
        hours = np.repeat(one.hours, np.diff(one.first_event))
        table = pd.DataFrame({"v": one.variable, "x": one.value, "late": hours >= 24})
        for v, x in table.groupby("v"):
            late = x.x[x.late]
            expected = [
                x.x.iloc[0],
                x.x.iloc[-1],
                x.x.mean(),
                x.x.min(),
                x.x.max(),
                x.x.std(ddof=0),
                len(x),
                late.mean(),
            ]
            assert X[row, v::V] == pytest.approx(expected, nan_ok=True), small.variables[v]
        absent = np.setdiff1d(np.arange(V), one.variable)
        count = STATISTICS.index("count")
        assert (X[row, count * V + absent] == 0).all()
        assert np.isnan(np.delete(X[row].reshape(-1, V)[:, absent], count, axis=0)).all()
    assert names[0] == f"first {small.variables[0]}" and names[-1] == f"second day {small.variables[-1]}"


def test_both_baselines_learn_and_are_bounded_by_the_truth(simulation):
    cohort = simulation.cohort
    parts = split(cohort, 0)
    found = fit_baselines(cohort, parts)
    outcome = cohort.outcome[parts.test]
    assert set(found) == {"logistic regression", "gradient boosting"}
    for probability in found.values():
        assert 0.72 < auroc(outcome, probability) < auroc(outcome, cohort.probability[parts.test])


def test_outcomes_of_test_stays_are_never_read(small):
    parts = split(small, 0)
    flipped = small.outcome.copy()
    flipped[parts.test] = 1 - flipped[parts.test]
    a, b = fit_baselines(small, parts), fit_baselines(dataclasses.replace(small, outcome=flipped), parts)
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_unknown_outcomes_are_left_out_and_one_class_is_refused(small):
    parts = split(small, 0)
    some = small.outcome.copy()
    some[parts.train[:5]] = np.nan
    assert all(np.isfinite(p).all() for p in fit_baselines(dataclasses.replace(small, outcome=some), parts).values())
    for outcome in (np.zeros(len(small)), None):
        with pytest.raises(UserError, match="both outcomes"):
            fit_baselines(dataclasses.replace(small, outcome=outcome), parts)


@pytest.mark.parametrize("name", MODELS)
def test_a_kept_baseline_comes_back_equal_and_knows_what_it_has_seen(name, small, tmp_path):
    parts = split(small, 3)
    run = train_baseline(name, small, parts, tmp_path / "run", seed=3)
    again = load_baseline(tmp_path / "run")
    assert is_baseline(tmp_path / "run") and not is_baseline(tmp_path)
    assert again.predict(small).tobytes() == run.predict(small).tobytes()
    assert again.predict(small, parts.test).tobytes() == fit_baselines(small, parts, 3)[MODELS[name][0]].tobytes()
    assert again.unseen(small).tolist() == parts.test.tolist() and again.variables == small.variables
    found = again.evaluate(small, again.unseen(small))
    assert found["nll_per_event"] is found["kl_per_set"] is found["kl_per_set_high"] is None, "it knows no sets"
    assert found["n"] == len(parts.test) and found["auroc_low"] <= found["auroc"] <= found["auroc_high"]
    with pytest.raises(UserError, match="choose another --out"):
        train_baseline(name, small, parts, tmp_path / "run")


def test_a_damaged_or_misused_baseline_is_named(small, tmp_path):
    parts = split(small, 3)
    run = train_baseline("logistic", small, parts, tmp_path / "run")
    with pytest.raises(UserError, match="other variables"):
        run.predict(dataclasses.replace(small, variables=tuple(f"x{v}" for v in small.variables)))
    with pytest.raises(UserError, match='no baseline "forest": choose among logistic, boosting'):
        train_baseline("forest", small, parts, tmp_path / "forest")
    assert run.evaluate(small) == run.evaluate(small, parts.test), "unseen stays, unless others are named"
    with pytest.raises(UserError, match="no stay to score"):
        run.predict(small, np.array([], dtype=int))
    with pytest.raises(UserError, match="known outcome"):
        run.evaluate(dataclasses.replace(small, outcome=None))
    content = (tmp_path / "run" / "features.npz").read_bytes()
    (tmp_path / "run" / "features.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"holds no baseline, or .* is damaged"):
        load_baseline(tmp_path / "run")
    with pytest.raises(UserError, match=r"holds no baseline, or .* is damaged"):
        load_baseline(tmp_path)
    assert json.loads((tmp_path / "run" / "baseline.json").read_text())["baseline"] == "logistic"


def test_a_baseline_killed_while_it_was_written_can_be_started_again(small, tmp_path):
    parts = split(small, 3)
    train_baseline("logistic", small, parts, tmp_path / "run")
    (tmp_path / "run" / "baseline.json").unlink()
    (tmp_path / "run" / ".baseline.json.k1lled00.partial").write_text("{")
    again = train_baseline("logistic", small, parts, tmp_path / "run")
    assert load_baseline(tmp_path / "run").predict(small).tobytes() == again.predict(small).tobytes()


def test_a_baseline_of_another_scikit_learn_says_so(small, tmp_path):
    train_baseline("logistic", small, split(small, 3), tmp_path / "run")
    path = tmp_path / "run" / "baseline.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scikit-learn": "0.1"}))
    with pytest.warns(UserWarning, match=r"was fitted by scikit-learn 0\.1 and is fitted again by"):
        load_baseline(tmp_path / "run")


def test_boosting_is_the_same_model_for_many_stays():
    """scikit-learn would hold a tenth of more than 10,000 stays out and stop early."""
    rng = np.random.default_rng(0)
    X, outcome = rng.standard_normal((10_001, 2)), (rng.random(10_001) < 0.1).astype(float)
    assert fitted("boosting", X, outcome, 0).n_iter_ == 400


@pytest.mark.slow
def test_boosting_reaches_its_bar_on_real_data(challenge2012):
    """Set a fitted, set b scored: gradient boosting on summary features is known to reach about .87 here."""
    from hsetvae.physionet import load_challenge2012

    cohort, _ = load_challenge2012(challenge2012, ("a", "b"), progress=False)
    a, b = (np.flatnonzero(cohort.group == letter) for letter in "ab")
    found = fit_baselines(cohort, Split(a[:3200], a[3200:], b))
    assert auroc(cohort.outcome[b], found["gradient boosting"]) > 0.86
    assert auroc(cohort.outcome[b], found["logistic regression"]) > 0.85
