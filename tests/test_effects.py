"""From the records of a study to effects and verdicts."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hsetvae.config import UserError
from hsetvae.declaration import load_study
from hsetvae.designs import expand
from hsetvae.study import (
    StaleRecords,
    effects,
    interaction,
    load_records,
    publish,
    published,
    runs_folder,
    summary,
)
from hsetvae.verdicts import control_table

DECLARED = load_study(Path(__file__).resolve().parents[1] / "ablations" / "study.toml")


def made_up(study, effect):
    """Records of the factorial in which `changed` beta adds `effect` to every measure, more so with changed pooling."""
    rows = []
    for spec in expand(study):
        noise = np.random.default_rng([spec.replicate, len(spec.arm.settings)]).normal(0, 1e-3)
        beta, both = "beta" in spec.arm.name, spec.arm.name == "beta + pooling"
        value = spec.replicate + effect * beta + 0.2 * both + noise
        rows.append({"id": spec.id, "arm": spec.arm.name, "beta": "changed" if beta else "reference",
                     "pooling": "changed" if "pooling" in spec.arm.name else "reference",
                     "replicate": spec.replicate, "status": "finished", "error": "",
                     "declaration": study.key, **dict.fromkeys(study.endpoints, value)})  # fmt: skip
    return pd.DataFrame(rows)


def test_effects_are_paired_and_averaged_over_the_other_factor(study):
    records = made_up(study, effect=0.5)
    d = effects(study, records, "beta", "auroc")
    assert len(d) == 10 and d.to_numpy() == pytest.approx(np.full(10, 0.6), abs=0.01)
    assert interaction(study, records, "beta", "pooling", "auroc").to_numpy() == pytest.approx(
        np.full(10, 0.1), abs=0.01
    )


def test_verdicts_follow_from_the_records_and_failed_runs_count(study):
    records = made_up(study, effect=0.5)
    found = summary(study, records).query("primary").set_index("question")["verdict"]
    assert found["beta"] == "supported"
    few = records.assign(status=["failed"] * 7 + ["finished"] * (len(records) - 7))
    found = summary(study, few).query("primary").set_index("question")["verdict"]
    assert found["beta"] == "supported", "17.5 % may fail"
    broken = records.assign(status=["failed"] * 12 + ["finished"] * (len(records) - 12))
    found = summary(study, broken).query("primary").set_index("question")["verdict"]
    assert found["beta"].startswith("not evaluable: 30% of the runs failed")


def test_a_pair_with_a_failed_run_drops_out():
    values = {"reference": [1.0, 2.0, np.nan], "clamp": [1.5, np.nan, 3.0]}
    rows = [
        {"arm": arm, "replicate": r, "mi": x, "status": "finished" if x == x else "failed"}
        for arm, column in values.items()
        for r, x in enumerate(column)
    ]
    d = effects(DECLARED, pd.DataFrame(rows), "clamp", "mi", "add")
    assert d.to_dict() == {0: 0.5}


def test_divergence_is_a_result_where_it_is_asked_for_and_a_failure_elsewhere():
    rows = [{"arm": arm, "replicate": r, "status": "failed" if arm == "no_clipping" else "finished", "error": "",
             "diverged": float(arm == "no_clipping"), **dict.fromkeys(set(DECLARED.endpoints) - {"diverged"}, 0.1 * r)}
            for arm in ("reference", "no_clipping", "index_only") for r in range(10)]  # fmt: skip
    table = summary(DECLARED, pd.DataFrame(rows), "add").query("primary").set_index("question")
    assert table.loc["no_clipping", "verdict"] == "supported" and table.loc["no_clipping", "estimate"] == 1
    assert table.loc["index_only", "verdict"] == "refuted: negligible"
    assert table.loc["beta", "verdict"].startswith("not evaluable")


def test_a_claim_that_the_reference_leaves_no_room_is_not_refuted():
    others = dict.fromkeys(set(DECLARED.endpoints) - {"diverged"}, 0.5)
    rows = [
        {"arm": arm, "replicate": r, "status": "finished", "error": "", "diverged": 0.0} | others
        | {"au_ratio": 0.95 + 0.01 * (arm != "reference") * (-1) ** r}
        for arm in ("reference", "warmup", "chamfer") for r in range(10)
    ]  # fmt: skip
    table = summary(DECLARED, pd.DataFrame(rows), "add").query("primary").set_index("question")
    assert table.loc["warmup", "verdict"] == "not evaluable: no room to move (the reference is at 0.95)"
    assert table.loc["chamfer", "verdict"] == "refuted: negligible", "a claim that it goes down has room"
    lower = pd.DataFrame(rows).assign(au_ratio=lambda t: t["au_ratio"] - 0.2)
    found = summary(DECLARED, lower, "add").query("primary").set_index("question")
    assert found.loc["warmup", "verdict"] == "refuted: negligible"


def test_splits_of_the_same_stays_overlap_and_simulated_ones_do_not(tmp_path):
    assert DECLARED.overlap == 0
    assert DECLARED.on(tmp_path / "events.csv").overlap == pytest.approx(0.2 / 0.6), "the shares of the notebook"


def test_a_bound_takes_the_place_of_a_reference():
    near = "undecided (closer to the bound than matters)"
    for level, words in ((0.3, "supported"), (0.7, "refuted"), (0.455, near)):
        rows = [{"arm": "reference", "replicate": r, "status": "finished", "au_ratio": level + r / 100}
                for r in range(10)]  # fmt: skip
        table = summary(DECLARED, pd.DataFrame(rows), "add").query("question == 'dead_units'")
        assert table["verdict"].tolist() == [words]
        assert table["estimate"].item() == pytest.approx(level + 0.045 - 0.5)


def test_beside_a_bound_too_the_overlap_of_splits_is_said():
    on_a_table = dataclasses.replace(DECLARED, data={"source": "events.csv"})
    r, near = np.arange(10), "undecided (closer to the bound than matters)"
    for levels, words in (
        (0.5 - r**2 / 200, "supported on these splits only"),
        (0.5 + r**2 / 200, "refuted on these splits only"),
        (0.5 + (r - 4.5) / 50, near),
    ):
        rows = pd.DataFrame({"arm": "reference", "replicate": r, "status": "finished", "au_ratio": levels})
        table = summary(on_a_table, rows, "add").query("question == 'dead_units'")
        assert table["verdict"].tolist() == [words]


def test_a_failure_here_takes_no_result_away(study):
    """A worker that was killed on this machine says nothing of a run that another machine has finished."""
    specs = expand(study, "smoke")
    shared = {"declaration": study.key, "error": "", "seconds": 1.0, **dict.fromkeys(study.endpoints, 0.5)}
    rows = [shared | {"id": s.id, "arm": s.arm.name, "replicate": s.replicate, "status": "finished"} for s in specs]
    published(study, "smoke").parent.mkdir()
    pd.DataFrame(rows).to_csv(published(study, "smoke"), index=False)
    lost = {"id": specs[0].id, "arm": specs[0].arm.name, "replicate": 0, "status": "failed", "error": "KilledWorker: x"}
    (runs_folder(study) / specs[0].id).mkdir(parents=True)
    (runs_folder(study) / specs[0].id / "record.json").write_text(json.dumps(lost))
    assert (load_records(study, "smoke")["status"] == "finished").all()
    path, missing = publish(study, "smoke")
    assert missing == 0 and (pd.read_csv(path)["status"] == "finished").all()
    mended = lost | shared | {"status": "finished", "auroc": 0.75}
    (runs_folder(study) / specs[0].id / "record.json").write_text(json.dumps(mended))
    assert load_records(study, "smoke")["auroc"].max() == 0.75, "of two results the one of this machine counts"


def test_a_bit_for_bit_control_compares_measures_and_not_machines():
    row = {"arm": "reference", "replicate": 0, "status": "finished", "error": "", "cores": 2, "torch": "2"}
    row |= dict.fromkeys(DECLARED.endpoints, 0.5)
    table = pd.DataFrame([row, row | {"arm": "same", "cores": 4, "torch": "3"}])
    control = next(c for c in DECLARED.controls.values() if c.name == "same")
    held = control_table(DECLARED, table).set_index("control")
    assert held.loc[control.name, "holds"]
    other = control_table(DECLARED, table.assign(auroc=[0.5, 0.6])).set_index("control")
    assert not other.loc[control.name, "holds"]


def test_published_records_of_other_code_are_stale(study):
    records = made_up(study, 0.5).assign(id="0")
    (study.folder / "results").mkdir()
    records.to_csv(study.folder / "results" / "standard.csv", index=False)
    with pytest.raises(StaleRecords, match="40 of 40 runs are missing"):
        load_records(study, "standard")


def test_an_endpoint_that_no_run_measures_is_named(study):
    (study.folder / "results").mkdir()
    records = made_up(study, 0.5).rename(columns={"auroc": "aurok"})
    records.to_csv(study.folder / "results" / "standard.csv", index=False)
    with pytest.raises(UserError, match=r'no run measures "auroc", .*; did you mean "aurok"'):
        load_records(study, "standard")
