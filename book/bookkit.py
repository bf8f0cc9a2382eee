"""What the pages of the book share: tables, the line that says where a number comes from, and views of the study."""

from __future__ import annotations

import datetime
import html
import os
import platform
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import HTML, display

import hsetvae
from hsetvae.config import Config, stream
from hsetvae.data import Cohort, Standardiser, collate, split
from hsetvae.model import HSetVAE, initialise
from hsetvae.simulate import simulate

STARTED = time.monotonic()
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=sns.color_palette("colorblind"))


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


def twin(cohort: Cohort) -> None:
    """Sizes of a cohort beside those of Challenge 2012, sets a and b, counted in their 8,000 records."""
    sets, events = np.diff(cohort.first_set), np.diff(cohort.first_event)
    per_stay = np.add.reduceat(events, cohort.first_set[:-1])
    rows = [
        ("stays", f"{len(cohort):,}", "8,000"),
        ("share with the outcome", f"{cohort.outcome.mean():.1%}", f"{(554 + 568) / 8000:.1%}"),
        ("variables", f"{len(cohort.variables)}", "41"),
        ("sets per stay, median", f"{np.median(sets):.0f}", "72"),
        ("sets per stay, 99 %", f"{np.quantile(sets, 0.99):.0f}", "141"),
        ("sets per stay, most", f"{sets.max()}", "203"),
        ("events per set, mean", f"{events.mean():.1f}", "5.9"),
        ("events per set, most", f"{events.max()}", "39"),
        ("events per stay, mean", f"{per_stay.mean():.0f}", "438"),
    ]
    table(pd.DataFrame(rows, columns=["", "simulated", "Challenge 2012"]))


LOGGED = {
    "step": "updates made so far",
    "epoch": "passes over the training stays, this one included",
    "seconds": "since training began, pauses not counted",
    "total": "what is differentiated: the weighted sum of the terms",
    "distortion_current": "nats per set that h misses of the set it has just seen",
    "distortion_next": "nats per set that h misses of the set to come",
    "kl": "nats per set that all latents say, no weight, no floor",
    "kl_level": "the same for one level; level 1 is nearest the data",
    "kl_weighted": "what is charged for it: floored, weighted per level, times beta",
    "bce": "cross-entropy of the outcome, nats per stay",
    "variance_term": "mean squared log variance of the posterior, no weight",
    "mean_term": "mean squared posterior mean, no weight",
    "floor_share": "share of dimensions (or levels) whose KL is below the free-bits floor",
    "beta": "KL weight at this step",
    "reconstruction_weight": "weight of both distortions at this step",
    "class_weight": "weight of the cross-entropy at this step",
    "lr": "learning rate at this step, before the factor of a parameter group",
    "gradient_norm": "norm of the gradient of all parameters, before clipping",
    "gradient_norm_clipped": "the same after clipping",
    "gradient_cosine": "cosine of the gradient before and after clipping: 1 when the direction is kept",
    "clipped": "share of steps that clipping changed",
    "skipped": "number of steps that were not finite and were skipped",
    "validation_loss": "what selects the checkpoint: the cross-entropy on validation stays",
    "validation_auroc": "AUROC on validation stays",
    "validation_": "the same on validation stays, with posterior means",
}


def logged_numbers(history: pd.DataFrame) -> None:
    """Every column of a run's history with its meaning; a column without one is an error, and fails the build."""
    rows = []
    for name in history.columns:
        fits = [key for key in LOGGED if name == key or (key in ("kl_level", "validation_") and name.startswith(key))]
        if not fits:
            raise KeyError(f"history column {name} is explained nowhere: add it to LOGGED")
        rows.append((name, LOGGED[max(fits, key=len)]))
    table(pd.DataFrame(rows, columns=["column", "meaning (mean over the steps since the last row)"]))
