"""The table of a suite: scores, averages and paired comparisons from the records, and the scores of the Challenge."""

import dataclasses
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hsetvae import suite as suites
from hsetvae.challenge import best_threshold, event1, hosmer_lemeshow
from hsetvae.config import UserError
from hsetvae.events import write_cohort
from hsetvae.lineup import Entrant
from hsetvae.scores import auroc
from hsetvae.simulate import simulate
from hsetvae.standings import (
    METRICS,
    as_markdown,
    averaged,
    publish,
    report,
    rows_at_hand,
    rows_of,
    scores_of,
    standings,
    wording,
)
from hsetvae.statistics import compare
from hsetvae.suite import execute, fitting, jobs_of, load_suite, published_rows, run_suite


def kept_by(job: dict) -> dict[str, np.ndarray]:
    with np.load(Path(job["out"]) / "probabilities.npz") as stored:
        return dict(stored)


# --- the table -------------------------------------------------------------------------------------------------------


def test_the_average_is_of_the_same_stays_and_lies_between_its_parts(suite):
    rows = rows_of(suite)
    of = {job["entrant"]: kept_by(job) for job in jobs_of(suite) if job["facts"]["seed"] == 0}
    both = averaged([of["ours"], of["boosting"]])
    assert np.array_equal(both["test"], (of["ours"]["test"] + of["boosting"]["test"]) / 2)
    row = rows[(rows["entrant"] == "average") & (rows["seed"] == 0)].iloc[0]
    assert row["auroc"] == auroc(both["test_outcome"], both["test"])
    other = next(kept_by(job) for job in jobs_of(suite) if job["facts"]["seed"] == 1)
    with pytest.raises(UserError, match="different stays"):
        averaged([of["ours"], other])


