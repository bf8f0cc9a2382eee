"""The commands of `hsetvae study`: run a declared study, and read what its records say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .config import UserError

study_app = typer.Typer(no_args_is_help=True, help="Run a declared study and read its verdicts.")

OutcomesOption = Annotated[
    Path | None, typer.Option(help="Table stay, outcome; not needed when the events carry their outcomes.")
]
StudyOption = Annotated[Path, typer.Option("--study", help="The declared study.")]
DesignOption = Annotated[str, typer.Option(help="A design of the study: factorial, add, leave, roadmap, controls.")]
BudgetOption = Annotated[str, typer.Option(help="A budget of the study, for example smoke; empty: the design's own.")]
OtherDataOption = Annotated[str, typer.Option("--data", help="An event table in place of the declared data.")]
STUDY = Path("ablations/study.toml")


def _study(path: Path, data: str, outcomes: Path | None):
    """The declared study of `--study`, on the table of `--data` if one is named."""
    from .declaration import load_study

    if not path.is_file():
        raise UserError(
            f"{path} is not a file: name the declared study with --study, or call from the project's folder"
        )
    return load_study(path, data, outcomes)


@study_app.command("run")
def study_run(
    study: StudyOption = STUDY,
    design: DesignOption = "",
    budget: BudgetOption = "",
    data: OtherDataOption = "",
    outcomes: OutcomesOption = None,
    index: Annotated[int | None, typer.Option(help="Only this run of the design; they count from 0.")] = None,
    show: Annotated[bool, typer.Option("--print", help="Say what the run at --index is, and run nothing.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Runs side by side; 0 = one per core.")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Use a Dask cluster: tcp://host:port")] = None,
) -> None:
    """Run what is missing, then print the verdicts.  Can be interrupted and called again."""
    import os

    from .study import report
    from .sweep import describe_run, run_study

    declared = _study(study, data, outcomes)
    if show and index is None:
        raise UserError("--print says what one run is: name it with --index NUMBER")
    if show:
        print(describe_run(declared, budget, design, index))
        return
    failures = run_study(declared, budget, workers or os.cpu_count() or 1, scheduler, design=design, index=index)
    print(report(declared, budget, design) if index is None else describe_run(declared, budget, design, index))
    if failures:
        raise typer.Exit(1)


@study_app.command("status")
def study_status(
    study: StudyOption = STUDY,
    design: DesignOption = "",
    budget: BudgetOption = "",
    data: OtherDataOption = "",
    outcomes: OutcomesOption = None,
) -> None:
    """Which runs are finished, failed or missing."""
    from .study import status

    print(status(_study(study, data, outcomes), budget, design).to_string(index=False))


@study_app.command("report")
def study_report(
    study: StudyOption = STUDY,
    design: DesignOption = "",
    budget: BudgetOption = "",
    data: OtherDataOption = "",
    outcomes: OutcomesOption = None,
) -> None:
    """The verdicts on all claims, or with --design or --budget those of one design, from the records."""
    from .study import report
    from .verdicts import as_text, verdicts

    declared = _study(study, data, outcomes)
    print(report(declared, budget, design) if design or budget else as_text(verdicts(declared)))


@study_app.command("publish")
def study_publish(
    study: StudyOption = STUDY,
    design: DesignOption = "",
    budget: BudgetOption = "",
    data: OtherDataOption = "",
    outcomes: OutcomesOption = None,
) -> None:
    """Copy the finished records to the table that is committed and that the book reads, and renew the verdicts."""
    from .study import publish
    from .verdicts import publish_verdicts

    declared = _study(study, data, outcomes)
    for path in [publish(declared, budget, design), *publish_verdicts(declared)]:
        print(f"wrote {path}")
