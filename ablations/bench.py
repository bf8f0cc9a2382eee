"""How fast and how large: measured on this machine, written where the book's page on performance reads it.

python ablations/bench.py speed [TABLE]        rates with 1 and 2 threads, on simulated stays or on an event table
python ablations/bench.py memory [STAYS ...]   simulated tables of these sizes in files: peak memory and rate
python ablations/bench.py suite                part of the standard suite: one worker, two workers, plain code
python ablations/bench.py profile              where the time of a training step goes (torch profiler)
python ablations/bench.py publish              copies the measurements to the tables that are committed

Measurements land in ablations/runs/, ignored by git; rates are the best of several rounds: other work only slows one.
"""

from __future__ import annotations

import copy
import io
import itertools
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from hsetvae.config import IMPROVED, RECOMMENDED, Config
from hsetvae.data import Batch, Cohort, Standardiser, batches, collate, split
from hsetvae.evaluate import predict
from hsetvae.events import read_cohort, write_cohort, write_cohorts
from hsetvae.gather import build
from hsetvae.jobs import host_facts
from hsetvae.model import HSetVAE, initialise
from hsetvae.optim import follow, parameter_groups
from hsetvae.simulate import simulate, simulate_blocks
from hsetvae.train import _step, train

HERE = Path(__file__).resolve().parent
FRESH, PUBLISHED = Path(os.environ.get("HSETVAE_RUNS", HERE / "runs")) / "bench", HERE / "results"
sys.path.insert(0, str(HERE.parent / "tests"))
from plain import encode_one_by_one  # noqa: E402

ROUNDS = 5
SECONDS = 0.5  # of a round, or one call if that takes longer
SIDE = 1024  # of the matrices whose product is the ceiling
SETS_A_STAY = (1, 10, 50, 200, 2000)
SETS_A_BATCH = 800
EVENTS_A_SET = 6

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


def seconds(work: Callable[[int], object]) -> float:
    """Of one call `work(i)`: mean of the best round, after one call that is not counted."""
    work(0)
    found = []
    for _ in range(ROUNDS):
        calls, started = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - started < SECONDS:
            work(calls)
            calls += 1
        found.append((time.perf_counter() - started) / calls)
    return min(found)


