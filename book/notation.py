"""The notation table: every symbol with the expression that holds it, evaluated on a batch before it is shown; and all
settings, from the class that holds them."""

from __future__ import annotations

import functools
import html
import inspect
import re
from pathlib import Path

import bookkit
import pandas as pd
import torch
from IPython.display import HTML, Markdown, display

from hsetvae.config import IMPROVED, PRESETS, Config
from hsetvae.data import Standardiser, collate, split
from hsetvae.diagnostics import MI_SETS
from hsetvae.model import HSetVAE, initialise
from hsetvae.objective import class_weight_at, level_weights, objective, reconstruction_weight_at
from hsetvae.simulate import simulate
from hsetvae.study import effects

TABLE = Path(__file__).resolve().parent / "notation.csv"
LEVEL = 1  # which level an expression about level l is evaluated for


def known(stays: int) -> dict:
    """The names that the expressions use: one batch, an untrained model's output on it, and the declared study."""
    config, cohort = IMPROVED.but(width=32, latent=6, levels=3), simulate(stays=stays, seed=0).cohort
    index = split(cohort, seed=0).train
    batch = collate(cohort, index, Standardiser.fit(cohort, index), config.max_sets)
    model = HSetVAE(config, len(cohort.variables))
    initialise(model, config, seed=0)
    with torch.no_grad():
        output = model.eval()(batch, sample=False)
    weights = {f.__name__: f for f in (level_weights, reconstruction_weight_at, class_weight_at)}
    terms = objective(output, batch, config, step=1, total=10).values
    return {"config": config, "cohort": cohort, "batch": batch, "model": model, "output": output, "terms": terms,
            "study": bookkit.STUDY, "MI_SETS": MI_SETS, "step": 1, "total": 10, "l": LEVEL, **weights}  # fmt: skip


@functools.cache
def checked(stays: int) -> pd.DataFrame:
    """The table, after every expression has been evaluated and has the shape that is claimed; else an error."""
    table, names = pd.read_csv(TABLE, keep_default_na=False), known(stays)
    sizes = {}
    for row in table.itertuples():
        if row.code.startswith("effects("):  # needs records: its parameters are compared instead
            parameters = ", ".join(inspect.signature(effects).parameters)
            assert row.code == f"effects({parameters})", f"{row.code} is not how effects is called"
            continue
        value = eval(row.code, dict(names))
        if row.part == "sizes":
            sizes[row.symbol.strip("$")] = value
        shape = tuple(eval(size, {**sizes, "l": LEVEL}) for size in row.shape.split())
        assert tuple(getattr(value, "shape", ())) == shape, f"{row.code} has shape {value.shape}, not {row.shape}"
    assert len(set(sizes.values())) == len(sizes), "sizes that are equal could be mistaken for one another"
    return table


def show(part: str, stays: int) -> None:
    """One part of the table as Markdown, formulas rendered; checked on a batch from `stays` simulated patients."""
    rows = checked(stays).query("part == @part")
    columns = [name for name in ("symbol", "meaning", "unit", "shape") if rows[name].any()]
    lines = [columns, ["---"] * len(columns)]
    for row in rows.to_dict("records"):
        row |= {"meaning": f"{row['meaning']}<br>`{row['code']}`", "shape": row["shape"].replace(" ", " × ")}
        lines.append([row[name] for name in columns])
    display(Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines)))


def settings() -> None:
    """Every setting: meaning, unit, choices, and the value in each preset, under the headings of its class."""
    presets = {name: preset.to_dict() for name, preset in PRESETS.items()}
    described, groups = {name: rest for name, *rest in Config.describe()}, {}
    for heading, name in re.findall(r"# --- (.+?) -+\n|^    (\w+): ", inspect.getsource(Config), flags=re.M):
        if heading:
            groups[heading.partition(" (")[0]] = rows = []
        else:
            kind, _, unit, ledger, text = described.pop(name)
            first, *others = ((who, values[name]) for who, values in presets.items())
            differ = [f"{who}: {value}" for who, value in others if value != first[1]]
            meaning = [text + f" ({unit})" * bool(unit), kind * ("|" in kind), f"row {ledger}" * bool(ledger)]
            rows.append({"setting": f"<code>{name.replace('_', '_<wbr>')}</code>",
                         "meaning (unit); choices": "<br>".join(html.escape(part) for part in meaning if part),
                         "value": "<br>".join([str(first[1]), *differ])})  # fmt: skip
    assert not described, f"settings under no heading: {', '.join(described)}"
    for heading, rows in groups.items():
        display(HTML(f"<h3>{heading.capitalize()}</h3>"))
        bookkit.table(rows, escape=False)
