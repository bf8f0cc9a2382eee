"""What the pages of the book share: tables, the line that says where a number comes from, and views of the study."""

from __future__ import annotations

import base64
import datetime
import functools
import html
import importlib.metadata
import io
import os
import platform
import re
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import HTML, display
from simple import how_far

import hsetvae
from hsetvae.config import Config, stream
from hsetvae.data import Standardiser, collate, split
from hsetvae.declaration import load_study
from hsetvae.model import HSetVAE, initialise
from hsetvae.monitor import TrainingWarning
from hsetvae.simulate import simulate
from hsetvae.study import StaleRecords, asked, load_records, summary
from hsetvae.verdicts import crossed, verdicts

STARTED = time.monotonic()
NAME, SENTENCE = 9, 30  # characters from which on the first and the last cell of a row count as words to be read
WARN = warnings.showwarning
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=sns.color_palette("colorblind"))


def _say(message, category, *where, **more) -> None:
    """What the monitor says of a training belongs to the page; any other warning is a defect of the page."""
    if issubclass(category, TrainingWarning):
        print(message)
    else:
        WARN(message, category, *where, **more)


warnings.showwarning = _say


def number(x: float) -> str:
    """Three digits, and thousands in full."""
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def _longest(cell) -> int:
    """Characters of the longest line of a cell, without its marks; a number is no words."""
    return max(len(re.sub("<[^>]*>", "", line)) for line in cell.split("<br>")) if isinstance(cell, str) else 0


def table(columns: dict | list | pd.DataFrame, escape: bool = True, fold: str = "") -> None:
    """Show columns as a plain HTML table; numbers other than text are rounded to three digits.

    With `escape` off, texts are HTML already.  `fold` is the text behind which the table waits to be opened.
    """
    frame = pd.DataFrame(columns)
    letters = frame.map(_longest).max()
    ends = {"names": letters[:1] > NAME, "sentences": letters[-1:] > SENTENCE}
    kinds = [kind for kind, long in ends.items() if long.any()]
    shown = frame.to_html(index=False, border=0, escape=escape, float_format=number, justify="left", classes=kinds)
    display(HTML(f"<details><summary>{html.escape(fold)}</summary>{shown}</details>" if fold else shown))


def box(title: str, body: str, kind: str = "note") -> None:
    """An admonition of the theme; in JupyterLab it is a bold title and a text.  `body` is HTML."""
    display(HTML(f'<div class="admonition {kind}"><p class="admonition-title">{html.escape(title)}</p>{body}</div>'))


def takeaway(text: str) -> None:
    """The one thing to keep from a page, with a number that the page has computed."""
    box("Takeaway", f"<p>{html.escape(text)}</p>", "tip")


def provenance(what: str = "Computed while this book was built") -> None:
    """Version, date, hardware and duration of what the page has shown."""
    seconds = time.monotonic() - STARTED
    facts = [
        f"hsetvae {hsetvae.__version__}",
        f"torch {torch.__version__.partition('+')[0]}",
        f"Python {platform.python_version()}",
        f"{platform.system()} {platform.machine()}",
        f"{torch.get_num_threads()} of {os.cpu_count()} threads",
        f"{datetime.date.today():%Y-%m-%d}",
        f"{seconds:.0f} s",
    ]
    display(HTML(f'<p class="provenance">{what}: {" · ".join(facts)}.</p>'))


def untrained(config: Config, stays: int):
    """A batch of simulated stays and a model that has never been trained."""
    cohort = simulate(stays=stays).cohort
    every = split(cohort, 0).train
    batch = collate(cohort, every, Standardiser.fit(cohort, every), config.max_sets)
    model = HSetVAE(config, len(cohort.variables))
    initialise(model, config, stream(0, "book"))
    return batch, model.eval()


# --- the study -------------------------------------------------------------------------------------------------------

BUDGET = "standard"
DIRECTIONS = {1: "up", 0: "no difference", -1: "down"}
STUDY = load_study(Path(__file__).resolve().parent.parent / "ablations" / "study.toml")
OTHER_TABLES = [Path(table.source).stem for table in STUDY.tables.values()]


@functools.cache
def records(budget: str = BUDGET) -> pd.DataFrame | None:
    """The records of the crossed factors; None, with a warning on the page, when they are not of the present code."""
    try:
        return load_records(STUDY, budget)
    except StaleRecords as error:
        text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(str(error)))
        box("No results are shown", f"<p>{text[0].upper()}{text[1:]}.</p>", "warning")
        return None


@functools.cache
def effects_table(budget: str = BUDGET) -> pd.DataFrame:
    return summary(STUDY, records(budget))


def signed(row) -> str:
    """An effect with its 95 % interval."""
    return f"{row.estimate:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"


def settings_text(settings: dict) -> str:
    return ", ".join(f"{name} = {value}" for name, value in settings.items())


