"""Speed of building batches and of training steps on this machine, on simulated stays: `make bench`.

python ablations/bench.py [TABLE]      TABLE: an event table (Parquet or CSV) instead of simulated stays
"""

from __future__ import annotations

import os
import platform
import resource
import sys
import time

import numpy as np
import torch

from hsetvae.config import IMPROVED
from hsetvae.data import Standardiser, batches, collate, split
from hsetvae.events import read_cohort
from hsetvae.model import HSetVAE, initialise
from hsetvae.objective import objective
from hsetvae.simulate import simulate

SECONDS = 8.0  # measured per row, after one untimed pass


def rate(work, items: list[int]) -> float:
    """Stays per second of `work(i)`, where call i handles `items[i]` stays."""
    work(0)
    done, started = 0, time.perf_counter()
    for i in np.resize(np.arange(len(items)), 1_000_000):
        work(i)
        done += items[i]
        if (passed := time.perf_counter() - started) > SECONDS:
            return done / passed


def main() -> None:
    cohort = read_cohort(sys.argv[1])[0] if len(sys.argv) > 1 else simulate(1000).cohort
    index = split(cohort, 0).train
    standardiser = Standardiser.fit(cohort, index)
    chosen = [index[part] for part in batches(len(index), IMPROVED.batch_size, 0, 0)]
    sizes = [len(part) for part in chosen]
    ready = [collate(cohort, part, standardiser, IMPROVED.max_sets) for part in chosen]
    model = HSetVAE(IMPROVED, len(cohort.variables))
    initialise(model, IMPROVED, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def predict(i: int) -> None:
        with torch.no_grad():
            model(ready[i], sample=False)

    def step(i: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        output = model(ready[i], sample=True)
        objective(output, ready[i], IMPROVED, 1, 1).total.backward()
        optimizer.step()

    rates = {
        "build a batch": rate(lambda i: collate(cohort, chosen[i], standardiser, IMPROVED.max_sets), sizes),
        "predict": rate(predict, sizes),
        "training step": rate(step, sizes),
    }
    events = len(cohort.value) / len(cohort)
    cells = sum(b.real.numel() for batch in ready for b in batch.buckets)
    useful = sum(int(b.real.sum()) for batch in ready for b in batch.buckets) / cells
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s)")
    print(f"torch {torch.__version__}, width {IMPROVED.width}, {IMPROVED.levels} levels, {len(cohort)} stays")
    print(f"{'':16}{'stays/s':>10}{'events/s':>12}")
    for name, value in rates.items():
        print(f"{name:16}{value:10,.0f}{value * events:12,.0f}")
    print(f"building batches takes {rates['training step'] / rates['build a batch']:.1%} of a training step's time")
    print(f"useful cells {useful:.1%}, peak memory {peak:.2f} GiB")


if __name__ == "__main__":
    main()
