"""The training loop, visible and exact: a step is a function of (seed, step), so a killed run resumes bit for bit."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from .cohort import Cohort
from .config import Config, UserError, stream
from .data import FITTED, Batch, Split, Standardiser, at_most, batches, collate, longest_stay, with_shorter
from .evaluate import EVALUATION_BATCH, mean_terms
from .files import held, write_atomically
from .model import HSetVAE, SetAutoencoder, initialise
from .monitor import Monitor
from .objective import objective
from .optim import CLIPS, follow, lr_at, parameter_groups, set_stage
from .progress import Progress
from .runs import (
    CONFIG,
    DONE,
    Run,
    claim,
    identity_of,
    load_resume,
    load_run,
    load_tensors,
    save_history,
    save_resume,
)
from .scores import auroc
from .stays import stays_of, write_stays
from .teacher import taught

ROWS_PER_EPOCH = 4  # rows of the history; validation is scored at the end of each epoch
RESUME_SECONDS = 60  # a resume point with a row of the history when the last one is older, and after every epoch


class TrainingDiverged(UserError):
    """The loss or a gradient became NaN or infinite; the message names step, stays and parameter."""


# --- the loop --------------------------------------------------------------------------------------------------------


def train(
    config: Config,
    cohort: Cohort,
    split: Split,
    out: str | os.PathLike,
    seed: int = 0,
    resume: bool = False,
    progress: bool = True,
    device: str = "cpu",
) -> Run:
    """Train on `split.train`, select on `split.validation`, write the run to the folder `out`.

    `resume=True` continues a killed run of the same configuration, data and seed, or returns a finished one.
    What the monitor sees begin, and stay, is said once, as a TrainingWarning.
    Under `torchrun` every rank calls it and takes its share of each batch (torch's DistributedDataParallel).
    Raises UserError when `out` holds another run or another process trains there, a stay has more than `max_sets` sets,
    or there is no such device,
    TrainingDiverged for a non-finite loss or gradient, or when every step was skipped for one.
    """
    out = Path(out)
    if not isinstance(config, Config):
        raise UserError(f"config is {config!r}: give a Config, for example IMPROVED or IMPROVED.but(epochs=5)")
    _check(device)
    standardiser = Standardiser.fit(cohort, split.train)
    if len(split.train) == 0 or len(split.validation) == 0:
        raise UserError("the training or the validation part has no stay: give more stays or other shares")
    if leaked := len(np.intersect1d(split.test, np.concatenate([split.train, split.validation]))):
        raise UserError(f"{leaked} test stays of this split are learned from or selected on, too: no score would count")
    longest_stay(cohort, np.concatenate([split.train, split.validation, split.test]), config.max_sets)
    if int(os.environ.get("RANK", "0")):
        return _trained(config, cohort, split, standardiser, out, seed, progress, device)
    stays = stays_of(cohort, split)
    identity = identity_of(config, cohort, stays, seed, standardiser)
    with held(out):
        claim(out, identity, resume)
        write_stays(out, stays)
        if not (out / CONFIG).exists():  # a run that is continued keeps what it says of its beginning
            write_atomically(out / CONFIG, json.dumps(identity, indent=1).encode())
        return _trained(config, cohort, split, standardiser, out, seed, progress, device)


def _trained(config, cohort, split, standardiser, out: Path, seed: int, progress, device: str) -> Run:
    """The run in the folder `out`, trained until it is finished."""
    if (out / DONE).exists():
        return load_run(out)
    model = HSetVAE(config, len(cohort.variables))
    initialise(model, config, seed)
    if config.pretrain_epochs:
        before = SetAutoencoder(config, len(cohort.variables))
        initialise(before, config, seed)
        alone = before.config.but(epochs=config.pretrain_epochs)
        _fit(
            before,
            alone,
            cohort,
            split,
            standardiser,
            out / "pretraining",
            stream(seed, "pretraining"),
            progress,
            device,
            began=time.monotonic(),
        )
        load_tensors(model.setvae, out / "pretraining" / "model.safetensors", prefix="setvae.")
    began = time.monotonic()  # what comes before the first step is part of the cost
    if config.statistics:
        few = at_most(cohort, split.train, FITTED)
        parts = np.split(few, range(EVALUATION_BATCH, len(few), EVALUATION_BATCH))
        model.head.summary.fit(collate(cohort, part, standardiser, config.max_sets) for part in parts)
    learned = taught(cohort, split.train, config.teacher, seed)
    _fit(model, config, learned, split, standardiser, out, seed, progress, device, began)
    return load_run(out)


def _check(device: str) -> None:
    """UserError unless a tensor can be put there; before anything is written."""
    try:
        torch.zeros(1, device=device).item()  # `meta` holds no numbers
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        raise UserError(f'device "{device}" cannot be used: {str(error).splitlines()[0]}') from None


def _fit(model, config, cohort, split, standardiser, out: Path, seed: int, progress, device: str, began: float) -> None:
    """Train until `done.json` is there; `began` is the moment from which its seconds count."""
    if (out / DONE).exists():
        return
    model.to(device).train()
    forward, rank, world = _distributed(model, device)
    if rank == 0:  # the others have no lock, and a folder that they made would be somebody else's
        out.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=config.lr, fused=True)
    average = copy.deepcopy(model)
    per_epoch = len(batches(len(split.train), config.batch_size, seed, 0))
    total = per_epoch * config.epochs
    state = {"step": 0, "best": math.inf, "waited": 0, "seconds": 0.0, "rows": [], "lasted": {}}
    if saved := load_resume(out, device):
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
    started, saved_at = began - state["seconds"], time.monotonic()
    interval: list[dict] = []
    monitor = Monitor(out.name, cohort, split, standardiser, config, seed) if rank == 0 else None
    with Progress(total, state["step"], progress and rank == 0, out.name) as bar, torch.random.fork_rng(devices=[]):
        for step in range(state["step"], total):
            epoch, place = divmod(step, per_epoch)
            if place == 0 and config.patience and state["waited"] >= config.patience:
                break
            if place == 0 or step == state["step"]:
                order = batches(len(split.train), config.batch_size, seed, epoch)
            chosen = split.train[order[place]]
            chosen = chosen[rank::world] if len(chosen) >= world else chosen
            batch = _batch(cohort, chosen, standardiser, config, stream(seed, "cut", step, rank)).to(device)
            interval.append(_step(model, forward, optimizer, batch, config, seed, step, total, rank))
            follow(average, model, step, config.averaging)
            ended = place + 1 == per_epoch
            if ended or (place + 1) % math.ceil(per_epoch / ROWS_PER_EPOCH) == 0:
                seconds = time.monotonic() - started
                row = {"step": step + 1, "epoch": epoch + 1, "seconds": seconds, **_averages(interval)}
                interval = []
                if ended:
                    row |= _validate(average, cohort, split.validation, standardiser, config, device)
                    if monitor:
                        row |= monitor.look(average, [*state["rows"], row], state["lasted"])
                    better = row["validation_loss"] < state["best"]
                    state["best"] = min(state["best"], row["validation_loss"])
                    state["waited"] = 0 if better else state["waited"] + 1
                    if better and rank == 0:
                        kept = average.state_dict().items()
                        weights = {name: t.detach().cpu().contiguous() for name, t in kept}
                        write_atomically(out / "model.safetensors", safetensors.torch.save(weights))
                state["rows"].append(row)
                state |= {"step": step + 1, "seconds": seconds}
                if rank == 0 and (ended or time.monotonic() - saved_at > RESUME_SECONDS):
                    save_resume(out, model, average, optimizer, state)
                    saved_at = time.monotonic()
                bar.update(step + 1, row)
    skipped = sum(row["skipped"] for row in state["rows"])
    if skipped == state["step"] or math.isinf(state["best"]):
        raise TrainingDiverged(_nothing_learned(state["step"], int(skipped)))
    if rank == 0:
        save_history(out, state)
        done = {"steps": state["step"], "seconds": state["seconds"], "best_validation_loss": state["best"]}
        write_atomically(out / DONE, json.dumps(done).encode())
        (out / "resume.pt").unlink(missing_ok=True)
    if world > 1:
        torch.distributed.barrier()


def _batch(cohort: Cohort, chosen: np.ndarray, standardiser: Standardiser, config: Config, seed: int) -> Batch:
    """The stays `chosen`, and some of them up to a random hour, so that one model predicts at any hour (`cut`)."""
    if config.cut:
        cohort = with_shorter(cohort.subset(chosen), config.cut, seed)
        chosen = np.arange(len(cohort))
    return collate(cohort, chosen, standardiser, config.max_sets)


def _step(model, forward, optimizer, batch, config: Config, seed: int, step: int, total: int, rank: int) -> dict:
    """One update: forward, objective, backward, clip, step -> the row of raw numbers it leaves."""
    set_stage(model, config, step, total)
    torch.manual_seed(stream(seed, "dropout", step, rank))
    noise = torch.Generator().manual_seed(stream(seed, "latent", step, rank))
    for group in optimizer.param_groups:
        group["lr"] = group["scale"] * lr_at(config, step, total)
    optimizer.zero_grad(set_to_none=True)
    with torch.autograd.set_detect_anomaly(config.detect_anomaly):
        terms = objective(forward(batch, True, noise), batch, config, step, total)
        terms.total.backward()
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    numbers = dict(terms.values, lr=lr_at(config, step, total), gradient_norm=norm)
    if not torch.isfinite(norm + terms.total.detach()):
        if not config.skip_nonfinite:
            raise TrainingDiverged(_what_diverged(model, terms, batch, step))
        return {"skipped": 1}
    after, cosine = CLIPS[config.clip](gradients, norm, config.clip_at)
    optimizer.step()
    changed = (after < norm * (1 - 1e-6)).float()
    return dict(numbers, gradient_norm_clipped=after, gradient_cosine=cosine, clipped=changed, skipped=0)


def _what_diverged(model: nn.Module, terms, batch, step: int) -> str:
    bad = [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    terms_bad = [name for name, value in terms.values.items() if not math.isfinite(float(value))]
    where = f"the gradient of {bad[0]} (and {len(bad) - 1} more)" if bad else "the loss"
    return (
        f"training diverged at step {step}: {where} is not finite"
        + (f"; terms not finite: {', '.join(terms_bad)}" if terms_bad else "")
        + f"; stays of this batch: {', '.join(batch.stay[:8])}{' …' if len(batch.stay) > 8 else ''}. "
        "A checkpoint that was written before is intact. Lower lr, clip by norm (clip=norm), or count and skip such "
        "steps (skip_nonfinite=true); detect_anomaly=true names the operation"
    )


def _nothing_learned(steps: int, skipped: int) -> str:
    return (
        f"training learned nothing: {skipped} of {steps} steps were not finite and were skipped"
        + ("" if skipped == steps else ", and the validation loss was finite after no epoch")
        + ". There are no trained weights to keep. Lower lr, look for extreme values in the data, or train with "
        "skip_nonfinite=false, which names the stays and the parameter of the first such step"
    )


def _averages(interval: list[dict]) -> dict[str, float]:
    """Mean of each number over the steps of an interval; `skipped` is a count; NaN when every step was skipped."""
    kept = [numbers for numbers in interval if not numbers["skipped"]]
    row = {n: float(torch.tensor([float(k[n]) for k in kept]).double().mean()) for n in (kept[0] if kept else {})}
    return row | {"skipped": float(len(interval) - len(kept))}


def _validate(model, cohort, index, standardiser, config: Config, device: str) -> dict[str, float]:
    """Validation terms; what selects is the outcome's BCE, or distortion + beta · KL + class_weight · BCE.

    That is the objective at the posterior means, without floors, regularisers, smoothed outcomes and the weights of
    levels and of the reconstruction.  Where no outcome is learned it is distortion + beta · KL, in nats per set.
    """
    terms, logits = mean_terms(model, cohort, index, standardiser, config, device)
    outcome = cohort.outcome[index] if cohort.outcome is not None else np.full(len(index), np.nan)
    known = ~np.isnan(outcome)
    names = ["distortion_current", "distortion_next", "bce", *(n for n in terms if n == "kl" or n[:8] == "kl_level")]
    row = {f"validation_{name}": terms[name] for name in names}
    unsupervised = terms["distortion_current"] + terms["distortion_next"] + config.beta * terms["kl"]
    if not (known.any() and config.class_weight):
        row["validation_loss"] = unsupervised
    elif config.selection == "outcome":
        row["validation_loss"] = terms["bce"]
    else:
        per_event = terms["events_per_set"] if config.decoder == "likelihood" else 1.0
        row["validation_loss"] = unsupervised / per_event + config.class_weight * terms["bce"]
    both = set(outcome[known]) == {0.0, 1.0}  # softened ones, of stays that are learned from, too, cannot be ranked
    row["validation_auroc"] = auroc(outcome[known], logits[known]) if both else math.nan
    return row


# --- several processes -----------------------------------------------------------------------------------------------


def _distributed(model: nn.Module, device: str) -> tuple[nn.Module, int, int]:
    """The module to call, this process's rank and their number; under torchrun, DistributedDataParallel."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return model, 0, 1
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    return wrapped, torch.distributed.get_rank(), world
