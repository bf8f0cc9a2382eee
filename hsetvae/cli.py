"""The command line: hsetvae train | evaluate | predict | explain | diagnose | settings | data … | study …

It mirrors the Python API; imports that cost seconds happen inside the commands.
"""

from __future__ import annotations

import json
import shlex
import sys
import warnings
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from . import hints
from .config import PRESETS, Config, UserError, parse_settings
from .data_cli import data_app, names
from .study_cli import OutcomesOption, study_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Hierarchical set VAEs for irregular clinical time series: train, score, diagnose, and study what helps.",
)
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")

Preset = Enum("Preset", {name: name for name in [*PRESETS, "logistic", "boosting"]}, type=str)
Part = Enum("Part", {"unseen": "unseen", "all": "all"}, type=str)

DataOption = Annotated[str, typer.Option(help="Events: stay, hours, variable, value; or the word `simulated`.")]
UntilOption = Annotated[
    float | None, typer.Option(min=0, help="Use what was known of a stay at this hour only, for example 24.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]


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
    _say(report.lines())
    if variables is not None and (absent := cohort.absent()):
        _say([f"  no event of {len(absent)} of the run's variables: {', '.join(absent)}"])
    _say(hints.of_table(cohort))
    return cohort


def _say(lines: list[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _run_and_cohort(run: Path, data: str, outcomes: Path | None):
    """A model or a baseline, and the cohort of `--data` with its variables."""
    from .baselines import is_baseline, load_baseline

    if run.is_file():
        raise UserError(f"{run} is a file: give the folder that `hsetvae train --out` has made")
    loaded = load_baseline(run) if is_baseline(run) else _finished(run)
    cohort = _cohort(data, outcomes, loaded.variables)
    if not is_baseline(run):
        _say(hints.of_units(cohort, loaded.standardiser))
    return loaded, cohort


def _finished(run: Path):
    """A model whose training has ended."""
    from .runs import DONE, load_run

    loaded = load_run(run)
    if not (run / DONE).exists():
        raise UserError(f"{run} has not finished its training: continue it with `hsetvae train … --resume`")
    return loaded


def _write(path: Path, content: bytes) -> None:
    from .files import write_atomically

    write_atomically(path, content)
    print(f"wrote {path}", file=sys.stderr)


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; it is created.")],
    data: DataOption = "simulated",
    outcomes: OutcomesOption = None,
    preset: Annotated[Preset, typer.Option(help="Where the settings start; or a baseline to beat.")] = "improved",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one of `hsetvae settings`; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the split and every random stream.")] = 0,
    fit: Annotated[str | None, typer.Option(help="Train and select on these of the column group only: a,b.")] = None,
    score: Annotated[str | None, typer.Option(help="Keep these groups for the test, for example c.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a killed run: all else as before.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")] = "cpu",
) -> None:
    """Train one model: 60 % of the stays to learn, 20 % to select, 20 % kept for the test.

    With --fit or --score whole groups are kept for the test, and the rest is shared 3 : 1.  The presets logistic and
    boosting select nothing and learn from both parts.
    """
    from .data import split

    cohort = _cohort(data, outcomes)
    parts = split(cohort, seed, fit=names(fit, "--fit"), score=names(score, "--score"))
    if preset.value not in PRESETS:
        from .baselines import train_baseline

        if settings or resume or device != "cpu":
            raise UserError(f"--set, --resume and --device are for presets of the model; {preset.value} has none")
        train_baseline(preset.value, cohort, parts, out, seed)
    else:
        from .train import train as train_model

        config = PRESETS[preset.value].but(**parse_settings(settings or []))
        _say(hints.of_outcomes(cohort, parts.train))
        run = train_model(config, cohort, parts, out, seed=seed, resume=resume, device=device)
        if never := run.standardiser.unseen:
            _say([f"of {hints.listed(list(never))} the training stays have no event, or too few to be seen: the run "
                  "has learned nothing of their values"])  # fmt: skip
    command = "diagnose" if cohort.outcome is None else "evaluate"
    words = ["hsetvae", command, str(out), "--data", data, *(["--outcomes", str(outcomes)] if outcomes else [])]
    print(f"run: {out}\nnext: {shlex.join(words)}")


@app.command()
def evaluate(
    run: RunArgument,
    data: DataOption = "simulated",
    outcomes: OutcomesOption = None,
    out: Annotated[Path | None, typer.Option(help="Write the probability of every scored stay to this CSV.")] = None,
    split: Annotated[
        Part, typer.Option(help="unseen: drop stays with the id or the events of one that the run has learned from.")
    ] = "unseen",
    until: UntilOption = None,
    hours: Annotated[
        str | None, typer.Option(help="Score at each of these hours, for example 6,12,24,36,48: a line for each.")
    ] = None,
    calibrated: Annotated[
        bool,
        typer.Option("--calibrated", help="Calibrate on the run's validation stays; kept in RUN/calibration.json."),
    ] = False,
    figure: Annotated[Path | None, typer.Option(help="With --hours: draw the scores over the hours (PNG).")] = None,
) -> None:
    """Score a run: one JSON object with 95 % intervals."""
    import numpy as np
    import pandas as pd

    from .calibration import score
    from .scores import auroc

    hints.refuse_over(out, ".csv", run, data, outcomes)
    hints.refuse_over(figure, ".png", run, data, outcomes)
    loaded, cohort = _run_and_cohort(run, data, outcomes)
    index = loaded.unseen(cohort) if split.value == "unseen" else np.arange(len(cohort))
    if split.value == "unseen":
        _say(hints.whose(loaded, cohort, index))
    if hours is not None:
        if until is not None or out is not None:
            raise UserError("--hours gives scores at several hours; --until and --out are for one: leave one out")
        _score_over(loaded, cohort, index, hours, calibrated, figure)
        return
    if figure is not None:
        raise UserError("--figure draws scores over hours: name them, for example --hours 6,12,24,36,48")
    _say(hints.late(cohort, index, [] if until is None else [until]))
    scores, probability = score(loaded, cohort, index, until, calibrated)
    _say(hints.of_scores(cohort.outcome[index]))
    if cohort.probability is not None:
        known = index[~np.isnan(cohort.outcome[index]) & ~np.isnan(cohort.probability[index])]
        truth = auroc(cohort.outcome[known], cohort.probability[known]) if len(known) else np.nan
        scores["auroc_of_truth"] = None if np.isnan(truth) else truth
    print(json.dumps(scores, indent=1), flush=True)  # first of all: what is written after it may fail
    if out is not None:
        table = pd.DataFrame({"stay": np.asarray(cohort.stays)[index], "probability": probability})
        _write(out, table.to_csv(index=False).encode())


def _score_over(loaded, cohort, index, hours: str, calibrated: bool, figure: Path | None) -> None:
    """`hsetvae evaluate --hours`: a JSON list with a line for each hour."""
    import pandas as pd

    from .calibration import over_hours
    from .plots import over_hours as drawn
    from .report import png

    try:
        asked = [float(hour) for hour in hours.split(",")]
    except ValueError:
        asked = []
    if not asked or not all(0 <= hour < float("inf") for hour in asked):
        raise UserError(f'--hours "{hours}" are not hours from 0 on: write them as 6,12,24')
    _say(hints.late(cohort, index, asked))
    tables = []
    for hour in asked:
        try:
            tables.append(over_hours(loaded, cohort, index, [hour], calibrated).assign(calibrated=calibrated))
        except UserError as error:
            if not calibrated:
                raise
            _say([f"hour {hour:g} is not calibrated: {error}"])
            tables.append(over_hours(loaded, cohort, index, [hour]).assign(calibrated=False))
    table = pd.concat(tables, ignore_index=True)
    if calibrated and not table["calibrated"].any():
        raise UserError("no hour can be calibrated")
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    print("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]", flush=True)
    if figure is not None:
        _write(figure, png(drawn(table)))


@app.command()
def predict(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="CSV to write: stay, probability.")],
    data: DataOption = "simulated",
    outcomes: OutcomesOption = None,
    until: UntilOption = None,
    calibrated: Annotated[
        bool,
        typer.Option("--calibrated", help="Calibrated as the run's validation stays ask for (RUN/calibration.json)."),
    ] = False,
) -> None:
    """Write the probability of the outcome for every stay of a table, which need not hold outcomes."""
    import numpy as np
    import pandas as pd

    from .baselines import is_baseline
    from .calibration import calibrate, probabilities

    hints.refuse_over(out, ".csv", run, data, outcomes)
    loaded, cohort = _run_and_cohort(run, data, outcomes)
    every = np.arange(len(cohort))
    if not is_baseline(run) and until is None:
        hints.refuse_long(cohort, loaded.config.max_sets)
    _say(hints.seen(loaded, cohort, every))
    _say(hints.late(cohort, every, [] if until is None else [until]))
    calibrator = calibrate(loaded, cohort, until) if calibrated else None
    probability = probabilities(loaded, cohort, every, until)
    table = pd.DataFrame({"stay": cohort.stays, "probability": calibrator(probability) if calibrator else probability})
    _write(out, table.to_csv(index=False).encode())


@app.command()
def explain(
    run: RunArgument,
    stay: Annotated[str, typer.Option(help="The stay to explain, as the table names it.")],
    data: DataOption = "simulated",
    until: UntilOption = None,
    window: Annotated[
        float, typer.Option(help="Leave out the events of a variable in windows of this many hours.")
    ] = 6.0,
    rows: Annotated[int, typer.Option(min=1, help="Print this many, the strongest first.")] = 15,
    out: Annotated[Path | None, typer.Option(help="Write the whole table to this CSV.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the stay with its contributions (PNG).")] = None,
) -> None:
    """What drove the prediction of one stay: how far the logit moves without a variable in a window of time."""
    from .explain import explain as contributions
    from .plots import contributions as drawn
    from .report import png

    hints.refuse_over(out, ".csv", run, data)
    hints.refuse_over(figure, ".png", run, data)
    loaded, cohort = _run_and_cohort(run, data, None)
    _say(hints.seen(loaded, cohort, cohort.stays == stay))
    table = contributions(loaded, cohort, stay, window, until)
    print(
        f"stay {stay}: logit {table.attrs['logit']:.3f}; the {min(rows, len(table))} strongest of {len(table)}", end=" "
    )
    print("contributions to it (positive: for the outcome)")
    print(table.drop(columns="stay").head(rows).to_string(index=False, float_format="{:.3g}".format), flush=True)
    if out is not None:
        _write(out, table.to_csv(index=False).encode())
    if figure is not None:
        _write(figure, png(drawn(table)))


@app.command()
def diagnose(
    run: RunArgument,
    data: DataOption = "simulated",
    outcomes: OutcomesOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report; default RUN/diagnosis.")] = None,
) -> None:
    """Measure collapse, use of history, gradients and values, and say what to try: a report in Markdown."""
    from .diagnostics import diagnose as measures_of
    from .report import write_report
    from .skill import skill

    loaded = _finished(run)
    cohort = _cohort(data, outcomes, loaded.variables)
    state = None
    if data == "simulated":
        from .simulate import simulate

        state = simulate().state
    measures = measures_of(loaded, cohort, state=state)
    said = skill(loaded, cohort) if loaded.config.decoder == "likelihood" else None
    path = write_report(loaded, measures, out or run / "diagnosis", said)
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
