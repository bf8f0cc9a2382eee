"""hsetvae: hierarchical set VAEs for irregular clinical time series.

`hsetvae.api` holds all public names: `from hsetvae.api import IMPROVED, simulate, split, train, evaluate`.
Each is defined in the module of its job, for example `hsetvae.train.train`; importing `hsetvae` itself loads nothing.
"""

import os
from importlib.metadata import version

# oneDNN, which computes GELU's gradient, keeps what it compiled for each shape.  Ragged batches hardly ever have a
# shape twice, so this gains nothing, and what it keeps lies scattered between freed tensors: a training grew to four
# times its memory.  Read when torch computes its first GELU; whoever sets the variable keeps that value.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "0")

__version__ = version("hsetvae")
