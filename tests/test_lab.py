"""Pages that are opened in JupyterLab are as kind to readers as in the built book."""

import asyncio
import runpy
import shutil
from pathlib import Path

import traitlets.config

ROOT = Path(__file__).resolve().parents[1]


def test_solutions_are_folded_in_jupyterlab_and_saving_leaves_no_trace_of_it(tmp_path):
    settings = ROOT / "book" / "_lab" / "jupyter_server_config.py"
    config = runpy.run_path(str(settings), {"get_config": traitlets.config.Config})
    contents, page = config["c"].ServerApp.contents_manager_class(root_dir=str(tmp_path)), tmp_path / "sets.md"
    shutil.copy(ROOT / "book" / "sets.md", page)
    opened = asyncio.run(contents.get("sets.md", content=True, type="notebook"))
    cells = [cell["metadata"] for cell in opened["content"]["cells"] if cell["cell_type"] == "code"]
    folded = [metadata for metadata in cells if metadata.get("jupyter", {}).get("source_hidden")]
    assert folded == [metadata for metadata in cells if "hide-cell" in metadata.get("tags", [])] != []
    asyncio.run(contents.save({"type": "notebook", "format": "json", "content": opened["content"]}, "sets.md"))
    assert "hide-cell" in page.read_text() and "source_hidden" not in page.read_text()
