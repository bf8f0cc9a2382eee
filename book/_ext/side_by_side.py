"""Execute the pages side by side, one process for each core, before the first page is read.

myst_nb executes one page after the other, unless it finds it executed in the cache of jupyter_cache, whose executor
knows several processes.  The cache is emptied first: its keys are the pages' own code, and what a page imports or reads
may have changed.  A page that fails here does not get into the cache; myst_nb executes it again and reports.
"""

from __future__ import annotations

import functools
import os
import tempfile
from pathlib import Path, PurePosixPath

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.executors.basic import ExecutionWorkerLocalMProc, JupyterExecutorLocalMproc
from jupyter_cache.executors.utils import single_nb_execution
from jupyter_client import AsyncKernelManager

BOOK = Path(__file__).resolve().parents[1]
FRESH = f"""import os, sys
for _name in [n for n, m in sys.modules.items() if (getattr(m, "__file__", None) or "").startswith({str(BOOK)!r})]:
    del sys.modules[_name]
sys.path_importer_cache.clear()  # knows relative folders by the one they were first seen from
os.chdir({{folder!r}})
%reset -f"""


class Worker(ExecutionWorkerLocalMProc):
    """Executes pages on one kernel that stays: torch is imported once a process instead of once a page.

    Each page finds an empty namespace, its own folder and no module of the book imported; after a page that failed the
    kernel is replaced.  Its sockets are files (IPC): kernels that start side by side cannot race for a port, and none
    has to warn that its TCP is not encrypted.
    """

    kernel: AsyncKernelManager | None = None

    def __init__(self, folder: str):
        super().__init__()
        self.folder = folder

    def execute(self, project_nb, data):
        # Looking for pages beyond a thousand is a race: it finds one that another process is just writing, and fails.
        data.cache.truncate_caches = lambda: None
        kernel = Worker.kernel or AsyncKernelManager(transport="ipc", ip=f"{self.folder}/{os.getpid()}")
        Worker.kernel = None  # unless this page ends well
        page, folder = project_nb.nb, str(Path(project_nb.uri).parent)
        page.cells.insert(0, nbformat.v4.new_code_cell(FRESH.format(folder=folder)))
        result = single_nb_execution(page, folder, data.timeout, data.allow_errors, km=kernel)
        del page.cells[0]
        if not result.err:
            Worker.kernel = kernel
        return result


def execute(app, env, docnames: list[str]) -> None:
    config = env.mystnb_config
    if config.execution_mode != "cache":
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # processes with more threads than cores slow each other down
    cache = get_cache(config.execution_cache_path)
    for record in cache.list_cache_records():
        cache.remove_cache(record.pk)
    # From last to first: the executor hands out pages in small groups, and the short ones come first in the alphabet.
    for page in sorted((Path(env.doc2path(name)) for name in docnames), reverse=True):
        left_out = any(PurePosixPath(page).match(pattern) for pattern in config.execution_excludepatterns)
        if "{code-cell}" in page.read_text() and not left_out:
            cache.add_nb_to_project(str(page), read_data={"name": "jupytext", "type": "plugin"})
    with tempfile.TemporaryDirectory(prefix="hsetvae-") as folder:
        executor = JupyterExecutorLocalMproc(cache)
        executor._EXECUTION_WORKER = functools.partial(Worker, folder)
        executor.run_and_cache(timeout=config.execution_timeout)


def setup(app) -> dict:
    app.connect("env-before-read-docs", execute)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
