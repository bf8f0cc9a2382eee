"""Many jobs side by side on Dask: a killed worker costs the repetition of one job, and a job is safe to call again."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import logging
import os
import platform
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dask
from distributed import Client, Future, KilledWorker, LocalCluster, as_completed
from distributed.comm import get_address_host_port

from . import __version__
from .config import UserError
from .progress import Progress

Job = dict[str, Any]  # plain values; job["facts"]["id"] is its own
WORKER = "distributed.nanny.pre-spawn-environ"  # variables of the processes that Dask starts
DASK = {
    # its own makes workers give back every freed block at once (MALLOC_TRIM_THRESHOLD_), which costs a training step an
    # eighth of its time; the number of threads is set below.  A worker that is stopped in the middle of a run would
    # complain in the terminal: what a job has to say is in its result
    WORKER: {"DASK_LOGGING__DISTRIBUTED": "critical"},
    # a job takes seconds to hours: looking at itself a hundred times a second costs more than it tells
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
}


def host_facts() -> dict[str, Any]:
    """Versions, machine and date, for the record of a run: equal settings give equal numbers where these are equal."""
    return {
        "hsetvae": __version__,
        "torch": importlib.metadata.version("torch").partition("+")[0],
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "date": f"{datetime.date.today():%Y-%m-%d}",
    }


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Dask says less in this block and sets variables, also those meant for its workers: for whoever goes on after it,
    in a notebook or after an interrupt, both are as before."""
    log, environment = logging.getLogger("distributed"), dict(os.environ)
    level = log.level
    try:
        yield
    finally:
        log.setLevel(level)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


@_as_before()
def run_jobs(
    execute: Callable[[Job], dict],
    jobs: list[Job],
    total: int,
    workers: int,
    scheduler: str | None = None,
    progress: bool = True,
    lost: Callable[[Job, str], object] = lambda job, error: None,
    said: Callable[[int, dict], str] = lambda done, result: "",
) -> None:
    """Call `execute` for every job, in order, of a suite of `total` ones whose others are done.

    `workers` processes with cores ÷ workers threads each, or the Dask cluster at `scheduler` (`tcp://host:port`).
    `lost(job, error)` is called for a job that killed its worker again and again, `said(done, result)` gives the words
    beside the progress.
    """
    if not jobs:
        return
    # two processes with default threads each are ten times slower than with one each; the caller's own number wins
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    with dask.config.set(DASK), dask.config.set({f"{WORKER}.OMP_NUM_THREADS": threads, f"{WORKER}.TQDM_DISABLE": "1"}):
        with _deaf_to_interrupts():
            cluster = scheduler or LocalCluster(
                n_workers=min(workers, len(jobs)), threads_per_worker=1, processes=True, host="127.0.0.1",
                dashboard_address="127.0.0.1:0", memory_limit=0,
            )  # fmt: skip
    with contextlib.nullcontext() if scheduler else cluster, Client(cluster) as client:
        done, waiting = total - len(jobs), iter(jobs)
        futures: dict[Future, Job] = {}
        ended = as_completed()

        def feed() -> None:
            """One job for every thread there is.  Dask would deal out all jobs at once, and a job that waits behind a
            long one stays there while another worker is idle."""
            while len(futures) < max(1, sum(client.nthreads().values())) and (job := next(waiting, None)):
                future = client.submit(execute, job, key=job["facts"]["id"])
                futures[future] = job
                ended.add(future)

        with _quiet_when_interrupted(), Progress(total, done, progress, "runs") as bar:
            feed()
            for future in ended:
                text = ""
                done += 1
                job = futures.pop(future)
                try:
                    text = said(done, future.result())
                    future.release()  # its record is on the disk; kept results are warned about at the end
                except KilledWorker as error:
                    lost(job, f"KilledWorker: {error}".splitlines()[0])
                feed()
                bar.update(done, {}, text)


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that start in this block never hear Ctrl-C, as a terminal sends it to all: the one that called stops
    them, in order, where each would show a traceback of its own.  For these seconds it is deaf, too."""
    if threading.current_thread() is not threading.main_thread():  # only there may a signal be set
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _quiet_when_interrupted() -> Iterator[None]:
    """After Ctrl-C Dask has nothing to say: that workers are stopped in the middle of a run is what was asked for."""
    try:
        yield
    except KeyboardInterrupt:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        raise


def reachable(address: str) -> None:
    """UserError unless something answers at the address; Dask itself would wait for minutes and show a traceback."""
    try:
        socket.create_connection(get_address_host_port(address, strict=True), timeout=10).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f'there is no Dask scheduler at "{address}" ({error}): start one with `dask scheduler`, and give the '
            "address that it prints, tcp://host:port"
        ) from None
