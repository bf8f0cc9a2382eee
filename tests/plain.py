"""The plain twin of the grouped set encoder: one set after another.  The benchmark runs it too."""

import torch

from hsetvae.attention import Group


def encode_one_by_one(setvae, batch) -> torch.Tensor:
    """What `setvae.features(batch)` computes (M, L, D), by a loop over sets without any padding."""
    found: list = [None] * batch.size
    for bucket in batch.buckets:
        for variable, value, real, place in zip(bucket.variable, bucket.value, bucket.real, bucket.sets, strict=True):
            x, alone, levels = setvae.embed(variable[real], value[real]), [Group.of(real[real][None])], []
            for block, pool in zip(setvae.blocks, setvae.pools, strict=True):
                x = block(x, alone)
                levels.append(pool(x, alone)[0])
            found[int(place)] = torch.stack(levels)
    return torch.stack(found)
