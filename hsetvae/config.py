"""Every knob of the model and its training, once, with its unit and its row in the ledger of claims.

A field exists because an ablation arm turns it or a test needs it small; everything else is a literal beside its use.
`BASELINE` and `IMPROVED` are the "before" and "after" columns of the ledger and differ in nothing else:
what the ledger does not name is context, shared by both.  `RECOMMENDED` is our own answer and free of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

LARGEST = 1e6  # of any setting: beyond it a weight leaves single precision nothing to add it to


class UserError(ValueError):
    """Something the user can put right: the message says what is wrong, where, and what to do."""


def nearest(name: str, known) -> str:
    """A hint such as `; did you mean "beta"?`, or nothing when no known name is close."""
    match = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f'; did you mean "{match[0]}"?' if match else ""


def stream(seed: int, *names: object) -> int:
    """A 63-bit seed for one named random stream of a run.

    Arms of one replicate share `seed`; a stream with its own name does not move when another module draws more
    numbers, so two arms differ by the arm and not by luck.
    """
    text = "/".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def knob(
    default: Any, text: str, unit: str = "", ledger: str = "", at_least=None, at_most=LARGEST, choices: str = ""
) -> Any:
    """A Config field that explains itself: what it does, its unit, its ledger row, its allowed range (inclusive).

    `choices` names the dictionary (module.NAME) whose keys are allowed besides the values of the field's Literal:
    a function put there is a new choice, and nothing has to be said here.
    """
    facts = dict(text=text, unit=unit, ledger=ledger, low=at_least, high=at_most, choices=choices)
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class Config:
    """All that decides a run besides the data and the seed.  Frozen: use `.but(beta=0.5)` for a changed copy."""

    # --- sizes (context) -------------------------------------------------------------------------------------------
    width: int = knob(64, "width D of every token", "features", at_least=4, at_most=4096)
    latent: int = knob(16, "latent width Z of one level", "dimensions", at_least=1, at_most=4096)
    levels: int = knob(2, "levels L of latents per set", "levels", at_least=1, at_most=64)
    heads: int = knob(2, "attention heads", "heads", at_least=1, at_most=256)
    layers: int = knob(2, "layers of the history Transformer", "layers", at_least=1, at_most=256)
    feedforward: int = knob(128, "width of the Transformer's hidden layers", "features", at_least=1, at_most=65536)
    inducing_points: int = knob(0, "inducing points of the set encoder; 0 = plain self-attention", "points", at_least=0)
    max_sets: int = knob(256, "longest stay the model accepts (size of the position table)", "sets", at_least=1)
    dropout: float = knob(0.1, "dropout in the Transformer and the outcome head", "share", at_least=0, at_most=0.95)

    # --- set encoder -----------------------------------------------------------------------------------------------
    event_embedding: Literal["sum", "product"] = knob(
        "sum", "an event's vector: variable + value embedding, or value times the variable's direction"
    )
    posterior: Literal["topdown", "independent"] = knob(
        "topdown", "levels: top-down with conditional priors, or independent with only the deepest one used"
    )
    norm_gelu: bool = knob(False, "LayerNorm + GELU in the embedding and in the mu/logvar network", ledger="S1")
    residual: bool = knob(False, "residual connections in the attention blocks of the set encoder", ledger="S2")
    init: Literal["default", "xavier"] = knob("default", "weights: torch's default, or Xavier uniform", ledger="S3")
    logvar_clamp: Literal["none", "hard", "soft"] = knob(
        "none", "keep logvar within [-10, 10]", ledger="S4", choices="setvae.LOGVAR_CLAMPS"
    )
    posterior_noise: float = knob(
        0.0, "SD of noise added to the posterior's logvar in training", "log variance", "S5", at_least=0
    )
    event_norm: Literal["none", "rms"] = knob("none", "normalisation of the event vector", ledger="S6")
    input_dropout: float = knob(0.0, "dropout of event vectors in training", "share", "S7", at_least=0, at_most=0.95)
    masking: float = knob(
        0.0, "share of the events of every second set, at random, that training hides from the set encoder",
        "share", at_least=0, at_most=0.95,
    )  # fmt: skip

    # --- history ---------------------------------------------------------------------------------------------------
    position: Literal["none", "index", "index+time", "rotary", "rotate_inputs"] = knob(
        "rotary",
        "position: none; learned index; learned index + time encoder; rotary queries and keys; rotated inputs",
        ledger="M1 M2 M3",
    )
    norm: Literal["pre", "post"] = knob("post", "LayerNorm before or after each Transformer part", ledger="M4")
    activation: Literal["gelu", "relu"] = knob("relu", "activation of the Transformer", ledger="M4")
    future_leak: float = knob(
        0.0, "share of future sets visible in training (relaxed mask)", "share", "M5", at_least=0, at_most=1
    )

    # --- outcome head and decoders ---------------------------------------------------------------------------------
    pooling: Literal["mean", "last", "dot", "dot_unscaled", "query"] = knob(
        "mean",
        "pooling of h over time: mean; last; attention by h·z, scaled or not; attention by a learned query",
        ledger="M6",
        choices="history.POOLINGS",
    )
    head: Literal["linear", "mlp"] = knob("linear", "outcome head: linear, or an MLP", ledger="M7")
    statistics: bool = knob(False, "the outcome head also sees the statistics of each variable over the stay")
    statistics_dropout: float = knob(
        0.0, "share of these statistics hidden in training", "share", at_least=0, at_most=0.95
    )
    decoder: Literal["likelihood", "chamfer", "hungarian"] = knob(
        "likelihood", "how a set is rebuilt from h", choices="decoders.SET_DISTANCES"
    )
    tanh_output: bool = knob(False, "Tanh on the decoder's value output", ledger="S8")
    target: Literal["current", "next", "both"] = knob("both", "which set is rebuilt from h at time t")

    # --- objective -------------------------------------------------------------------------------------------------
    beta: float = knob(0.5, "weight of the KL divergence (its maximum, when it is scheduled)", "", "H1", at_least=0)
    beta_warmup: float = knob(
        0.0, "linear warm-up of beta: share of all steps (above 1: a number of steps)", "share", "H5 L1", at_least=0
    )
    beta_cycles: int = knob(0, "cycles of cyclical KL annealing; 0 = off", "cycles", "H6", at_least=0)
    free_bits: float = knob(0.2, "KL below this floor is not punished", "nats per dimension", "H3 L6", at_least=0)
    free_bits_per: Literal["dimension", "level"] = knob(
        "dimension", "the floor holds for each dimension, or for the sum over a level's dimensions", ledger="H3 L6"
    )
    level_weights: Literal["equal", "depth"] = knob("equal", "KL weight of level l = 1 … L: 1, or l/L", ledger="L3")
    variance_weight: float = knob(0.0, "weight of the variance regulariser mean(logvar²)", "", "L2", at_least=0)
    mean_weight: float = knob(0.0, "weight of the mean regulariser mean(mu²)", "", "L2", at_least=0)
    class_weight: float = knob(0.5, "weight w of the outcome's cross-entropy", "", "H2", at_least=0)
    dynamic_weights: bool = knob(False, "reconstruction weight 1 → 0.5, outcome weight 0 → w", ledger="L4")
    teacher: float = knob(
        0.0, "share of boosting's probability in the outcome that the head learns from", "share", at_least=0, at_most=1
    )
    label_smoothing: float = knob(0.0, "label smoothing in training", "share", "L5", at_least=0, at_most=0.5)

    # --- training --------------------------------------------------------------------------------------------------
    lr: float = knob(2e-3, "learning rate of AdamW", "", at_least=0)
    setvae_lr_scale: float = knob(1.0, "factor on the learning rate of the SetVAE", "", "T1", at_least=0)
    weight_decay: float = knob(0.0, "decoupled weight decay of matrices", "", "T2", at_least=0)
    lr_schedule: Literal["constant", "cosine", "restarts"] = knob(
        "constant", "learning-rate schedule", ledger="T3", choices="optim.LR_SCHEDULES"
    )
    lr_warmup: float = knob(0.1, "linear warm-up of the learning rate", "share of steps", at_least=0, at_most=1)
    clip: Literal["none", "value", "norm"] = knob("value", "gradient clipping", ledger="T4 D4", choices="optim.CLIPS")
    clip_at: float = knob(1.0, "where the gradient is clipped", "gradient value or norm", "H4", at_least=1e-12)
    detect_anomaly: bool = knob(False, "torch's anomaly detection: names the operation of a NaN, slow", ledger="T5")
    skip_nonfinite: bool = knob(False, "skip and count non-finite steps instead of stopping", ledger="E3")
    averaging: float = knob(
        0.999, "decay, per step, of the running average of the weights that is scored and kept; 0 = the last ones",
        at_least=0, at_most=0.999999,
    )  # fmt: skip
    epochs: int = knob(20, "passes over the training stays", "epochs", at_least=1)
    batch_size: int = knob(16, "stays per step", "stays", at_least=1)
    cut: float = knob(
        0.0, "share of a step's stays that it holds a second time, up to a random hour", "share", at_least=0, at_most=1
    )
    selection: Literal["outcome", "objective"] = knob(
        "outcome",
        "which epoch is kept: that of the least validation cross-entropy of the outcome, or of the least sum of "
        "distortion, beta · KL and weighted cross-entropy",
    )
    patience: int = knob(
        0, "stop after this many epochs without a better validation loss; 0 = never", "epochs", at_least=0
    )
    pretrain_epochs: int = knob(10, "epochs of training the SetVAE alone before the rest", "epochs", "T1", at_least=0)
    stages: Literal["joint", "progressive"] = knob(
        "joint", "train all at once, or head → head + Transformer → all, a third of the steps each", ledger="A2"
    )

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _checked(f, getattr(self, f.name)))
        if self.width % (4 * self.heads):
            raise UserError(
                f"width = {self.width} must be a multiple of 4·heads = {4 * self.heads}: change one of them"
            )

    def but(self, **changes: Any) -> Config:
        """A copy with some fields changed; UserError for an unknown name, a wrong type or a value out of range."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise UserError(f'unknown setting "{name}"{nearest(name, known)} (`hsetvae settings` lists all)')
        return dataclasses.replace(self, **changes)

    def differences(self, other: Config) -> dict[str, tuple[Any, Any]]:
        """Fields in which two configurations differ: name -> (mine, theirs)."""
        mine, theirs = self.to_dict(), other.to_dict()
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The configuration stored by `to_dict`.  A missing or an unknown field raises: nothing is guessed."""
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in values]
        if missing:
            raise UserError(
                f"this configuration lacks {', '.join(missing)}: it was written by another version of hsetvae"
            )
        return cls().but(**values)

    @classmethod
    def describe(cls) -> list[tuple[str, str, Any, str, str, str]]:
        """One row per field: name, type, default, unit, ledger id, text."""
        return [
            (f.name, _kind_name(f), f.default, f.metadata["unit"], f.metadata["ledger"], f.metadata["text"])
            for f in dataclasses.fields(cls)
        ]


def _kind_name(f: dataclasses.Field) -> str:
    kind = _kinds()[f.name]
    return " | ".join(_choices(f)) if typing.get_origin(kind) is Literal else kind.__name__


@functools.cache
def _kinds() -> dict[str, Any]:
    """Type of every field; evaluated once, because evaluating annotations takes longer than all checks together."""
    return typing.get_type_hints(Config)


def _choices(f: dataclasses.Field) -> list[str]:
    """The values of a field's Literal, then what its dictionary holds beyond them."""
    named = list(typing.get_args(_kinds()[f.name]))
    module, _, dictionary = f.metadata["choices"].partition(".")
    found = getattr(importlib.import_module(f"{__package__}.{module}"), dictionary) if module else ()
    return named + [name for name in found if name not in named]


