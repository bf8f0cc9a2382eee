"""Tables larger than memory: the same cohort bit for bit, memory that does not grow with events, honest refusals;
and memory that does not grow with the shapes of ragged batches."""

import ctypes
import dataclasses
import os
import shutil
import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from hsetvae import cohort as cohort_module
from hsetvae import data, events, mapped, simulate, tables
from hsetvae.config import IMPROVED, UserError
from hsetvae.data import Standardiser, collate, split
from hsetvae.events import read_cohort, write_cohort, write_cohorts
from hsetvae.mapped import Mapped
from hsetvae.train import train


@pytest.fixture
def small_steps(monkeypatch):
    """Nothing fits into memory and every pass takes a few hundred events, so that small tables take many steps."""
    monkeypatch.setenv("HSETVAE_MEMORY", "0")
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 700)
    monkeypatch.setattr(tables, "BYTES_AT_ONCE", 20_000)
    monkeypatch.setattr(mapped, "EVENTS_AT_ONCE", 500)
    monkeypatch.setattr(cohort_module, "AT_ONCE", 400)
    monkeypatch.setattr(mapped, "WINDOW", 64)
    monkeypatch.setattr(mapped, "WINDOWS_AT_ONCE", 3)


@pytest.fixture
def plain():
    """Forty stays in memory, with groups and unknown outcomes."""
    found = simulate.simulate(40, seed=2).cohort
    outcome = np.where(np.arange(40) % 7, found.outcome, np.nan)
    return dataclasses.replace(found, outcome=outcome, group=np.array(["a", "bb"] * 20))


def assert_same(a, b) -> None:
    assert a.key() == b.key() and a.fingerprints() == b.fingerprints()
    for f in dataclasses.fields(a)[1:]:
        x, y = getattr(a, f.name), getattr(b, f.name)
        assert x.dtype == y.dtype and np.array_equal(x, y, equal_nan=x.dtype.kind == "f"), f.name


def shuffled(cohort, path) -> None:
    """The events of the cohort as a CSV in random order, some of them twice with another value."""
    write_cohort(cohort, path.with_suffix(".parquet"))
    table = pd.read_parquet(path.with_suffix(".parquet"))
    again = table.sample(100, random_state=0).assign(value=lambda t: t["value"] + 0.1)
    pd.concat([table, again]).sample(frac=1, random_state=1).to_csv(path, index=False, float_format="%.17g")


@pytest.mark.parametrize("form", ["one file", "folder", "shuffled CSV"])
def test_a_mapped_table_is_the_table_in_memory(form, plain, tmp_path, request):
    path = tmp_path / {"one file": "t.parquet", "folder": "t", "shuffled CSV": "t.csv"}[form]
    if form == "shuffled CSV":
        shuffled(plain, path)
    else:
        write_cohorts([plain.subset(np.arange(25)), plain.subset(np.arange(25, 40))], path)
    in_memory, report = read_cohort(path)
    assert form == "shuffled CSV" or in_memory.key() == plain.key()
    request.getfixturevalue("small_steps")
    found, again = read_cohort(path)
    assert isinstance(found.value, Mapped) and again == report
    assert ("averaged" in report.lines()[-1]) == (form == "shuffled CSV")
    assert_same(found, in_memory)

    parts, other = split(found, 3), split(in_memory, 3)
    assert all(np.array_equal(getattr(parts, name), getattr(other, name)) for name in ("train", "validation", "test"))
    a, b = Standardiser.fit(found, parts.train), Standardiser.fit(in_memory, parts.train)
    assert a.to_dict() == b.to_dict()
    for index in ([5, 1, 33], np.arange(40)):
        x, y = (collate(c, index, a, 256) for c in (found, in_memory))
        assert x.stay == y.stay and torch.equal(x.hours, y.hours) and torch.equal(x.row, y.row)
        assert torch.equal(x.outcome.nan_to_num(9), y.outcome.nan_to_num(9))
        cells = ((getattr(b.windows, n) for n in ("variable", "value", "set", "sets")) for b in (x, y))
        assert all(torch.equal(p, q) for p, q in zip(*cells, strict=True))


def test_a_run_on_a_mapped_table_has_the_same_weights(plain, tmp_path, request):
    write_cohort(plain, tmp_path / "t.parquet")
    config = IMPROVED.but(width=16, latent=4, feedforward=16, epochs=2, pretrain_epochs=1, batch_size=8)

    def run(name):
        cohort = read_cohort(tmp_path / "t.parquet")[0]
        return train(config, cohort, split(cohort, 0), tmp_path / name, progress=False)

    a = run("memory")
    request.getfixturevalue("small_steps")
    b = run("mapped")
    weights = a.model.state_dict(), b.model.state_dict()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert a.stays.equals(b.stays)
    assert a.history.drop(columns="seconds").equals(b.history.drop(columns="seconds"))


