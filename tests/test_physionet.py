"""Challenge 2012: reading, cleaning, downloading; the facts of the real sets where they are at hand."""

import contextlib
import hashlib
import http.server
import io
import shutil
import tarfile
import threading

import numpy as np
import pytest

from hsetvae.config import UserError
from hsetvae.download import check, fetch
from hsetvae.events import read_cohort, write_cohort
from hsetvae.physionet import LIMITS, RULES, load_challenge2012

RECORDS = {
    "100": "00:00,RecordID,100\n00:00,Age,54\n00:00,Gender,0\n00:00,Height,-1\n00:00,ICUType,4\n00:00,Weight,-1\n"
    "00:07,HR,73\n00:07,pH,735\n00:07,Temp,3.1\n07:30,HR,80\n07:30,HR,90\n47:59,HR,0\n47:59,,5\n",
    "20": "00:00,RecordID,20\n00:00,Age,70\n00:00,Gender,-1\n00:00,Height,1.8\n00:00,ICUType,1\n00:00,Weight,80\n",
    "3": "00:00,RecordID,3\n00:00,Age,33\n00:00,Gender,1\n00:00,Height,406.4\n00:00,ICUType,-1\n00:00,Weight,60\n"
    "01:00,Weight,61\n01:00,pH,7.3\n",
}
OUTCOMES = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n"


def write_set(folder, letter="a", records=RECORDS, outcomes="100,6,1,5,-1,0\n20,6,1,5,2,1\n3,6,1,5,-1,0\n"):
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / f"set-{letter}.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo(f"set-{letter}/README"), io.BytesIO())
        for record, rows in records.items():
            content = ("Time,Parameter,Value\n" + rows).encode()
            info = tarfile.TarInfo(f"set-{letter}/{record}.txt")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (folder / f"Outcomes-{letter}.txt").write_text(OUTCOMES + outcomes)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_set(tmp_path / "source")


def events_of(cohort, stay):
    """{(hours, variable): value} of one stay."""
    one = cohort.subset(np.flatnonzero(cohort.stays == stay))
    hours = np.repeat(one.hours, np.diff(one.first_event))
    names = np.array(one.variables)[one.variable]
    return dict(zip(zip(hours.tolist(), names.tolist(), strict=True), one.value.tolist(), strict=True))


# --- reading and cleaning --------------------------------------------------------------------------------------------


def test_records_become_stays_and_the_icu_type_four_variables(folder):
    cohort, _ = load_challenge2012(folder, ["a"], progress=False)
    assert cohort.stays.tolist() == ["100", "20", "3"] and cohort.outcome.tolist() == [0, 1, 0]
    assert cohort.group.tolist() == ["a"] * 3
    assert events_of(cohort, "100") == {
        (0, "Age"): 54, (0, "Gender"): 0, (0, "ICUType4"): 1,
        (7 / 60, "HR"): 73, (7 / 60, "pH"): pytest.approx(7.35), (7.5, "HR"): 85,
    }  # fmt: skip
    assert events_of(cohort, "20") == {(0, "Age"): 70, (0, "ICUType1"): 1, (0, "Height"): 180, (0, "Weight"): 80}
    assert events_of(cohort, "3")[0, "Height"] == pytest.approx(160)
    assert "RecordID" not in cohort.variables and "ICUType" not in cohort.variables


def test_everything_dropped_or_changed_is_counted(folder):
    _, report = load_challenge2012(folder, ["a"], progress=False)
    assert report.counts == {
        "rows without a parameter name dropped": 1,
        "rows with an ICUType other than 1 to 4 dropped": 1,
        "values = -1 dropped (-1 means not recorded)": 3,
        "values of pH from 650 to 800 multiplied by 0.01 (decimal point left out)": 1,
        "values of Height from 1.2 to 2.3 multiplied by 100 (given in metres)": 1,
        "values of Height from 305 to 584 multiplied by 0.394 (centimetres converted as if they were inches)": 1,
        "values of HR outside 10 to 300 dropped": 1,
        "values of Temp outside 20 to 45 dropped": 1,
        "events averaged into another of the same stay, time and variable": 1,
        "stays without a time series, kept with their descriptors": 1,
        "deaths among the 3 stays of set a": 1,
    }


def test_cleaning_can_be_switched_off(folder):
    cohort, report = load_challenge2012(folder, ["a"], clean=False, progress=False)
    raw = events_of(cohort, "100")
    assert raw[7 / 60, "pH"] == 735 and raw[7 / 60, "Temp"] == 3.1 and raw[0, "Height"] == -1
    assert events_of(cohort, "20")[0, "Height"] == 1.8
    assert not any("values" in what for what in report.counts)