def picture(axes, alt: str, caption: str) -> None:
    """Show the figure of some axes with a text for who cannot see it and a caption, both made from the records."""
    figure = np.ravel(np.asarray(axes, dtype=object))[0].figure
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    plt.close(figure)
    image = base64.b64encode(content.getvalue()).decode()
    display(HTML(
        f'<figure><img src="data:image/svg+xml;base64,{image}" alt="{html.escape(alt)}" />'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    ))  # fmt: skip


def days(dates: pd.Series) -> str:
    """The first and the last of some dates, or the one that they all are."""
    return " to ".join(dict.fromkeys((dates.min(), dates.max())))


def study_provenance(budget: str = BUDGET) -> None:
    """Version, dates, seeds, hardware and duration of the runs behind a page."""
    r = records(budget)
    if r is None:
        return provenance()
    unique = {
        name: ", ".join(sorted(map(str, r[name].unique()))) for name in ("hsetvae", "torch", "python", "platform")
    }
    provenance(
        f"{len(r)} runs, replicates {r['replicate'].min()} to {r['replicate'].max()}, made {days(r['date'])} "
        f"with hsetvae {unique['hsetvae']}, torch {unique['torch']}, Python {unique['python']} on "
        f"{unique['platform']}, {r['threads'].max()} thread a run, {r['seconds'].sum() / 3600:.1f} hours. Page built"
    )


def a_replicate() -> str:
    """What a replicate of the study does with stays."""
    data = STUDY.data
    if data["source"] != "simulated":
        return f"splits the stays of {Path(data['source']).stem} anew"
    train, select, test = (round(share * data["stays"]) for share in data["shares"])
    own = f"simulates {data['stays']:,} stays of its own"
    return f"{own} and learns from {train}, selects on {select} and is scored on {test:,}"


def findings(budget: str = BUDGET) -> None:
    """All questions with verdict and effect."""
    if records(budget) is None:
        return
    found, rows = crossed(verdicts(STUDY, "" if budget == BUDGET else budget)), []
    for row in found.to_dict("records"):
        link = f'<a href="ablations/{row["judged by"].partition(",")[0]}.html">{html.escape(row["claim"])}</a>'
        rows.append({"claim": link, **{name: html.escape(row[name]) for name in ("verdict", "effect", "n", "data")}})
    table(pd.DataFrame(rows).rename(columns={"effect": "effect [95 %]"}), escape=False)
    judges = [STUDY.endpoints[name] for name in dict.fromkeys(STUDY.questions[q].endpoint for q in STUDY.factorial)]
    meanings = "; ".join(f"<code>{e.name}</code> is {html.escape(e.text)} ({html.escape(e.unit)})" for e in judges)
    others = sorted(set(found["data"]) & set(OTHER_TABLES))
    each = "; ".join([a_replicate(), *(f"on {name} each splits the stays anew" for name in others)])
    display(HTML(f"<p>n is the number of replicates: each {html.escape(each)}. {meanings}.</p>"))
    box("How far these models get", f"<p>{how_far(records(budget), STUDY.data | STUDY.budget(budget))}</p>")


def declaration() -> None:
    """The questions and endpoints as they are declared."""
    table([
        {"question": q.name, "reference": settings_text(q.reference), "changed": settings_text(q.changed),
         "endpoint": q.endpoint, "claimed": DIRECTIONS[q.direction], "expected": DIRECTIONS[q.expected],
         "matters from": STUDY.endpoints[q.endpoint].delta}
        for q in asked(STUDY)
    ])  # fmt: skip
    table([
        {"endpoint": e.name, "family": e.family, "what it is": e.text, "unit": e.unit} for e in STUDY.endpoints.values()
    ])  # fmt: skip
    shared = settings_text(STUDY.settings | STUDY.design().settings)
    body = f"<p>Preset {STUDY.preset} with {html.escape(shared)}; {STUDY.budgets[BUDGET]['replicates']} "
    body += f"replicates, each of which {html.escape(a_replicate())}.</p>"
    box("Shared by all arms", body)


def versions() -> None:
    """The versions this page was built with."""
    names = "torch numpy pandas scipy scikit-learn papermill distributed jupyter-book".split()
    table([{"package": name, "version": importlib.metadata.version(name)} for name in names])


def cost(budget: str = BUDGET) -> None:
    """What the suite took, from its records."""
    r = records(budget)
    if r is not None:
        facts = {"runs": len(r), "seconds a run, median": f"{r['seconds'].median():.1f}",
                 "of which training": f"{r['seconds_training'].median():.1f}",
                 "hours in all": f"{r['seconds'].sum() / 3600:.2f}", "cores": r["cores"].max(),
                 "threads a run": r["threads"].max()}  # fmt: skip
        table([{"fact": name, "value": str(value)} for name, value in facts.items()])