def test_a_table_is_mapped_once_and_again_when_it_changes(plain, tmp_path, small_steps, monkeypatch):
    path = tmp_path / "t.parquet"
    write_cohort(plain, path)
    first, _ = read_cohort(path)
    with monkeypatch.context() as patch:
        patch.setattr(events, "read_pieces", lambda *_: pytest.fail("the table is read again"))
        assert read_cohort(path)[0].key() == first.key()
        assert read_cohort(path, variables=first.variables)[0].key() == first.key(), "a run asks with its variables"
        patch.setenv("HSETVAE_MEMORY", "10")
        assert read_cohort(path)[0].key() == first.key()
    fewer, report = read_cohort(path, variables=("HR", "Temp"))
    assert fewer.variables == ("HR", "Temp") and "unknown variables dropped" in report.lines()[1]
    write_cohort(plain.subset(np.arange(30)), path)
    assert len(read_cohort(path)[0]) == 30


def many_names(path) -> None:
    names = [f"v{i}" for i in range(40_000)]
    table = {"stay": ["1"] * len(names), "hours": [0.0] * len(names), "variable": names, "value": [1.0] * len(names)}
    pd.DataFrame(table).to_parquet(path)


def test_names_that_nobody_asked_for_do_not_crowd_out_the_others(tmp_path, monkeypatch):
    many_names(tmp_path / "t.parquet")
    for memory in ("10", "0"):
        monkeypatch.setenv("HSETVAE_MEMORY", memory)
        found, _ = read_cohort(tmp_path / "t.parquet", variables=("v0", "v33000", "v39999"))
        assert np.asarray(found.variable).tolist() == [0, 1, 2]
        with pytest.raises(UserError, match="40,000 variables, and more than 32,767 are too many"):
            read_cohort(tmp_path / "t.parquet")


def test_a_column_that_the_last_file_of_a_folder_lacks_is_unknown_there(tmp_path):
    rows = {"hours": [0.0], "variable": ["HR"], "value": [80.0]}
    for name, more in (("1", {"stay": ["a"], "outcome": [1]}), ("2", {"stay": ["b"]})):
        pd.DataFrame(rows | more).to_parquet(tmp_path / f"{name}.parquet")
    found, _ = read_cohort(tmp_path)
    assert found.stays.tolist() == ["a", "b"] and found.outcome[0] == 1 and np.isnan(found.outcome[1])


