"""The command line: hsetvae train | evaluate | diagnose | settings | data … | study …

It mirrors the Python API; imports that cost seconds happen inside the commands.
"""

from __future__ import annotations

import json
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .config import PRESETS, Config, UserError, parse_settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Hierarchical set VAEs for irregular clinical time series: train, score, diagnose, and study what helps.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make an event table: stay, hours, variable, value.")
study_app = typer.Typer(no_args_is_help=True, help="Run a declared study and read its verdicts.")
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")

Preset = Enum("Preset", {name: name for name in [*PRESETS, "logistic", "boosting"]}, type=str)
Part = Enum("Part", {"unseen": "unseen", "all": "all"}, type=str)

DataOption = Annotated[str, typer.Option(help="An event table (Parquet or CSV), or the word `simulated`.")]
OutcomesOption = Annotated[
    Path | None, typer.Option(help="Table stay, outcome; not needed when the events carry their outcomes.")
]
StudyOption = Annotated[Path, typer.Option("--study", help="The declared study.")]
DesignOption = Annotated[str, typer.Option(help="A design of the study: factorial, add, leave, roadmap, controls.")]
BudgetOption = Annotated[str, typer.Option(help="A budget of the study, for example smoke; empty: the design's own.")]
OtherDataOption = Annotated[str, typer.Option("--data", help="An event table in place of the declared data.")]
STUDY = Path("ablations/study.toml")


def _cohort(data: str, outcomes: Path | None, variables: tuple[str, ...] | None = None):
    """The cohort of `--data`, which for a run has its `variables`; what was dropped or averaged is said on stderr."""
    if data == "simulated":
        from .simulate import simulate

        cohort = simulate().cohort
        if outcomes:
            raise UserError("--outcomes goes with a table: the simulated cohort knows its outcomes; give --data FILE")
        if variables not in (None, cohort.variables):
            raise UserError("this run was not trained on the simulated cohort: give its own kind of table, --data FILE")
        return cohort
    from .events import read_cohort

    cohort, report = read_cohort(data, outcomes, variables=variables)
    for line in report.lines():
        print(line, file=sys.stderr)
    return cohort


def _study(path: Path, data: str, outcomes: Path | None):
    """The declared study of `--study`, on the table of `--data` if one is named."""
    from .declaration import load_study

    if not path.is_file():
        raise UserError(
            f"{path} is not a file: name the declared study with --study, or call from the project's folder"
        )
    return load_study(path, data, outcomes)


def _names(text: str | None) -> list[str] | None:
    return [name.strip() for name in text.split(",")] if text else None


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; it is created.")],
    data: DataOption = "simulated",
    outcomes: OutcomesOption = None,
    preset: Annotated[Preset, typer.Option(help="Where the settings start; or a baseline to beat.")] = "improved",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the split and every random stream.")] = 0,
    fit: Annotated[str | None, typer.Option(help="Train and select on these groups only, for example a,b.")] = None,
    score: Annotated[str | None, typer.Option(help="Keep these groups for the test, for example c.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a killed run.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")] = "cpu",
) -> None:
    """Train one model: 60 % of the stays to learn, 20 % to select, 20 % kept for the test."""
    from .data import split

    cohort = _cohort(data, outcomes)
    parts = split(cohort, seed, fit=_names(fit), score=_names(score))
    if preset.value not in PRESETS:
        from .baselines import train_baseline

        if settings or resume:
            raise UserError(f"--set and --resume are for presets of the model; {preset.value} has no settings")
        train_baseline(preset.value, cohort, parts, out, seed)
    else:
        from .train import train as train_model

        config = PRESETS[preset.value].but(**parse_settings(settings or []))
        train_model(config, cohort, parts, out, seed=seed, resume=resume, device=device)
    tables = f"--data {data}" + (f" --outcomes {outcomes}" if outcomes else "")
    print(f"run: {out}\nnext: hsetvae evaluate {out} {tables}")


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: DataOption = "simulated",
    outcomes: OutcomesOption = None,
    out: Annotated[Path | None, typer.Option(help="Write the probability of every scored stay to this CSV.")] = None,
    split: Annotated[
        Part, typer.Option(help="unseen: drop stays that the run trained on or was selected on.")
    ] = "unseen",
    until: Annotated[
        float | None, typer.Option(min=0, help="Score what was known of a stay at this hour, for example 24.")
    ] = None,
) -> None:
    """Score a run: one JSON object with 95 % intervals."""
    import numpy as np
    import pandas as pd

    from .baselines import is_baseline, load_baseline
    from .evaluate import evaluate as scores_of
    from .evaluate import predict
    from .files import write_atomically
    from .runs import load_run
    from .scores import auroc

    loaded = load_baseline(run) if is_baseline(run) else load_run(run)
    cohort = _cohort(data, outcomes, loaded.variables)
    index = loaded.unseen(cohort) if split.value == "unseen" else np.arange(len(cohort))
    if until is not None:
        cohort, index = cohort.subset(index).until(until), np.arange(len(index))
    scores = loaded.evaluate(cohort, index) if is_baseline(run) else scores_of(loaded, cohort, index)
    if cohort.probability is not None:
        known = index[~np.isnan(cohort.outcome[index])]
        truth = auroc(cohort.outcome[known], cohort.probability[known])
        scores["auroc_of_truth"] = None if np.isnan(truth) else truth
    if out is not None:
        probability = (loaded.predict if is_baseline(run) else lambda *a: predict(loaded, *a))(cohort, index)
        table = pd.DataFrame({"stay": np.asarray(cohort.stays)[index], "probability": probability})
        write_atomically(out, table.to_csv(index=False).encode())
        print(f"wrote {out}", file=sys.stderr)
    print(json.dumps(scores, indent=1))


@app.command()
def diagnose(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    data: DataOption = "simulated",
    outcomes: OutcomesOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; default RUN/diagnosis.")] = None,
) -> None:
    """Measure collapse, use of history and gradient health, and say what to try: a report in Markdown."""
    from .diagnostics import diagnose as measures_of
    from .report import write_report
    from .runs import load_run

    loaded = load_run(run)
    cohort = _cohort(data, outcomes, loaded.variables)
    state = None
    if data == "simulated":
        from .simulate import simulate

        state = simulate().state
    path = write_report(loaded, measures_of(loaded, cohort, state=state), out or run / "diagnosis")
    print(path.read_text().split("## Figures")[0])
    print(f"with figures: {path}")


@app.command()
def settings() -> None:
    """List every setting: value in baseline → improved → recommended, ledger row, meaning, unit, type."""
    presets = [preset.to_dict() for preset in PRESETS.values()]
    for name, kind, _, unit, ledger, text in Config.describe():
        values = [str(preset[name]) for preset in presets]
        shown = values[0] if len(set(values)) == 1 else " → ".join(values)
        print(f"{name:18} {shown:30} {ledger:6} {text}{f' [{unit}]' if unit else ''} ({kind})")


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

    cohort, report = load_challenge2012(source, tuple(_names(sets)), clean=clean)
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


def main() -> None:
    """Entry point: what the user can put right is said in one line, without a traceback, with exit status 2."""
    # a warning is for the user, too: one line, without the place in the code
    warnings.formatwarning = lambda message, *details, **more: f"hsetvae: {message}\n"
    try:
        app()
    except UserError as error:
        print(f"hsetvae: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"hsetvae: {f'{error.filename}: {error.strerror}' if error.filename else error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # how typer ends after Ctrl-C
            print("hsetvae: interrupted; what is finished is kept", file=sys.stderr)
        raise
