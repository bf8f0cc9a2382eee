"""hsetvae: hierarchical set VAEs for irregular clinical time series.

`hsetvae.api` holds all public names: `from hsetvae.api import IMPROVED, simulate, split, train, evaluate`.
Each is defined in the module of its job, for example `hsetvae.train.train`; importing `hsetvae` itself loads nothing.
"""

from importlib.metadata import version

__version__ = version("hsetvae")
