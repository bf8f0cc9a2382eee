"""Records that wander: what another machine has published, and what a change of code leaves as it was."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

import hsetvae
from hsetvae.config import UserError
from hsetvae.confirm import _code_of, confirm
from hsetvae.declaration import Study
from hsetvae.designs import code_hash, expand
from hsetvae.study import StaleRecords, load_records, local_records, publish, runs_folder, status
from hsetvae.sweep import run_study

pytestmark = pytest.mark.xdist_group("confirm")  # one process makes `made` for all of them


def take(study: Study, made: Path, specs: list) -> None:
    for spec in specs:
        shutil.copytree(made / spec.id, runs_folder(study) / spec.id)


def test_what_another_machine_has_published_need_not_run_again(study, made):
    specs = expand(study, "smoke")
    take(study, made, specs[:2])
    path, missing = publish(study, "smoke")
    total = len(specs)
    assert missing == total - 2 and len(pd.read_csv(path)) == 2
    with pytest.raises(StaleRecords, match=f"{missing} of {total} runs are missing"):
        load_records(study, "smoke")
    shutil.rmtree(runs_folder(study))
    assert status(study, "smoke")["published"].sum() == 2
    take(study, made, specs[2:-1])
    assert run_study(study, "smoke", workers=2, progress=False, published=True) == 0
    assert len(local_records(study, "smoke")) == total - 2
    assert len(load_records(study, "smoke")) == total and publish(study, "smoke")[1] == 0


def test_records_of_other_code_are_kept_where_one_run_of_the_arm_repeats(study, made):
    take(study, made, expand(study, "smoke"))
    path, _ = publish(study, "smoke")
    with pytest.raises(UserError, match="no records of other code"):
        confirm(study, "smoke", progress=False)
    table = pd.read_csv(path, dtype={"id": str})
    now, before = ([spec.id for spec in expand(study, "smoke", code=code)] for code in ("", "other"))
    table = table.assign(id=table["id"].replace(dict(zip(now, before, strict=True))), code="other")
    other_result = table["arm"] == "beta"
    table.loc[other_result, "auroc"] += 1e-6
    table["collapsed"] = table["collapsed"].astype(float)  # as a column is read in which another run has a fraction
    table.to_csv(path, index=False)
    runs = runs_folder(study)
    shutil.rmtree(runs)
    with pytest.raises(StaleRecords):
        load_records(study, "smoke")

    # what was made is not made again, but for one arm
    take(study, made, [spec for spec in expand(study, "smoke") if spec.arm.name != "pooling"])
    found = confirm(study, "smoke", workers=1, progress=False)
    assert (found.arms, found.records) == (3, 6) and len(list(runs.iterdir())) == 7
    (words,) = found.differences
    assert re.match(r"beta, replicate \d: 1 of \d+ numbers differ, auroc was", words)
    shutil.rmtree(runs)
    kept = pd.read_csv(path, dtype={"id": str})
    assert sorted(kept["code"]) == sorted([code_hash(study.notebook)] * 6 + ["other"] * 2)
    assert status(study, "smoke").set_index("arm")["missing"].to_dict() == {
        "reference": 0, "pooling": 0, "beta + pooling": 0, "beta": 2
    }  # fmt: skip


def checkout(folder: Path, study: Study, more: str) -> Path:
    """A checkout of other code."""
    shutil.copytree(Path(hsetvae.__file__).parent, folder / "hsetvae", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "hsetvae" / "scores.py").open("a") as file:
        file.write(more)
    (folder / study.folder.name).mkdir()
    shutil.copy(study.notebook, folder / study.folder.name)
    return folder


@pytest.mark.parametrize("same", [True, False])
def test_on_another_processor_a_run_is_compared_with_what_the_code_before_makes_there(study, made, tmp_path, same):
    more = "\nBEFORE = True\n" if same else "\ndef auroc(outcome, probability):\n    return 0.0\n"
    before = checkout(tmp_path / "before", study, more)
    now = [spec for spec in expand(study, "smoke") if spec.arm.name == "beta"]
    take(study, made, now)
    path, _ = publish(study, "smoke")
    with pytest.raises(UserError, match="has no records of the code in"):
        confirm(study, "smoke", progress=False, before=before)
    then = [spec for spec in expand(study, "smoke", code=_code_of(before, study)) if spec.arm.name == "beta"]
    table = pd.read_csv(path, dtype={"id": str})
    table = table.assign(id=[spec.id for spec in then], code="other", auroc=table["auroc"] + 1e-3)  # rounded otherwise
    table.to_csv(path, index=False)

    found = confirm(study, "smoke", progress=False, before=before)
    kept = pd.read_csv(path, dtype={"id": str})
    assert (kept["auroc"] == table["auroc"]).all(), "the published numbers stay"
    if same:
        assert (found.arms, found.records, found.differences) == (1, len(now), ())
        assert list(kept["id"]) == [spec.id for spec in now]
    else:
        assert found.arms == 0 and re.search(r"auroc\w* was 0(.0)? and is", found.differences[0])
        assert list(kept["id"]) == [spec.id for spec in then]


def test_a_folder_that_is_no_checkout_is_refused(study, tmp_path):
    with pytest.raises(UserError, match="--before names a checkout"):
        confirm(study, "smoke", progress=False, before=tmp_path / "nowhere")
    with pytest.raises(UserError, match="leave --scheduler out"):
        confirm(study, "smoke", scheduler="tcp://127.0.0.1:1", before=tmp_path)
