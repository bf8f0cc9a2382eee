"""Each piece of advice keeps its promise: train until a rule speaks, train again with its remedy, compare its measure."""

import pytest

from hsetvae import advice
from hsetvae.config import BASELINE
from hsetvae.data import split
from hsetvae.diagnostics import diagnose
from hsetvae.simulate import simulate
from hsetvae.train import train
