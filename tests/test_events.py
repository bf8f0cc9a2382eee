"""Reading and writing event tables: what is wrong is named or counted, what is right survives exactly."""

import dataclasses
import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsetvae.config import UserError
from hsetvae.events import read_cohort, write_cohort
from hsetvae.simulate import simulate

HEADER = "stay,hours,variable,value\n"
GOOD = HEADER + "7,0,HR,80\n7,1,HR,85\n007,0.5,Temp,37\n"


@pytest.fixture
def read(tmp_path):
    """Write the texts of an event table and an outcome table, and read them."""

    def reader(events, outcomes=None, **options):
        path = tmp_path / "events.csv"
        path.write_bytes(events if isinstance(events, bytes) else events.encode())
        if outcomes is None:
            return read_cohort(path, **options)
        (tmp_path / "outcomes.csv").write_text(outcomes)
        return read_cohort(path, tmp_path / "outcomes.csv", **options)

    return reader


def test_a_table_becomes_stays_of_sets_of_events(read):
    cohort, report = read(HEADER + "b,2,HR,90\na,0,Temp,37\na,0,HR,80\na,5,HR,70\n", "stay,outcome\na,1\nb,0\n")
    assert cohort.variables == ("HR", "Temp") and cohort.stays.tolist() == ["a", "b"]
    assert cohort.first_set.tolist() == [0, 2, 3] and cohort.hours.tolist() == [0, 5, 2]
    assert cohort.first_event.tolist() == [0, 2, 3, 4]
    assert cohort.variable.tolist() == [0, 1, 0, 0] and cohort.value.tolist() == [80, 37, 70, 90]
    assert cohort.outcome.tolist() == [1, 0]
    assert report.lines() == ["2 stays (1 with the outcome), 3 sets, 4 events of 2 variables"]


def test_ids_and_names_stay_text(read):
    cohort, _ = read(HEADER + "7,0,NA,1\n007,0,nan,2\n1e3,0,None,3\n", "stay,outcome\n007,1\n7,0\n1e3,0\n")
    assert cohort.stays.tolist() == ["007", "1e3", "7"] and cohort.variables == ("NA", "None", "nan")
    assert cohort.outcome.tolist() == [1, 0, 0]


def test_a_stay_with_one_event_works(read):
    cohort, _ = read(HEADER + "1,0,HR,80\n")
    assert len(cohort) == len(cohort.hours) == len(cohort.value) == 1


REFUSED = {
    "a missing column": ("stay,hour,variable,value\n1,0,HR,1\n", 'needs one column "hours".*has stay, hour, variable'),
    "a column twice": ("stay,stay,hours,variable,value\n1,1,0,HR,1\n", 'one column "stay"'),
    "a negative time": (GOOD + "x,-1,HR,1\n", r'row 4 .*\(stay "x", variable "HR"\) has a negative time'),
    "a time that is nan": (GOOD + "x,nan,HR,1\n", r'row 4 .*stay "x".* time that is not a finite number'),
    "an infinite time": (GOOD + "x,inf,HR,1\n", "row 4 .*time that is not a finite number"),
    "an empty time": (GOOD + "x,,HR,1\n", "row 4 .*time that is not a finite number"),
    "a time in seconds since 1970": (
        GOOD + "x,1.7e9,HR,1\n",
        r"row 4 .*time beyond 1e\+06 hours.*not a date or seconds",
    ),
    "a time of 1e300": (GOOD + "x,1e300,HR,1\n", r'row 4 .*stay "x".* time beyond 1e\+06 hours'),
    "columns separated by tabs": (GOOD.replace(",", "\t"), 'needs one column "stay".*separated by commas'),
    "columns separated by semicolons": (
        GOOD.replace(",", ";").replace("0.5", "0,5"),
        'separated by ";": save it with commas, and with decimal points',
    ),
    "decimal commas": (GOOD + 'x,"0,5",HR,2\n', r'\(stay "x"\) has hours "0,5".*: write a decimal point'),
    "a time of day": (GOOD + "x,2024-03-01,HR,2\n", r'\(stay "x"\) has hours .*: write hours since the start'),
    "another encoding": (GOOD.replace("HR", "Größe").encode("latin-1"), "comma-separated text in UTF-8"),
    "two bytes a letter": (GOOD.encode("utf-16"), "is text in UTF-16: save it as CSV in UTF-8"),
    "a time of words": (GOOD + "x,noon,HR,1\n", 'row 4 .*hours "noon".*not a number'),
    "a value of 1e300": (GOOD + "x,0,HR,1e300\n", r'row 4 .*stay "x", variable "HR".*value beyond 1e\+12'),
    "an infinite value": (GOOD + "x,0,HR,-inf\n", "row 4 .*value that is not a finite number"),
    "an empty value": (GOOD + "x,0,HR,\n", "row 4 .*value that is not a finite number"),
    "a value of words": (GOOD + "x,0,HR,high\nx,1,HR,low\n", r'row 4 .*value "high".*\(and 1 more row\)'),
    "no stay id": (GOOD + ",0,HR,1\n", "row 4 .*no stay id"),
    "a row that is cut": (GOOD + "x,0,HR\n", "damaged, cut or no table: .*Expected 4 columns"),
    "no rows": (HEADER, "has no rows"),
    "an empty file": ("", "is empty, and no table"),
    "no usable row": (HEADER + "1,0,,5\n", "no event that can be used"),
    "bytes that are no text": (b"stay,hours,variable,value\n1,0,\xff\xfe,2\n", "damaged, cut or no table"),
    "two outcomes of one stay": (
        "stay,hours,variable,value,outcome\n1,0,HR,1,0\n1,1,HR,1,1\n",
        'row 2 .*gives stay "1" another outcome',
    ),
    "an outcome of 2": (
        "stay,hours,variable,value,outcome\n1,0,HR,1,2\n",
        'row 1 .*stay "1".* outcome 2: it must be 0, 1',
    ),
    "a probability of 2": ("stay,hours,variable,value,probability\n1,0,HR,1,2\n", "probability 2: .*between 0 and 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_with_file_and_row(case, read):
    text, message = REFUSED[case]
    with pytest.raises(UserError, match=f"events.csv.*{message}"):
        read(text)


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ("stay,outcome\n7,0\n007,1\n7,1\n", 'stay "7" more than once'),
        ("stay,outcome\n7,0\n007,yes\n", 'row 2 .*outcome "yes".*not a number'),
        ("stay,outcome\n7,0\n007,0.5\n", r'row 2 .*\(stay "007"\) has outcome 0.5: it must be 0, 1 or empty'),
        ("stay,death\n7,0\n", 'needs one column "outcome"'),
        ("stay,outcome\n,0\n", "no stay id"),
        ("", "is empty, and no table"),
        ("stay,outcome\n7,0\n0007,1\n", 'lists "0007", the events "007", and neither table has both'),
        (
            "stay,outcome\n7.0,1\n8.0,0\n",
            'no stay in common: it lists "7.0", the events "007"; ids are compared as text',
        ),
    ],
)
def test_a_wrong_outcome_table_is_refused_with_file_and_row(outcomes, message, read):
    with pytest.raises(UserError, match=f"outcomes.csv.*{message}"):
        read(GOOD, outcomes)


