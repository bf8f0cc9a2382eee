"""The benchmark measures what it says, on however slow a machine: counts and names, never times."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from hsetvae.simulate import simulate

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """The script as a module, with the shortest of measurements and a folder of its own."""
    monkeypatch.setenv("HSETVAE_RUNS", str(tmp_path))
    spec = importlib.util.spec_from_file_location("bench", ROOT / "ablations" / "bench.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in {"ROUNDS": 1, "SECONDS": 0.0, "SIDE": 8, "SETS_A_STAY": (1, 5), "SETS_A_BATCH": 10}.items():
        monkeypatch.setattr(module, name, value)
    return module


def test_operations_are_counted_with_attention_in_both_directions(bench):
    n, width = 6, 8
    linear, x = torch.nn.Linear(width, width, bias=False), torch.randn(n, width)
    assert bench.flops(lambda: linear(x).sum().backward()) == 2 * 2 * n * width * width  # x needs no gradient
    q = torch.randn(1, 1, n, width, requires_grad=True)
    forward = 2 * 2 * n * n * width
    attend = torch.nn.functional.scaled_dot_product_attention
    assert bench.flops(lambda: attend(q.detach(), q.detach(), q.detach())) == forward
    assert bench.flops(lambda: attend(q, q, q).sum().backward()) == forward * 3.5  # five products back for two ahead


def test_every_measure_is_there_once_and_the_book_finds_it(bench):
    rows = list(bench.measure(simulate(60).cohort))
    assert len({(name, unit) for name, unit, _ in rows}) == len(rows)
    assert all(np.isfinite(value) and value > 0 for _, _, value in rows)
    found = pd.read_csv(ROOT / "ablations" / "results" / "bench_speed.csv")
    published = set(found["name"]) - {name for name in found["name"] if name.endswith("sets a stay")}
    assert published == {name for name, _, _ in rows if not name.endswith("sets a stay")}


def test_stays_of_the_long_stay_measure_are_what_they_say(bench):
    cohort = bench.regular(4, 7)
    assert np.diff(cohort.first_set).tolist() == [7] * 4 and set(np.diff(cohort.first_event)) == {bench.EVENTS_A_SET}
