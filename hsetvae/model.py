"""HSetVAE: one visible pass from a batch of stays to everything that is measured about it.

events → SetVAE → z → tokens → causal Transformer → h → decoders (current set, next set) and outcome head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .config import Config, stream
from .data import Batch
from .decoders import make_decoder
from .history import HistoryTransformer, OutcomeHead, Tokens
from .setvae import Latents, SetVAE

TARGETS = {"current": ("current",), "next": ("next",), "both": ("current", "next")}


@dataclass(frozen=True)
class Output:
    """What one pass yields, raw: nats per set, no weight, no floor.

    B stays, T sets of the longest stay, M sets of the batch, L levels (index 0 nearest the data), Z latent, D width.
    """

    logits: Tensor  # (B,) of the outcome
    h: Tensor  # (B, T, D) history-aware states, 0 on padding
    tokens: Tensor  # (B, T, D) the Transformer's input
    pooling: Tensor  # (B, T) weights of the sets in the outcome head, sum 1 per stay
    z: Tensor  # (M, L, Z) and the four that follow
    mu: Tensor
    logvar: Tensor
    prior_mu: Tensor
    prior_logvar: Tensor
    kl: Tensor  # (M, L, Z)
    distortion: dict[str, Tensor]  # "current", "next" -> (M,); next is 0 where a stay ends; {} when not decoded
    has_next: Tensor  # (M,) bool
    row: Tensor  # (M,) stay of each set
    column: Tensor  # (M,) its place in the stay


class HSetVAE(nn.Module):
    """The whole model for `variables` distinct variables."""

    def __init__(self, config: Config, variables: int) -> None:
        super().__init__()
        self.config = config
        self.setvae = SetVAE(config, variables)
        self.embed = Tokens(config, self.setvae.used)
        self.history = HistoryTransformer(config)
        self.decoders = nn.ModuleDict({name: make_decoder(config, variables) for name in TARGETS[config.target]})
        self.head = OutcomeHead(config, variables)

    def forward(
        self, batch: Batch, sample: bool, generator: torch.Generator | None = None, decode: bool = True
    ) -> Output:
        """One pass; `sample=False` uses posterior means, as every evaluation does.

        Without `decode` it ends at the outcome, and no set is compared with what h says of it.
        """
        latents = self.set_latents(batch, sample, generator)  # (M, L, Z) each
        tokens = self.tokens(latents.z, batch)  # (B, T, D)
        h = self.history(tokens, batch)  # (B, T, D)
        logits, pooling = self.head(tokens, h, batch)
        return Output(
            logits=logits,
            h=h,
            tokens=tokens,
            pooling=pooling,
            **latents._asdict(),
            kl=latents.kl,
            distortion=self.decode(h, batch) if decode else {},
            has_next=has_next(batch),
            row=batch.row,
            column=batch.column,
        )

    def set_latents(self, batch: Batch, sample: bool, generator: torch.Generator | None = None) -> Latents:
        return self.setvae(batch, sample, generator)

    def tokens(self, z: Tensor, batch: Batch) -> Tensor:
        """z (M, L, Z) -> tokens (B, T, D)."""
        return self.embed(self.setvae.passed_on(z), batch)

    def decode(self, h: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Distortion of the current and the next set given h (B, T, D) -> (M,) each."""
        states = batch.flat(h)  # (M, D)
        source = {"current": torch.arange(batch.size, device=h.device), "next": has_next(batch).nonzero().squeeze(1)}
        shift = {"current": 0, "next": 1}  # the sets of a stay lie one after another
        out = {}
        for name, decoder in self.decoders.items():
            distance = decoder.distortion(states.index_select(0, source[name]), batch, source[name] + shift[name])
            out[name] = distance.new_zeros(batch.size).index_copy(0, source[name], distance)
        return out


def has_next(batch: Batch) -> Tensor:
    """Whether set m is followed by another set of its stay -> (M,) bool."""
    follows = torch.zeros_like(batch.row, dtype=torch.bool)
    follows[:-1] = batch.row[1:] == batch.row[:-1]
    return follows


def initialise(module: nn.Module, config: Config, seed: int) -> None:
    """Draw all parameters anew, each module from a stream named by its own path (ledger S3 decides how).

    Two arms that differ in one module therefore start with bit-identical parameters everywhere else.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for path, part in module.named_modules():
            if hasattr(part, "reset_parameters"):
                torch.manual_seed(stream(seed, "init", path))
                part.reset_parameters()
                if config.init == "xavier" and isinstance(part, nn.Linear):
                    nn.init.xavier_uniform_(part.weight)
                    nn.init.zeros_(part.bias)


class Memoryless(nn.Module):
    """h_t = token_t: a stand-in for the history that remembers nothing, a Transformer of no layers."""

    layers, final = (), nn.Identity()

    def forward(self, tokens: Tensor, batch: Batch) -> Tensor:
        return tokens


class SetAutoencoder(HSetVAE):
    """The SetVAE alone, for pretraining: each set is rebuilt from its own z, without time and without outcome."""

    def __init__(self, config: Config, variables: int) -> None:
        alone = config.but(
            position="none", target="current", class_weight=0.0, dynamic_weights=False, pretrain_epochs=0,
            setvae_lr_scale=1.0, stages="joint", patience=0, pooling="mean", head="linear", layers=1,
            statistics=False, cut=0.0,
        )  # fmt: skip
        super().__init__(alone, variables)
        self.history = Memoryless()
