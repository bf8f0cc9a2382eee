"""The commands `hsetvae study …`, of a declared study or of a suite of models.

Imports that cost seconds happen inside the commands.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from .config import UserError

study_app = typer.Typer(
    no_args_is_help=True, help="Run a declared study, or a comparison of models (--suite), and read what it shows."
)

OutcomesOption = Annotated[
    Path | None, typer.Option(help="Table stay, outcome (0, 1); not needed when the events carry their outcomes.")
]
StudyOption = Annotated[Path, typer.Option("--study", help="The declared study.")]
SuiteOption = Annotated[
    str, typer.Option("--suite", help="Instead of a study: models on the same splits, for example challenge2012.")
]
StudyDesignOption = Annotated[
    str,
    typer.Option("--design", help="A design of the study, not with --suite: factorial, add, leave, roadmap, controls."),
]
DesignOption = Annotated[
    str,
    typer.Option(
        help="A design of the study: factorial, add, leave, roadmap, controls; "
        "or of the suite: table, curve, tradeoff, ladder."
    ),
]
BudgetOption = Annotated[str, typer.Option(help="A budget of the study, for example smoke; empty: the design's own.")]
OtherDataOption = Annotated[str, typer.Option("--data", help="An event table in place of the declared data.")]
PublishedOption = Annotated[
    bool, typer.Option("--published", help="Do not repeat runs whose records another machine has published.")
]
WorkersOption = Annotated[int, typer.Option(min=0, help="Runs side by side; 0 = one per core.")]
SchedulerOption = Annotated[str | None, typer.Option(help="Use a Dask cluster: tcp://host:port")]
STUDY = Path("ablations/study.toml")


def _study(path: Path, data: str, outcomes: Path | None):
    """The declared study of `--study`, on the table of `--data` if one is named."""
    from .declaration import load_study

    if not path.is_file():
        raise UserError(
            f"{path} is not a file: name the declared study with --study, or call from the project's folder"
        )
    return load_study(path, data, outcomes)


def _suite(name: str, data: str, outcomes: Path | None, **of_studies: object):
    """The declared suite of `--suite`; UserError for an option that its command does not have for suites."""
    from .suite import load_suite

    for option, given in of_studies.items():
        if given is not None and given is not False and given != "":  # 0 is an index
            raise UserError(f"--{option} is for studies, and this is the suite {name}: leave it out")
    return load_suite(name, data, outcomes)


@study_app.command("run")
def study_run(
    study: StudyOption = STUDY,
    design: DesignOption = "",
    budget: BudgetOption = "",
    data: OtherDataOption = "",
    outcomes: OutcomesOption = None,
    index: Annotated[int | None, typer.Option(help="Only this run of the design; they count from 0.")] = None,
    show: Annotated[bool, typer.Option("--print", help="Say what the run at --index is, and run nothing.")] = False,
    workers: WorkersOption = 0,
    scheduler: SchedulerOption = None,
    suite: SuiteOption = "",
    published: PublishedOption = False,
) -> None:
    """Run what is missing, then print the verdicts or the table.  Can be interrupted and called again."""
    workers = workers or os.cpu_count() or 1
    if suite:
        from .standings import report as table
        from .suite import run_suite

        compared = _suite(suite, data, outcomes, budget=budget, index=index, print=show)
        failures = run_suite(compared, workers, scheduler, design, published=published)
        print(table(compared, design))
        raise typer.Exit(1 if failures else 0)
    from .sweep import describe_run, run_study
    from .verdicts import report

    declared = _study(study, data, outcomes)
    if show and index is None:
        raise UserError("--print says what one run is: name it with --index NUMBER")
    if show:
        print(describe_run(declared, budget, design, index))
        return
    failures = run_study(declared, budget, workers, scheduler, design=design, index=index, published=published)
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
    suite: SuiteOption = "",
) -> None:
    """Which runs are finished, failed, published or missing."""
    if suite:
        from .standings import status as states

        print(states(_suite(suite, data, outcomes, budget=budget), design))
        return
    from .study import status

    print(status(_study(study, data, outcomes), budget, design).to_string(index=False))


@study_app.command("confirm")
def study_confirm(
    before: Annotated[Path, typer.Option(help="A checkout of the code before the change, which made the records.")],
    study: StudyOption = STUDY,
    design: StudyDesignOption = "",
    budget: BudgetOption = "",
    data: OtherDataOption = "",
    outcomes: OutcomesOption = None,
    suite: SuiteOption = "",
    workers: WorkersOption = 0,
) -> None:
    """After a change of code that should change no number: the code before and the present one make the same small
    runs, and what is the same digit for digit keeps its published records."""
    from .confirm import confirm, confirm_suite
    from .verdicts import publish_verdicts

    workers = workers or os.cpu_count() or 1
    if suite:
        found = confirm_suite(_suite(suite, data, outcomes, budget=budget, design=design), before, workers)
    else:
        declared = _study(study, data, outcomes)
        found = confirm(declared, budget or declared.design(design).budget, before, workers)
        publish_verdicts(declared, budget)
    print(f"{found.arms} {'entrants' if suite else 'arms'} are the same and keep their {found.records} records")
    for words in found.differences:
        print(f"not the same: {words}")
    if found.differences:
        which = f" --suite {suite}" * bool(suite) + f" --design {design}" * bool(design)
        which += f" --data {shlex.quote(data)}" * bool(data)
        print(f"their records are stale: run them again, `hsetvae study run{which} --published`")
        raise typer.Exit(1)


@study_app.command("report")
def study_report(
    study: StudyOption = STUDY,
    design: DesignOption = "",
    budget: BudgetOption = "",
    data: OtherDataOption = "",
    outcomes: OutcomesOption = None,
    suite: SuiteOption = "",
) -> None:
    """The verdicts on all claims, or with --design or --budget those of one design, from the records."""
    if suite:
        from .standings import report as table

        print(table(_suite(suite, data, outcomes, budget=budget), design))
        return
    from .verdicts import as_text, report, verdicts

    declared = _study(study, data, outcomes)
    print(report(declared, budget, design) if design or budget else as_text(verdicts(declared)))


@study_app.command("publish")
def study_publish(
    study: StudyOption = STUDY,
    design: DesignOption = "",
    budget: BudgetOption = "",
    data: OtherDataOption = "",
    outcomes: OutcomesOption = None,
    suite: SuiteOption = "",
) -> None:
    """Copy the records to the table that is committed and that the book reads, and renew the verdicts.

    Records of a part of the runs can be published: `run --published` on another machine goes on from there.
    """
    if suite:
        from .standings import publish as keep

        print(keep(_suite(suite, data, outcomes, budget=budget), design))
        return
    from .study import publish
    from .verdicts import publish_verdicts

    declared = _study(study, data, outcomes)
    path, missing = publish(declared, budget, design)
    for written in [path, *publish_verdicts(declared, budget)]:
        print(f"wrote {written}")
    if missing:
        print(f"{missing} runs of this design are still missing: it gives no verdicts yet")
