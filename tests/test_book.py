"""What the pages of the book share says what is so, and no more where records are missing."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]


def test_a_table_says_whether_its_rows_begin_with_names_and_end_with_sentences(shown):
    import bookkit

    sentence = "words that are to be read, not only looked up"
    for columns in ({"n": [1], "p": [0.123456789012345]}, {"a": ["a long name"], "b": [sentence]}, {}):
        bookkit.table(columns)
    bookkit.table({"a": ["<b title='that is not seen'>x</b>"], "b": ["one line<br>and a second"]}, escape=False)
    bookkit.table({"n": [1]}, fold="the rest")
    assert shown.pop().startswith("<details><summary>the rest</summary><table")
    assert re.findall('class="([^"]+)"', "".join(shown)) == [
        "dataframe", "dataframe names sentences", "dataframe", "dataframe"
    ]  # fmt: skip


def test_days_are_the_first_and_the_last_or_the_one_that_all_are(pages):
    import bookkit

    assert bookkit.days(pd.Series(["2026-01-03", "2026-01-01", "2026-01-02"])) == "2026-01-01 to 2026-01-03"
    assert bookkit.days(pd.Series(["2026-01-01", "2026-01-01"])) == "2026-01-01"


def test_an_explorer_shows_one_figure_at_a_time_and_says_what_is_on_each(shown):
    from explorer import explorer

    frames = {text: (plt.figure(), f"a figure about {text}") for text in ("one", "two & three")}
    explorer("some", "a choice", frames, "caption", start=1)
    assert len(re.findall(r'<input type="radio" name="some"', shown[0])) == 2 == shown[0].count("<label><input")
    assert re.findall(r'id="(some-\d)" checked', shown[0]) == ["some-1"]
    assert 'alt="a figure about two &amp; three"' in shown[0]
    assert ">a figure about two &amp; three</p>" in shown[0], "to be read where a figure is small"
    assert not plt.get_fignums()


def test_runs_on_challenge_2012_are_shown_when_they_are_recorded_and_missed_when_not(shown, monkeypatch, tmp_path):
    import challenge

    monkeypatch.setattr(challenge, "RESULTS", tmp_path)
    challenge.runs()
    assert "Not yet recorded" in shown[-1]
    ends = [f"{metric}{end}" for metric in challenge.SCORES for end in ("", "_low", "_high")]
    scores = dict.fromkeys(ends, 0.5) | dict.fromkeys([f"boosting_{end}" for end in ends], 0.75)
    row = {"arm": "mine", "seed": 0, "learned_stays": 700, "n": 100, **scores, "seconds": 90, "pretraining_seconds": 30}
    row |= {"hsetvae": "1", "date": "2025-01-01"}
    pd.DataFrame([row]).to_csv(tmp_path / "challenge2012_runs.csv", index=False)
    challenge.runs()
    *_, scores, cost, made = shown
    assert "mine" in scores and "0.500 [0.500, 0.500]" in scores and "2025-01-01" in made
    assert "0.750 [0.750, 0.750]" in scores, "the bar stands beside the run"
    assert "<td>2</td>" in cost, "the minutes hold both trainings"


def test_the_facts_about_challenge_2012_say_which_sets_version_and_date_they_are_of():
    facts = pd.read_csv(ROOT / "ablations" / "results" / "challenge2012.csv")
    assert not facts[["part", "name", "value", "sets", "hsetvae", "date"]].isna().any().any()
    assert {"size", "reader", "measured"} <= set(facts["part"])
