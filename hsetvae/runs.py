"""A run is a folder; this module writes, claims and reads it.

config.json says what the run is, stays.csv who it was trained on, model.safetensors holds the weights that were best on
validation, history.csv one row per interval, resume.pt the exact state while it runs, done.json that it is finished.
Every file is replaced atomically, so a kill leaves the old one or the new one.
"""

from __future__ import annotations

import io
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import nn

from . import __version__
from .config import Config, UserError
from .data import Cohort, Split, Standardiser
from .files import write_atomically
from .model import HSetVAE


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
        """Index of the stays of `cohort` that were neither trained on nor used for selection, by content."""
        seen = set(self.stays.loc[self.stays.part != "test", "fingerprint"])
        return np.array([i for i, print_ in enumerate(cohort.fingerprints()) if print_ not in seen], dtype=np.int64)


def identity_of(config: Config, cohort: Cohort, split: Split, seed: int, standardiser: Standardiser) -> dict:
    """What makes two calls the same run, and the facts a reader of the folder needs."""
    return {
        "config": config.to_dict(),
        "seed": int(seed),
        "data": cohort.key(),
        "split": {name: len(getattr(split, name)) for name in ("train", "validation", "test")},
        "variables": list(cohort.variables),
        "standardiser": standardiser.to_dict(),
        "versions": {"hsetvae": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
    }


def claim(out: Path, identity: dict, resume: bool) -> None:
    """Refuse to overwrite a run, and to continue one with another configuration, seed or data."""
    if not (out / "config.json").exists():
        if out.exists() and any(p.name != "stays.csv" for p in out.iterdir()):
            raise UserError(f"{out} is a folder with other files: choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        return
    if not resume:
        raise UserError(f"{out} already holds a run: use --resume to continue it, or another --out")
    there = json.loads((out / "config.json").read_text())
    changed = Config.from_dict(there["config"]).differences(Config.from_dict(identity["config"]))
    if changed:
        text = ", ".join(f"{name} is {a} there and {b} here" for name, (a, b) in changed.items())
        raise UserError(f"{out} holds a run with other settings ({text}): use the same ones, or another --out")
    for name, text in (("seed", "another seed"), ("data", "other data"), ("split", "another split")):
        if there[name] != identity[name]:
            raise UserError(f"{out} holds a run with {text}: resume needs the same, or choose another --out")


def save_resume(out: Path, model, optimizer, state: dict) -> None:
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": state}, buffer)
    write_atomically(out / "resume.pt", buffer.getvalue())
    save_history(out, state)


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


def load_run(folder: str | os.PathLike) -> Run:
    """Read a run folder, with its best weights.  Raises UserError when files are missing or do not fit together."""
    folder = Path(folder)
    try:
        facts = json.loads((folder / "config.json").read_text())
        stays = pd.read_csv(folder / "stays.csv", dtype=str, keep_default_na=False)
        history = pd.read_csv(folder / "history.csv")
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise UserError(
            f"{folder} is not a finished run: {name} is missing (train it, or continue with --resume)"
        ) from None
    except json.JSONDecodeError:
        raise UserError(f"{folder / 'config.json'} is damaged: train the run again") from None
    config, variables = Config.from_dict(facts["config"]), tuple(facts["variables"])
    model = HSetVAE(config, len(variables))
    load_tensors(model, folder / "model.safetensors")
    standardiser = Standardiser.from_dict(facts["standardiser"])
    return Run(folder, config, facts["seed"], variables, standardiser, model.eval(), history, stays)
