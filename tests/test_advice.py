"""Every rule of the advice speaks when it should, is silent when nothing is wrong, and prints a command that works."""

import copy
import re
import shlex

import pytest
import typer

from hsetvae.advice import PROMISES, RULES, advise, command, tried
from hsetvae.cli import app
from hsetvae.config import IMPROVED, PRESETS, Config, parse_settings

UNUSED = {"decoder_use_current": 0.0, "decoder_use_next": 0.0}
HEALTHY = {
    "settings": IMPROVED.but(pooling="query").to_dict(),
    "run_seed": 3,
    "au_ratio": 0.8, "kl": 12.0, "mi": 5.0, "mean_sigma": 0.5, "at_floor": 0.0,
    "decoder_use_current": 6.0, "decoder_use_next": 1.0,
    "levels": [
        {"level": 1, "decoder_use_current": 4.0, "decoder_use_next": 0.5},
        {"level": 2, "decoder_use_current": 2.0, "decoder_use_next": 0.5},
    ],
    "s_past": 0.4, "s_cur": 0.6, "noise_share": 0.1, "probe_gain": 0.3,
    "untrained": {"s_past": 0.1, "probe_gain": 0.0},
    "effective_sets": 6.0, "sets_per_stay": 15.0,
    "gradient": {"skipped": 0.0, "skipped_share": 0.0, "cosine": 1.0, "clipped": 0.2, "largest_over_median": 3.0,
                 "norm": 1.25},
    "learning": {"epochs": 20, "best_epoch": 14, "validation_bce_best": 0.30},
    "scores": {"n": 200, "auroc": 0.85, "auroc_low": 0.80, "auroc_high": 0.90, "ece": 0.03, "ece_low": 0.01,
               "ece_high": 0.06},
}  # fmt: skip

SICK = {  # rule -> what is different in a run that deserves it, and the settings its remedy changes
    "skipped_steps": ({"gradient": {"skipped": 4.0, "skipped_share": 0.01}}, {"lr", "clip", "clip_at"}),
    "collapse": ({"au_ratio": 0.0, "kl": 0.01, "mi": 0.0, **UNUSED}, {"beta"}),
    "few_active_units": ({"au_ratio": 0.3}, {"beta"}),
    "paid_for_nothing": ({"decoder_use_current": 0.1, "decoder_use_next": 0.1}, {"class_weight"}),
    "unused_level": ({"levels": {1: {"decoder_use_current": 0.01, "decoder_use_next": 0.0}}}, {"level_weights"}),
    "unused_history": ({"s_past": 0.01}, set()),
    "noisy_state": ({"noise_share": 0.8}, {"beta"}),
    "too_short": ({"learning": {"best_epoch": 20}}, {"epochs"}),
    "miscalibrated": ({"scores": {"ece": 0.2, "ece_low": 0.15}}, {"label_smoothing"}),
    "turned_gradient": ({"settings": {"clip": "value"}, "gradient": {"cosine": 0.6}}, {"clip", "clip_at"}),
    "jumping_gradient": (
        {"settings": {"clip": "none"}, "gradient": {"largest_over_median": 40.0}}, {"clip", "clip_at"}),
    "narrow_pooling": ({"settings": {"pooling": "dot"}, "effective_sets": 1.2}, {"pooling"}),
}  # fmt: skip


def with_changes(measures, changes):
    """A copy with nested entries replaced; the entries of a list are named by their position."""
    found = copy.deepcopy(measures)
    for name, value in changes.items():
        found[name] = with_changes(found[name], value) if isinstance(value, dict) else value
    return found


def parsed(line: str) -> tuple[Config, dict]:
    """The configuration that a printed command trains, and its other options, read by the command line itself."""
    words = shlex.split(line)
    assert words[:2] == ["hsetvae", "train"]
    train = typer.main.get_command(app).commands["train"]
    options = train.make_context("train", words[2:]).params
    return PRESETS[options["preset"]].but(**parse_settings(options["settings"])), options


def test_nothing_is_advised_to_a_healthy_run():
    assert advise(HEALTHY) == []


def test_every_rule_has_its_case():
    assert {rule.__name__ for rule in RULES} == SICK.keys() and PROMISES.keys() < SICK.keys()


