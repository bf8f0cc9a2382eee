"""Run what a study lacks: each run is one papermill execution of run.ipynb, spread over Dask workers.

A run counts as finished when papermill raised nothing and its record.json was renamed into place; whatever else lies in
its folder is continued or replaced.  A killed worker costs the repetition of one run.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jupyter_client import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill import PapermillExecutionError, execute_notebook, inspect_notebook
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines

from .config import PRESETS, Config, UserError, nearest
from .declaration import Study
from .designs import FILES, Spec, code_hash, expand, refuse_other_code, table_hash
from .files import write_atomically
from .jobs import host_facts, reachable, run_jobs
from .study import ended_record, published_ids, published_records, runs_folder


class WarmKernel(NBClientEngine):
    """papermill's own engine on a kernel that stays: importing torch once per worker instead of once per run.

    The namespace is emptied after each run, and the kernel is replaced after a failed one.  Sockets are files (IPC):
    kernels that start side by side cannot race for a port.
    """

    kernel: AsyncKernelManager | None = None

    @staticmethod
    def started(kernel_name: str) -> AsyncKernelManager:
        sockets = tempfile.mkdtemp(prefix="hsetvae-")
        atexit.register(shutil.rmtree, sockets, ignore_errors=True)
        return AsyncKernelManager(kernel_name=kernel_name, transport="ipc", ip=f"{sockets}/socket")

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, start_timeout=60, execution_timeout=None, **_):
        manager = cls.kernel or cls.started(kernel_name)
        cls.kernel = None  # unless this run ends well
        client = PapermillNotebookClient(
            nb_man, km=manager, kernel_name=kernel_name, timeout=execution_timeout, startup_timeout=start_timeout,
            extra_arguments=["--log-level=ERROR"],
        )  # fmt: skip
        try:
            client.execute(cleanup_kc=False)
            failed = any(cell.metadata.get("papermill", {}).get("exception") for cell in nb_man.nb.cells)
            if not failed:
                client.wait_for_reply(client.kc.execute("%reset -f", store_history=False))
                client.kc.stop_channels()
                cls.kernel = manager
        finally:
            if cls.kernel is None and client.km is not None:
                client._cleanup_kernel()


papermill_engines.register("warm", WarmKernel)
KERNEL_THREAD = ThreadPoolExecutor(max_workers=1)  # a kernel that stays belongs to the event loop of one thread


# --- one run ---------------------------------------------------------------------------------------------------------


def job_of(study: Study, spec: Spec, known: set[str]) -> dict[str, Any]:
    """Everything a worker needs to execute one run, as plain values; paths are absolute.

    `known` are the parameters of the notebook; UserError when it lacks one that is needed.
    """
    settings = {name: new for name, (new, _) in spec.config.differences(PRESETS[study.preset]).items()}
    files = {name: spec.data[name] for name in FILES if name in spec.data}
    files = {name: f if f == "simulated" else str((study.folder / f).resolve()) for name, f in files.items()}
    parameters = {
        "preset": study.preset,
        "replicate": spec.replicate,
        "data": files["source"],
        **{name: f for name, f in files.items() if name == "outcomes"},
        **{name: spec.data[name] for name in ("stays", "shares", "labels") if name in spec.data},
        "out": str((runs_folder(study) / spec.id).resolve()),
        **{name: value for name, value in settings.items() if name in known},
        "more": {name: value for name, value in settings.items() if name not in known},
    }
    if unknown := [name for name in parameters if name not in known]:
        raise UserError(
            f'{study.notebook} has no parameter "{unknown[0]}"{nearest(unknown[0], known)}: '
            "papermill would ignore it and run the default, so nothing was run"
        )
    facts = {
        "id": spec.id,
        "arm": spec.arm.name,
        "replicate": spec.replicate,
        "changes": json.dumps(spec.arm.settings),
        "declaration": study.key,
        "code": code_hash(study.notebook),
    }
    if table := table_hash(study):
        facts["table"] = table
    return {"notebook": str(study.notebook), "parameters": parameters, "facts": facts, "name": spec.name}


def execute(job: dict[str, Any]) -> dict[str, Any]:
    """Execute one run unless it is finished, and write its record -> the record; what goes wrong in a run is in it."""
    folder = Path(job["parameters"]["out"])
    if finished := ended_record(folder):
        return finished
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial.ipynb"
    error, result = "", {}
    try:
        refuse_other_code(job["facts"]["code"], code_hash, Path(job["notebook"]))
        how = {"engine_name": "warm", "kernel_name": "python3", "progress_bar": False}
        KERNEL_THREAD.submit(execute_notebook, job["notebook"], partial, job["parameters"], **how).result()
        result = json.loads((folder / "result.json").read_text())
        os.replace(partial, folder / "run.ipynb")
    except (PapermillExecutionError, DeadKernelError, RuntimeError, ValueError, OSError) as problem:
        error = _last_line(problem)
    return write_record(job, "failed" if error else "finished", error, time.monotonic() - started, result)


def write_record(job: dict, status: str, error: str, seconds: float, result: dict) -> dict[str, Any]:
    """The record of a run: what it was, how it ended, what it measured, where and how long it ran."""
    record = {
        **job["facts"],
        "status": status,
        "error": error,
        **result,
        "seconds": round(seconds, 2),
        **host_facts(),
    }
    write_atomically(Path(job["parameters"]["out"]) / "record.json", json.dumps(record, indent=1).encode())
    return record


def _last_line(problem: Exception) -> str:
    """`Name: message` of what went wrong in a cell; the executed notebook has the rest."""
    if isinstance(problem, PapermillExecutionError):
        return f"{problem.ename}: {re.sub(chr(27) + r'.[0-9;]*m', '', problem.evalue)}"
    return f"{type(problem).__name__}: {problem}".splitlines()[0]


# --- all runs --------------------------------------------------------------------------------------------------------


def jobs_of(study: Study, specs: list[Spec]) -> list[dict[str, Any]]:
    """The jobs of some runs.  UserError when two arms are the same run, as a budget can make them."""
    known, of = set(inspect_notebook(study.notebook)), {}
    for spec in specs:
        if (first := of.setdefault(spec.id, spec)) is not spec:
            raise UserError(
                f'{study.file}: at this budget the arms "{first.arm.name}" and "{spec.arm.name}" are the same run: '
                "take the setting in which they differ out of the budget"
            )
    return [job_of(study, spec, known) for spec in specs]


def run_at(specs: list[Spec], index: int) -> Spec:
    """The run at an index; UserError when there is none."""
    if not 0 <= index < len(specs):
        raise UserError(f"there is no run {index}: this design and budget have runs 0 to {len(specs) - 1}")
    return specs[index]


def describe_run(study: Study, budget: str, design: str, index: int) -> str:
    """What the run at an index is: arm, replicate, id, state, settings, and the commands that make it."""
    spec = run_at(expand(study, budget, design), index)
    (job,) = jobs_of(study, [spec])
    record = ended_record(Path(job["parameters"]["out"]))
    design, budget = study.design(design).name, budget or study.design(design).budget
    lines = [
        f"run {index} of design {design}, budget {budget}: {spec.name}",
        f"id        {spec.id}",
        f"state     {record['status'] if record else 'missing'}",
        f"changes   {json.dumps(spec.arm.settings)}" + (f", labels {spec.arm.labels}" if "labels" in spec.data else ""),
        f"common    {json.dumps({n: v for n, (v, _) in study.config(design, budget).differences(Config()).items()})}",
        f"data      {json.dumps(spec.data)}",
        f"make it   hsetvae study run{study.options} --design {design} --budget {budget} --index {index}",
        f"or        papermill {shlex.quote(os.path.relpath(study.notebook))} out.ipynb "
        f"-y {shlex.quote(json.dumps(job['parameters']))}",
    ]
    return "\n".join(lines)


def run_study(
    study: Study,
    budget: str,
    workers: int,
    scheduler: str | None = None,
    progress: bool = True,
    design: str = "",
    index: int | None = None,
    published: bool = False,
) -> int:
    """Run every run of a design (or the one at `index`) that is not finished; returns how many failed.

    With `published`, runs whose records are in the published table count as finished.

    `workers` processes with cores ÷ workers threads each, or the Dask cluster at `scheduler` (`tcp://host:port`), whose
    workers see this folder and have hsetvae installed.  Safe to interrupt and to call again.
    Raises UserError when nothing answers there.
    """
    budget = budget or study.design(design).budget
    skipped = published_ids(published_records(study, budget)) if published else set()
    specs = expand(study, budget, design)
    specs = specs if index is None else [run_at(specs, index)]
    if scheduler is not None:
        reachable(scheduler)
    jobs = jobs_of(study, [spec for spec in specs if spec.id not in skipped])
    open_jobs = [job for job in jobs if ended_record(Path(job["parameters"]["out"])) is None]
    run_jobs(
        execute, open_jobs, len(jobs), workers, scheduler, progress,
        lost=lambda job, error: write_record(job, "failed", error, 0.0, {}),
        said=lambda _, r: f"{r['arm']}, replicate {r['replicate']}: {r['status']} in {r['seconds']:.0f} s",
    )  # fmt: skip
    records = [json.loads((Path(job["parameters"]["out"]) / "record.json").read_text()) for job in jobs]
    failed = [(r, job) for r, job in zip(records, jobs, strict=True) if r["status"] != "finished"]
    for record, job in failed:
        print(f"failed: {job['name']}: {record['error']} ({job['parameters']['out']})", file=sys.stderr)
    return len(failed)