def test_what_is_dropped_or_averaged_is_counted(read):
    events = HEADER + "1,0,HR,80\n1,0,HR,90\n1,0,,5\n1,0,  ,5\n1,1,Mood,3\n2,0,Mood,3\n3,0,HR,70\n4,0,HR,60\n"
    cohort, report = read(events, "stay,outcome\n1,1\n3,\n9,0\n", variables=("HR", "Temp"))
    assert cohort.variables == ("HR", "Temp") and cohort.stays.tolist() == ["1", "3", "4"]
    assert cohort.value.tolist() == [85, 70, 60]
    assert np.array_equal(cohort.outcome, [1, np.nan, np.nan], equal_nan=True)
    assert report.counts == {
        "events without a variable name dropped": 2,
        "events of 1 unknown variables dropped (Mood)": 2,
        "stays dropped because none of their events is left": 1,
        "stays of the outcome table without events, dropped": 1,
        "stays without a known outcome": 2,
        "events averaged into another of the same stay, time and variable": 1,
    }
    assert len(report.lines()) == 7 and "  2 events without a variable name dropped" in report.lines()


def test_what_stands_at_an_unknown_variable_is_not_read(read):
    events = HEADER + "1,0,HR,80\n1,?,Rhythm,AF\n"
    cohort, _ = read(events, variables=("HR",))
    assert cohort.value.tolist() == [80]
    with pytest.raises(UserError, match=r"row 2 .*has hours \"\?\", which is not a number"):
        read(events)


def test_a_csv_that_may_be_cut_is_reported(read):
    assert "file without a line break at its end: was it cut?" in read(GOOD[:-2])[1].counts
    assert read(GOOD)[1].counts == read(GOOD.replace("\n", "\r\n"))[1].counts == {}


def test_cut_files_are_refused(tmp_path):
    whole = tmp_path / "whole.parquet"
    write_cohort(simulate(20, seed=1).cohort, whole)
    packed = gzip.compress(GOOD.encode() * 50)
    for name, content in (("a.parquet", whole.read_bytes()), ("b.csv.gz", packed)):
        for share in (0.3, 0.9):
            (tmp_path / name).write_bytes(content[: int(share * len(content))])
            with pytest.raises(UserError, match=f"{name} cannot be read, it is damaged, cut"):
                read_cohort(tmp_path / name)
    (tmp_path / "empty").mkdir()
    for path, said in ((tmp_path / "absent.csv", "is not a file"), (tmp_path / "empty", "without .parquet files")):
        with pytest.raises(UserError, match=said):
            read_cohort(path)
    with pytest.raises(UserError, match="events are a DataFrame: give the path of a table"):
        read_cohort(pd.DataFrame())