def test_no_rule_touches_a_healthy_value():
    healthy = {"pH": 7.4, "Height": 170, "Temp": 37, "HR": 80, "Weight": 75, "SaO2": 97, "K": 4, "WBC": 8, "Mg": 2,
               "PaO2": 90, "PaCO2": 40, "RespRate": 15, "Urine": 100, "MAP": 80, "NIMAP": 80, "SysABP": 120,
               "NISysABP": 120, "DiasABP": 70, "NIDiasABP": 70}  # fmt: skip
    assert set(LIMITS) == set(healthy)
    for name, value in healthy.items():
        assert LIMITS[name][0] < value < LIMITS[name][1]
        assert not any(rule.variable in ("", name) and rule.low <= value <= rule.high for rule in RULES)
    for rule in RULES:  # what is corrected lands within the limits
        if rule.factor is not None:
            low, high = LIMITS[rule.variable]
            assert low <= rule.low * rule.factor * 1.001 and rule.high * rule.factor <= high * 1.001


def test_several_sets_are_groups(folder):
    write_set(folder, "b", {"5": RECORDS["3"]}, "5,6,1,5,-1,1\n")
    cohort, report = load_challenge2012(folder, ["b", "a"], progress=False)
    assert cohort.stays.tolist() == ["100", "20", "3", "5"] and cohort.group.tolist() == ["a", "a", "a", "b"]
    assert cohort.outcome.tolist() == [0, 1, 0, 1] and report.counts["deaths among the 1 stays of set b"] == 1


