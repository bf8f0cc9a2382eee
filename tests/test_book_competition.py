"""What the page on RECOMMENDED shows, from records of a suite that a test makes up."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_only_splits_that_every_entrant_has_run_are_drawn_side_by_side(shown, monkeypatch):
    import competition

    entrants = [e.name for e in competition.suite().design("curve")[2]]
    rows = pd.DataFrame([(e, seed) for seed in (0, 1) for e in entrants], columns=["entrant", "seed"])
    monkeypatch.setattr(competition, "rows", lambda design: rows[:-1])
    assert competition.complete("curve")["seed"].unique().tolist() == [0]
    monkeypatch.setattr(competition, "rows", lambda design: rows[:1])
    assert not len(competition.complete("curve")) and "No split of the curve is complete" in shown[-1]


def test_means_stand_side_by_side_on_the_splits_that_all_have_run(monkeypatch):
    import competition

    ran = {"recommended": (0, 1), "boosting": (0, 1, 2), "baseline": (1,)}
    rows = pd.DataFrame([{"entrant": e, "seed": seed} for e, seeds in ran.items() for seed in seeds])
    monkeypatch.setattr(competition, "rows", lambda design="table": rows)
    assert set(competition.shared(tuple(ran))["seed"]) == {1} and len(competition.shared(tuple(ran))) == 3
    assert set(competition.shared()["entrant"]) == {"recommended", "boosting"}, "who has hardly begun takes none along"
    assert sorted(competition.shared(("recommended", "boosting", "not yet run"))["seed"]) == [0, 0, 1, 1]


def test_a_lead_is_the_mean_difference_on_the_same_splits(shown, monkeypatch):
    import competition
    import competition_account

    scores = {"recommended": {0: 0.5, 1: 0.7}, "boosting": {0: 0.4, 1: 0.7, 2: 0.9}}
    rows = [
        {"entrant": e, "seed": s, "auroc": x, "validation_auroc": 1 - x}
        for e, by in scores.items()
        for s, x in by.items()
    ]
    monkeypatch.setattr(competition, "rows", lambda design="table": pd.DataFrame(rows))
    competition_account.promise(("auroc",), chosen_on=(0,))
    cells = re.findall(r"<td>(.*?)</td>", shown[-1])
    assert cells == [
        "on which settings were chosen",
        "AUROC",
        "-10.00",
        "+10.00",
        "-20.00",
        "1 of 1",
        "the others",
        "AUROC",
        "+0.00",
        "+0.00",
        "+0.00",
        "0 of 1",
    ]


def test_the_account_says_what_was_reached(shown, monkeypatch):
    import competition
    import competition_account

    rng, real = np.random.default_rng(0), competition.rows
    spread = {"recommended": 0.87, "boosting": 0.85, "average": 0.9, "baseline": 0.8, "improved": 0.8}

    def rows(design="table"):
        made = [
            dict.fromkeys(real().select_dtypes("number"), rng.normal(mean, 0.001)) | {"entrant": e, "seed": s}
            for e, mean in spread.items() for s in range(4)
        ]  # fmt: skip
        table = pd.DataFrame(made).assign(seconds_training=60.0, stays_per_second=10.0, peak_mib=1024.0)
        return table[table["entrant"].isin(["recommended"] if design == "ladder" else list(spread))]

    tables = []
    monkeypatch.setattr(competition, "rows", rows)
    monkeypatch.setattr(competition_account.bookkit, "table", lambda lines: tables.append(pd.DataFrame(lines)))
    competition_account.account()
    said = tables[-1].set_index("asked for")["so it is"]
    assert said["AUROC above that of boosting, times 100"] == "reached"
    beside = "by one thread beside another run"
    assert said[f"1,000 stays predicted a second, {beside} (alone: see above)"] == "missed"
    assert said[f"trained twice, for the refit, within 20 minutes, {beside} (once and alone: see above)"] == "reached"
    assert not any("tuned" in goal for goal in said.index), "who has not run is no row"
    assert (tables[-1]["splits"] == 4).all() and tables[-1]["p"].iloc[0] == "0.12", "the least p of four splits"


def test_a_lone_interval_counts_the_overlap_of_the_splits(shown):
    import competition

    d = pd.Series([0.0, 1.0, 2.0, 3.0, None])
    narrow, wide = (
        [float(bound) for bound in re.findall(r"[+-][\d.]+", competition.points(d, overlap))] for overlap in (0, 0.25)
    )
    assert narrow[0] == wide[0] == 1.5
    assert wide[2] - 1.5 == pytest.approx(2**0.5 * (narrow[2] - 1.5), abs=0.02), "1/n + 1/4 is twice 1/4"
    assert competition.points(pd.Series([0.125]), digits=3) == "+0.125" and competition.points(pd.Series([])) == "–"


def test_what_was_judged_earlier_stands_beside_what_is_judged_now(shown, monkeypatch):
    import earlier

    tables = []
    monkeypatch.setattr(earlier, "table", lambda rows: tables.append(pd.DataFrame(rows)))
    now = pd.read_csv(ROOT / "ablations" / "results" / "verdicts.csv").set_index("judged by")["effect"]
    earlier.factors()
    for question, rows in tables[-1].groupby("question"):
        assert rows["published"].iloc[-1] == "present" and rows["published"].is_monotonic_increasing
        assert rows["effect [95 %]"].iloc[-1] in set(now[f"{question}, factorial"])
    earlier.alone()
    changed = tables[-1]
    assert len(changed) and (changed["then"] != changed["now"]).all()
    earlier.presets()
    assert tables[-1]["preset, published"].iloc[-1] == "present"


def test_what_was_judged_earlier_is_shown_where_nothing_is_judged_now(shown, monkeypatch):
    import competition
    import earlier
    import registerkit

    tables, whole, rows = [], earlier.verdicts, competition.rows
    monkeypatch.setattr(earlier, "table", lambda rows: tables.append(pd.DataFrame(rows)))
    monkeypatch.setattr(earlier, "verdicts", lambda study: whole(study).assign(data="", effect=""))
    monkeypatch.setattr(registerkit, "records", lambda *design: None)
    monkeypatch.setattr(competition, "rows", lambda design="table": rows(design).iloc[:0])
    earlier._judged.cache_clear()
    try:
        earlier.factors()
        assert set(tables[-1].query("published == 'present'")["verdict"]) == {"not yet run"}
        earlier.alone()
        earlier.elsewhere()
        assert tables[-1]["surroundings"].iloc[-1] == "at earlier scales (suites)" and len(tables) == 2
        earlier.presets()
        assert len(tables[-1]) and "present" not in set(tables[-1]["preset, published"])
    finally:
        earlier._judged.cache_clear()


@pytest.mark.parametrize("bound, said", [(-0.5, "Both goals are met, on average, by beta 4.0"), (0.5, "No value")])
def test_each_kl_weight_is_set_against_the_goals_and_against_the_preset(shown, monkeypatch, bound, said):
    import competition
    import competition_tradeoff

    def row(design, entrant, seed, past, bound, auroc):
        return {
            "design": design,
            "entrant": entrant,
            "seed": seed,
            "s_past": past,
            "nll_per_event": bound - 1,
            "negative_elbo": bound,
            "auroc": auroc,
        }

    arms = [e.name for e in competition.suite().design("tradeoff")[2]]
    rows = pd.DataFrame(
        [row("tradeoff", e, seed, 0.1, 0.5, 0.8) for e in arms[:-1] for seed in (0, 1)]
        + [row("tradeoff", arms[-1], seed, 0.4, bound, 0.7) for seed in (0, 1)]
        + [row("table", "baseline", seed, 0.3, 0.0, 0.8) for seed in (0, 1)]
        + [row("table", "improved", seed, 0.1, 0.0, 0.8) for seed in (0, 1)]
    )
    monkeypatch.setattr(competition, "rows", lambda design="table": rows[rows["design"] == design])
    competition_tradeoff.table(("auroc",))
    cells = re.findall(r"<td>(.*?)</td>", shown[-2])
    assert [c.split()[0] for c in cells[-4:]] == ["+0.100", f"{bound:+.2f}", f"{bound - 1:.2f}", "-10.00"]
    assert cells[2 * 5 + 4] == "–" and cells[4].startswith("+0.00"), "the preset is not compared with itself"
    assert said in shown[-1]

    rows = rows[~((rows["entrant"] == "improved") & (rows["seed"] == 1))]
    competition_tradeoff.table(("auroc",))
    assert "goal" not in shown[-1] and "improved" not in shown[-1], "who lacks a split is compared with nobody"


def test_how_many_splits_are_missing_is_said_in_one_line(shown, monkeypatch):
    import competition

    first, *_ = entrants = [e.name for e in competition.suite().design("curve")[2]]
    rows = pd.DataFrame([{"design": "curve", "entrant": first, "seed": s, "status": "finished"} for s in range(3)])
    monkeypatch.setattr(competition, "at_hand", lambda: rows)
    monkeypatch.setattr(competition, "rows", lambda design="curve": rows)
    competition.how_many("curve")
    title = competition.titles("curve")[first]
    assert f"fewer so far: 3 by {title}, 0 by each of {len(entrants) - 1} entrants. Failed runs: 0" in shown[-1]


def test_an_ingredient_is_good_for_what_is_worse_without_it(shown, monkeypatch):
    import competition
    import competition_ladder

    tables = []
    gains = {"statistics": {"auroc": 0.1}, "masking": {"negative_elbo": 0.1, "s_past": 0.2}, "teacher": {}}
    rows = [
        {
            "entrant": e,
            "seed": seed,
            **{m: 0.5 - lost.get(m, 0.0) + 1e-3 * seed * (e != "recommended") for m in competition_ladder.MEASURES},
        }
        for e, lost in {"recommended": {}, **{f"without {name}": gain for name, gain in gains.items()}}.items()
        for seed in (-1, 0, 1)
    ]
    monkeypatch.setattr(competition, "rows", lambda design="table": pd.DataFrame(rows))
    monkeypatch.setattr("bookkit.table", lambda lines: tables.append(pd.DataFrame(lines)))
    competition_ladder.worth()
    (table,) = tables
    assert table["good for"].tolist() == ["AUROC", "", "S_past"] and (table["pairs"] == 3).all()
    assert table["bad for"].tolist() == ["", "", "negative ELBO (nats per event)"], "of which less is better"
    assert "Good for none of these: boosting as a teacher." in shown[-1]
    competition_ladder.worth(alone=True)
    assert "No ingredient has three splits yet" in shown[-1]