def test_a_gzipped_csv_is_the_csv(read, tmp_path):
    (tmp_path / "events.csv.gz").write_bytes(gzip.compress(GOOD.encode()))
    assert read_cohort(tmp_path / "events.csv.gz")[0].key() == read(GOOD)[0].key()


def test_a_parquet_table_of_any_tool_is_read(tmp_path, read):
    frame = pd.DataFrame({"stay": [7, 7, 8], "hours": [0, 1, 2], "variable": ["HR", "HR", "Temp"], "value": [1, 2, 3]})
    frame.to_parquet(tmp_path / "t.parquet")
    expected = read(HEADER + "7,0,HR,1\n7,1,HR,2\n8,2,Temp,3\n")[0]
    assert read_cohort(tmp_path / "t.parquet")[0].key() == expected.key()
    frame.astype({"variable": "category"}).to_parquet(tmp_path / "c.parquet")
    assert read_cohort(tmp_path / "c.parquet")[0].key() == expected.key()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    for kind in (pa.dictionary(pa.uint32(), pa.string()), pa.string_view()):
        names = table["variable"].dictionary_encode() if pa.types.is_dictionary(kind) else table["variable"]
        pq.write_table(table.set_column(2, "variable", names.cast(kind)), tmp_path / "d.parquet")
        assert read_cohort(tmp_path / "d.parquet")[0].key() == expected.key(), kind


@pytest.mark.parametrize(
    ("column", "content", "message"),
    [
        ("stay", [7.0, 8.0], "column stay holds double: write it as text or as whole numbers"),
        ("hours", pa.array([0, 1], pa.timestamp("s")), "column hours holds timestamp"),
        ("value", pa.array([None, None], pa.list_(pa.int64())), "column value holds list"),
    ],
)
def test_a_parquet_column_of_another_type_is_refused(column, content, message, tmp_path):
    columns = {"stay": ["1", "2"], "hours": [0.0, 1.0], "variable": ["HR", "HR"], "value": [1.0, 2.0]}
    pq.write_table(pa.table(columns | {column: content}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=message):
        read_cohort(tmp_path / "t.parquet")


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 12), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_what_is_written_comes_back_bit_for_bit(tmp_path_factory, stays, grouped, known, seed):
    path = tmp_path_factory.mktemp("round") / "cohort.parquet"
    cohort = simulate(stays, seed).cohort
    cohort = dataclasses.replace(
        cohort,
        variables=(*cohort.variables, "zz never measured"),
        group=np.array(["a", "bb"] * stays)[:stays] if grouped else None,
        outcome=np.where(np.arange(stays) % 2, cohort.outcome, np.nan) if known else None,
    )
    write_cohort(cohort, path)
    again, report = read_cohort(path)
    assert again.key() == cohort.key() and again.fingerprints() == cohort.fingerprints()
    assert report.stays == stays and report.with_outcome == (np.nansum(cohort.outcome) if known else None)
    assert list(path.parent.iterdir()) == [path]  # no partial file is left


def test_an_outcome_table_overrules_the_outcomes_of_the_events(tmp_path):
    cohort = simulate(10, seed=1).cohort
    write_cohort(cohort, tmp_path / "c.parquet")
    table = pd.DataFrame({"stay": cohort.stays, "outcome": 1 - cohort.outcome.astype(int)})
    table.to_csv(tmp_path / "o.csv", index=False)
    found, report = read_cohort(tmp_path / "c.parquet", tmp_path / "o.csv")
    assert found.outcome.tolist() == (1 - cohort.outcome).tolist()
    assert report.counts["stays whose outcome in the event table is another, overruled"] == 10


@pytest.mark.parametrize("column", ["stay", "variable"])
def test_a_quotation_mark_that_closes_rows_later_does_not_swallow_rows(column, tmp_path):
    rows = ["a,1,HR,80", "a,2,HR,81", "b,1,HR,82", "b,2,HR,83"]
    rows[1], rows[2] = ('"a,2,HR,81', 'b",1,HR,82') if column == "stay" else ('a,2,"HR,81', 'HR",82')
    (tmp_path / "e.csv").write_text("\n".join(["stay,hours,variable,value", *rows]) + "\n")
    with pytest.raises(UserError, match=rf"row 2 .* has a {column} of several lines: a quotation mark"):
        read_cohort(tmp_path / "e.csv")


def test_two_stays_of_one_id_cannot_be_written(tmp_path):
    cohort = simulate(3).cohort
    with pytest.raises(UserError, match="occurs more than once"):
        write_cohort(cohort.subset([0, 0]), tmp_path / "c.parquet")
