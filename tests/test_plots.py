"""Figures show the table they are given, say their units, and compute nothing."""

import ast
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from hsetvae import plots

HISTORY = pd.DataFrame(
    {"step": [5, 10, 15, 20], **{name: np.linspace(1, 2, 4) for name in (
        "distortion_current distortion_next kl kl_level1 kl_level2 bce gradient_norm gradient_norm_clipped beta "
        "reconstruction_weight class_weight clipped gradient_cosine").split()},
     "validation_kl": [np.nan, 1.5, np.nan, 1.2], "validation_bce": [np.nan, 0.5, np.nan, 0.4]}
)  # fmt: skip
SUMMARY = pd.DataFrame({"label": ["a", "b"], "estimate": [0.1, -0.2], "low": [0.0, -0.3], "high": [0.3, 0.0]})
REPLICATES = pd.DataFrame({"label": ["a", "a", "b"], "difference": [0.05, 0.15, -0.2]})
PAIRED = pd.DataFrame({"replicate": [0, 0, 1, 1], "arm": ["old", "new"] * 2, "value": [1.0, 2.0, 3.0, 5.0]})
FACTORS = pd.DataFrame(
    [{"f": f, "g": g, "k": f, "replicate": 0, "auroc": x + y} for x, f in enumerate("ab") for y, g in enumerate("cd")]
)
ROADMAP = pd.DataFrame(
    [{"order": o, "step": s, "label": "ab"[s], "replicate": r, "value": o + s + r / 10} for o in (0, 1, 2)
     for s in (0, 1) for r in (0, 1)]
)  # fmt: skip
SPECTRUM = pd.DataFrame(
    [{"level": lev, "network": n, "rank": r, "variance": 1 / r} for lev in (1, 2) for n in ("trained", "untrained")
     for r in (1, 2, 3)]
)  # fmt: skip
RATE = pd.DataFrame({"label": ["beta 0.1"] * 3, "rate": [1.0, 2.0, 3.0], "distortion": [9.0, 8.0, 7.5]})
PROJECTION = pd.DataFrame({"state": list("zzhh"), "hours": [0.0, 5.0] * 2, "x": [1.0, 2, 3, 4], "y": [0.0, 1, 0, 1]})
SWAPS = pd.DataFrame({"measure": ["past", "past"], "network": ["trained", "untrained"], "value": [0.4, 0.1]})
CALIBRATION = pd.DataFrame({"predicted": [0.1, 0.4], "observed": [0.2, 0.3], "low": [0.1, 0.2], "high": [0.3, 0.5]})
POOLING = pd.DataFrame({"stay": ["s", "s", "t"], "hours": [0.0, 2.0, 0.0], "weight": [0.25, 0.75, 1.0]})
OVER = pd.DataFrame(
    {"hours": [6.0, 24.0], "auroc": [0.7, 0.8], "auroc_low": [0.6, 0.7], "auroc_high": [0.8, 0.9], "auprc": [0.3, 0.4],
     "auprc_low": [0.2, None], "auprc_high": [0.4, None], "ece": [0.02, 0.01], "ece_low": [0.01, 0.01],
     "ece_high": [0.05, 0.04], "ece_expected": [0.015, 0.012]}
)  # fmt: skip
DROVE = pd.DataFrame(
    {
        "hours": [0.0, 3.0, 0.0],
        "variable": ["Temp", "HR", "HR"],
        "contribution": [0.1, -0.6, 0.2],
        "value": [37, 80, 90],
    }
)

