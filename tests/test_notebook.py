"""The one notebook that runs an arm, executed by papermill as its users call it."""

import json
from pathlib import Path

import pandas as pd
import papermill
import pytest

import hsetvae.sweep  # noqa: F401  registers the engine
from hsetvae.runs import load_run

NOTEBOOK = Path(__file__).resolve().parents[1] / "ablations" / "run.ipynb"
SMALL = {"width": 16, "latent": 4, "feedforward": 16, "pretrain_epochs": 0}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with a tiny model on a few stays -> (folder of the run, the executed notebook)."""
    folder = tmp_path_factory.mktemp("notebook")
    parameters = {"stays": 60, "epochs": 2, "beta": 0.1, "replicate": 1, "out": str(folder / "run"), "more": SMALL}
    papermill.execute_notebook(NOTEBOOK, folder / "out.ipynb", parameters, progress_bar=False)
    return folder / "run", json.loads((folder / "out.ipynb").read_text())


@pytest.mark.slow
def test_papermill_runs_the_notebook_with_other_parameters(executed):
    folder, _ = executed
    run = load_run(folder / "model")
    assert run.config.beta == 0.1 and run.config.width == 16 and run.seed == 1 and run.history.epoch.max() == 2
    result = json.loads((folder / "result.json").read_text())
    assert result["n"] == 12 and result["epochs_done"] == 2 and {"auroc", "au_ratio", "s_past"} <= result.keys()


@pytest.mark.slow
def test_the_executed_notebook_shows_curves_and_no_error(executed):
    _, notebook = executed
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"], "nothing is warned about"


@pytest.mark.slow
def test_every_endpoint_of_the_study_is_in_the_result(executed):
    from hsetvae.declaration import load_study

    folder, _ = executed
    measured = json.loads((folder / "result.json").read_text()).keys() | {"diverged"}  # which a run cannot say itself
    assert load_study(NOTEBOOK.with_name("study.toml")).endpoints.keys() <= measured


@pytest.mark.slow
def test_replicates_draw_their_own_stays_and_arms_of_one_share_them(executed, tmp_path):
    seen = [pd.read_csv(executed[0] / "model" / "stays.csv", dtype=str)]
    for name, change in {"arm": {"beta": 0.5}, "replicate": {"replicate": 2}}.items():
        given = {"stays": 60, "epochs": 1, "replicate": 1, "out": str(tmp_path / name), "more": SMALL, **change}
        how = {"engine_name": "warm", "kernel_name": "python3"}  # as a sweep calls it
        papermill.execute_notebook(NOTEBOOK, tmp_path / "out.ipynb", given, progress_bar=False, **how)
        seen.append(pd.read_csv(tmp_path / name / "model" / "stays.csv", dtype=str))
    first, arm, other = seen
    assert first.equals(arm), "the arms of a replicate see the same stays in the same parts"
    assert not set(first["fingerprint"]) & set(other["fingerprint"]), "another replicate has other stays"
    assert ((first["part"] == "train").sum(), (first["part"] == "validation").sum()) == (36, 12)
