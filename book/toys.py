"""Small models for the pages on the model: trained in seconds, on simulated sets, by the shortest loop there is."""

from __future__ import annotations

import numpy as np
import torch

from hsetvae.config import Config, stream
from hsetvae.data import Batch, Cohort, Standardiser, batches, collate
from hsetvae.model import SetAutoencoder, initialise
from hsetvae.objective import objective


def autoencoder(config: Config, cohort: Cohort, index: np.ndarray, seed: int, epochs: int) -> SetAutoencoder:
    """A SetVAE trained alone on the sets of the stays `index`: no time, no outcome, no validation."""
    model = SetAutoencoder(config, len(cohort.variables))
    initialise(model, config, seed)
    standardiser = Standardiser.fit(cohort, index)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    steps = [index[place] for epoch in range(epochs) for place in batches(len(index), 16, seed, epoch)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(steps))
    for step, stays in enumerate(steps):
        batch = collate(cohort, stays, standardiser, config.max_sets)
        noise = torch.Generator().manual_seed(stream(seed, "noise", step))
        terms = objective(model(batch, sample=True, generator=noise), batch, model.config, step, len(steps))
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def held_out(cohort: Cohort, train: np.ndarray, test: np.ndarray, config: Config) -> tuple[Batch, Standardiser]:
    """The stays `test` as one batch, with the standardiser of the stays `train`."""
    standardiser = Standardiser.fit(cohort, train)
    return collate(cohort, test, standardiser, config.max_sets), standardiser