UNIT = r"\(.+\)|no unit|share|cosine|norm|weight|nats|AUROC|step|arm|dimension"
FIGURES = {  # figure -> how it is drawn, and the axes that name things instead of amounts
    "forest": (lambda: plots.forest(SUMMARY, REPLICATES, 0.05, "AUROC"), "y"),
    "paired": (lambda: plots.paired(PAIRED, "AUROC"), ""),
    "interaction": (lambda: plots.interaction(FACTORS, "f", "g", "auroc", "AUROC"), "x"),
    "interaction_grid": (lambda: plots.interaction_grid(FACTORS, "f", ["g", "k"], "auroc", "AUROC"), "xy"),
    "roadmap": (lambda: plots.roadmap(ROADMAP, "AUROC"), "y"),
    "training_curves": (lambda: plots.training_curves(HISTORY), ""),
    "kl_levels": (lambda: plots.kl_levels(HISTORY), ""),
    "gradient_health": (lambda: plots.gradient_health(HISTORY), ""),
    "au_spectrum": (lambda: plots.au_spectrum(SPECTRUM, (0.01, 0.1)), ""),
    "rate_distortion": (lambda: plots.rate_distortion(RATE), ""),
    "projection": (lambda: plots.projection(PROJECTION), ""),
    "swap_bars": (lambda: plots.swap_bars(SWAPS), "y"),
    "calibration": (lambda: plots.calibration(CALIBRATION), ""),
    "pooling": (lambda: plots.pooling(POOLING), ""),
    "over_hours": (lambda: plots.over_hours(OVER), ""),
    "contributions": (lambda: plots.contributions(DROVE), "y"),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def points(axis) -> set[tuple[float, float]]:
    """All points that are drawn as lines or dots, rounded."""
    lines = [np.column_stack(line.get_data()) for line in axis.lines]
    dots = [np.asarray(c.get_offsets()) for c in axis.collections if len(c.get_offsets())]
    return {tuple(np.round(np.asarray(p, dtype=float), 6)) for part in [*lines, *dots] for p in part}


def test_every_figure_is_tested():
    tree = ast.parse(Path(plots.__file__).read_text())
    assert {n.name for n in tree.body if isinstance(n, ast.FunctionDef) and n.name[0] != "_"} == FIGURES.keys()
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level], (
        "figures import nothing of ours"
    )


@pytest.mark.parametrize("name", FIGURES)
def test_axes_say_what_they_show_in_which_unit_and_the_figure_can_be_saved(name, tmp_path):
    draw, named = FIGURES[name]
    axes = np.ravel(draw())
    figure = axes[0].figure
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000 and figure.get_figwidth() <= 5.01
    outer = {"x": axes[-1].get_xlabel(), "y": figure.get_supylabel() or axes[0].get_ylabel()}
    for side, label in outer.items():
        assert side in named or re.search(UNIT, label), f"{side} axis of {name}: {label!r}"


@pytest.mark.parametrize(
    ("draw", "wanted"),
    [
        (FIGURES["forest"][0], [(0.1, 0), (-0.2, 1), (0.05, 0.22), (0.15, 0.22), (-0.2, 1.22)]),
        (FIGURES["paired"][0], [(0, 1), (1, 2), (0, 3), (1, 5)]),
        (FIGURES["kl_levels"][0], [(5, 1), (20, 2)]),
        (FIGURES["au_spectrum"][0], [(1, 1), (2, 0.5), (3, 0.333333)]),
        (FIGURES["rate_distortion"][0], [(1, 9), (2, 8), (3, 7.5)]),
        (FIGURES["calibration"][0], [(0.1, 0.2), (0.4, 0.3)]),
        (FIGURES["pooling"][0], [(0, 0.25), (2, 0.75), (0, 1)]),
        (FIGURES["contributions"][0], [(0, 1), (3, 0), (0, 0)]),
        (lambda: plots.over_hours(OVER)[0], [(6, 0.7), (24, 0.8)]),
        (lambda: plots.over_hours(OVER)[2], [(6, 0.02), (24, 0.01), (6, 0.015)]),
        (lambda: plots.projection(PROJECTION)[1], [(3, 0), (4, 1)]),
        (lambda: plots.gradient_health(HISTORY)[0], [(5, 1), (20, 2)]),
        (lambda: plots.training_curves(HISTORY)[2], [(5, 1), (10, 0.5), (20, 0.4)]),
    ],
)
def test_what_is_drawn_is_what_the_table_says(draw, wanted):
    assert {tuple(map(float, p)) for p in wanted} <= points(draw())


def test_bars_are_as_long_as_the_table_says():
    lengths = [patch.get_width() for patch in plots.swap_bars(SWAPS).patches if patch.get_height()]
    assert {0.4, 0.1} <= {round(float(length), 6) for length in lengths}


def test_a_figure_is_drawn_on_the_axis_it_is_given():
    one, other = plt.subplots(1, 2)[1]
    assert plots.kl_levels(HISTORY, one) is one and plots.calibration(CALIBRATION, axis=other) is other


def test_more_lines_than_colours_are_all_drawn():
    many = pd.DataFrame(
        [{"label": f"arm {i}", "rate": r, "distortion": 9.0 - r} for i in range(12) for r in (1.0, 2.0)]
    )
    axis = plots.rate_distortion(many)
    assert {f"arm {i}" for i in range(12)} <= set(axis.get_legend_handles_labels()[1])
