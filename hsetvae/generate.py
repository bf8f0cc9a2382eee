"""What a trained run can say about sets: draw new ones, rebuild, impute and forecast, in natural units.

All of it needs the likelihood decoder; the Chamfer and Hungarian forms have no distribution to read values from.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import torch

from .cohort import Cohort, ragged_rows
from .config import UserError, stream
from .data import Batch
from .decoders import SetPrediction
from .evaluate import passes
from .model import HSetVAE


def _decoder(run, target: str):
    decoders = run.model.decoders
    if run.config.decoder != "likelihood" or target not in decoders:
        raise UserError(
            f"this run (decoder={run.config.decoder}, target={run.config.target}) cannot say the {target} set: "
            f"train one with decoder=likelihood and target={target} or both"
        )
    return decoders[target]


def _table(run, p: SetPrediction, frame: pd.DataFrame) -> pd.DataFrame:
    """One row per set and variable: what the decoder says, in natural units."""
    V = len(run.variables)
    columns = np.tile(np.arange(V), len(frame))
    mean, logvar = p.mean.double().numpy().ravel(), p.logvar.double().numpy().ravel()
    out = frame.loc[frame.index.repeat(V)].reset_index(drop=True)
    out["variable"] = np.asarray(run.variables, dtype=object)[columns]
    out["presence"] = torch.sigmoid(p.presence.double()).numpy().ravel()
    out["mean"] = run.standardiser.inverse(columns, mean)
    out["sd"] = np.exp(0.5 * logvar) * run.standardiser.scale[columns]
    return out


def _states(run, cohort: Cohort, index: np.ndarray):
    """Yields per batch: states h of the sets (M, D), and a frame with stay and hours of each set."""
    if not len(index):
        raise UserError("the index of stays is empty: name at least one stay, or give no index for all of them")
    for part, batch, output in passes(run.model, cohort, index, run.standardiser, run.config.max_sets, decode=False):
        stays = [str(s) for s in np.asarray(cohort.stays)[part][batch.row.numpy()]]
        hours = cohort.hours[ragged_rows(cohort.first_set, part)[0]]  # a batch holds them in single precision
        yield output.h[batch.row, batch.column], pd.DataFrame({"stay": stays, "hours": hours}), output


@torch.no_grad()
def reconstruct(run, cohort: Cohort, index: np.ndarray | None = None) -> pd.DataFrame:
    """p(x_t | h_t) of every set: stay, hours, variable, presence (probability), mean and sd in natural units."""
    index = cohort.positions(index)
    decoder = _decoder(run, "current")
    return pd.concat([_table(run, decoder(h), frame) for h, frame, _ in _states(run, cohort, index)], ignore_index=True)


@torch.no_grad()
def forecast(run, cohort: Cohort, index: np.ndarray | None = None) -> pd.DataFrame:
    """p(x_T+1 | h_T): the set expected after the last one of each stay; `hours` is the time of that last set."""
    index = cohort.positions(index)
    decoder = _decoder(run, "next")
    tables = []
    for h, frame, output in _states(run, cohort, index):
        last = ~output.has_next.numpy()
        tables.append(_table(run, decoder(h[torch.from_numpy(last)]), frame[last].reset_index(drop=True)))
    return pd.concat(tables, ignore_index=True)


@torch.no_grad()
def impute(run, cohort: Cohort, hidden: np.ndarray, index: np.ndarray | None = None) -> pd.DataFrame:
    """Hide events (`hidden`, bool over the cohort's events) and read them back from the rest of the set and the past.

    Returns stay, hours, variable, value (what was hidden), mean and sd (what the model says), natural units.
    Raises UserError when a set would have no event left: such a set is a forecast, not an imputation.
    """
    index = cohort.positions(index)
    hidden = np.asarray(hidden, dtype=bool)
    if hidden.shape != cohort.variable.shape:
        raise UserError(f"hidden has shape {hidden.shape}; it needs one entry per event, {cohort.variable.shape}")
    left = np.add.reduceat(~hidden, cohort.first_event[:-1])
    if (left == 0).any():
        raise UserError(
            f"{int((left == 0).sum())} sets would have no event left: keep at least one event of a set, or use forecast"
        )
    first_event = np.concatenate([[0], np.cumsum(left)])
    seen = dataclasses.replace(
        cohort, first_event=first_event, variable=cohort.variable[~hidden], value=cohort.value[~hidden]
    )
    said = reconstruct(run, seen, index)
    sets = np.repeat(np.arange(len(cohort.hours)), np.diff(cohort.first_event))  # set of each event
    stay_of_set = np.repeat(np.arange(len(cohort)), np.diff(cohort.first_set))
    wanted_sets, _ = ragged_rows(cohort.first_set, index)
    place = np.full(len(cohort.hours), -1)
    place[wanted_sets] = np.arange(len(wanted_sets))
    events = np.flatnonzero(hidden & (place[sets] >= 0))
    rows = place[sets[events]] * len(run.variables) + cohort.variable[events]
    return pd.DataFrame(
        {
            "stay": np.asarray(cohort.stays)[stay_of_set[sets[events]]],
            "hours": cohort.hours[sets[events]],
            "variable": np.asarray(run.variables, dtype=object)[cohort.variable[events]],
            "value": cohort.value[events],
            "mean": said["mean"].to_numpy()[rows],
            "sd": said["sd"].to_numpy()[rows],
        }
    )


@torch.no_grad()
def sample(run, sets: int, seed: int = 0, hours: float = 0.0) -> pd.DataFrame:
    """Draw whole sets from the prior, each as the first set of a stay at `hours`: z ~ p(z), h from z alone, x ~ p(x|h).

    Columns set, hours, variable, value in natural units; a drawn set may be empty and then has no row.
    """
    if sets < 1:
        raise UserError(f"sets = {sets}: ask for at least one set")
    decoder = _decoder(run, "current")
    generator = torch.Generator().manual_seed(stream(seed, "prior"))
    model: HSetVAE = run.model.eval()
    z = model.setvae.sample_prior(sets, generator)  # (sets, L, Z)
    alone = Batch(
        stay=[str(i) for i in range(sets)],
        hours=torch.full((sets, 1), float(hours)),
        real=torch.ones(sets, 1, dtype=torch.bool),
        outcome=torch.full((sets,), float("nan")),
        windows=None,
        size=sets,
        row=torch.arange(sets),
        column=torch.zeros(sets, dtype=torch.long),
    )
    h = model.history(model.tokens(z, alone), alone)  # (sets, 1, D)
    p = decoder(h[:, 0])
    present = torch.rand(p.presence.shape, generator=generator) < torch.sigmoid(p.presence)
    value = p.mean + torch.exp(0.5 * p.logvar) * torch.randn(p.mean.shape, generator=generator)
    row, column = (t.numpy() for t in present.nonzero(as_tuple=True))
    return pd.DataFrame(
        {
            "set": row,
            "hours": float(hours),
            "variable": np.asarray(run.variables, dtype=object)[column],
            "value": run.standardiser.inverse(column, value[present].double().numpy()),
        }
    )
