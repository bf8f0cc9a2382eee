"""The server behind `make lab`: pages open as notebooks, with solutions folded as in the built book."""

from __future__ import annotations

from jupytext import AsyncTextFileContentsManager


def solutions(notebook) -> list[dict]:
    """The metadata of the cells that the book folds as a whole."""
    return [cell["metadata"] for cell in notebook["cells"] if "hide-cell" in cell["metadata"].get("tags", [])]


class Folding(AsyncTextFileContentsManager):
    """Folds solutions when a page is opened; when it is saved, its text does not hear of it."""

    async def get(self, path, *args, **options):
        model = await super().get(path, *args, **options)
        if model["type"] == "notebook" and model["content"] is not None:
            for metadata in solutions(model["content"]):
                metadata["jupyter"] = {"source_hidden": True, "outputs_hidden": True}
        return model

    async def save(self, model, path=""):
        if model["type"] == "notebook" and "content" in model:
            for metadata in solutions(model["content"]):
                metadata.pop("jupyter", None)
        return await super().save(model, path)


c = get_config()  # noqa: F821
c.ServerApp.contents_manager_class = Folding