def _checked(f: dataclasses.Field, value: Any) -> Any:
    """The value in the field's type, or a UserError that names the field, the value and what is allowed."""
    kind = _kinds()[f.name]
    where = f"setting {f.name} = {value!r}"
    if typing.get_origin(kind) is Literal:
        # the dictionary is looked up for an unknown value only: it lies in a module that needs torch
        if value not in typing.get_args(kind) and value not in (choices := _choices(f)):
            raise UserError(f"{where} is not one of {', '.join(choices)}{nearest(value, choices)}")
        return value
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{where} has type {type(value).__name__}; {f.name} takes {kind.__name__}")
    low, high = f.metadata["low"], f.metadata["high"]
    if kind is not bool:
        if value != value or value in (float("inf"), float("-inf")):
            raise UserError(f"{where} is not finite")
        if (low is not None and value < low) or (high is not None and value > high):
            bounds = " and ".join(
                t for t in (low is not None and f"at least {low:g}", high is not None and f"at most {high:g}") if t
            )
            raise UserError(f"{where} is out of range: it must be {bounds}")
    return value


def parse_settings(texts: list[str]) -> dict[str, Any]:
    """Turn `["beta=0.5", "clip=norm"]` into `{"beta": 0.5, "clip": "norm"}`, each in its field's type.

    Raises UserError for a missing `=`, an unknown name, or a value that is not of the field's type.
    """
    kinds = _kinds()
    settings: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name, value = name.strip(), value.strip()
        if not equals:
            raise UserError(f'setting "{text}" has no "=": write it as name=value, for example beta=0.5')
        if name not in kinds:
            raise UserError(f'unknown setting "{name}"{nearest(name, kinds)} (`hsetvae settings` lists all)')
        kind = kinds[name]
        try:
            if kind is bool:
                settings[name] = {"true": True, "false": False, "1": True, "0": False}[value.lower()]
            else:
                settings[name] = value if typing.get_origin(kind) is Literal else kind(value)
        except (KeyError, ValueError):
            wanted = {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, "text")
            raise UserError(f'setting {name}: "{value}" is not {wanted}') from None
    return settings


