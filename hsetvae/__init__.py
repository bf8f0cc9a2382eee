"""hsetvae: hierarchical set VAEs for irregular clinical time series.

Names live in the module that defines them, for example `from hsetvae.train import train`; the API page lists them.
"""

from importlib.metadata import version

__version__ = version("hsetvae")
