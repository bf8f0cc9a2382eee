"""Every setting has its row, its range and one place: a wrong name, type or value is refused by name."""

import pytest

from hsetvae.config import BASELINE, IMPROVED, Config, UserError, parse_settings, stream

LEDGER_ROWS = {*"H1 H2 H3 H4 H5 H6 M1 M2 M3 M4 M5 M6 M7 L1 L2 L3 L4 L5 L6".split()} | {
    *"S1 S2 S3 S4 S5 S6 S7 S8 T1 T2 T3 T4 T5".split()
}  # T6, better logging, is the history of every run


def test_every_row_of_the_ledger_has_a_field():
    named = {row for *_, ledger, _ in Config.describe() for row in ledger.split()}
    assert LEDGER_ROWS <= named


def test_presets_differ_in_ledger_rows_only():
    ledger = {name for name, _, _, _, row, _ in Config.describe() if row}
    assert set(BASELINE.differences(IMPROVED)) <= ledger


def test_the_improved_preset_has_every_switchable_row_on():
    off = {row for name, _, _, _, rows, _ in Config.describe() for row in rows.split()} - {
        row
        for name, _, _, _, rows, _ in Config.describe()
        for row in rows.split()
        if name in BASELINE.differences(IMPROVED)
    }
    # labelled arms and debugging switches that no preset turns on
    assert off == {"M5", "T5", "A2", "E3"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bta": 1.0}, 'unknown setting "bta".*did you mean "beta"'),
        ({"beta": "0.5"}, "beta = '0.5' has type str"),
        ({"beta": -0.1}, "at least 0"),
        ({"beta": float("nan")}, "not finite"),
        ({"levels": True}, "type bool"),
        ({"levels": 1.5}, "type float"),
        ({"clip": "nrom"}, 'not one of none, value, norm.*did you mean "norm"'),
        ({"width": 10}, "multiple of"),
        ({"label_smoothing": 0.7}, "at most 0.5"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name(changes, words):
    with pytest.raises(UserError, match=words):
        BASELINE.but(**changes)


def test_settings_are_read_in_the_type_of_their_field():
    texts = ["beta=1", "levels=3", "clip=norm", "detect_anomaly=true"]
    assert parse_settings(texts) == {"beta": 1.0, "levels": 3, "clip": "norm", "detect_anomaly": True}
    for text, words in [
        ("beta", 'has no "="'),
        ("beat=1", 'did you mean "beta"'),
        ("levels=two", "not a whole number"),
    ]:
        with pytest.raises(UserError, match=words):
            parse_settings([text])


def test_a_configuration_survives_its_own_dictionary():
    assert Config.from_dict(IMPROVED.to_dict()) == IMPROVED
    missing = IMPROVED.to_dict()
    del missing["beta"]
    with pytest.raises(UserError, match="lacks beta"):
        Config.from_dict(missing)


def test_streams_are_named_stable_and_apart():
    assert stream(0, "split") == stream(0, "split") == 1947725093899964015
    assert len({stream(s, n) for s in range(20) for n in ("split", "init", "latent")}) == 60
    assert all(0 <= stream(s, "x") < 2**63 for s in range(50))


def test_a_function_in_a_settings_dictionary_is_a_new_choice_and_the_literal_needs_no_edit(monkeypatch):
    from hsetvae.history import POOLINGS

    with pytest.raises(UserError, match="pooling = 'unlike' is not one of mean, last, dot, dot_unscaled, query"):
        BASELINE.but(pooling="unlike")
    monkeypatch.setitem(POOLINGS, "unlike", POOLINGS["mean"])
    assert BASELINE.but(pooling="unlike").pooling == "unlike"
    assert parse_settings(["pooling=unlike"]) == {"pooling": "unlike"}
    kinds = {name: kind for name, kind, *_ in Config.describe()}
    assert kinds["pooling"] == "mean | last | dot | dot_unscaled | query | unlike"
    with pytest.raises(UserError, match='did you mean "unlike"'):
        BASELINE.but(pooling="unlik")
