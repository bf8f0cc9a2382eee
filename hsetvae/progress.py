"""Progress of long work on the terminal, with the time left; plain lines where there is no terminal."""

from __future__ import annotations

import math
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """Context manager: `update(done, numbers)` moves the bar and shows `text`, or the last validation numbers."""

    def __init__(self, total: int, start: int, show: bool, title: str) -> None:
        self.total, self.start, self.show, self.title, self.text = total, start, show, title, ""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self.terminal = show and console.is_terminal
        self.bar = Bar(*columns, TextColumn("{task.fields[text]}"), console=console) if self.terminal else None

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.start, text="")
        return self

    def update(self, done: int, numbers: dict[str, float], text: str = "") -> None:
        fresh = [
            f"{name.removeprefix('validation_')} {numbers[name]:.3f}"
            for name in ("validation_loss", "validation_auroc")
            if math.isfinite(numbers.get(name, math.nan))
        ]
        self.text = text or " · ".join(fresh) or self.text
        if self.bar:
            self.bar.update(self.task, completed=done, text=self.text)
        elif self.show and text:
            print(f"{self.title}: {done}/{self.total}, {text}", file=sys.stderr, flush=True)
        elif self.show and fresh:
            print(f"{self.title}: step {done}/{self.total}, validation {self.text}", file=sys.stderr, flush=True)

    def __exit__(self, *error) -> None:
        if self.bar:
            self.bar.stop()
