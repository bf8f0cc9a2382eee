"""Views of the page on performance: the measurements of `make bench`, and what a training step asks of a machine."""

from __future__ import annotations

import html
from pathlib import Path

import bookkit
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from hsetvae.config import Config
from hsetvae.data import Batch, Windows
from hsetvae.model import HSetVAE, initialise
from hsetvae.objective import objective

RESULTS = Path(__file__).resolve().parent.parent / "ablations" / "results"
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def record(name: str) -> pd.DataFrame:
    return pd.read_csv(RESULTS / f"bench_{name}.csv")


def conditions(table: pd.DataFrame, what: str) -> None:
    """Where, when and with what a record was measured."""
    r = table.iloc[0]
    text = (
        f"{what}: measured {r['date']} on {r['processor']} ({r['platform']}, {r['cores']} cores, {r['gib']:.0f} GiB) "
        f"with hsetvae {r['hsetvae']}, torch {r['torch']}, Python {r['python']}"
    )
    if "width" in r:
        text += f"; preset improved (width {r['width']}, {r['levels']} levels) on a table of {r['stays']} stays"
    bookkit.display(bookkit.HTML(f'<p class="provenance">{html.escape(text)}.</p>'))


def speed() -> pd.DataFrame:
    """One row per measure, one column per number of threads."""
    table = record("speed")
    wide = table.pivot_table(index=["name", "unit"], columns="threads", values="value", sort=False)
    wide.columns = [f"{n} thread{'s' * (n > 1)}" for n in wide.columns]
    return wide


def value(name: str, unit: str, threads: int = 1) -> float:
    table = record("speed").query("name == @name and unit == @unit and threads == @threads")
    return float(table["value"].iloc[0])


def alone() -> None:
    """How fast the recommended preset learns and predicts where nothing else runs, building of batches included."""
    table = record("speed")

    def measured(name: str, unit: str, digits: int) -> str:
        rows = table.query("name == @name and unit == @unit").itertuples()
        return ", ".join(f"{r.value:,.{digits}f} with {r.threads} thread{'s' * (r.threads > 1)}" for r in rows)

    r, whole = table.iloc[0], "train recommended, start to end"
    text = (
        f"Alone on a machine ({r['processor']}, {r['cores']} cores, {r['date']}) the recommended preset learns from "
        f"{value(whole, 'stays'):,.0f} stays in so many minutes, from start to end: {measured(whole, 'minutes', 1)}; "
        "and predicts so many stays a second: "
        f"{measured('build batches and predict, recommended', 'stays/s', 0)}."
    )
    bookkit.display(bookkit.HTML(f"<p>{html.escape(text)}</p>"))


def gpu(unit: str, **at) -> float:
    """One number of the record of the GPU; float32 on the card where nothing else is said."""
    at = {"device": "cuda", "precision": "float32", **at}
    table = record("gpu").query("unit == @unit and processes.isna()")
    (found,) = table.loc[(table[list(at)] == pd.Series(at)).all(axis=1), "value"]
    return float(found)


def gpu_conditions() -> None:
    conditions(record("gpu"), f"{record('gpu')['card'].iloc[0]}")


def side_by_side() -> pd.DataFrame:
    """Stays a second of all processes together: a row per number of processes, with the card and without."""
    wide = record("gpu").dropna(subset="processes").pivot(index="processes", columns="device", values="value")
    names = {"cuda": "stays/s, all on the card", "cpu": "stays/s, on the CPU"}
    wide = wide.rename(columns=names)[list(names.values())].map("{:,.0f}".format)
    return wide.rename_axis("processes").reset_index().astype({"processes": int}).rename_axis(None, axis=1)


def agreement() -> pd.DataFrame:
    """Relative errors: a row per quantity, device and precision, a column per model."""
    table = record("gpu").query("unit == 'relative error' and name != 'KL divergence'")
    where = table["device"].map({"cpu": "CPU", "cuda": "GPU"}) + " " + table["precision"]
    long = table.assign(error=table["name"] + ", " + where).pivot(index="error", columns="model", values="value")
    long = long.loc[sorted(long.index, key=lambda name: ("bfloat16" in name, "GPU" in name, name))]
    shown = long.map("{:.0e}".format).rename_axis("relative error of").rename_axis(None, axis=1)
    return shown.reset_index()


def tried(about: str) -> None:
    """What was tried and did not pay off for speed, or for the preset."""
    rows = pd.read_csv("tried.csv", dtype=str).query("about == @about")
    what = "<b>" + rows["what was tried"] + "</b>; " + rows["instead of"]
    bookkit.table({"what was tried, and instead of what": what,
                   "measured": rows["tried"] + " against " + rows["kept"] + " " + rows["unit"],
                   "conditions": rows["conditions"]}, escape=False)  # fmt: skip


class _Launches(TorchDispatchMode):
    """Counts operations that compute something, and the bytes they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.bytes = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.number += 1
            self.bytes += sum(t.numel() * t.itemsize for t in tensors)
        return out


def counted(config: Config, batch: Batch, variables: int) -> dict[str, float]:
    """What one training step on the batch asks for: operations, bytes, launches, and memory held for the backward."""
    model = HSetVAE(config, variables).train()
    initialise(model, config, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    held: dict[int, int] = {}

    def hold(t: torch.Tensor) -> torch.Tensor:
        held[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    def step() -> None:
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda t: t):
            total = objective(model(batch, True, torch.Generator().manual_seed(0)), batch, config, 1, 2).total
        total.backward()
        optimizer.step()

    step()
    held.clear()
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as flops, _Launches() as launches:
        step()
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "GFLOP": flops.get_total_flops() / 1e9,
        "GB moved": launches.bytes / 1e9,
        "operations": launches.number,
        "MiB held": (sum(held.values()) + 4 * 4 * parameters) / 2**20,  # weights, gradients, two moments
        "parameters": parameters,
    }


def regular_batch(batch: Batch, copies: int) -> Batch:
    """The batch, `copies` times side by side: a larger batch with the same windows."""

    def numbered(sets: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.where(sets < 0, sets, sets + i * batch.size) for i in range(copies)])

    w, B = batch.windows, len(batch.stay)
    windows = Windows(w.variable.repeat(copies, 1), w.value.repeat(copies, 1), numbered(w.set), numbered(w.sets))
    return Batch(
        stay=batch.stay * copies, hours=batch.hours.repeat(copies, 1), real=batch.real.repeat(copies, 1),
        outcome=batch.outcome.repeat(copies), windows=windows, size=batch.size * copies,
        row=torch.cat([batch.row + i * B for i in range(copies)]), column=batch.column.repeat(copies),
    )  # fmt: skip


def padded_shares(batches: list[Batch]) -> dict[str, float]:
    """Share of the cells that are events: one dense block, sets padded to the largest, sets in windows."""
    events = sum(int(batch.events().sum()) for batch in batches)
    widest = [int(batch.events().max()) for batch in batches]
    cells = {
        "one block: stays × sets × events": sum(
            batch.real.numel() * K for batch, K in zip(batches, widest, strict=True)
        ),
        "flat: sets × events": sum(batch.size * K for batch, K in zip(batches, widest, strict=True)),
        "flat, in windows of whole sets": sum(batch.windows.set.numel() for batch in batches),
    }
    return {name: events / n for name, n in cells.items()}
