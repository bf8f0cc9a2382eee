"""One set of events <-> levels of latents: posterior q(z_l | x, z_>l) and conditional prior p(z_l | z_>l).

Top-down inference with a deterministic bottom-up pass (Ladder VAE, Sønderby et al. 2016; SetVAE, Kim et al. 2021) and
posteriors written as a shift of the conditional prior (NVAE, Vahdat & Kautz 2020).  Level 1 is nearest the data.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import ISAB, PMA, SAB, Dropout, Places
from .config import Config
from .data import Batch

LOGVAR_LIMIT = 10.0  # ledger S4: log variances stay within ±10
# Log variance of a fresh posterior relative to its prior.  Starting as sharp as this, a network first learns what to
# say and then how much of it is worth its price; starting at 0, z is noise and what follows has nothing to learn from.
SHARP = -4.0


class Latents(NamedTuple):
    """What the SetVAE says of M sets on L levels of width Z; every tensor is (M, L, Z)."""

    z: Tensor
    mu: Tensor
    logvar: Tensor
    prior_mu: Tensor
    prior_logvar: Tensor

    @property
    def kl(self) -> Tensor:
        """KL(q(z_l | x, z_>l) ‖ p(z_l | z_>l)) per set, level and dimension in nats, unweighted, before free bits."""
        return kl_divergence(*(t.float() if t.dtype != torch.float64 else t for t in self[1:]))


def kl_divergence(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor) -> Tensor:
    """KL between diagonal Gaussians, per dimension, in nats: ½ (Δmu²/sigma_p² + ratio − 1 − ln ratio)."""
    log_ratio = logvar - prior_logvar
    return 0.5 * ((mu - prior_mu).square() * torch.exp(-prior_logvar) + log_ratio.exp() - 1 - log_ratio)


LOGVAR_CLAMPS = {
    "none": lambda logvar: logvar,
    "hard": lambda logvar: logvar.clamp(-LOGVAR_LIMIT, LOGVAR_LIMIT),
    # same range, but a gradient everywhere
    "soft": lambda logvar: LOGVAR_LIMIT * torch.tanh(logvar / LOGVAR_LIMIT),
}


def perceptron(config: Config, features: int, out: int) -> nn.Sequential:
    """Two-layer network of the SetVAE; with `norm_gelu` (S1) LayerNorm + GELU, else a plain ReLU."""
    width = config.width
    if config.norm_gelu:
        return nn.Sequential(nn.Linear(features, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, out))
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, out))


class EventEmbedding(nn.Module):
    """Event (variable v, standardised value x) -> vector (D): W a(e_v + u x), or x·e_v in the product form.

    The sum lies inside an activation a, so that every variable has its own curve over x.  In the product form an event
    at the mean (x = 0) vanishes, and a norm behind it (`norm_gelu`, `event_norm`) leaves only the sign of x.
    """

    def __init__(self, config: Config, variables: int) -> None:
        super().__init__()
        D = config.width
        self.product = config.event_embedding == "product"
        self.variable = nn.Embedding(variables, D)
        self.value = nn.Identity() if self.product else nn.Linear(1, D)
        mix = [nn.LayerNorm(D), nn.GELU()] if config.norm_gelu else [] if self.product else [nn.ReLU()]
        self.mix = nn.Sequential(*mix, nn.Identity() if self.product else nn.Linear(D, D))
        self.norm = nn.RMSNorm(D) if config.event_norm == "rms" else nn.Identity()
        self.dropout = Dropout(config.input_dropout)

    def forward(self, variable: Tensor, value: Tensor) -> Tensor:
        """variable (C,) int, value (C,) -> (C, D)."""
        direction, value = self.variable(variable), self.value(value.unsqueeze(-1))
        event = direction * value if self.product else direction + value
        return self.dropout(self.norm(self.mix(event)))


class SetVAE(nn.Module):
    """The set encoder, its posteriors and its priors: Batch -> Latents."""

    def __init__(self, config: Config, variables: int) -> None:
        super().__init__()
        L, D, Z = config.levels, config.width, config.latent
        self.embed = EventEmbedding(config, variables)
        block = (config.width, config.heads, config.residual)
        points = config.inducing_points
        self.blocks = nn.ModuleList(ISAB(*block, points) if points else SAB(*block) for _ in range(L))
        self.pools = nn.ModuleList(PMA(*block) for _ in range(L))
        self.topdown = config.posterior == "topdown"
        context = [Z * (L - 1 - level) if self.topdown else 0 for level in range(L)]  # width of z_>l
        self.posteriors = nn.ModuleList(perceptron(config, D + c, 2 * Z) for c in context)
        self.priors = nn.ModuleList(perceptron(config, c, 2 * Z) if c else nn.Identity() for c in context)
        self.latent, self.posterior_noise, self.masking = Z, config.posterior_noise, config.masking
        self.clamp = LOGVAR_CLAMPS[config.logvar_clamp]

    @property
    def used(self) -> int:
        """Width of what goes on to the history: all levels side by side, or the deepest level alone."""
        return self.latent * (len(self.blocks) if self.topdown else 1)

    def features(self, batch: Batch) -> Tensor:
        """The deterministic bottom-up pass: all sets of the batch -> (M, L, D).

        The cells of all windows lie flat, C of them with little padding: no loop runs over sets or events.
        """
        windows, places = batch.windows, Places.of(batch.windows, batch.size)
        x, levels = self.embed(windows.variable.flatten(), windows.value.flatten()), []  # (C, D)
        for block, pool in zip(self.blocks, self.pools, strict=True):
            x = block(x, places)
            levels.append(pool(x, places))  # (M, D)
        return torch.stack(levels, dim=1)

    def prior(self, level: int, above: list[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
        """p(z_l | z_>l) -> mu, logvar (M, Z); standard normal at the top level and for independent levels."""
        if not (self.topdown and above):
            return torch.zeros_like(like), torch.zeros_like(like)
        mu, logvar = self.priors[level](torch.cat(above, dim=-1)).chunk(2, dim=-1)
        return mu, self.clamp(logvar)

    def forward(self, batch: Batch, sample: bool, generator: torch.Generator | None = None) -> Latents:
        """Posterior draws (`sample=True`) or posterior means on every level, deepest level first."""
        if self.training and self.masking:
            batch = dataclasses.replace(batch, windows=batch.windows.masked(self.masking, generator))
        features = self.features(batch)  # (M, L, D)
        found: list[tuple[Tensor, ...]] = []
        above: list[Tensor] = []
        for level in reversed(range(len(self.blocks))):
            context = above if self.topdown else []
            shift = self.posteriors[level](torch.cat([features[:, level], *context], dim=-1))
            mu, logvar = shift.chunk(2, dim=-1)  # relative to the prior
            prior_mu, prior_logvar = self.prior(level, above, mu)
            mu, logvar = mu + prior_mu, self.clamp(logvar + prior_logvar + SHARP)
            if self.training and self.posterior_noise:  # S5: the noisy scale is the one sampled and the one charged
                logvar = logvar + self.posterior_noise * noise_like(logvar, generator)
            z = mu + torch.exp(0.5 * logvar) * noise_like(mu, generator) if sample else mu
            above.insert(0, z)
            found.insert(0, (z, mu, logvar, prior_mu, prior_logvar))
        return Latents(*(torch.stack(level, dim=1) for level in zip(*found, strict=True)))

    def sample_prior(self, sets: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws from the prior over all levels -> z (sets, L, Z)."""
        above: list[Tensor] = []
        like = self.embed.variable.weight.new_zeros(sets, self.latent)
        for level in reversed(range(len(self.blocks))):
            mu, logvar = self.prior(level, above, like)
            above.insert(0, mu + torch.exp(0.5 * logvar) * noise_like(mu, generator))
        return torch.stack(above, dim=1)

    def passed_on(self, z: Tensor) -> Tensor:
        """What the history sees of z (M, L, Z) -> (M, used)."""
        return z.flatten(1) if self.topdown else z[:, -1]


def noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise from a named CPU stream, so that the numbers are the same on every device."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
