"""What a GPU gives: agreement with the CPU, rates, memory, its idle share, several runs on one card, one whole run.

python ablations/gpu.py measure [TABLE]     TABLE: an event table for the whole run, simulated stays otherwise

Lands in ablations/runs/bench/gpu.csv; `python ablations/bench.py publish` puts it where the book reads it.  The machine
is one of its own, so that its CPU is measured beside its card.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import typer
from bench import Trainer, keep, seconds

from hsetvae.config import BASELINE, IMPROVED, RECOMMENDED, Config
from hsetvae.data import Batch, split
from hsetvae.events import read_cohort
from hsetvae.model import HSetVAE, initialise
from hsetvae.objective import objective
from hsetvae.simulate import simulate
from hsetvae.train import train

WIDE = IMPROVED.but(width=256, feedforward=512, heads=4)
MODELS = {"width 64": IMPROVED, "width 256": WIDE}
STAYS = (16, 128, 1024)
SIDE_BY_SIDE = (1, 4, 16)
SIDE_SECONDS = 5
EPOCHS = {"epochs": 1, "pretrain_epochs": 1}  # of the whole run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def autocast(device: str, precision: str) -> contextlib.AbstractContextManager:
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def once(
    config: Config, batch: Batch, variables: int, device: str, precision: str
) -> tuple[dict[str, float], np.ndarray]:
    """Terms of the objective and the gradient as one vector, at the posterior means and without dropout."""
    config = config.but(dropout=0.0, input_dropout=0.0, statistics_dropout=0.0, posterior_noise=0.0)
    model = HSetVAE(config, variables)
    initialise(model, config, 0)
    if precision == "float64":
        model.double()
        windows = replace(batch.windows, value=batch.windows.value.double())
        batch = replace(batch, windows=windows, hours=batch.hours.double(), outcome=batch.outcome.double())
    model, batch = model.to(device).train(), batch.to(device)
    with autocast(device, precision):
        terms = objective(model(batch, False), batch, config, 1, 2)
    terms.total.backward()
    parts = [p.grad.detach().cpu().double().flatten() for p in model.parameters() if p.grad is not None]
    return {name: float(value) for name, value in terms.values.items()}, torch.cat(parts).numpy()


def agreement(device: str) -> Iterator[dict]:
    """Largest relative error of a term of the objective, the KL's, and the gradient's, against float64 on the CPU."""
    cohort = simulate(200).cohort
    presets = {"baseline": BASELINE, "improved": IMPROVED, "recommended": RECOMMENDED, "width 256": WIDE}
    for name, config in presets.items():
        batch, V = Trainer(cohort, config.but(batch_size=32), np.arange(200)).batch(0), len(cohort.variables)
        terms, gradient = once(config, batch, V, "cpu", "float64")
        for where, precision in (("cpu", "float32"), (device, "float32"), (device, "bfloat16")):
            found, slope = once(config, batch, V, where, precision)
            off = {key: abs(found[key] - value) / max(abs(value), 1e-3) for key, value in terms.items()}
            row = {"model": name, "device": where, "precision": precision, "unit": "relative error"}
            yield {**row, "name": "terms of the objective", "value": max(off.values())}
            yield {**row, "name": "KL divergence", "value": off["kl"]}
            wrong = np.linalg.norm(slope - gradient) / np.linalg.norm(gradient)
            yield {**row, "name": "gradient", "value": wrong}


def rates(device: str) -> Iterator[dict]:
    """Training steps on batches that are on the card: rate, peak memory and the share of the time the card computes."""
    cohort = simulate(max(STAYS) * 2).cohort
    for (name, config), stays in itertools.product(MODELS.items(), STAYS):
        for where, precision in ((device, "float32"), (device, "bfloat16"), ("cpu", "float32")):
            if where == "cpu" and stays > min(STAYS):
                continue
            trainer = Trainer(cohort, config.but(batch_size=stays), np.arange(len(cohort)), where)
            ready = [trainer.batch(i) for i in range(min(len(trainer.chosen), 8))]

            def step(i: int, trainer=trainer, ready=ready, precision=precision) -> None:
                with autocast(trainer.device, precision):
                    trainer.step(ready[i % len(ready)])
                waited(trainer.device)

            row = {"model": name, "stays": stays, "device": where, "precision": precision}
            if cuda(where):
                torch.cuda.reset_peak_memory_stats()
            took = seconds(step)
            yield {**row, "name": "training step", "unit": "stays/s", "value": stays / took}
            if cuda(where):
                peak = torch.cuda.max_memory_allocated() / 2**20
                yield {**row, "name": "peak memory", "unit": "MiB", "value": peak}
                busy, launches = computing(step, len(ready))
                yield {**row, "name": "card computes", "unit": "share of a step", "value": busy / took}
                yield {**row, "name": "kernels", "unit": "per step", "value": launches}


def cuda(device: str) -> bool:
    return device.startswith("cuda")


def waited(device: str) -> None:
    if cuda(device):
        torch.cuda.synchronize()


def computing(step, steps: int) -> tuple[float, float]:
    """Seconds in which the card runs kernels, and their number, per step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for i in range(steps):
            step(i)
    kernels = [e for e in found.key_averages() if e.self_device_time_total > 0]
    return sum(e.self_device_time_total for e in kernels) / 1e6 / steps, sum(e.count for e in kernels) / steps


