"""The commands `hsetvae data …`, which make event tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .config import UserError

data_app = typer.Typer(no_args_is_help=True, help="Make an event table: stay, hours, variable, value.")


def names(text: str | None, option: str) -> list[str] | None:
    """What an option lists; None where it was not given."""
    listed = [name.strip() for name in (text or "").split(",")]
    if text is not None and not all(listed):
        raise UserError(f'{option} "{text}" names nothing, or has a comma too many: write names as a,b')
    return listed if text is not None else None


@data_app.command("physionet2012")
def physionet2012(
    out: Annotated[Path, typer.Option(help="Parquet file to write.")],
    source: Annotated[str, typer.Option(help="A folder with set-a.tar.gz, Outcomes-a.txt …, or an https address.")] = (
        "https://physionet.org/files/challenge-2012/1.0.0/"
    ),
    sets: Annotated[str, typer.Option(help="Which of the sets a, b, c.")] = "a,b,c",
    clean: Annotated[bool, typer.Option(help="Drop what cannot be true (the rules are printed).")] = True,
) -> None:
    """The PhysioNet/CinC Challenge 2012: 4,000 stays per set, outcome in-hospital death."""
    from .events import write_cohort
    from .physionet import load_challenge2012

    cohort, report = load_challenge2012(source, tuple(names(sets, "--sets")), clean=clean)
    write_cohort(cohort, out)
    print("\n".join(report.lines()))
    print(f"wrote {out}: {len(cohort)} stays, {len(cohort.value)} events")


@data_app.command("simulate")
def simulate_table(
    out: Annotated[Path, typer.Option(help="Parquet file to write, or a folder for Parquet files of 10,000 stays.")],
    stays: Annotated[int, typer.Option(help="Number of stays.")] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed draws other stays of the same population.")] = 0,
) -> None:
    """A simulated cohort with known outcome probabilities."""
    from .events import write_cohorts
    from .progress import Progress
    from .simulate import simulate_blocks

    written = [0, 0]

    def cohorts():
        with Progress(stays, 0, True, "simulating") as bar:
            for block in simulate_blocks(stays, seed):
                yield block.cohort
                written[:] = written[0] + len(block.cohort), written[1] + len(block.cohort.value)
                bar.update(written[0], {})

    write_cohorts(cohorts(), out)
    print(f"wrote {out}: {written[0]} stays, {written[1]} events")
