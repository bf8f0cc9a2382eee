"""What the measures of a run mean and what to try: rules in plain words.

A rule is one function from measures to what it found, or None.  The order of RULES is the order of the advice: what
spoils the other measures comes first.  PROMISES holds what the remedy of each rule moves; a test keeps them to it.
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
CALIBRATED = 0.05  # expected calibration error
TURNED = 0.95  # cosine of the raw and the clipped gradient
SPIKE = 10.0  # largest over median gradient norm
NARROW = 0.25  # share of a stay's sets that the outcome head looks at
FEW = 4  # sets of a stay; with fewer there is little to choose from


class Finding(NamedTuple):
    """What a rule saw, the numbers it rests on, what to do about it, and the settings that do it.

    Where no remedy is known, the last two are empty.
    """

    finding: str
    evidence: str
    remedy: str
    changes: dict


@dataclass(frozen=True)
class Advice:
    """One piece of advice; rank 1 comes first.  `command` trains the same run with the remedy and nothing else,
    if `--outcomes`, `--fit` and `--score` are added where the run had them.

    Where no remedy is known, both are empty.
    """

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
        Advice(rank, *seen[:3], command(measures, seen.changes) if seen.changes else "", name)
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


def tried(remedy: str) -> str:
    """What to try, as a sentence."""
    return f"Try: {remedy}." if remedy else "No remedy is known."


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
        f"mean sigma {m['mean_sigma']:.2f} alone would not tell",
        "lower the KL weight; raising free_bits keeps a rate too, but not its use",
        {"beta": _lower(m["settings"]["beta"])},
    )


def few_active_units(m: dict) -> Finding | None:
    if _silent(m) or m["au_ratio"] >= HALF:
        return None
    return Finding(
        "Most latent dimensions are silent.",
        f"{m['au_ratio']:.0%} of them are active, fewer than {HALF:.0%}; KL {m['kl']:.2f} nats per set",
        "lower the KL weight",
        {"beta": _lower(m["settings"]["beta"])},
    )


def paid_for_nothing(m: dict) -> Finding | None:
    settings = m["settings"]
    if _silent(m) or _worth(m) >= WORTH * m["kl"]:
        return None
    evidence = f"KL {m['kl']:.2f} nats per set, but shuffling z between sets costs {_worth(m):.2f} nats"
    if m["at_floor"]:
        evidence += f", {m['at_floor']:.0%} of the dimensions are below the free-bits floor or within a tenth of it"
        remedy = "lower the KL weight, so that a dimension is kept for its use and not for the floor"
        changes = {"beta": _lower(settings["beta"])}
    elif settings["class_weight"]:
        remedy = "lower the weight of the outcome, which pays for them"
        changes = {"class_weight": float(f"{settings['class_weight'] / 10:.2g}")}
    else:
        remedy, changes = "", {}
    finding = "The latents say things that no decoder uses; active units are no proof of health here."
    return Finding(finding, evidence, remedy, changes)


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
    """Beside the untrained network and with probes; during training there is neither, and the swap alone decides.

    A sign without a remedy: other targets, positions and more epochs, tried on simulated stays, did not move S_past.
    """
    before = m["untrained"]
    if m["s_past"] is None or (before and before["s_past"] is None):
        return None
    evidence = f"another stay's past moves h by {m['s_past']:.3f} of the squared distance between stays"
    learned = SMALL
    if before:
        learned = (m["probe_gain"] or 0) - (before["probe_gain"] or 0)
        evidence += f" ({before['s_past']:.3f} before training); training gains probes for past facts {learned:+.2f} R²"
    if m["s_past"] >= SMALL and (learned >= SMALL or m["s_past"] > before["s_past"]):
        return None
    return Finding("h hardly remembers: the Transformer adds little from the past.", evidence, "", {})


def noisy_state(m: dict) -> Finding | None:
    if _silent(m) or paid_for_nothing(m) or m["noise_share"] is None or m["noise_share"] <= HALF:
        return None
    return Finding(
        "In training h is mostly posterior noise.",
        f"two draws from one posterior move h by {m['noise_share']:.0%} of the squared distance between stays",
        "lower the KL weight, so that posteriors become sharp; score with posterior means, as hsetvae does",
        {"beta": _lower(m["settings"]["beta"])},
    )


def too_short(m: dict) -> Finding | None:
    """The best epoch is the one that was selected: by the outcome's cross-entropy, or by what the sets cost as well."""
    seen = m["learning"]
    if seen["best_epoch"] < seen["epochs"] or seen["epochs"] < 2:
        return None
    learned = m["settings"]["class_weight"] and m["settings"]["selection"] == "outcome"
    learned = learned and seen["validation_bce_best"] is not None
    loss = f", with {seen['validation_bce_best']:.3f} nats per stay on validation stays" if learned else ""
    return Finding(
        "Training stopped while it was still improving.",
        f"the best of {seen['epochs']} epochs is the last one{loss}",
        "train longer",
        {"epochs": 2 * m["settings"]["epochs"]},
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
    gradient = m["gradient"]
    if m["settings"]["clip"] != "value" or gradient["cosine"] is None or gradient["cosine"] >= TURNED:
        return None
    return Finding(
        "Clipping turns the gradient.",
        f"cosine of the raw and the clipped gradient {gradient['cosine']:.2f}, "
        f"{gradient['clipped']:.0%} of steps clipped",
        "clip by norm, which keeps the direction, at the median norm",
        _held(gradient),
    )


def jumping_gradient(m: dict) -> Finding | None:
    gradient = m["gradient"]
    jump = gradient["largest_over_median"]
    if m["settings"]["clip"] != "none" or jump is None or jump <= SPIKE:
        return None
    return Finding(
        "The gradient jumps and nothing holds it.",
        f"its norm, a mean over up to a quarter of an epoch, rises to {jump:.0f} times the median of "
        f"{gradient['norm']:.2g}",
        "clip by norm at the median norm",
        _held(gradient),
    )


def _held(gradient: dict) -> dict:
    return {"clip": "norm", "clip_at": float(f"{gradient['norm']:.2g}")}


def narrow_pooling(m: dict) -> Finding | None:
    if not m["settings"]["pooling"].startswith("dot"):
        return None
    if m["effective_sets"] >= NARROW * m["sets_per_stay"] or m["sets_per_stay"] < FEW:
        return None
    return Finding(
        "The outcome is read from very few sets of a stay.",
        f"the pooling looks at {m['effective_sets']:.1f} of {m['sets_per_stay']:.0f} sets (exponential of its entropy)",
        "pool with a learned query, which is scaled",
        {"pooling": "query"},
    )


RULES: tuple[Callable[[dict], Finding | None], ...] = (
    skipped_steps, collapse, few_active_units, paid_for_nothing, unused_level, unused_history, noisy_state, too_short,
    miscalibrated, turned_gradient, jumping_gradient, narrow_pooling,
)  # fmt: skip


# --- promises --------------------------------------------------------------------------------------------------------


class Promise(NamedTuple):
    """When a rule speaks, what its command changes, and the measure that moves then: up (+1) or down (−1)."""

    sign: str
    change: str
    measure: str
    of: Callable[[dict], float]
    direction: int


PROMISES = {  # of every rule with a remedy; the tests train with and without it
    "skipped_steps": Promise(
        "a step was not finite and was skipped", "lr / 3, clip = norm, clip_at = 1",
        "steps skipped", lambda m: m["gradient"]["skipped"], -1),
    "collapse": Promise(
        f"fewer than {SILENT:.0%} of the latent dimensions are active", "beta / 5",
        "share of active dimensions", lambda m: m["au_ratio"], 1),
    "few_active_units": Promise(
        f"fewer than {HALF:.0%} of the latent dimensions are active", "beta / 5",
        "share of active dimensions", lambda m: m["au_ratio"], 1),
    "paid_for_nothing": Promise(
        f"shuffling z between sets costs the decoders less than {WORTH:.0%} of the KL",
        "class_weight / 10, or beta / 5 where dimensions are at the free-bits floor",
        "cost of shuffling z, as a share of KL,", lambda m: _worth(m) / m["kl"], 1),
    "unused_level": Promise(
        f"shuffling one level of a hierarchy costs the decoders less than {FAINT:g} nats per set",
        "level_weights = equal, or levels − 1",
        "cost of shuffling the faintest level", lambda m: min(map(_worth, m["levels"])), 1),
    "noisy_state": Promise(
        f"two draws of z move h by more than {HALF:.0%} of the squared distance between stays", "beta / 5",
        "the same share", lambda m: m["noise_share"], -1),
    "too_short": Promise(
        "the best epoch is the last one", "epochs · 2",
        "cross-entropy of the outcome in the best epoch", lambda m: m["learning"]["validation_bce_best"], -1),
    "miscalibrated": Promise(
        f"the interval of the calibration error lies above {CALIBRATED:g}, with label smoothing", "label_smoothing = 0",
        "calibration error", lambda m: m["scores"]["ece"], -1),
    "turned_gradient": Promise(
        f"cosine of the raw and the clipped gradient below {TURNED:g}, clipping by value",
        "clip = norm, clip_at = the median norm", "the same cosine", lambda m: m["gradient"]["cosine"], 1),
    "jumping_gradient": Promise(
        f"the largest gradient norm is more than {SPIKE:g} times the median, without clipping",
        "clip = norm, clip_at = the median norm",
        "distortion of unseen sets", lambda m: m["distortion_current"], -1),
    "narrow_pooling": Promise(
        f"pooling by h·z looks at less than {NARROW:.0%} of the sets of a stay", "pooling = query",
        "number of sets that the pooling looks at", lambda m: m["effective_sets"], 1),
}  # fmt: skip