def side_by_side(device: str) -> Iterator[dict]:
    """Several trainings with the study's batches at once, a thread each: stays a second of all of them together."""
    for where, n in itertools.product((device, "cpu"), SIDE_BY_SIDE):
        command = [sys.executable, __file__, "one", "--device", where]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        running = [subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes) for _ in range(n)]
        for process in running:
            process.stdout.readline()  # ready
        for process in running:
            process.stdin.write("go\n")
            process.stdin.flush()
        total = sum(float(process.communicate()[0]) for process in running)
        row = {"model": "width 64", "stays": IMPROVED.batch_size, "device": where, "precision": "float32"}
        yield {**row, "processes": n, "name": "runs side by side", "unit": "stays/s", "value": total}


@app.command(hidden=True)
def one(device: str = "cuda") -> None:
    """One of the trainings side by side, batch building included: says that it is ready, waits, prints its rate."""
    trainer = Trainer(simulate(1000).cohort, IMPROVED, np.arange(1000), device)
    for i in range(5):
        trainer.step(trainer.batch(i))
    print("ready", flush=True)
    sys.stdin.readline()
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < SIDE_SECONDS:
        trainer.step(trainer.batch(steps))
        steps += 1
    print(steps * IMPROVED.batch_size / (time.perf_counter() - started))


def whole_run(table: str, device: str) -> Iterator[dict]:
    """RECOMMENDED for two epochs on the card and on one CPU thread: seconds, validation included, and its scores."""
    cohort = read_cohort(table)[0] if table else simulate(2000).cohort
    parts, threads = split(cohort, 0), torch.get_num_threads()
    torch.set_num_threads(1)
    for where in (device, "cpu"):
        with tempfile.TemporaryDirectory() as folder:
            run = train(RECOMMENDED.but(**EPOCHS), cohort, parts, Path(folder) / "run", device=where, progress=False)
        row = {"model": "recommended", "stays": RECOMMENDED.batch_size, "device": where, "precision": "float32"}
        last = run.history.iloc[-1]
        yield {**row, "name": "an epoch before and one of all", "unit": "s", "value": last["seconds"]}
        yield {**row, "name": "validation AUROC", "unit": "", "value": last["validation_auroc"]}
        yield {**row, "name": "validation loss", "unit": "", "value": last["validation_loss"]}
    torch.set_num_threads(threads)


@app.command()
def measure(table: str = typer.Argument(""), device: str = "cuda") -> None:
    """All of it; the file is written after each part."""
    if cuda(device) and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no GPU on this machine")
    torch.set_num_threads(1)
    card = torch.cuda.get_device_name(device) if cuda(device) else "none"
    rows: list[dict] = []
    for part in (agreement(device), rates(device), side_by_side(device), whole_run(table, device)):
        for row in part:
            rows.append({"card": card, **row})
            print(*row.values(), sep=" · ", flush=True)
        keep("gpu", pd.DataFrame(rows))


if __name__ == "__main__":
    app()
