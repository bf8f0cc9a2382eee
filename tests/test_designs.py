"""Designs: what a declaration expands to, and what is compared with what."""

import itertools
from pathlib import Path

import pandas as pd
import pytest

from hsetvae.config import PRESETS, UserError
from hsetvae.declaration import load_study
from hsetvae.designs import expand, plan
from hsetvae.study import steps
from hsetvae.sweep import describe_run

ABLATIONS = Path(__file__).resolve().parents[1] / "ablations"
DECLARED = load_study(ABLATIONS / "study.toml")


def test_the_factorial_crosses_four_factors_in_at_least_eight_replicates():
    specs = expand(DECLARED)
    assert len({spec.arm.name for spec in specs}) == 16
    assert len(specs) >= 16 * 8 and len({spec.id for spec in specs}) == len(specs)
    contrasts = plan(DECLARED, "factorial")[1]
    for name in DECLARED.factorial:
        pairs = [c for c in contrasts if c.question == name]
        assert len(pairs) == 8, "every arm informs every question"
        for c in pairs:
            assert c.changed.settings == c.reference.settings | DECLARED.questions[name].changed


def test_the_roadmap_leads_from_baseline_to_improved_in_every_order():
    contrasts = plan(DECLARED, "roadmap")[1]
    base = DECLARED.config("roadmap")
    gap = PRESETS["improved"].differences(PRESETS["baseline"])
    improved = base.but(**{name: new for name, (new, _) in gap.items()})
    steps = len(DECLARED.path)
    orders = [contrasts[start : start + steps] for start in range(0, len(contrasts), steps)]
    assert len(orders) == 3
    for order in orders:
        assert {c.question for c in order} == set(DECLARED.path)
        assert order[0].reference.settings == {} and base.but(**order[-1].changed.settings) == improved
        assert all(a.changed == b.reference for a, b in itertools.pairwise(order)), (
            "each step is compared with the last"
        )
    assert [c.question for c in orders[0]] == list(DECLARED.path) != [c.question for c in orders[1]]
    assert [c.question for c in orders[1]] != [c.question for c in orders[2]]


def test_leaving_a_step_out_undoes_it_and_nothing_else():
    base = DECLARED.config("leave")
    for c in plan(DECLARED, "leave")[1]:
        whole, without = base.but(**c.changed.settings), base.but(**c.reference.settings)
        assert {n: old for n, (_, old) in whole.differences(without).items()} == DECLARED.questions[
            c.question
        ].reference


def test_adding_one_in_changes_what_its_question_says():
    base = DECLARED.config("add")
    for c in plan(DECLARED, "add")[1]:
        q = DECLARED.questions[c.question]
        changed = base.but(**c.changed.settings)
        assert changed == base.but(**q.reference).but(**q.changed)
        assert (c.reference is None) == (q.bound is not None)
        if c.reference:
            assert base.but(**c.reference.settings) == base.but(**q.reference)
    scratch = next(c for c in plan(DECLARED, "add")[1] if c.question == "layered_from_scratch")
    assert scratch.reference.name == "reference of pretraining", "an arm that exists already is not made again"


def test_every_remedy_of_the_improved_preset_is_a_step_and_every_step_a_single_remedy():
    gap = PRESETS["improved"].differences(PRESETS["baseline"])
    turned = [name for step in DECLARED.path for name in DECLARED.questions[step].changed]
    assert sorted(turned) == sorted(gap)


def test_designs_share_the_runs_that_are_the_same():
    add, leave, roadmap, controls = (
        {spec.id: spec for spec in expand(DECLARED, "register", design)}
        for design in ("add", "leave", "roadmap", "controls")
    )
    replicates = DECLARED.budgets["register"]["replicates"]
    plain = [spec.id for spec in add.values() if spec.arm.name == "reference"]
    assert len(plain) == replicates and all(one in roadmap and one in controls for one in plain)
    whole = [spec.id for spec in leave.values() if spec.arm.name == "whole path"]
    assert all(one in roadmap and one in add for one in whole)
    assert DECLARED.path[0] in {add[one].arm.name for one in add.keys() & roadmap.keys()}


def test_every_family_can_be_decided_with_the_replicates_of_its_budget():
    for name, design in DECLARED.designs.items():
        contrasts = plan(DECLARED, name)[1] if name != "controls" else ()
        asked = {c.question: DECLARED.questions[c.question] for c in contrasts}.values()
        families = [DECLARED.endpoints[q.endpoint].family for q in asked]
        smallest = 2 / 2 ** DECLARED.budgets[design.budget]["replicates"]
        for family in set(families):
            assert families.count(family) * smallest < 0.05, f"{family} in {name}: no effect could ever be supported"


def test_every_row_of_the_ledger_has_a_judge_or_says_where_it_is_shown():
    ledger = pd.read_csv(ABLATIONS / "ledger.csv", keep_default_na=False)
    judged = {row for one in [*DECLARED.questions.values(), *DECLARED.controls.values()] for row in one.ledger}
    assert judged <= set(ledger["id"])
    for row in ledger.itertuples():
        assert (row.id in judged) != bool(row.shown), row.id


def test_a_question_that_changes_nothing_is_refused(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(
        (ABLATIONS / "study.toml").read_text().replace('changed = {init = "xavier"}', 'changed = {init = "default"}')
    )
    with pytest.raises(UserError, match='"init" changes nothing in design add'):
        plan(load_study(path), "add")


def test_a_number_says_what_its_run_is_and_a_wrong_one_is_refused():
    text = describe_run(DECLARED, "", "roadmap", 17)
    spec = expand(DECLARED, "", "roadmap")[17]
    assert spec.id in text and "step 17: init, replicate 0" in text and '"init": "xavier"' in text
    assert "hsetvae study run --design roadmap --budget register --index 17" in text
    with pytest.raises(UserError, match="no run 770: this design and budget have runs 0 to 769"):
        describe_run(DECLARED, "", "roadmap", 770)
    with pytest.raises(UserError, match='no design "rodmap"; did you mean "roadmap"'):
        describe_run(DECLARED, "", "rodmap", 0)


def test_the_roadmap_as_a_table_starts_every_order_at_the_baseline_and_ends_it_at_the_whole_path():
    arms = plan(DECLARED, "roadmap")[0]
    values = {arm.name: float(len(arm.settings)) for arm in arms}
    rows = [{"arm": name, "replicate": r, "auroc": x + r / 10} for name, x in values.items() for r in range(3)]
    table = steps(DECLARED, pd.DataFrame(rows), "auroc")
    last = len(DECLARED.path)
    assert len(table) == 3 * (last + 1) * 3
    for _, order in table.groupby("order"):
        assert set(order["step"]) == set(range(last + 1))
        assert set(order.loc[order["step"] == 0, "arm"]) == {"reference"}
        assert order.loc[order["step"] == last, "value"].min() == max(values.values())
        assert set(order["label"]) == {"reference", *DECLARED.path}