@pytest.mark.parametrize("rule", SICK)
def test_a_rule_speaks_in_its_case_and_its_command_changes_what_it_says(rule):
    changes, turned = SICK[rule]
    sick = with_changes(HEALTHY, changes)
    assert [a.rule for a in advise(sick)] == [rule]
    (advice,) = advise(sick)
    assert advice.rank == 1 and advice.finding.endswith(".") and re.search(r"\d", advice.evidence)
    assert not re.search(r"\bnan\b|None|\{", advice.finding + advice.evidence + advice.remedy)
    if rule not in PROMISES:
        assert advice.remedy == advice.command == "" and not turned and "No remedy is known" in tried(advice.remedy)
        return
    config, options = parsed(advice.command)
    before = Config.from_dict(sick["settings"])
    assert set(before.differences(config)) <= turned and before != config, "the remedy changes these and nothing else"
    assert options["seed"] == 3 and re.fullmatch(r"[\w./-]+", str(options["out"]))


@pytest.mark.parametrize("selection", ["outcome", "objective"])
def test_the_loss_that_speaks_for_longer_training_is_the_one_that_selects(selection):
    (advice,) = advise(with_changes(HEALTHY, {"settings": {"selection": selection}, "learning": {"best_epoch": 20}}))
    assert ("nats per stay" in advice.evidence) == (selection == "outcome")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_command_repeats_any_run_with_the_remedy_alone(preset):
    start = PRESETS[preset].but(width=32, lr=2.5e-05, position="index+time", detect_anomaly=True, patience=3)
    config, _ = parsed(command({"settings": start.to_dict(), "run_seed": 0}, {"beta": 1e-05, "dynamic_weights": False}))
    assert config == start.but(beta=1e-05, dynamic_weights=False)


def test_what_spoils_the_other_measures_comes_first():
    changes = {}
    for rule in ("collapse", "too_short", "skipped_steps"):
        changes |= SICK[rule][0]
    found = advise(with_changes(HEALTHY, changes))
    assert [(a.rank, a.rule) for a in found] == [(1, "skipped_steps"), (2, "collapse"), (3, "too_short")]


def test_of_numbers_that_overflow_nothing_is_said_but_that_steps_were_skipped():
    overflowed = {"kl": None, "mi": None, "decoder_use_next": None, "gradient": {"skipped": 4.0}}
    assert [a.rule for a in advise(with_changes(HEALTHY, overflowed))] == ["skipped_steps"]


# --- rules that must keep silent -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("a floor that was reached does not count as use", {"at_floor": 1.0}),
        ("unknown outcomes", {"scores": None}),
        ("one class only", {"scores": {"auroc": None, "auroc_low": None, "auroc_high": None}}),
        ("stays of one set", {"s_past": None, "s_cur": None, "noise_share": None, "probe_gain": None}),
        ("one epoch", {"learning": {"epochs": 1, "best_epoch": 1}}),
        ("one level", {"levels": [{"level": 1, "decoder_use_current": 0.0}]}),
        ("independent levels feed the decoder through the deepest alone",
         {"settings": {"posterior": "independent"}, "levels": {0: UNUSED}}),
        ("probabilities that are off without label smoothing",
         {"settings": {"label_smoothing": 0.0}, "scores": {"ece": 0.2, "ece_low": 0.15}}),
        ("norm clipping keeps the direction", {"gradient": {"cosine": 0.9}}),
        ("few sets need few weights", {"settings": {"pooling": "dot"}, "effective_sets": 1.2, "sets_per_stay": 2.0}),
    ],
)  # fmt: skip
def test_a_rule_is_silent_where_its_measure_means_something_else(name, changes):
    assert advise(with_changes(HEALTHY, changes)) == []


@pytest.mark.parametrize(
    ("floor", "class_weight", "changes"),
    [(0.5, 1.0, {"beta": 0.02}), (0.0, 1.0, {"class_weight": 0.1}), (0.0, 0.0, {})],
)
def test_latents_that_no_decoder_uses_are_kept_for_the_floor_or_for_the_outcome(floor, class_weight, changes):
    unused = {**UNUSED, "at_floor": floor, "settings": {"class_weight": class_weight}}
    (advice,) = advise(with_changes(HEALTHY, unused))
    assert advice.rule == "paid_for_nothing" and bool(advice.remedy) == bool(changes)
    if changes:
        config, _ = parsed(advice.command)
        assert {name: getattr(config, name) for name in changes} == changes
    else:
        assert advice.command == ""
