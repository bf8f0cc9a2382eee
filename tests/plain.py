"""The plain twin of the set encoder in windows: one set after another.  The benchmark runs it too."""

import torch

from hsetvae.attention import Places
from hsetvae.data import Windows


def encode_one_by_one(setvae, batch) -> torch.Tensor:
    """What `setvae.features(batch)` computes (M, L, D), by a loop over sets without any padding."""
    found = []
    w = batch.windows
    sets, variable, value = (t[w.real] for t in (w.set, w.variable, w.value))
    for m in range(batch.size):
        events = sets == m
        own = torch.zeros(1, int(events.sum()), dtype=torch.long)
        alone = Places.of(Windows(variable[events][None], value[events][None], own, own[:, :1]), 1)
        x, levels = setvae.embed(variable[events], value[events]), []
        for block, pool in zip(setvae.blocks, setvae.pools, strict=True):
            x = block(x, alone)
            levels.append(pool(x, alone)[0])
        found.append(torch.stack(levels))
    return torch.stack(found)