def test_an_interrupted_mapping_leaves_nothing_behind(plain, tmp_path, small_steps, monkeypatch):
    path = tmp_path / "t.parquet"
    write_cohort(plain, path)
    with monkeypatch.context() as patch:
        patch.setattr(mapped.np, "savez", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            read_cohort(path)
    assert not list((tmp_path / "t.parquet.mapped").iterdir())
    assert_same(read_cohort(path)[0], plain)


@pytest.mark.parametrize("name", ["facts.json", "stays.npz", "value", "hours"])
def test_a_damaged_mapping_is_named(name, plain, tmp_path, small_steps):
    path = tmp_path / "t.parquet"
    write_cohort(plain, path)
    read_cohort(path)
    (file,) = (tmp_path / "t.parquet.mapped").glob(f"*/{name}")
    content = file.read_bytes()
    for damaged in (content[: len(content) // 16 * 8], b""):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"is damaged \(.*\): delete it, and it is made from the table again"):
            read_cohort(path)
    shutil.rmtree(file.parent)
    assert_same(read_cohort(path)[0], plain)


def test_a_place_that_cannot_be_written_and_a_wrong_budget_are_refused(plain, tmp_path, small_steps, monkeypatch):
    path = tmp_path / "t.parquet"
    write_cohort(plain, path)
    (tmp_path / "t.parquet.mapped").write_text("in the way")
    with pytest.raises(UserError, match=r"larger than HSETVAE_MEMORY allows.*set HSETVAE_MEMORY \(GiB\) higher"):
        read_cohort(path)
    monkeypatch.setenv("HSETVAE_MEMORY", "much")
    with pytest.raises(UserError, match="HSETVAE_MEMORY=much is not a number of GiB"):
        read_cohort(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("zz,0,HR,high,1", 'row 3002 .*value "high", which is not a number'),
        ("zz,-1,HR,1,1", r'row 3002 .*\(stay "zz", variable "HR"\) has a negative time'),
        ("s0,5,HR,1,1", 'row 3002 .*gives stay "s0" another outcome'),
    ],
)
def test_a_bad_row_of_a_later_piece_is_named(row, message, tmp_path, small_steps):
    good = [f"s{i // 10},{i % 10},HR,{i},0" for i in range(3001)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["stay,hours,variable,value,outcome", *good, row, ""]))
    with pytest.raises(UserError, match=f"t.csv, {message}"):
        read_cohort(path)
    assert not list((tmp_path / "t.csv.mapped").iterdir())


def test_blocks_of_stays_make_one_cohort_and_the_first_does_not_know_of_the_others(tmp_path, monkeypatch):
    alone = simulate.simulate(50, seed=4)
    monkeypatch.setattr(simulate, "BLOCK", 50)
    whole = simulate.simulate(120, seed=4)
    assert len(set(whole.cohort.stays)) == 120 and len(set(whole.cohort.fingerprints())) == 120
    assert whole.cohort.subset(np.arange(50)).key() == alone.cohort.key() == simulate.simulate(50, seed=4).cohort.key()
    assert whole.state[: len(alone.state)].tobytes() == alone.state.tobytes()
    for path in (tmp_path / "one.parquet", tmp_path / "folder"):
        write_cohorts((block.cohort for block in simulate.simulate_blocks(120, seed=4)), path)
        assert read_cohort(path)[0].key() == whole.cohort.key()
    assert sorted(p.name for p in (tmp_path / "folder").iterdir()) == [f"part-{i:05d}.parquet" for i in range(3)]
    with pytest.raises(UserError, match="no empty folder"):
        write_cohorts([whole.cohort], tmp_path / "folder")
    with pytest.raises(UserError, match="give a file whose name ends in"):
        write_cohorts([whole.cohort], tmp_path / "table.csv")


def test_a_folder_of_tables_is_there_when_all_are(tmp_path):
    def cut_short():
        yield simulate.simulate(5).cohort
        assert not (tmp_path / "folder").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cohorts(cut_short(), tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def peak(work) -> int:
    """Bytes that numpy and Python held at most during `work`, beyond what they held before."""
    tracemalloc.start()
    work()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_writing_reading_and_passing_over_a_table_takes_memory_per_stay_and_none_per_event(
    tmp_path, small_steps, monkeypatch
):
    monkeypatch.setattr(simulate, "BLOCK", 50)
    monkeypatch.setattr(data, "FITTED", 2000)
    simulate.simulate(1)  # what is computed once is not counted
    grown = {}
    for stays in (100, 1100):
        path = tmp_path / str(stays)

        def write(path=path, stays=stays) -> None:
            write_cohorts((block.cohort for block in simulate.simulate_blocks(stays)), path)

        def use(path=path, stays=stays) -> None:
            cohort, _ = read_cohort(path)
            standardiser = Standardiser.fit(cohort, np.arange(stays))
            cohort.fingerprints(), cohort.key()
            for index in np.split(np.arange(stays), stays // 10):
                collate(cohort, index, standardiser, 256)

        grown.setdefault("write", []).append(peak(write))
        grown.setdefault("use", []).append(peak(use))
    events_of_a_stay = 100 * mapped.EVENT.itemsize
    assert grown["write"][1] - grown["write"][0] < 1000 * events_of_a_stay / 10
    assert grown["use"][1] - grown["use"][0] < 1000 * events_of_a_stay / 3


def test_a_standardiser_of_many_events_is_fitted_on_some_of_them(monkeypatch):
    cohort = simulate.simulate(1000).cohort
    whole = Standardiser.fit(cohort, np.arange(1000))
    monkeypatch.setattr(data, "FITTED", 30_000)
    some = Standardiser.fit(cohort, np.arange(1000))
    assert 28_000 < some.count.sum() <= 30_000 < whole.count.sum()
    assert np.abs((some.mean - whole.mean) / whole.scale).max() < 0.15
    assert np.abs(some.scale / whole.scale - 1).max() < 0.15


LEFT = """
import ctypes, sys
if sys.argv[1]:
    import hsetvae
import torch
libc = ctypes.CDLL(None)
fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
libc.mallinfo2.restype = type("MallInfo", (ctypes.Structure,), {"_fields_": [(n, ctypes.c_size_t) for n in fields]})
for rows in range(1, 202):
    torch.nn.functional.gelu(torch.ones(rows, 8, requires_grad=True)).sum().backward()
    before = before if rows > 1 else libc.mallinfo2().uordblks
print(libc.mallinfo2().uordblks - before)
"""


def test_shapes_that_never_come_again_leave_nothing_in_memory():
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("this C library does not tell what is in use (mallinfo2 of glibc 2.33)")
    clean = {name: value for name, value in os.environ.items() if name != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    plain, ours = (
        int(subprocess.run([sys.executable, "-c", LEFT, who], env=clean, capture_output=True, check=True).stdout)
        for who in ("", "hsetvae")
    )
    if plain < 2**20:
        pytest.skip("this torch keeps nothing for a shape")
    assert ours < plain / 20, "bytes in use after 200 shapes"
