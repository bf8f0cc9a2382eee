"""On a GPU: the numbers of the CPU, and a killed run that goes on.  Skipped where there is none."""

import importlib
import json

import numpy as np
import pytest
import torch

from hsetvae.config import BASELINE, IMPROVED, RECOMMENDED
from hsetvae.data import Standardiser, collate, split
from hsetvae.model import HSetVAE, initialise
from hsetvae.objective import objective
from hsetvae.runs import load_run
from hsetvae.simulate import simulate
from hsetvae.train import train

module = importlib.import_module("hsetvae.train")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.mark.parametrize("preset", [BASELINE, IMPROVED, RECOMMENDED], ids=["baseline", "improved", "recommended"])
def test_terms_and_gradients_are_those_of_the_cpu(preset):
    config = preset.but(dropout=0.0, input_dropout=0.0, statistics_dropout=0.0, posterior_noise=0.0)
    cohort = simulate(20).cohort
    batch = collate(cohort, np.arange(20), Standardiser.fit(cohort, np.arange(20)), config.max_sets)
    found = {}
    for device in ("cpu", "cuda"):
        model = HSetVAE(config, len(cohort.variables))
        initialise(model, config, 0)
        model.to(device).train()
        noise = torch.Generator().manual_seed(0)
        terms = objective(model(batch.to(device), True, noise), batch.to(device), config, 1, 2)
        terms.total.backward()
        gradient = torch.cat([p.grad.cpu().flatten() for p in model.parameters() if p.grad is not None])
        found[device] = {name: float(value) for name, value in terms.values.items()}, gradient
    (terms, gradient), (terms_there, gradient_there) = found.values()
    assert terms_there == pytest.approx(terms, rel=1e-3, abs=1e-5)
    assert float((gradient - gradient_there).norm() / gradient.norm()) < 1e-3


def test_a_run_on_the_gpu_is_killed_goes_on_and_is_read_on_the_cpu(tmp_path, monkeypatch):
    cohort = simulate(60).cohort
    parts = split(cohort, 0)
    config = RECOMMENDED.but(epochs=3, pretrain_epochs=1)

    validate, seen = module._validate, []

    def until_the_third_time(*given):
        seen.append(given)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return validate(*given)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(module, "_validate", until_the_third_time)
        train(config, cohort, parts, tmp_path / "run", device="cuda", progress=False)
    assert (tmp_path / "run" / "resume.pt").exists()
    run = train(config, cohort, parts, tmp_path / "run", device="cuda", progress=False, resume=True)
    assert json.loads((tmp_path / "run" / "done.json").read_text())["steps"] == run.history["step"].iloc[-1]
    assert {p.device.type for p in load_run(tmp_path / "run").model.parameters()} == {"cpu"}
    assert np.isfinite(run.history["validation_loss"].dropna()).all()
