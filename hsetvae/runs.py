"""A run is a folder; this module writes, claims and reads it.

config.json says what the run is, stays.csv who it was trained on, model.safetensors holds the weights that were best on
validation, history.csv one row per interval, resume.pt the exact state while it runs, done.json that it is finished.
Every file is replaced atomically, so a kill leaves the old one or the new one.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import platform
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import nn

from . import __version__
from .cohort import Cohort
from .config import Config, UserError
from .data import Standardiser
from .files import LOCK, PARTIAL, remove_partial, write_atomically
from .model import HSetVAE
from .stays import STAYS, hash_of, read_stays, unseen

CONFIG, DONE = "config.json", "done.json"
FACTS = ("config", "seed", "data", "split", "variables", "standardiser", "versions", "threads")  # in CONFIG


@dataclass
class Run:
    """A trained (or training) run: what `train` returns and `load_run` reads."""

    folder: Path
    config: Config
    seed: int
    variables: tuple[str, ...]
    standardiser: Standardiser
    model: HSetVAE
    history: pd.DataFrame
    stays: pd.DataFrame  # columns stay, part (train, validation, test), fingerprint

    def unseen(self, cohort: Cohort) -> np.ndarray:
        """Index of the stays of `cohort` that were neither trained on nor used for selection, by id and by content."""
        return unseen(self.stays, cohort)


def identity_of(config: Config, cohort: Cohort, stays: pd.DataFrame, seed: int, standardiser: Standardiser) -> dict:
    """What makes two calls the same run, and the facts a reader of the folder needs."""
    return {
        "config": config.to_dict(),
        "seed": int(seed),
        "data": cohort.key(),
        "split": {**stays.part.value_counts(sort=False).to_dict(), "hash": hash_of(stays)},
        "variables": list(cohort.variables),
        "standardiser": standardiser.to_dict(),
        "versions": {"hsetvae": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
    }


def _facts(folder: Path) -> dict:
    """config.json of a run folder, all parts of it present."""
    try:
        facts = json.loads((folder / CONFIG).read_text())
        facts["split"]["hash"]
        return {name: facts[name] for name in FACTS}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder / CONFIG} is damaged, or of another version: train the run again in another folder"
        ) from None


def claim(out: Path, identity: dict, resume: bool) -> None:
    """Refuse to overwrite a run, and to continue one with another configuration, seed or data."""
    if not (out / CONFIG).exists():
        if any(p.name not in (STAYS, LOCK) and not p.name.endswith(PARTIAL) for p in out.iterdir()):
            raise UserError(f"{out} is a folder with other files: choose another --out")
        return remove_partial(out)
    if not resume:
        raise UserError(f"{out} already holds a run: use --resume to continue it, or another --out")
    there = _facts(out)
    changed = Config.from_dict(there["config"]).differences(Config.from_dict(identity["config"]))
    if changed:
        text = ", ".join(f"{name} is {a} there and {b} here" for name, (a, b) in changed.items())
        raise UserError(f"{out} holds a run with other settings ({text}): use the same ones, or another --out")
    for name, text in (("seed", "another seed"), ("data", "other data"), ("split", "another split")):
        if there[name] != identity[name]:
            raise UserError(f"{out} holds a run with {text}: resume needs the same, or choose another --out")
    if (out / DONE).exists():
        return
    for name in ("versions", "threads"):
        if there[name] != identity[name]:
            warnings.warn(
                f"{out} was begun with {name} {there[name]} and goes on with {identity[name]}: "
                "its numbers will not be those of a run without a pause",
                stacklevel=3,
            )
    for folder in (out, out / "pretraining"):
        remove_partial(folder)


def save_resume(out: Path, model, average, optimizer, state: dict) -> None:
    parts = {"model": model, "average": average, "optimizer": optimizer}
    buffer = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in parts.items()} | {"state": state}, buffer)
    write_atomically(out / "resume.pt", buffer.getvalue())
    save_history(out, state)


def load_resume(out: Path, device: str) -> dict | None:
    """What `save_resume` wrote, or None; UserError when the file is damaged."""
    path = out / "resume.pt"
    if not path.exists():
        return None
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        return {name: saved[name] for name in ("model", "average", "optimizer", "state")}
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        pickle.UnpicklingError,
    ):
        raise UserError(f"{path} is damaged: delete it to train this run again from the start") from None


def save_history(out: Path, state: dict) -> None:
    write_atomically(out / "history.csv", pd.DataFrame(state["rows"]).to_csv(index=False).encode())


def load_tensors(module: nn.Module, path: str | os.PathLike, prefix: str = "") -> int:
    """Load the tensors of a safetensors file whose names begin with `prefix`; every one must fit, none may be missing.

    Returns how many tensors were loaded.  Raises UserError with the names and shapes that do not match.
    """
    try:
        stored = safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: has the run finished its first epoch?") from None
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}): train the run again") from None
    stored = {name.removeprefix(prefix): t for name, t in stored.items() if name.startswith(prefix)}
    wanted = module.state_dict()
    wrong = [
        f"{name}: {'missing' if name not in stored else tuple(stored[name].shape)} in the file, "
        f"{'unknown' if name not in wanted else tuple(wanted[name].shape)} in the model"
        for name in sorted(stored.keys() | wanted.keys())
        if name not in stored or name not in wanted or stored[name].shape != wanted[name].shape
    ]
    if wrong:
        raise UserError(f"{path} does not fit this model, {len(wrong)} tensors differ: {'; '.join(wrong[:5])}")
    module.load_state_dict(stored)
    return len(stored)


def _table(path: Path, columns: list[str], **how) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, **how)
    except ValueError:  # what pandas raises for a file that is no table
        table = pd.DataFrame()
    if missing := [name for name in columns if name not in table]:
        raise UserError(f"{path} is damaged, it has no column {missing[0]}: train the run again in another folder")
    return table


def load_run(folder: str | os.PathLike) -> Run:
    """Read a run folder, with its best weights.  Raises UserError when files are missing or do not fit together."""
    folder = Path(folder)
    if (folder / "baseline.json").exists():
        raise UserError(f"{folder} holds a baseline, which has no latents and no history: give a run of the model")
    try:
        facts = _facts(folder)
        stays = read_stays(folder, facts["split"]["hash"])
        history = _table(folder / "history.csv", ["step", "epoch", "validation_loss"])
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise UserError(
            f"{folder} is not a finished run: {name} is missing (train it, or continue with --resume)"
        ) from None
    config, variables = Config.from_dict(facts["config"]), tuple(facts["variables"])
    model = HSetVAE(config, len(variables))
    load_tensors(model, folder / "model.safetensors")
    standardiser = Standardiser.from_dict(facts["standardiser"])
    return Run(folder, config, facts["seed"], variables, standardiser, model.eval(), history, stays)