def facts() -> dict[str, object]:
    """Versions, machine and date; the number of threads is a row's own."""
    of_all = {name: value for name, value in host_facts().items() if name != "threads"}
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {**of_all, "processor": _processor(), "gib": round(gib)}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def flops(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and the attention that `work` does (causal ones in full)."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        work()
    return counter.get_total_flops()


class Trainer:
    """A model in training on a cohort, a step at a time."""

    def __init__(self, cohort: Cohort, config: Config, index: np.ndarray, device: str = "cpu") -> None:
        self.cohort, self.config, self.index, self.device = cohort, config, index, device
        self.standardiser = Standardiser.fit(cohort, self.index)
        self.chosen = [self.index[part] for part in batches(len(self.index), config.batch_size, 0, 0)]
        self.chosen = self.chosen[: max(1, len(self.index) // config.batch_size)]  # whole ones
        self.model = HSetVAE(config, len(cohort.variables)).train()
        initialise(self.model, config, 0)
        self.model.to(device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.model, config), lr=config.lr, fused=True)
        self.average = copy.deepcopy(self.model)

    def batch(self, i: int) -> Batch:
        chosen = self.chosen[i % len(self.chosen)]
        return collate(self.cohort, chosen, self.standardiser, self.config.max_sets).to(self.device)

    def step(self, batch: Batch) -> None:
        _step(self.model, self.model, self.optimizer, batch, self.config, 0, 1, 1000, 0)
        follow(self.average, self.model, 1, self.config.averaging)


# --- speed -----------------------------------------------------------------------------------------------------------


def measure(cohort: Cohort) -> Iterator[tuple[str, str, float]]:
    """Rows (name, unit, value) with the present number of threads."""
    a, b = torch.randn(2, SIDE, SIDE)
    ceiling = 2 * SIDE**3 / seconds(lambda _: a @ b)
    yield "matrix product", "GFLOP/s", ceiling / 1e9

    trainer = Trainer(cohort, IMPROVED, split(cohort, 0).train)
    ready = [trainer.batch(i) for i in range(min(len(trainer.chosen), 40))]
    stays = IMPROVED.batch_size
    events = float(np.mean([int(batch.events().sum()) for batch in ready])) / stays
    cells = sum(batch.windows.set.numel() for batch in ready)
    built = seconds(trainer.batch)
    step = seconds(lambda i: trainer.step(ready[i % len(ready)]))
    per_stay = np.mean([flops(lambda batch=batch: trainer.step(batch)) for batch in ready[:8]]) / stays
    yield "events", "per stay", events
    yield "useful cells", "share", events * stays * len(ready) / cells
    yield "build a batch", "stays/s", stays / built
    yield "training step", "stays/s", stays / step
    yield "training step", "events/s", events * stays / step
    yield "training step", "MFLOP per stay", per_stay / 1e6
    yield "training step", "share of the matrix product", per_stay * stays / step / ceiling
    yield "batch building", "share of a step", built / (built + step)

    trainer.model.eval()
    predicting = seconds(torch.no_grad()(lambda i: trainer.model(ready[i % len(ready)], sample=False)))
    yield "predict", "stays/s", stays / predicting
    trainer.model.train()
    yield "peak memory", "GiB", peak_gib()

    with tempfile.TemporaryDirectory() as folder:
        parts, started = split(cohort, 0, (0.8, 0.1, 0.1)), time.perf_counter()
        run = train(RECOMMENDED, cohort, parts, Path(folder) / "run", progress=False)
        yield "train recommended, start to end", "minutes", (time.perf_counter() - started) / 60
    yield "train recommended, start to end", "stays", len(parts.train)
    some = parts.train[:512]
    yield "build batches and predict, recommended", "stays/s", len(some) / seconds(lambda _: predict(run, cohort, some))

    batch = collate(cohort, trainer.index[:32], trainer.standardiser, IMPROVED.max_sets)
    encoder = seconds(lambda _: trainer.model.setvae.features(batch).sum().backward())
    plain = seconds(lambda _: encode_one_by_one(trainer.model.setvae, batch).sum().backward())
    yield "set encoder, 32 stays", "sets", batch.size
    yield "set encoder", "ms", 1e3 * encoder
    yield "set encoder, set by set", "ms", 1e3 * plain
    yield "set encoder", "times as fast", plain / encoder

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        write_cohort(cohort, path)
        yield "read the table", "stays/s", len(cohort) / seconds(lambda _: read_cohort(path))

    for sets in SETS_A_STAY:
        config = IMPROVED.but(batch_size=max(1, SETS_A_BATCH // sets), max_sets=max(sets, IMPROVED.max_sets))
        even = Trainer(regular(config.batch_size, sets), config, np.arange(config.batch_size))
        batch = even.batch(0)
        cost = seconds(lambda _, even=even, batch=batch: even.step(batch)) / (batch.size * EVENTS_A_SET)
        yield f"{sets} sets a stay", "µs per event", 1e6 * cost


def regular(stays: int, sets: int) -> Cohort:
    """Stays of `sets` sets of EVENTS_A_SET events each, one set an hour."""
    rng, names = np.random.default_rng(0), simulate(1).cohort.variables
    number = stays * sets
    variable = np.argsort(rng.random((number, len(names))), axis=1)[:, :EVENTS_A_SET]
    row = np.repeat(np.arange(number), EVENTS_A_SET)
    ids = np.array([f"{i:05d}" for i in range(stays)])
    columns = row // sets, (row % sets).astype(float), variable.ravel(), rng.standard_normal(len(row))
    return build(ids, names, *columns, outcome=(np.arange(stays) % 2).astype(float))[0]


def _printed(command: list[str], **environment: str) -> Any:
    """The JSON that a process of its own prints."""
    return json.loads(subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True).stdout)


@app.command()
def speed(table: str = typer.Argument("simulated"), threads: str = "1,2") -> None:
    """Rates of building batches, training and predicting, for each number of threads in a process of its own."""
    command = [sys.executable, __file__, "one-speed", table]
    rows = [{"threads": int(n), **row} for n in threads.split(",") for row in _printed(command, OMP_NUM_THREADS=n)]
    keep("speed", pd.DataFrame(rows))


@app.command(hidden=True)
def one_speed(table: str) -> None:
    cohort = simulate(2000).cohort if table == "simulated" else read_cohort(table)[0]
    shared = {"data": Path(table).name, "stays": len(cohort), "width": IMPROVED.width, "levels": IMPROVED.levels}
    print(json.dumps([{"name": n, "unit": u, "value": v, **shared} for n, u, v in measure(cohort)]))


# --- memory ----------------------------------------------------------------------------------------------------------


@app.command()
def memory(stays: Annotated[list[int] | None, typer.Argument()] = None, folder: Path | None = None) -> None:
    """Write, map and train on simulated tables of several sizes, all of them in files, each in a process of its own.

    The tables stay in `folder`, if one is named, and are not written again.
    """
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for n in stays or [1000, 10_000, 100_000]:
            path = (folder or Path(temporary)) / f"{n}"
            row = {"stays": n}
            for part in ("write", "map", "train"):
                command = [sys.executable, __file__, "one-memory", part, str(path), str(n)]
                row |= _printed(command, HSETVAE_MEMORY="0")
            rows.append(row)
            keep("memory", pd.DataFrame(rows))  # after each: the last ones take long


@app.command(hidden=True)
def one_memory(part: str, path: Path, stays: int) -> None:
    found: dict[str, float] = {}
    started = time.perf_counter()
    if part == "write" and not path.exists():
        write_cohorts((block.cohort for block in simulate_blocks(stays)), path)
    if part == "map":
        found["events"] = len(read_cohort(path)[0].value)
    if part == "train":
        cohort = read_cohort(path)[0]
        cohort.key(), cohort.fingerprints()  # as every run does
        trainer, size = Trainer(cohort, IMPROVED, split(cohort, 0).train), IMPROVED.batch_size
        found["rate"] = size / seconds(lambda i: trainer.step(trainer.batch(i)))
        found["threads"] = torch.get_num_threads()
    else:
        found[f"{part}_seconds"] = time.perf_counter() - started
    print(json.dumps({**found, f"{part}_gib": peak_gib()}))


# --- suites ----------------------------------------------------------------------------------------------------------


@app.command()
def suite(replicates: int = 2, rounds: int = 2) -> None:
    """Part of the standard suite, best of rounds: one worker, two workers, a fourth of it as plain code, also twice."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shutil.copy(HERE / "run.ipynb", folder)
        declared = (HERE / "study.toml").read_text()
        wanted = re.sub(r"(?s)(standard\].*?\nreplicates = )\d+", rf"\g<1>{replicates}", declared)
        (folder / "study.toml").write_text(wanted)
        study = [str(Path(sys.executable).with_name("hsetvae")), "study", "run", "--study", str(folder / "study.toml")]
        plain, twice = [sys.executable, __file__, "one-suite", str(folder)], "plain code, two processes"
        ways = {
            "one worker": [[*study, "--workers", "1"]],
            "two workers": [[*study, "--workers", "2"]],
            "plain code": [[*plain, "plain code/"]],
            twice: [[*plain, f"{twice}/a-"], [*plain, f"{twice}/b-"]],
        }
        for _, (name, commands) in itertools.product(range(rounds), ways.items()):
            shutil.rmtree(folder / name, ignore_errors=True)
            environment = {**os.environ, "HSETVAE_RUNS": str(folder / name), "OMP_NUM_THREADS": "1"}
            started = time.perf_counter()
            running = [subprocess.Popen(one, env=environment, stdout=subprocess.DEVNULL) for one in commands]
            if any([process.wait() for process in running]):
                raise SystemExit(f"{name} failed")
            took, runs = time.perf_counter() - started, len(list((folder / name).glob("*/model/done.json")))
            rows.append({"way": name, "runs": runs, "seconds": took})
            print(*rows[-1].values(), flush=True)
    keep("suite", pd.DataFrame(rows).groupby(["way", "runs"], sort=False)["seconds"].min().reset_index())


@app.command(hidden=True)
def one_suite(folder: Path, out: str) -> None:
    """The code cells of every fourth run once more, one run after another, figures drawn as in a notebook."""
    import matplotlib.pyplot as plt

    for path in sorted(folder.glob("one worker/*/run.ipynb"))[::4]:
        notebook, names = json.loads(path.read_text()), {}
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                exec("".join(cell["source"]), names)
            if "injected-parameters" in cell["metadata"].get("tags", []):
                names["out"] = str(folder / f"{out}{path.parent.name}")
            for number in plt.get_fignums():
                plt.figure(number).savefig(io.BytesIO(), bbox_inches="tight")
            plt.close("all")


# --- what is kept ----------------------------------------------------------------------------------------------------


def keep(name: str, table: pd.DataFrame) -> None:
    path = FRESH / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    table.assign(**facts()).to_csv(path, index=False, float_format="%.5g")
    print(" · ".join(f"{key} {value}" for key, value in facts().items()))
    if name == "speed":
        table = table.pivot_table(index=["name", "unit"], columns="threads", values="value", sort=False)
    print(table.to_string(float_format=lambda x: f"{x:,.4g}"))
    print(f"wrote {path}; `python ablations/bench.py publish` puts it into the book")


@app.command()
def publish() -> None:
    """Copy this machine's measurements to ablations/results/, which is committed and which the book reads."""
    for path in sorted(FRESH.glob("*.csv")):
        print("wrote", shutil.copy(path, PUBLISHED / f"bench_{path.name}"))


@app.command()
def profile(steps: int = 20, rows: int = 25) -> None:
    """Operations of a training step by their own time; a trace for a browser in ablations/runs/bench/trace.json."""
    trainer = Trainer(simulate(1000).cohort, IMPROVED, np.arange(1000))
    trainer.step(trainer.batch(0))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for i in range(steps):
            trainer.step(trainer.batch(i))
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=40))
    FRESH.mkdir(parents=True, exist_ok=True)
    found.export_chrome_trace(str(FRESH / "trace.json"))


if __name__ == "__main__":
    app()
