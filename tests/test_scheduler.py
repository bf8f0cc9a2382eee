"""Jobs on Dask: none waits for another, and a worker of a cluster that somebody else started is really killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from distributed import get_worker

from hsetvae.jobs import run_jobs

WAIT = 120  # seconds; what has not happened by then never will


def until(condition, what: str):
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    pytest.fail(f"after {WAIT} s there is still no {what}")


@pytest.fixture
def cluster(tmp_path):
    """Address of a scheduler on this machine, and its two workers."""
    place = tmp_path / "scheduler.json"
    started = []

    def start(name: str, *options: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.dask_{name}", "--scheduler-file", str(place), *options]
        started.append(subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL))
        return started[-1]

    start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--idle-timeout", "300 s")
    workers = [
        start("worker", "--nthreads", "1", "--no-nanny", "--no-dashboard", "--death-timeout", "300") for _ in range(2)
    ]
    yield until(lambda: place.exists() and json.loads(place.read_text())["address"], "scheduler"), workers
    for process in started:
        process.kill()
        process.wait()


def test_no_job_waits_behind_a_long_one_while_a_worker_is_idle(tmp_path):
    def execute(job: dict) -> dict:
        (tmp_path / job["facts"]["id"]).touch()
        deadline = time.monotonic() + 30
        while job["long"] and len(list(tmp_path.iterdir())) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        threads = os.environ["OMP_NUM_THREADS"], os.environ["TQDM_DISABLE"]
        return {"in time": time.monotonic() < deadline, "held": len(get_worker().state.tasks), "threads": threads}

    results, before = [], dict(os.environ)
    jobs = [{"facts": {"id": f"{i:016x}"}, "long": i == 0} for i in range(6)]
    run_jobs(execute, jobs, 6, 2, progress=False, said=lambda done, result: results.append(result) or "")
    assert [r["in time"] for r in results] == [True] * 6, "the long job ends when all others have run"
    own = before.get("OMP_NUM_THREADS", str(max(1, os.cpu_count() // 2)))
    assert {r["threads"] for r in results} == {(own, "1")}, "two workers share the cores"
    assert dict(os.environ) == before, "and whoever called keeps an environment of their own"
    assert max(r["held"] for r in results) <= 2, "a worker holds its job, and at most the one that it has just ended"


@pytest.mark.slow
def test_a_study_on_a_cluster_survives_a_killed_worker(study, cluster):
    address, (victim, survivor) = cluster

    def records() -> dict:
        return {path: path.stat().st_mtime_ns for path in study.folder.rglob("record.json")}

    command = ["study", "run", "--study", str(study.file), "--budget", "smoke", "--scheduler", address]
    suite = subprocess.Popen(
        [sys.executable, "-c", "from hsetvae.cli import main; main()", *command], stdout=subprocess.PIPE, text=True
    )

    def running() -> set:
        return {path.parent for path in study.folder.rglob("partial.ipynb")} - {path.parent for path in records()}

    until(lambda: len(records()) >= 1 and len(running()) == 2, "moment with a finished run and two under way")
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    before, under_way = records(), running()
    out, _ = suite.communicate(timeout=WAIT)
    assert suite.returncode == 0, out
    after = records()
    assert survivor.poll() is None and under_way and not running()
    assert under_way <= {path.parent for path in after}, "the run of the killed worker was repeated"
    assert {path: after[path] for path in before} == before, "and finished ones were not"
    assert all(json.loads(path.read_text())["status"] == "finished" for path in after)
    assert "0 runs failed" in out
