"""Cohort, split, standardiser, batches: what must hold whatever the data are."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsetvae.config import UserError
from hsetvae.data import CLIP, Batch, Cohort, Standardiser, batches, collate, pack, split
from hsetvae.gather import build
from hsetvae.simulate import simulate


def table(cohort: Cohort) -> dict[str, np.ndarray]:
    """The cohort as one row per event: codes of stay and variable, hours, value."""
    sets = np.repeat(np.arange(len(cohort.hours)), np.diff(cohort.first_event))
    stay = np.repeat(np.arange(len(cohort)), np.diff(cohort.first_set))[sets]
    return {"stay": stay, "hours": cohort.hours[sets], "variable": cohort.variable, "value": cohort.value}


def tiny(stays, hours, variables, values, **per_stay) -> Cohort:
    names, ids = tuple(sorted(set(variables))), sorted(set(stays))
    codes = np.array([ids.index(s) for s in stays]), np.array([names.index(v) for v in variables])
    return build(np.array(ids), names, codes[0], np.array(hours, float), codes[1], np.array(values, float), **per_stay)[
        0
    ]


def cells(batch: Batch) -> list[tuple]:
    """Every real cell of a batch as (stay, hours, variable, z), in any order."""
    m, variable, value = (
        t[batch.windows.real] for t in (batch.windows.set, batch.windows.variable, batch.windows.value)
    )
    hours = batch.hours[batch.row[m], batch.column[m]]
    return sorted(zip(batch.row[m].tolist(), hours.tolist(), variable.tolist(), value.tolist(), strict=True))


small = simulate(30, seed=5).cohort
fitted = Standardiser.fit(small, np.arange(20))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_the_order_of_the_rows_of_a_table_changes_nothing(seed, repeated):
    rng = np.random.default_rng(seed)
    rows = table(small)
    again = rng.integers(0, 5, repeated)  # a few events many times, with other values: sums depend on their order
    rows = {name: np.concatenate([column, column[again]]) for name, column in rows.items()}
    rows["value"][len(rows["value"]) - repeated :] += rng.normal(size=repeated)
    order = rng.permutation(len(rows["stay"]))
    a, averaged = build(small.stays, small.variables, **rows)
    b, _ = build(small.stays, small.variables, **{name: column[order] for name, column in rows.items()})
    assert averaged == repeated
    assert a.key() == b.key()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 29), min_size=1, max_size=12))
def test_every_event_is_in_exactly_one_cell_of_the_batch(index):
    batch = collate(small, index, fitted, 256)
    part = small.subset(index)
    rows = table(part)
    z = fitted.transform(part)
    expected = zip(rows["stay"].tolist(), rows["hours"].astype(np.float32).tolist(), rows["variable"].tolist(),
                   z.tolist(), strict=True)  # fmt: skip
    assert cells(batch) == sorted(expected)
    assert batch.stay == small.stays[index].tolist()
    assert batch.windows.sets[batch.windows.sets >= 0].sort().values.tolist() == list(range(batch.size))
    assert batch.events().tolist() == np.diff(part.first_event).tolist()


def test_sets_are_ordered_by_stay_then_time_and_padded_on_the_right():
    batch = collate(small, np.array([3, 0, 7]), fitted, 256)
    lengths = np.diff(small.first_set)[[3, 0, 7]]
    assert batch.size == lengths.sum() and batch.hours.shape == (3, lengths.max())
    assert batch.real.sum(1).tolist() == lengths.tolist()
    assert all(real.tolist() == sorted(real.tolist(), reverse=True) for real in batch.real)
    assert batch.row.tolist() == np.repeat([0, 1, 2], lengths).tolist()
    assert batch.column.tolist() == [t for n in lengths for t in range(n)]
    assert (batch.hours[~batch.real] == 0).all()
    assert (batch.hours[:, 1:] > batch.hours[:, :-1])[batch.real[:, 1:]].all()
    windows = batch.windows
    assert (windows.value[~windows.real] == 0).all() and (windows.variable[~windows.real] == 0).all()
    for cells, slots in zip(windows.set, windows.sets, strict=True):  # the sets of a window are whole and in its slots
        assert cells.unique_consecutive().tolist() == [*slots[slots >= 0].tolist(), *[-1] * bool((cells < 0).any())]
    assert batch.outcome.tolist() == small.outcome[[3, 0, 7]].tolist()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.95))
def test_masking_hides_a_share_of_the_events_of_half_of_the_sets(seed, share):
    batch = collate(small, np.arange(30), fitted, 256)
    seen = batch.windows.masked(share, torch.Generator().manual_seed(seed))
    left = dataclasses.replace(batch, windows=seen)
    assert set(cells(left)) <= set(cells(batch)), "nothing new is seen"
    assert (seen.value[~seen.real] == 0).all() and (seen.variable[~seen.real] == 0).all()
    before, after = batch.events(), left.events()
    assert (after >= 1).all(), "every set keeps an event"
    n = before.double()
    expected = 0.5 * (1 - (1 - share) ** n) * (before > 1)  # that a set loses an event
    lost = 0.5 * (n * share - share**n)  # events that it loses
    bound = 5 * 0.5 * len(n) ** -0.5
    assert float((after < before).double().mean()) == pytest.approx(float(expected.mean()), abs=bound)
    assert float(((before - after) / n).mean()) == pytest.approx(float((lost / n).mean()), abs=bound)


def assert_little_is_padded(cohort: Cohort) -> None:
    standardiser = Standardiser.fit(cohort, np.arange(len(cohort)))
    for index in batches(len(cohort), 32, seed=0, epoch=0)[:5]:
        batch = collate(cohort, index, standardiser, 256)
        assert int(batch.windows.real.sum()) >= 0.95 * batch.windows.real.numel()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=300), st.integers(40, 64))
def test_packing_keeps_sets_whole_and_apart_in_windows_that_are_full(sizes, width):
    size = np.array(sizes)
    window, first, slot = pack(size, width)
    taken = [(w, cell) for w, start, n in zip(window, first, size, strict=True) for cell in range(start, start + n)]
    assert len(set(taken)) == size.sum() and max(cell for _, cell in taken) < width
    assert len(set(zip(window, slot, strict=True))) == len(size)
    # two windows that are half empty could be one: every window but one is half full
    assert (np.bincount(window, size) * 2 >= width).sum() >= window.max()


def test_nine_tenths_of_the_cells_are_events(simulation):
    assert_little_is_padded(simulation.cohort)


def test_nine_tenths_of_the_cells_are_events_in_real_data(real):
    assert_little_is_padded(real)


@pytest.fixture(scope="module")
def real(challenge2012):
    from hsetvae.physionet import load_challenge2012

    return load_challenge2012(challenge2012, ("a",), progress=False)[0]


def test_a_stay_with_too_many_sets_is_named():
    longest = int(np.diff(small.first_set).argmax())
    with pytest.raises(UserError, match=rf'stay "{small.stays[longest]}" has \d+ sets, more than max_sets = 5'):
        collate(small, np.arange(30), fitted, 5)


def test_unknown_outcomes_reach_the_batch_as_nan():
    without = dataclasses.replace(small, outcome=None)
    assert collate(without, [0, 1], fitted, 256).outcome.isnan().all()


def test_moving_a_batch_keeps_its_tensors():
    batch = collate(small, [0, 1], fitted, 256)
    moved = batch.to("cpu")
    assert cells(moved) == cells(batch) and moved.stay == batch.stay and moved.size == batch.size


# --- standardiser ----------------------------------------------------------------------------------------------------


def test_stays_outside_training_never_change_the_statistics():
    index = np.arange(0, 30, 2)
    others = ~np.isin(table(small)["stay"], index)
    changed = dataclasses.replace(small, value=np.where(others, small.value * 1e6 + 1, small.value))
    a, b = Standardiser.fit(small, index), Standardiser.fit(changed, index)
    assert a.mean.tobytes() == b.mean.tobytes() and a.scale.tobytes() == b.scale.tobytes()
    c = Standardiser.fit(changed, np.arange(30))
    assert a.mean.tobytes() != c.mean.tobytes()  # the change would be seen


def test_standardised_training_values_have_mean_0_and_sd_about_1(simulation):
    cohort = simulation.cohort
    z = Standardiser.fit(cohort, np.arange(len(cohort))).transform(cohort)
    assert z.dtype == np.float32
    for v in range(len(cohort.variables)):
        inner = np.clip(z[cohort.variable == v], *np.quantile(z[cohort.variable == v], [0.01, 0.99]))
        assert abs(inner.mean()) < 0.01 and abs(inner.std() - 1) < 0.01


def test_inverse_gives_natural_units_back():
    z = fitted.transform(small).astype(float)
    inside = np.abs(z) < CLIP
    back = fitted.inverse(small.variable, z)
    assert inside.mean() > 0.99
    assert np.allclose(back[inside], small.value[inside], rtol=1e-4, atol=1e-4)


def test_an_entry_error_neither_dominates_the_batch_nor_the_statistics():
    hurt = small.value.copy()
    hurt[np.flatnonzero(small.variable == 5)[0]] = 1e12
    hurt = dataclasses.replace(small, value=hurt)
    a, b = Standardiser.fit(small, np.arange(30)), Standardiser.fit(hurt, np.arange(30))
    assert abs(b.mean[5] - a.mean[5]) < 0.2 * a.scale[5] and b.scale[5] < 1.5 * a.scale[5]
    assert np.abs(b.transform(hurt)).max() == CLIP


def test_a_constant_variable_has_scale_1_and_a_rare_one_keeps_its_spread():
    n = 400
    rare = tiny(
        ["s"] * 3 * n, [*range(n)] * 3, ["c"] * n + ["r"] * n + ["u"] * n, [0.1] * n + [0] * (n - 1) + [1] + [5] * n
    )
    found = Standardiser.fit(rare, [0])
    assert found.scale[0] == 1 and found.mean[0] == pytest.approx(0.1)
    assert found.scale[1] == pytest.approx(np.std([0] * (n - 1) + [1]))


def test_a_variable_unseen_in_training_is_named_and_carries_no_value():
    cohort = tiny(["1", "1", "2", "2"], [0, 0, 0, 0], ["a", "b", "a", "new"], [1, 2, 3, 77])
    found = Standardiser.fit(cohort, [0])
    assert found.unseen == ("new",)
    assert found.transform(cohort)[cohort.variable == 2].tolist() == [0]
    assert np.isfinite(found.inverse(np.array([2]), np.array([0.5]))).all()


def test_a_standardiser_survives_json_and_refuses_other_variables():
    again = Standardiser.from_dict(json.loads(json.dumps(fitted.to_dict())))
    assert again.transform(small).tobytes() == fitted.transform(small).tobytes() and again.unseen == fitted.unseen
    other = tiny(["1"], [0], ["Pulse"], [1])
    for use in (again.transform, lambda c: collate(c, [0], again, 256)):
        with pytest.raises(UserError, match="variables"):
            use(other)


# --- splits and order ------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000))
def test_a_split_is_a_stratified_partition_decided_by_the_seed(seed):
    cohort = simulate(300, seed=1).cohort
    parts = split(cohort, seed)
    index = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(index.tolist()) == list(range(300))
    for part, share in ((parts.train, 0.6), (parts.validation, 0.2), (parts.test, 0.2)):
        assert abs(len(part) - 300 * share) <= 1
        assert abs(cohort.outcome[part].sum() - cohort.outcome.sum() * share) <= 1
    assert split(cohort, seed).test.tolist() == parts.test.tolist()
    assert split(cohort, seed + 1).test.tolist() != parts.test.tolist()


def test_groups_are_fitted_or_scored_never_both():
    cohort = dataclasses.replace(simulate(300, seed=1).cohort, group=np.array(list("abc") * 100))
    parts = split(cohort, 0, fit=["a", "b"], score=["c"])
    assert set(cohort.group[parts.test]) == {"c"} and len(parts.test) == 100
    assert set(cohort.group[parts.train]) == set(cohort.group[parts.validation]) == {"a", "b"}
    assert len(parts.train) == pytest.approx(150, abs=2) and len(parts.validation) == pytest.approx(50, abs=2)
    assert split(cohort, 0, score=["c"]).test.tolist() == parts.test.tolist()
    assert split(cohort, 0, fit=["a", "b"]).train.tolist() == parts.train.tolist()
    with pytest.raises(UserError, match="both fitted and scored"):
        split(cohort, 0, fit=["a", "b"], score=["b"])
    with pytest.raises(UserError, match=r'no group "d" \(there are a, b, c\)'):
        split(cohort, 0, fit=["d"])
    with pytest.raises(UserError, match="column group"):
        split(small, 0, fit=["a"])
    with pytest.raises(UserError, match="nothing is left to fit: the table has the groups a, b, c"):
        split(cohort, 0, score=["a", "b", "c"])


def test_a_split_that_leaves_a_part_empty_is_refused():
    with pytest.raises(UserError, match="three numbers from 0 to 1"):
        split(simulate(50).cohort, 0, shares=(0.8, 0.2))
    with pytest.raises(UserError, match="none for"):
        split(small.subset([0, 1]), 0)


def test_the_order_of_batches_is_a_function_of_seed_and_epoch_alone():
    first = batches(103, 32, seed=4, epoch=2)
    torch.manual_seed(1)
    again = batches(103, 32, seed=4, epoch=2)
    assert [b.tolist() for b in first] == [b.tolist() for b in again]
    assert sorted(np.concatenate(first).tolist()) == list(range(103)) and [len(b) for b in first] == [32, 32, 32, 7]
    assert np.concatenate(first).tolist() != np.concatenate(batches(103, 32, 4, 3)).tolist()
    assert np.concatenate(first).tolist() != np.concatenate(batches(103, 32, 5, 2)).tolist()


# --- cohort ----------------------------------------------------------------------------------------------------------


def test_stays_are_chosen_by_position_or_by_a_mask_and_by_nothing_else():
    cohort = simulate(20, seed=1).cohort
    mask = np.arange(20) % 3 == 0
    assert cohort.positions(mask).tolist() == list(range(0, 20, 3)) and len(cohort.positions()) == 20
    for wrong, message in (
        (mask[:-1], "a mask of shape"), ([3, 20], "no stay 20: the table has 20"), ([-1], "no stay -1"),
        ([0.5], "whole numbers"), ([[1]], "whole numbers"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            cohort.positions(np.array(wrong))
    for hour in (float("nan"), -1.0, "12"):
        with pytest.raises(UserError, match=f"cut at {hour!r}: give hours since its start"):
            cohort.until(hour)
    with pytest.raises(UserError, match="fit = 'a', score = None: give lists of groups"):
        split(cohort, 0, fit="a")


def test_a_subset_holds_the_same_stays():
    part = small.subset([4, 2])
    prints = small.fingerprints()
    assert part.fingerprints() == [prints[4], prints[2]]
    assert part.stays.tolist() == [small.stays[4], small.stays[2]]
    assert part.probability.tolist() == small.probability[[4, 2]].tolist()
    assert small.subset(np.arange(30)).key() == small.key()


def test_a_fingerprint_knows_the_events_and_nothing_else():
    a = tiny(["x", "x"], [0, 1], ["HR", "Temp"], [80, 37])
    renamed = dataclasses.replace(a, stays=np.array(["y"]), outcome=np.array([1.0]))
    wider = dataclasses.replace(a, variables=("Age", "HR", "Temp"), variable=a.variable + np.int16(1))
    assert a.fingerprints() == renamed.fingerprints() == wider.fingerprints()
    other_set = tiny(["x", "x"], [0, 0], ["HR", "Temp"], [80, 37])
    other_value = tiny(["x", "x"], [0, 1], ["HR", "Temp"], [80, 37.1])
    other_name = tiny(["x", "x"], [0, 1], ["HR", "Tomp"], [80, 37])
    assert len({c.fingerprints()[0] for c in (a, other_set, other_value, other_name)}) == 4


@pytest.mark.parametrize("name", ["stays", "hours", "variable", "value", "outcome", "probability", "group"])
def test_the_key_of_a_cohort_sees_every_array(name):
    cohort = dataclasses.replace(small, group=np.array(["a"] * 30))
    array = getattr(cohort, name).copy()
    array[0] = "b" if name in ("stays", "group") else array[0] + 1
    assert dataclasses.replace(cohort, **{name: array}).key() != cohort.key()
