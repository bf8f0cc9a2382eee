"""What the pages say of the records in words follows from the records."""

import re

import pandas as pd
import pytest

pytestmark = [pytest.mark.xdist_group("book"), pytest.mark.usefixtures("pages")]


def effect_of(values, **more):
    """A measure that moves by these paired differences, as the pages read it."""
    import readings

    c = readings.compare(pd.Series(values).to_numpy())
    place = {"measure": "m", "means": (1.0, 1.0 + c.estimate), "wider": 1.0, "least": 0.0, "room": (9.0, 9.0)}
    return readings.Move(c=c, **(place | more))


def test_a_prediction_about_a_measure_comes_true_fails_or_is_open():
    clear, unclear = effect_of([1.0, 1.1, 0.9, 1.0]), effect_of([-1.0, 2.0, 0.0, 1.0])
    assert [clear.answers(w) for w in ("up", "down", "differs", "still")] == [True, False, True, False]
    assert {unclear.answers(w) for w in ("up", "down", "differs", "still")} == {None}
    small = effect_of([1.0, 1.1, 0.9, 1.0], least=2.0)
    assert [small.answers(w) for w in ("up", "down", "differs", "still")] == [False, False, False, True]
    assert "by less than counts" in small.said() and clear.said() == "rose from 1 to 2"
    overlap = effect_of([1.0, 1.1, 0.9, 1.0], wider=50.0)
    assert overlap.answers("up") is None and overlap.seen() == "up, on these splits only"


def test_an_explanation_stands_when_all_that_it_asks_for_was_seen():
    import readings

    found = [
        effect_of([1.0, 1.1, 0.9, 1.0], measure="a"),
        effect_of([-1.0, 2.0, 0.0, 1.0], measure="b"),
        effect_of([0.0, 0.0, 0.0, 0.0], measure="c", least=0.5, room=(9.0, 0.1)),
    ]
    wanted = {"seen": {"a": "up"}, "open": {"a": "up", "b": "up"}, "wrong": {"a": "down"}, "full": {"c": "up"}}
    html = readings.explained(found, wanted, "supported")
    said = re.findall(r"<b>(\w+)</b> .*?\): (.*?)\. Seen", html)
    assert dict(said) == {
        "seen": "stands",
        "open": "is left open",
        "wrong": "does not stand",
        "full": "cannot be judged",
    }
    assert "has no room (the reference is at 1)" in html and "do not say why" not in html
    assert "do not say why" in readings.explained(found, {"wrong": {"a": "down"}}, "supported")


def test_an_effect_is_never_written_as_nothing_but_zeros():
    import readings

    assert readings.effect(readings.compare(pd.Series([4e-5, 5e-5, 6e-5]).to_numpy())).startswith("+0.00005")
    assert readings.effect(readings.compare(pd.Series([0.5, 0.5, 0.5]).to_numpy())) == "+0.500 [+0.500, +0.500]"
    assert readings.told_apart(0.99995, 1.0) == ("0.99995", "1")


def test_a_figure_of_effects_is_read_by_its_verdicts_and_by_what_lies_furthest_out():
    import readings

    rows = [("a", 0.1, "supported"), ("b", -0.5, "undecided at n=3"), ("c", 0.2, "refuted: negligible")]
    said = readings.far_out(pd.DataFrame(rows, columns=["question", "estimate", "verdict"]))
    assert "1 supported, 1 refuted, 1 undecided" in said
    assert (
        said.index("<code>b</code> (-0.5, undecided)") < said.index("<code>c</code>") and "<code>a</code>" not in said
    )


def test_steps_are_told_by_the_sign_that_they_keep_and_by_where_they_matter_more():
    import readings

    up, far, noise = (pd.Series(v) for v in ([1.0, 1.1, 0.9, 1.0], [3.0, 3.1, 2.9, 3.1], [-1.0, 2.0, 0.0, -1.5]))
    said = readings.surviving(
        {
            "late": {"add": up, "leave": far, "roadmap": up},
            "turns": {"add": up, "leave": -up, "roadmap": up},
            "none": {"add": noise, "leave": noise, "roadmap": noise},
            "nothing at first": {"add": 0 * up, "leave": up, "roadmap": up},
        }
    )
    assert "Of 4 steps 2 keep the sign" in said and "in all three have: <code>late</code>;" in said
    assert "in another: <code>turns</code>." in said and "comes last, for: <code>late</code>" in said


def test_beside_the_arms_on_real_stays_stand_both_bars_on_the_same_test_stays(monkeypatch):
    import readings
    import registerkit

    scores = [("split 0", "logistic regression", 0.5), ("split 0", "gradient boosting", 0.75),
              ("split 1", "logistic regression", 0.7), ("fit a, score b", "gradient boosting", 0.0)]  # fmt: skip
    bars = pd.DataFrame(scores, columns=["protocol", "model", "value"]).assign(metric="auroc", n=100)
    monkeypatch.setattr(readings, "bars", lambda: bars)
    records = pd.DataFrame({"arm": ["a", "b"], "auroc": [0.4, 0.6], "n": 100, "replicate": 0})
    said = readings.reached(registerkit.REAL, records)
    assert "logistic regression 0.500, gradient boosting 0.750" in said
    assert "1 of 2 arms lie above logistic regression and 0 above boosting" in said
    assert "bars" not in readings.reached(registerkit.REAL, records.assign(n=50)), "other test stays have no bar"