def test_records_and_outcomes_that_do_not_match_are_counted(tmp_path):
    folder = write_set(tmp_path / "s", records=RECORDS | {"9": ""}, outcomes="100,6,1,5,-1,0\n8,6,1,5,-1,1\n")
    cohort, report = load_challenge2012(folder, ["a"], progress=False)
    assert cohort.stays.tolist() == ["100", "20", "3"] and np.isnan(cohort.outcome[1:]).all()
    assert report.counts["records without any event, dropped"] == 1
    assert report.counts["records of the outcome tables without a record file, dropped"] == 1
    assert report.counts["stays without a known outcome"] == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("00:00,Age,54\n0:0x,HR,1\n", "record 100 has a row whose time is not HH:MM"),
        ("00:00,Age,54\n,HR,1\n", "record 100 has a row whose time is not HH:MM"),
        ("00:00,Age,54\n00:10,HR\n", "no event: .*Expected 3 columns"),
        ("00:00,Age,old\n", "no event: .*old"),
        ("00:00,RecordID,100\n", "1 records of .* hold no events"),
        ("", "hold no records"),
    ],
)
def test_a_damaged_record_is_refused(rows, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_challenge2012(write_set(tmp_path / "s", records={"100": rows}), ["a"], progress=False)


def test_damaged_or_missing_files_are_named(folder):
    archive = folder / "set-a.tar.gz"
    content = archive.read_bytes()
    for cut in (len(content) // 2, len(content) - 6, 10):
        archive.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"set-a\.tar\.gz is damaged or cut"):
            load_challenge2012(folder, ["a"], progress=False)
    archive.write_bytes(content)
    (folder / "Outcomes-a.txt").write_text(OUTCOMES + "100,6,1,5,-1,0\n20,6\n")
    with pytest.raises(UserError, match=r"Outcomes-a\.txt, row 2 .*RecordID '20'"):
        load_challenge2012(folder, ["a"], progress=False)
    with pytest.raises(UserError, match=r"has no set-b\.tar\.gz"):
        load_challenge2012(folder, ["b"], progress=False)
    with pytest.raises(UserError, match='no set "d"'):
        load_challenge2012(folder, ["d"], progress=False)
    with pytest.raises(UserError, match="once"):
        load_challenge2012(folder, ["a", "a"], progress=False)


# --- downloading -----------------------------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, with ranges; asks to `wait` so many times, and the first `cuts` answers end half-way."""

    def __init__(self, folder, cuts=0, ranges=True, wait=0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.cuts, self.ranges, self.wait, self.seen = folder, cuts, ranges, wait, []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.server.folder / self.path.strip("/")
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if self.server.ranges else 0
        self.server.seen.append((path.name, start))
        if self.server.wait:
            self.server.wait -= 1
            return self.send_error(429)
        if not path.exists():
            return self.send_error(404)
        content = path.read_bytes()
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.server.cuts:
            self.server.cuts -= 1
            content = content[: start + (len(content) - start) // 2]
        self.wfile.write(content[start:])

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(*args, **options):
    with Server(*args, **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_a_download_gives_the_same_table_as_the_folder(folder, tmp_path):
    with serving(folder) as server:
        found, _ = load_challenge2012(server.address, ["a"], progress=False, cache=tmp_path / "cache")
        again, _ = load_challenge2012(server.address, ["a"], progress=False, cache=tmp_path / "cache")
    assert found.key() == again.key() == load_challenge2012(folder, ["a"], progress=False)[0].key()
    assert len(server.seen) == 2  # the second call asks for nothing


def test_another_source_is_not_answered_from_what_the_first_one_sent(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    lines = (folder / "Outcomes-a.txt").read_text().splitlines(keepends=True)
    (other / "Outcomes-a.txt").write_text("".join(line.replace(",0\n", ",1\n") for line in lines))
    (other / "SHA256SUMS").unlink(missing_ok=True)
    cohorts = []
    for source in (folder, other):
        with serving(source) as server:
            cohorts.append(load_challenge2012(server.address, ["a"], progress=False, cache=tmp_path / "cache")[0])
    assert cohorts[0].outcome.mean() < cohorts[1].outcome.mean() == 1


def test_a_server_that_asks_to_wait_is_asked_again(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    with serving(tmp_path, wait=2) as server:
        fetch(server.address + "file", tmp_path / "cache" / "file", progress=False, wait=0)
    assert (tmp_path / "cache" / "file").read_bytes() == b"0123456789" and len(server.seen) == 3


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_continued(ranges, tmp_path):
    content = np.random.default_rng(0).bytes(300_000)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "big").write_bytes(content)
    with serving(tmp_path / "source", cuts=2, ranges=ranges) as server:
        fetch(server.address + "big", tmp_path / "cache" / "big", progress=True, wait=0)
    assert (tmp_path / "cache" / "big").read_bytes() == content
    starts = [start for _, start in server.seen]
    assert starts == ([0, 150_000, 225_000] if ranges else [0, 0, 0])
    digest = hashlib.sha256(content).hexdigest()
    assert (tmp_path / "cache" / "SHA256SUMS").read_text() == f"{digest}  big\n"
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["SHA256SUMS", "big"]


def test_a_killed_download_goes_on_where_it_was(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file.part").write_bytes(b"0123")
    with serving(tmp_path) as server:
        fetch(server.address + "file", tmp_path / "cache" / "file", progress=False)
    assert server.seen == [("file", 4)] and (tmp_path / "cache" / "file").read_bytes() == b"0123456789"


def test_a_partial_file_longer_than_the_file_is_fetched_anew(tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file.part").write_bytes(b"x" * 20)
    with serving(tmp_path) as server:
        fetch(server.address + "file", tmp_path / "cache" / "file", progress=False, wait=0)
    assert (tmp_path / "cache" / "file").read_bytes() == b"0123456789"


def test_a_server_without_the_file_or_without_life_is_named(tmp_path):
    with serving(tmp_path) as server, pytest.raises(UserError, match="answers 404"):
        fetch(server.address + "absent", tmp_path / "cache" / "absent", progress=False)
    with pytest.raises(UserError, match=r"cannot be fetched .*0 bytes are kept"):
        fetch(server.address + "file", tmp_path / "cache" / "file", progress=False, wait=0)


def test_a_file_that_changed_after_its_download_is_refused(folder, tmp_path):
    with serving(folder) as server:
        load_challenge2012(server.address, ["a"], progress=False, cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()  # what a source sent has a folder of its own
    with open(kept / "Outcomes-a.txt", "a") as file:
        file.write("4,6,1,5,-1,0\n")
    with pytest.raises(UserError, match=r"Outcomes-a\.txt is not the file that SHA256SUMS"):
        load_challenge2012(kept, ["a"], progress=False)
    check(kept / "set-a.tar.gz")


# --- the real sets ---------------------------------------------------------------------------------------------------


def test_the_real_sets_have_the_known_facts(challenge2012, tmp_path):
    cohort, report = load_challenge2012(challenge2012, ["a", "b"], progress=False)
    assert len(cohort) == 8000 and report.with_outcome == 554 + 568
    assert report.counts["deaths among the 4,000 stays of set a"] == 554
    assert report.counts["deaths among the 4,000 stays of set b"] == 568
    sets = np.diff(cohort.first_set)
    assert np.median(sets) == 72 and sets.max() == 203 and sets.min() == 1
    assert len(cohort.variables) == 40 - 1 + 4 + 1  # 41 parameters, ICUType as four
    assert 5.5 < np.diff(cohort.first_event).mean() < 6.2 and cohort.hours.max() <= 48
    write_cohort(cohort, tmp_path / "cohort.parquet")
    assert read_cohort(tmp_path / "cohort.parquet")[0].key() == cohort.key()