BASELINE = Config()

IMPROVED = BASELINE.but(
    beta=0.1,
    class_weight=1.0,
    free_bits=0.1,
    clip="norm",
    clip_at=0.5,
    beta_warmup=0.25,  # the seed's 5,000 steps of an assumed 20,000
    beta_cycles=4,  # Fu et al. 2019 use four cycles
    position="index+time",
    norm="pre",
    activation="gelu",
    pooling="dot",
    head="mlp",
    variance_weight=0.01,
    mean_weight=0.01,
    level_weights="depth",
    dynamic_weights=True,
    label_smoothing=0.1,
    norm_gelu=True,
    residual=True,
    init="xavier",
    logvar_clamp="hard",
    posterior_noise=0.1,
    event_norm="rms",
    input_dropout=0.1,
    tanh_output=True,
    setvae_lr_scale=0.1,
    weight_decay=0.01,
    lr_schedule="restarts",
)

# Our compromise of prediction, likelihood and use of the past on Challenge 2012; not bound by the ledger.
RECOMMENDED = BASELINE.but(
    width=48, latent=32, levels=1, heads=4, layers=1, feedforward=96,
    norm_gelu=True, residual=True, activation="gelu",
    head="mlp", statistics=True, statistics_dropout=0.15, teacher=0.75,
    beta=1.0, beta_warmup=1.0,  # paid in full, above the floor of free bits, only once z has something to say
    masking=0.3,  # hidden events are what imputation learns from
    class_weight=0.02,  # leaves h to the sets; the head learns as fast, as AdamW rescales gradients
    lr=4e-3, lr_schedule="cosine", weight_decay=0.01, clip="norm", clip_at=5.0,
    batch_size=8, cut=0.25, epochs=6, pretrain_epochs=0,
    selection="objective",  # a head that sees statistics knows the outcome before the latents know the sets
)  # fmt: skip

PRESETS: dict[str, Config] = {"baseline": BASELINE, "improved": IMPROVED, "recommended": RECOMMENDED}
