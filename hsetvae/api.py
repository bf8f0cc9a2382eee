"""All public names in one place: `from hsetvae.api import IMPROVED, simulate, split, train, evaluate`.

They mirror the command line.  Data: `simulate`, `read_cohort`, `write_cohort`, `load_challenge2012`, `split`.
Settings: `Config`, `BASELINE`, `IMPROVED`, `RECOMMENDED`; what the user can put right raises `UserError`.
`hsetvae train`: `train`, `train_baseline`; `load_run` and `load_baseline` open what they left, `fit_baselines`
only gives probabilities of the test stays.  `hsetvae evaluate`: `evaluate`, `predict`, `calibrate`, `over_hours`.
`hsetvae explain`: `explain`, `deletion`, `deletion_ratio`.
`hsetvae diagnose`: `diagnose`, `advise`, `skill`, `write_report`.
`hsetvae study`: `load_study`, `run_study`, `report`.
What a run can say about sets has no command: `reconstruct`, `impute`, `forecast`, `sample`.
"""

from .advice import advise
from .baselines import fit_baselines, load_baseline, train_baseline
from .calibration import calibrate, over_hours
from .config import BASELINE, IMPROVED, RECOMMENDED, Config, UserError
from .data import split
from .declaration import load_study
from .diagnostics import diagnose
from .evaluate import evaluate, predict
from .events import read_cohort, write_cohort
from .explain import deletion, deletion_ratio, explain
from .generate import forecast, impute, reconstruct, sample
from .physionet import load_challenge2012
from .report import write_report
from .runs import load_run
from .simulate import simulate
from .skill import skill
from .sweep import run_study
from .train import train
from .verdicts import report

__all__ = [
    "BASELINE", "IMPROVED", "RECOMMENDED", "Config", "UserError", "advise", "calibrate", "deletion", "deletion_ratio",
    "diagnose", "evaluate", "explain", "fit_baselines", "forecast", "impute", "load_baseline", "load_challenge2012",
    "load_run", "load_study", "over_hours", "predict", "read_cohort", "reconstruct", "report", "run_study", "sample",
    "simulate", "skill", "split", "train", "train_baseline", "write_cohort", "write_report",
]  # fmt: skip
