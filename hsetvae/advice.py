"""What the measures of a run mean and what to try: rules in plain words.

A rule is one function from measures to what it found, or None.  The order of RULES is the order of the advice: what
spoils the other measures comes first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from .config import PRESETS, Config

SILENT = 0.05  # active-units ratio; below it the posterior counts as collapsed
HALF = 0.5  # active-units ratio that the ledger wants (A3)
WORTH = 0.1  # share of its KL that a latent must be worth to the decoder; at the ELBO's optimum it is above beta
FAINT = 0.05  # nats: a level that is worth less to the decoder is not used
SMALL = 0.05  # S_past below it, or a gain in S_past below it, is too small to matter (the study's smallest effect)
WEAK = 0.7  # AUROC
CALIBRATED = 0.05  # expected calibration error
TURNED = 0.95  # cosine of the raw and the clipped gradient
SPIKE = 10.0  # largest over median gradient norm
WORSE = 1.1  # validation cross-entropy at the end over its best


class Finding(NamedTuple):
    """What a rule saw, the numbers it rests on, what to do about it, and the settings that do it."""

    finding: str
    evidence: str
    remedy: str
    changes: dict


@dataclass(frozen=True)
class Advice:
    """One piece of advice; rank 1 comes first.  `command` trains the same run with the remedy and nothing else."""

    rank: int
    finding: str
    evidence: str
    remedy: str
    command: str
    rule: str


def advise(measures: dict) -> list[Advice]:
    """Ranked advice for the dict that `diagnose` returns; an empty list when no rule applies.

    Of a network whose numbers overflow nothing is known but its steps.
    """
    rules = [skipped_steps] if _overflowed(measures) else RULES
    found = [(rule.__name__, seen) for rule in rules if (seen := rule(measures)) is not None]
    return [
        Advice(rank, seen.finding, seen.evidence, seen.remedy, command(measures, seen.changes), name)
        for rank, (name, seen) in enumerate(found, start=1)
    ]


def command(measures: dict, changes: dict) -> str:
    """The command that trains the run of `measures` again, with `changes` to its settings."""
    config = Config.from_dict(measures["settings"]).but(**changes)
    preset = min(PRESETS, key=lambda name: len(PRESETS[name].differences(config)))
    settings = {name: new for name, (_, new) in PRESETS[preset].differences(config).items()}
    words = [
        f"--set {name}={str(value).lower() if value is True or value is False else value}"
        for name, value in settings.items()
    ]
    out = "-".join(f"{name}-{value}" for name, value in changes.items()).replace("+", "-")
    return " ".join(
        [
            "hsetvae train --data FILE",
            f"--preset {preset}",
            *words,
            f"--seed {measures['run_seed']}",
            f"--out runs/{out}",
        ]
    )


# --- rules -----------------------------------------------------------------------------------------------------------


def _lower(beta: float) -> float:
    return float(f"{beta / 5:.2g}")


def _worth(measures: dict) -> float:
    """Nats per set that the decoders lose when all latents are shuffled between sets."""
    return sum(value for name, value in measures.items() if name.startswith("decoder_use_"))


def _overflowed(measures: dict) -> bool:
    latents = [measures, *measures["levels"]]
    worth = [value for one in latents for name, value in one.items() if name.startswith("decoder_use_")]
    return None in [measures["au_ratio"], measures["kl"], measures["mi"], *worth]


def _silent(measures: dict) -> bool:
    return measures["au_ratio"] < SILENT


def skipped_steps(m: dict) -> Finding | None:
    if not m["gradient"]["skipped"]:
        return None
    lr = m["settings"]["lr"] / 3
    return Finding(
        "Some steps were not finite and were skipped.",
        f"{m['gradient']['skipped']:.0f} steps skipped ({m['gradient']['skipped_share']:.1%} of all)",
        "lower the learning rate, and clip by norm",
        {"lr": float(f"{lr:.2g}"), "clip": "norm", "clip_at": 1.0},
    )


def collapse(m: dict) -> Finding | None:
    if not _silent(m):
        return None
    return Finding(
        "The posterior has collapsed: z says nothing about the set it was made from.",
        f"{m['au_ratio']:.0%} of the latent dimensions are active, KL {m['kl']:.2f} nats per set, "
        f"mutual information {m['mi']:.2f} nats, worth {_worth(m):.2f} nats to the decoder; "
        f"mean sigma {m['mean_sigma']:.2f} looks healthy because the prior's is 1",
        "lower the KL weight; raising free_bits keeps a rate too, but not its use",
        {"beta": _lower(m["settings"]["beta"])},
    )


def few_active_units(m: dict) -> Finding | None:
    if _silent(m) or m["au_ratio"] >= HALF:
        return None
    return Finding(
        "Most latent dimensions are silent.",
        f"{m['au_ratio']:.0%} of them are active, fewer than {HALF:.0%}; KL {m['kl']:.2f} nats per set",
        "lower the KL weight, or make the latent narrower",
        {"beta": _lower(m["settings"]["beta"])},
    )


def paid_for_nothing(m: dict) -> Finding | None:
    if _silent(m) or _worth(m) >= WORTH * m["kl"]:
        return None
    at_floor = f", {m['at_floor']:.0%} of the dimensions are not above the free-bits floor" if m["at_floor"] else ""
    return Finding(
        "The latents say things that no decoder uses; active units are no proof of health here.",
        f"KL {m['kl']:.2f} nats per set, but shuffling z between sets costs {_worth(m):.2f} nats{at_floor}",
        "lower the KL weight, so that a dimension is kept for its use and not for the floor",
        {"beta": _lower(m["settings"]["beta"])},
    )


def unused_level(m: dict) -> Finding | None:
    """Only in a hierarchy: independent levels above the first feed the decoder through the deepest alone, by design."""
    levels, settings = m["levels"], m["settings"]
    if _silent(m) or len(levels) == 1 or settings["posterior"] == "independent" or _worth(m) < FAINT:
        return None
    worth = {level["level"]: _worth(level) for level in levels}
    faint = min(worth, key=worth.get)
    if worth[faint] >= FAINT:
        return None
    listed = ", ".join(f"level {level}: {value:.2f}" for level, value in worth.items())
    deepest_pays_more = faint == len(levels) and settings["level_weights"] == "depth"
    return Finding(
        f"Level {faint} of the hierarchy is not used.",
        f"shuffling z between sets costs the decoders, in nats per set, {listed}",
        "charge all levels alike" if deepest_pays_more else "use one level fewer",
        {"level_weights": "equal"} if deepest_pays_more else {"levels": len(levels) - 1},
    )


def unused_history(m: dict) -> Finding | None:
    """Beside the untrained network and with probes; during training there is neither, and the swap alone decides."""
    before = m["untrained"]
    if m["s_past"] is None or (before and before["s_past"] is None):
        return None
    evidence = f"another stay's past moves h by {m['s_past']:.3f} of the distance between stays"
    learned = SMALL
    if before:
        learned = (m["probe_gain"] or 0) - (before["probe_gain"] or 0)
        evidence += f" ({before['s_past']:.3f} before training); training gains probes for past facts {learned:+.2f} R²"
    if m["s_past"] >= SMALL and (learned >= SMALL or m["s_past"] > before["s_past"]):
        return None
    settings = m["settings"]
    if settings["target"] == "current":
        remedy, changes = "rebuild the next set too: h at time t then has to know more than set t", {"target": "both"}
    elif settings["position"] in ("none", "rotate_inputs"):
        remedy, changes = "tell the Transformer when each set was measured", {"position": "index+time"}
    else:
        remedy, changes = (
            "train longer: history is learned after the sets themselves",
            {"epochs": 2 * settings["epochs"]},
        )
    return Finding(
        "h hardly remembers: the Transformer adds little from the past.",
        evidence,
        remedy,
        changes,
    )


def ignored_present(m: dict) -> Finding | None:
    if m["s_cur"] is None or m["s_cur"] >= SMALL:
        return None
    return Finding(
        "h ignores the current set.",
        f"another stay's current set moves h by {m['s_cur']:.3f} of the distance between stays",
        "rebuild the current set from h as well, and raise its share of the loss",
        {"target": "both", "dynamic_weights": False},
    )


def noisy_state(m: dict) -> Finding | None:
    if _silent(m) or paid_for_nothing(m) or m["noise_share"] is None or m["noise_share"] <= HALF:
        return None
    return Finding(
        "In training h is mostly posterior noise.",
        f"two draws from one posterior move h by {m['noise_share']:.0%} of the distance between stays",
        "lower the KL weight, so that posteriors become sharp; score with posterior means, as hsetvae does",
        {"beta": _lower(m["settings"]["beta"])},
    )


def overfitting(m: dict) -> Finding | None:
    seen = m["learning"]
    if seen["validation_bce_best"] is None or seen["validation_bce_last"] <= WORSE * seen["validation_bce_best"]:
        return None
    if seen["bce_last"] >= seen["validation_bce_last"]:
        return None
    dropout = min(0.5, m["settings"]["dropout"] + 0.2)
    return Finding(
        "The outcome is learned by heart.",
        f"cross-entropy on validation stays rose from {seen['validation_bce_best']:.3f} (epoch {seen['best_epoch']}) "
        f"to {seen['validation_bce_last']:.3f} nats per stay, {seen['bce_last']:.3f} on training stays",
        "more dropout and more weight decay; the weights of the best epoch were kept",
        {"dropout": round(dropout, 2), "weight_decay": max(0.05, 5 * m["settings"]["weight_decay"])},
    )


def too_short(m: dict) -> Finding | None:
    seen = m["learning"]
    if seen["validation_bce_best"] is None or seen["best_epoch"] < seen["epochs"] or seen["epochs"] < 2:
        return None
    return Finding(
        "Training stopped while it was still improving.",
        f"the best of {seen['epochs']} epochs is the last one, {seen['validation_bce_best']:.3f} nats per stay",
        "train longer",
        {"epochs": 2 * m["settings"]["epochs"]},
    )


def weak_outcome(m: dict) -> Finding | None:
    scores = m["scores"]
    if scores is None or scores["auroc"] is None or scores["auroc"] >= WEAK or overfitting(m) or too_short(m):
        return None
    return Finding(
        "The outcome is hardly predicted.",
        f"AUROC {scores['auroc']:.3f} [{scores['auroc_low']:.3f}, {scores['auroc_high']:.3f}] on {scores['n']} stays",
        "raise the weight of the outcome; see what the data allow with `--preset boosting`",
        {"class_weight": 2 * max(m["settings"]["class_weight"], 0.5)},
    )


def miscalibrated(m: dict) -> Finding | None:
    scores, settings = m["scores"], m["settings"]
    if scores is None or scores["ece_low"] <= CALIBRATED or not settings["label_smoothing"]:
        return None
    return Finding(
        "Probabilities are off: label smoothing pulls them towards one half.",
        f"calibration error {scores['ece']:.3f} [{scores['ece_low']:.3f}, {scores['ece_high']:.3f}], "
        f"label smoothing {settings['label_smoothing']:g}",
        "train without label smoothing",
        {"label_smoothing": 0.0},
    )


def turned_gradient(m: dict) -> Finding | None:
    gradient, settings = m["gradient"], m["settings"]
    turned = settings["clip"] == "value" and gradient["cosine"] is not None and gradient["cosine"] < TURNED
    jumps = settings["clip"] == "none" and gradient["largest_over_median"] is not None
    jumps = jumps and gradient["largest_over_median"] > SPIKE
    if not (turned or jumps):
        return None
    return Finding(
        "Clipping turns the gradient." if turned else "The gradient jumps and nothing holds it.",
        f"cosine of the raw and the clipped gradient {gradient['cosine']:.2f}, {gradient['clipped']:.0%} of steps "
        f"clipped, largest norm {gradient['largest_over_median']:.0f} times the median",
        "clip by norm, which keeps the direction, at the median norm",
        {"clip": "norm", "clip_at": float(f"{gradient['norm']:.2g}")},
    )


def narrow_pooling(m: dict) -> Finding | None:
    if m["settings"]["pooling"] != "dot" or m["effective_sets"] >= 2 or m["sets_per_stay"] < 4:
        return None
    return Finding(
        "The outcome is read from one or two sets of a stay.",
        f"the pooling looks at {m['effective_sets']:.1f} of {m['sets_per_stay']:.0f} sets (exponential of its entropy)",
        "pool with a learned query, which is scaled",
        {"pooling": "query"},
    )


RULES: tuple[Callable[[dict], Finding | None], ...] = (
    skipped_steps, collapse, few_active_units, paid_for_nothing, unused_level, ignored_present, unused_history,
    noisy_state, overfitting, too_short, weak_outcome, miscalibrated, turned_gradient, narrow_pooling,
)  # fmt: skip