def test_paired_differences_are_those_of_scipy():
    rng, n = np.random.default_rng(0), 8
    ours, theirs = rng.normal(0.87, 0.01, n), rng.normal(0.86, 0.01, n)
    declared = suites.Suite(
        Path(), "s", "s", Path(), None, (), (0.7, 0.1, 0.2),
        {"table": (n, (suites.Entrant("b", "b", "boosting"), suites.Entrant("o", "o", "logistic", against="b")))},
    )  # fmt: skip
    rows = pd.DataFrame({"design": "table", "status": "finished", "seed": [*range(n)] * 2,
                         "entrant": ["o"] * n + ["b"] * n, "auroc": [*ours, *theirs]})  # fmt: skip
    shuffled = rows.sample(frac=1, random_state=1)
    line = standings(declared, shuffled).set_index(["entrant", "metric"]).loc[("o", "auroc")]
    test = stats.ttest_rel(ours, theirs)
    assert line["mean"] == pytest.approx(ours.mean()) and line["sd"] == pytest.approx(ours.std(ddof=1))
    assert (line["low"], line["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert line["against_mean"] == pytest.approx(theirs.mean())
    factor = (line["high_overlap"] - line["low_overlap"]) / (line["high"] - line["low"])
    assert factor == pytest.approx(math.sqrt(1 + n * 0.2 / 0.8)), "Nadeau & Bengio: (1/n + tested/learned) for 1/n"
    flips = stats.permutation_test((ours - theirs,), np.sum, permutation_type="samples", n_resamples=math.inf)
    assert line["p"] == pytest.approx(flips.pvalue) and line["pairs"] == n
    missing = rows[~((rows["entrant"] == "b") & (rows["seed"] == 3))]
    line = standings(declared, missing).set_index(["entrant", "metric"]).loc[("o", "auroc")]
    assert line["pairs"] == n - 1 and line["estimate"] == pytest.approx(np.delete(ours - theirs, 3).mean())


def test_the_overlap_counts_test_stays_per_stay_that_an_entrant_learns_from():
    suite = suites.Suite(Path(), "s", "s", Path(), None, (), (0.7, 0.1, 0.2), {})
    of = {"boosting": 0.2 / 0.8, "model": 0.2 / 0.7, "gru-d": 0.2 / 0.7, "average": 0.2 / 0.8}
    for kind, overlap in of.items():
        assert suite.overlap(suites.Entrant("e", "e", kind)) == pytest.approx(overlap)
        assert suite.overlap(suites.Entrant("e", "e", kind, share=0.125)) == pytest.approx(8 * overlap)
    assert suite.overlap(suites.Entrant("e", "e", "model", refit=True)) == pytest.approx(0.2 / 0.8)


def test_the_words_follow_the_interval_and_the_direction_of_the_metric():
    up = compare(np.array([0.02, 0.021, 0.019, 0.02, 0.022, 0.018, 0.02, 0.02]))
    assert wording("auroc", up, "boosting") == "better than boosting"
    assert wording("brier", up, "boosting") == "worse than boosting"
    assert wording("auroc", compare(np.array([0.02, -0.02, 0.01, -0.01])), "x").startswith("not told apart from x")
    assert wording("auroc", compare(np.array([0.02, 0.021, 0.019])), "x") == "better than x, p is at least 0.25 at n=3"
    assert wording("auroc", compare(np.array([0.02])), "x") == "not compared with x at n=1"
    assert wording("auroc", compare(np.array([0.02, 0.0201])), "x") == "not compared with x at n=2"
    assert wording("auroc", up, "x", only_here=True) == "better than x on these splits only"
    wild = compare(np.array([0.001] * 7 + [0.1]))  # all of one sign, and one so large that the interval holds zero
    assert wild.low < 0 and wording("auroc", wild, "x").endswith(", but p by sign flips is below")


def test_an_unfinished_suite_shows_what_there_is(suite):
    for job in jobs_of(suite):
        if (job["entrant"], job["facts"]["seed"]) not in {("logistic", 0), ("logistic", 1), ("boosting", 0)}:
            shutil.rmtree(job["out"])
    text = report(suite)
    assert "5 are missing" in text and "not compared with boosting at n=1" in text
    row = next(line for line in text.splitlines() if line.startswith("ours"))
    assert row.count("–") == len(METRICS)


def test_what_is_published_gives_the_same_table_without_the_data(suite):
    here = report(suite)
    publish(suite)
    shutil.rmtree(suite.folder / "runs")
    suite.data.unlink()
    assert report(suite) == here
    assert len(rows_at_hand(suite)) == 2 * 5
    with pytest.raises(UserError, match="does not exist: name a table with --data FILE"):
        run_suite(suite, workers=1)


def test_rows_of_another_table_are_not_thrown_away(suite):
    publish(suite)
    path = suites.published(suite)
    before = path.read_bytes()
    other = suite.folder / "other.parquet"
    write_cohort(simulate(60, seed=4).cohort, other)
    elsewhere = load_suite(str(suite.folder / "tiny_suite.toml"), str(other))
    assert execute(jobs_of(elsewhere)[0])["status"] == "finished"
    with pytest.raises(UserError, match=r"holds rows of another table of events than .*other\.parquet: name theirs"):
        publish(elsewhere)
    assert path.read_bytes() == before


def test_a_run_that_designs_share_is_published_for_all_of_them(suite):
    """The curve at all stays is the table: what one machine has published for it, another need not repeat."""
    publish(suite)
    shutil.rmtree(suite.folder / "runs")
    curve = rows_at_hand(suite, "curve")
    assert curve["entrant"].tolist() == ["boosting at 1", "ours at 1"] and (curve["design"] == "curve").all()
    assert "2 are missing" in report(suite, "curve")


def test_an_average_of_others_and_a_renamed_entrant_are_not_mistaken(suite):
    publish(suite)
    shutil.rmtree(suite.folder / "runs")
    path = suite.folder / "tiny_suite.toml"
    text = path.read_text()
    path.write_text(text.replace('of = ["ours", "boosting"]', 'of = ["ours", "logistic"]'))
    assert not (rows_at_hand(load_suite(str(path)))["entrant"] == "average").any()
    path.write_text(text.replace("[entrants.logistic]", "[entrants.regression]"))
    renamed = load_suite(str(path))
    assert (rows_at_hand(renamed)["entrant"] == "regression").sum() == 2


def test_publishing_one_design_keeps_the_rows_of_the_others_under_their_new_names(suite):
    for design in ("table", "curve"):
        publish(suite, design)
    shutil.rmtree(suite.folder / "runs")
    path = suite.folder / "tiny_suite.toml"
    path.write_text(re.sub(r'\bours\b(?=["\]])', "mine", path.read_text()).replace('title = "mine"', 'title = "ours"'))
    renamed = load_suite(str(path))
    publish(renamed)
    rows = published_rows(renamed)
    assert set(rows.loc[rows["design"] == "curve", "entrant"]) == {"boosting at 1", "mine at 1"}


def test_a_readme_of_a_part_of_the_suite_counts_pairs_and_prints_no_nan(suite):
    rows = rows_at_hand(suite)
    for boostings, splits, apart in ((2, "2", True), (1, "2", False), (0, "2", False)):
        some = rows[(rows["entrant"] != "boosting") | (rows["seed"] < boostings)]
        line = next(line for line in as_markdown(suite, some).splitlines() if line.startswith("| logistic"))
        assert "nan" not in line and line.endswith(f"| {splits} |") and ("[" in line) == apart
    lone = rows[(rows["entrant"] != "logistic") | (rows["seed"] > 0)]
    assert "[" not in next(line for line in as_markdown(suite, lone).splitlines() if line.startswith("| logistic"))
    alone = dataclasses.replace(suite, designs={"table": (2, (Entrant("logistic", "logistic", "logistic"),))})
    assert "minus" not in as_markdown(alone, rows)


def test_rows_of_other_code_are_published_no_longer_whatever_their_design(suite):
    publish(suite)
    path = suites.published(suite)
    table = pd.read_csv(path, dtype={"id": str})
    stale = table.iloc[:1].assign(design="ladder", entrant="without cut", id="0" * 16)
    older = table.iloc[:1].assign(seed=9, id="1" * 16)
    pd.concat([stale, older, table]).to_csv(path, index=False)
    assert set(fitting(suite, published_rows(suite))["id"]) == set(table["id"])
    data = suite.data.rename(suite.folder / "away")
    assert set(rows_at_hand(suite)["id"]) == set(table["id"]), "nothing stale is shown without the data either"
    data.rename(suite.data)
    publish(suite)
    assert set(pd.read_csv(path, dtype={"id": str})["id"]) == set(table["id"])


def test_a_calibration_is_fitted_on_the_validation_stays_and_brings_the_test_error_to_what_truth_has():
    rng = np.random.default_rng(0)
    truth = rng.beta(1, 6, 20_000)
    outcome, told = (rng.random(len(truth)) < truth).astype(float), truth**2  # a ranking that is right, too low
    half = len(truth) // 2
    kept = {"validation": told[:half], "validation_outcome": outcome[:half], "validation_index": np.arange(half),
            "test": told[half:], "test_outcome": outcome[half:], "test_index": np.arange(half, 2 * half)}  # fmt: skip
    found = scores_of(kept)
    assert found["ece"] > 5 * found["ece_calibrated"] and found["ece_calibrated"] < 3 * found["ece_expected"]
    flipped = scores_of(kept | {"test_outcome": 1 - outcome[half:]})
    assert flipped["ece_expected"] == found["ece_expected"], "nothing about the calibration comes from test outcomes"
    useless = scores_of(kept | {"validation": -told[:half] + told.max()})
    assert math.isnan(useless["ece_calibrated"]) and useless["auroc"] == found["auroc"]


# --- the scores of the challenge -------------------------------------------------------------------------------------


def test_event_1_is_the_smaller_of_sensitivity_and_precision():
    rng = np.random.default_rng(1)
    for _ in range(20):
        outcome, p = (rng.random(40) < 0.3).astype(float), rng.integers(0, 12, 40) / 12
        outcome[0] = 1
        twins = {}
        for threshold in np.unique(p):
            true = sum(a == 1 and b >= threshold for a, b in zip(outcome, p, strict=True))
            twins[threshold] = min(true / sum(outcome), true / sum(b >= threshold for b in p))
            assert event1(outcome, p, threshold) == pytest.approx(twins[threshold])
        best = best_threshold(outcome, p)
        assert twins[best] == max(twins.values())
    assert event1(np.array([0.0, 1.0]), np.array([0.1, 0.2]), 0.9) == 0


def test_h_is_the_statistic_of_the_challenge_decile_by_decile():
    rng = np.random.default_rng(2)
    p = rng.random(200) * 0.6
    outcome = (rng.random(200) < p).astype(float)
    ranked, h = sorted(zip(p, outcome, strict=True)), 0.0
    means = []
    for d in range(10):
        risks, deaths = zip(*ranked[20 * d : 20 * d + 20], strict=True)
        mean = sum(risks) / 20
        h += (sum(deaths) - 20 * mean) ** 2 / (20 * mean * (1 - mean) + 0.001)
        means.append(mean)
    assert hosmer_lemeshow(outcome, p) == pytest.approx(h / (means[-1] - means[0]))
    assert hosmer_lemeshow(outcome, np.full(200, 0.2)) == math.inf
    assert math.isnan(hosmer_lemeshow(outcome[:9], p[:9])), "a decile would be empty"
