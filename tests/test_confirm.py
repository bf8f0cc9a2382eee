"""Records that wander: what another machine has published, and what a change of code leaves as it was."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from hsetvae import confirm as confirmed
from hsetvae import standings
from hsetvae import suite as suites
from hsetvae.config import UserError
from hsetvae.confirm import confirm, confirm_suite
from hsetvae.declaration import Study
from hsetvae.designs import code_hash, expand
from hsetvae.study import StaleRecords, load_records, local_records, publish, replicated, runs_folder, status
from hsetvae.suite import jobs_of, load_suite
from hsetvae.sweep import run_study


def take(study: Study, made: Path, specs: list) -> None:
    for spec in specs:
        shutil.copytree(made / spec.id, runs_folder(study) / spec.id)


@pytest.mark.slow
def test_what_another_machine_has_published_need_not_run_again(study, made):
    specs = expand(study, "smoke")
    take(study, made, specs[:1])
    path, missing = publish(study, "smoke")
    total = len(specs)
    assert missing == total - 1 and len(pd.read_csv(path)) == 1
    with pytest.raises(StaleRecords, match=f"{missing} of {total} runs are missing"):
        load_records(study, "smoke")
    shutil.rmtree(runs_folder(study))
    assert status(study, "smoke")["published"].sum() == 1
    take(study, made, specs[1:-1])
    assert run_study(study, "smoke", workers=1, progress=False, published=True) == 0
    assert len(local_records(study, "smoke")) == total - 1
    assert len(load_records(study, "smoke")) == total and publish(study, "smoke")[1] == 0


def checkout(folder: Path, file: Path, module: str, more: str) -> Path:
    """A checkout of a code with one more statement in one module, and of what lies beside a declaration."""
    shutil.copytree(confirmed.HERE / "hsetvae", folder / "hsetvae", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "hsetvae" / f"{module}.py").open("a") as text:
        text.write(f"\n{more}\n")
    (folder / file.parent.name).mkdir()
    for name in (file.name, "run.ipynb"):
        if (file.parent / name).is_file():
            shutil.copy(file.parent / name, folder / file.parent.name)
    return folder


@pytest.mark.slow
def test_arms_whose_small_runs_are_the_same_keep_their_records(study, made, tmp_path):
    before = checkout(
        tmp_path / "before", study.file, "history",
        'POOLINGS["dot"] = lambda tokens, h, real, query: -pool_dot(tokens, h, real, query)',
    )  # fmt: skip
    take(study, made, expand(study, "smoke"))
    path, _ = publish(study, "smoke")
    with pytest.raises(UserError, match="has no records of the code in"):
        confirm(study, "smoke", before)
    code = confirmed._answer(before, confirmed.CODE, study.notebook)
    table = pd.read_csv(path, dtype={"id": str})
    now, then = ([spec.id for spec in expand(study, "smoke", code=c)] for c in ("", code))
    table = table.assign(id=table["id"].replace(dict(zip(now, then, strict=True))), code=code)
    table["auroc"] += 1e-3  # made on a processor that rounds otherwise
    table.to_csv(path, index=False)
    again = replicated(study, "smoke")
    table.to_csv(again, index=False)

    found = confirm(study, "smoke", before)
    assert (found.arms, found.records) == (2, 2), "reference and beta"
    assert [re.sub(": .*", "", words) for words in found.differences] == ["pooling", "beta + pooling"]
    kept = pd.read_csv(path, dtype={"id": str})
    assert (kept["auroc"] == table["auroc"]).all(), "the published numbers stay"
    assert sorted(kept["code"]) == sorted([code_hash(study.notebook)] * 2 + [code] * 2)
    assert pd.read_csv(again, dtype={"id": str})["id"].tolist() == kept["id"].tolist()
    shutil.rmtree(runs_folder(study))
    assert status(study, "smoke").set_index("arm")["missing"].to_dict() == {
        "reference": 0, "pooling": 1, "beta + pooling": 1, "beta": 0
    }  # fmt: skip


@pytest.mark.slow
def test_an_arm_that_came_with_the_new_code_stands_in_no_old_arms_way(study, made, tmp_path):
    before = checkout(tmp_path / "before", study.file, "history", "NOTHING = 0")
    older = before / study.file.parent.name / study.file.name
    older.write_text(older.read_text().replace('["beta", "pooling"]', '["beta"]'))
    take(study, made, expand(study, "smoke"))
    path, _ = publish(study, "smoke")
    code = confirmed._answer(before, confirmed.CODE, study.notebook)
    then = {new.id: old.id for old, new in zip(expand(study, "smoke", code=code), expand(study, "smoke"), strict=True)}
    table = pd.read_csv(path, dtype={"id": str})
    known = table[table["arm"].isin(["reference", "beta"])]
    known.assign(id=known["id"].map(then), code=code).to_csv(path, index=False)
    shutil.rmtree(runs_folder(study))
    found = confirm(study, "smoke", before)
    assert (found.arms, found.records, found.differences) == (2, len(known), ())
    assert set(pd.read_csv(path, dtype={"id": str})["id"]) == set(known["id"])


@pytest.mark.slow
def test_entrants_whose_small_runs_are_the_same_keep_their_rows(suite, tmp_path):
    file = suite.folder / f"{suite.name}.toml"
    average = '[entrants.average]\ntitle = "average"\nkind = "average"\nof = ["logistic", "boosting"]\n'
    file.write_text(file.read_text().partition("[entrants.tuned]")[0] + average)
    suite = load_suite(str(file))
    before = checkout(
        tmp_path / "before", file, "baselines",
        "old_fitted = fitted\ndef fitted(name, *rest):\n    return old_fitted('boosting', *rest)",
    )  # fmt: skip
    standings.publish(suite)
    path = suites.published(suite)
    said = json.loads(confirmed._answer(before, confirmed.IDS, before / suite.folder.name / file.name, suite.data))
    then = {(design, entrant, seed): id_ for design, entrant, seed, id_, _ in said}
    table = pd.read_csv(path, dtype={"id": str})
    older = {
        job["facts"]["id"]: then[design, job["entrant"], job["facts"]["seed"]]
        for design in suite.designs
        for job in jobs_of(suite, design)
    }
    stale = table.assign(id=["+".join(older.get(part, part) for part in ids.split("+")) for ids in table["id"]])
    stale.to_csv(path, index=False)

    old, new = (confirmed._answer(root, confirmed.MODEL) for root in (before, confirmed.HERE))
    models = path.with_name(f"{suite.name}_skill.csv")
    models.write_text(f"arm,skill,code\na,0.10,{old}\nb,0.20,older\n")

    found = confirm_suite(suite, before)
    assert old in models.read_text(), "no model has shown that it is the same"
    confirmed._keep_models(suite, before)
    assert models.read_text() == f"arm,skill,code\na,0.10,{new}\nb,0.20,older\n"
    assert [re.sub(": .*", "", words) for words in found.differences] == ["logistic"]
    kept = pd.read_csv(path, dtype={"id": str})
    boosting, logistic = ((kept["entrant"] == name) for name in ("boosting", "logistic"))
    assert (kept["id"][boosting] == table["id"][boosting]).all()
    assert (kept["id"][logistic] == stale["id"][logistic]).all()
    assert not set(kept["id"][kept["entrant"] == "average"]) & {*table["id"], *stale["id"]}, "of the ids of its parts"


def test_a_folder_that_is_no_checkout_is_refused(study, tmp_path):
    with pytest.raises(UserError, match="--before names a checkout"):
        confirm(study, "smoke", tmp_path / "nowhere")
