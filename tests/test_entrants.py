"""Entrants of a suite: fair splits, no outcome of a test stay, and each its own claim."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hsetvae.config import UserError, stream
from hsetvae.data import Standardiser, split
from hsetvae.entrants import compete, hourly
from hsetvae.evaluate import predict
from hsetvae.runs import load_run
from hsetvae.simulate import simulate
from hsetvae.standings import METRICS, rows_of
from hsetvae.suite import jobs_of, load_suite


@pytest.fixture(scope="module")
def cohort():
    return simulate(120, seed=3).cohort


def kept_by(job: dict) -> dict[str, np.ndarray]:
    with np.load(Path(job["out"]) / "probabilities.npz") as stored:
        return dict(stored)


def test_the_parts_of_a_split_are_disjoint_and_have_the_declared_shares(suite, cohort):
    for job in jobs_of(suite):
        kept, parts = kept_by(job), split(cohort, job["facts"]["seed"], suite.shares)
        assert np.array_equal(kept["test_index"], parts.test)
        assert np.array_equal(kept["validation_index"], parts.validation)
        together = np.concatenate([parts.train, parts.validation, parts.test])
        assert np.array_equal(np.sort(together), np.arange(len(cohort)))
        sizes = [len(part) / len(cohort) for part in (parts.train, parts.validation, parts.test)]
        assert np.allclose(sizes, suite.shares, atol=2 / len(cohort))
    first, second = (kept_by(job)["test_index"] for job in jobs_of(suite) if job["entrant"] == "boosting")
    assert not np.array_equal(first, second), "every seed has a split of its own"


@pytest.mark.parametrize("name", ["boosting", "logistic", "tuned", "ours"])
def test_outcomes_of_test_stays_change_nothing_that_an_entrant_gives(ran_suite, cohort, tmp_path, name):
    job = next(job for job in jobs_of(load_suite(str(ran_suite / "tiny_suite.toml"))) if job["entrant"] == name)
    parts, kept = split(cohort, 0, tuple(job["shares"])), kept_by(job)
    outcome = cohort.outcome.copy()
    outcome[parts.test] = 1 - outcome[parts.test]
    other = dataclasses.replace(cohort, outcome=outcome)
    made, _ = compete(job["facts"]["kind"], job["settings"], other, parts, 0, tmp_path)
    assert np.array_equal(made.validation, kept["validation"]) and np.array_equal(made.test, kept["test"])
    assert bool(made.earlier) == (name != "tuned")
    assert all(np.array_equal(p, kept[f"test_{hour}"]) for hour, p in made.earlier.items())


def test_at_an_hour_nothing_later_counts_and_at_the_end_everything(cohort, tmp_path):
    parts = split(cohort, 0, (0.7, 0.1, 0.2))
    late = np.repeat(cohort.hours, np.diff(cohort.first_event)) > 12
    other = dataclasses.replace(cohort, value=np.where(late, cohort.value + 1.0, cohort.value))
    one, two = (compete("boosting", {}, c, parts, 0, tmp_path)[0] for c in (cohort, other))
    assert np.array_equal(one.earlier["6h"], two.earlier["6h"]) and np.array_equal(
        one.earlier["12h"], two.earlier["12h"]
    )
    assert not np.array_equal(one.earlier["24h"], two.earlier["24h"])
    assert cohort.hours.max() <= 48 and np.array_equal(one.earlier["48h"], one.test)


def test_our_models_say_whether_they_are_still_vaes(suite):
    rows = rows_of(suite).set_index("entrant").sort_index()
    for name in ("au_ratio", "au_ratio_top", "mi", "decoder_use_current", "s_past", "kl_per_set", "nll_per_event"):
        assert rows.loc["ours", name].notna().all() and rows.loc["boosting", name].isna().all(), name
    assert rows.loc[["ours", "boosting", "average"], ["auroc_6h", "auprc_48h"]].notna().all(axis=None)
    assert rows.loc["tuned", "auroc_6h"].isna().all()


def test_a_refitted_model_has_learned_from_validation_stays_and_calibrates_on_unseen_ones(ran_suite, cohort):
    job = next(job for job in jobs_of(load_suite(str(ran_suite / "tiny_suite.toml"))) if job["entrant"] == "ours")
    parts, folder = split(cohort, 0, (0.7, 0.1, 0.2)), Path(job["out"])
    run, refit = load_run(folder / "run"), load_run(folder / "refit")
    learned = {name: set(r.stays.loc[r.stays.part == "train", "stay"]) for name, r in (("run", run), ("refit", refit))}
    assert learned["run"] == set(cohort.stays[parts.train])
    assert learned["refit"] == learned["run"] | set(cohort.stays[parts.validation])
    assert np.array_equal(kept_by(job)["validation"], predict(run, cohort, parts.validation))
    assert np.array_equal(kept_by(job)["test"], predict(refit, cohort, parts.test))
    cost = json.loads((folder / "record.json").read_text())["seconds_training"]
    assert cost > run.history["seconds"].max() + refit.history["seconds"].max()


def test_the_threshold_and_all_validation_scores_ignore_the_test_stays(suite):
    before = rows_of(suite)
    for job in jobs_of(suite):
        kept = kept_by(job)
        np.savez(Path(job["out"]) / "probabilities.npz", **kept | {"test_outcome": 1 - kept["test_outcome"]})
    after = rows_of(suite)
    same = ["threshold", *(f"validation_{name}" for name in METRICS)]
    pd.testing.assert_frame_equal(before[same], after[same], check_exact=True)
    assert np.allclose(after["auroc"], 1 - before["auroc"])


def test_the_tuned_boosting_is_the_best_of_its_candidates_on_validation_stays(cohort, tmp_path):
    parts = split(cohort, 0, (0.7, 0.1, 0.2))
    one, _ = compete("tuned boosting", {"trials": 1}, cohort, parts, 0, tmp_path)
    untuned, _ = compete("boosting", {}, cohort, parts, 0, tmp_path)
    assert np.array_equal(one.test, untuned.test), "the first candidate is the untuned model"

    def loss(p):
        y = cohort.outcome[parts.validation]
        return -np.mean(np.log(np.where(y == 1, p, 1 - p)))

    several, _ = compete("tuned boosting", {"trials": 4}, cohort, parts, 0, tmp_path)
    assert loss(several.validation) <= loss(untuned.validation) + 1e-12


def test_averaged_boosting_is_the_mean_of_boostings_that_differ_in_their_start_only(cohort, tmp_path):
    parts = split(cohort, 0, (0.7, 0.1, 0.2))
    alone, _ = compete("boosting", {}, cohort, parts, 3, tmp_path)
    one, two = (compete("averaged boosting", {"starts": n}, cohort, parts, 3, tmp_path)[0] for n in (1, 2))
    other, _ = compete("boosting", {}, cohort, parts, stream(3, "start 1"), tmp_path)
    for part in ("validation", "test"):
        first, second = getattr(alone, part), getattr(other, part)
        assert np.array_equal(getattr(one, part), first) and not np.array_equal(first, second)
        assert np.allclose(getattr(two, part), (first + second) / 2, atol=1e-15)


def test_hourly_values_are_the_means_of_the_long_table(cohort):
    scale = Standardiser.fit(cohort, np.arange(50))
    X = hourly(cohort, scale, 24)
    events = np.diff(cohort.first_event)
    table = pd.DataFrame({"stay": np.repeat(np.arange(len(cohort)), np.add.reduceat(events, cohort.first_set[:-1])),
                          "hour": np.minimum(np.repeat(cohort.hours, events) // 1, 23).astype(int),
                          "variable": cohort.variable, "z": scale.transform(cohort)})  # fmt: skip
    means = table.groupby(["stay", "hour", "variable"])["z"].mean()
    assert np.allclose(X[tuple(zip(*means.index, strict=True))], means, atol=1e-5)
    assert np.isfinite(X).sum() == len(means)


def test_gru_d_learns_the_same_twice_and_without_its_library_fails_alone(cohort, tmp_path, monkeypatch):
    parts, settings = split(cohort, 0), {"hours": 24, "rnn_hidden_size": 4, "batch_size": 16, "epochs": 1}
    if importlib.util.find_spec("pypots"):
        first, second = (compete("gru-d", settings, cohort, parts, 0, tmp_path)[0] for _ in range(2))
        assert np.array_equal(first.test, second.test) and len(first.test) == len(parts.test)
    monkeypatch.setitem(sys.modules, "pypots.classification", None)
    monkeypatch.setitem(sys.modules, "pypots", None)
    with pytest.raises(UserError, match=r"\[peers\]"):
        compete("gru-d", settings, cohort, parts, 0, tmp_path)
