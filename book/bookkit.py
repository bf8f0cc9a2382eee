"""What the pages of the book share: tables, the line that says where a number comes from, and views of the study."""

from __future__ import annotations

import datetime
import html
import os
import platform
import time

import pandas as pd
import torch
from IPython.display import HTML, display

import hsetvae
from hsetvae import Config, simulate, split
from hsetvae.config import stream
from hsetvae.data import Standardiser, collate
from hsetvae.model import HSetVAE, initialise

STARTED = time.monotonic()
pd.set_option("display.max_columns", 50)


def table(columns: dict | pd.DataFrame) -> None:
    """Show columns as a plain HTML table; numbers other than text are rounded to three digits."""
    frame = pd.DataFrame(columns)
    display(HTML(frame.to_html(index=False, border=0, float_format=lambda x: f"{x:.3g}", justify="left")))


def box(title: str, body: str, kind: str = "note") -> None:
    """An admonition of the theme; in JupyterLab it is a bold title and a text.  `body` is HTML."""
    display(HTML(f'<div class="admonition {kind}"><p class="admonition-title">{html.escape(title)}</p>{body}</div>'))


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


def untrained(config: Config, stays: int, seed: int = 0):
    """A batch of simulated stays and a model that has never been trained."""
    cohort = simulate(stays=stays, seed=seed).cohort
    every = split(cohort, seed).train
    batch = collate(cohort, every, Standardiser.fit(cohort, every), config.max_sets)
    model = HSetVAE(config, len(cohort.variables))
    initialise(model, config, stream(seed, "book"))
    return batch, model.eval()
