"""From the records of a suite to its table: scores of every entrant, paired comparisons, and their words.

Everything is computed from the probabilities that were kept, so a new score or an average needs no training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from . import scores
from .calibration import Calibrator, expected_ece
from .challenge import best_threshold, event1, hosmer_lemeshow
from .config import UserError
from .files import write_atomically
from .lineup import AVERAGE
from .readme import markdown, renewed
from .statistics import ALPHA, ONLY, Comparison, compare, detectable, t_interval, widening
from .study import as_published, csv_of, each_once
from .suite import (
    Suite,
    elsewhere,
    jobs_of,
    placed,
    published,
    published_rows,
    record_of,
    seconds_left,
    span,
    table_key,
)

# name -> title, whether more is better (1) or less (-1), unit of the table: AUROC 0.880 is printed as 88.0
METRICS = {
    "auroc": ("AUROC", 1, 100), "auprc": ("AUPRC", 1, 100), "brier": ("Brier", -1, 100), "ece": ("ECE", -1, 100),
    "ece_calibrated": ("ECE, calibrated", -1, 100), "event1": ("Event 1", 1, 100), "h": ("H", -1, 1),
}  # fmt: skip

# validation, test: probabilities, and each with _index and _outcome; test_6h, …: as known at an hour
Probabilities = dict[str, np.ndarray]


# --- scores ----------------------------------------------------------------------------------------------------------


def scores_of(kept: Probabilities) -> dict[str, float]:
    """METRICS on the test stays, with `validation_` in front on the validation stays; the threshold of Event 1; and
    auroc_6h, auprc_6h, … on the test stays as they were known at hours.

    Threshold and calibration are fitted on the validation stays.  `ece_expected` is the calibration error that the
    calibrated probabilities have on average when all of them are true.
    """
    threshold = best_threshold(kept["validation_outcome"], kept["validation"])
    calibrator, found = _calibrator(kept), {"threshold": threshold}
    for part, before in (("validation", "validation_"), ("test", "")):
        outcome, p = kept[f"{part}_outcome"], kept[part]
        values = {name: getattr(scores, name)(outcome, p) for name in ("auroc", "auprc", "brier", "ece")}
        values |= {"event1": event1(outcome, p, threshold), "h": hosmer_lemeshow(outcome, p)}
        values["ece_calibrated"] = scores.ece(outcome, calibrator(p)) if calibrator else math.nan
        found |= {before + name: values[name] for name in METRICS}
    found["ece_expected"] = expected_ece(calibrator(kept["test"])) if calibrator else math.nan
    for name, p in kept.items():
        if hour := re.fullmatch(r"test_(\S+h)", name):
            for metric in ("auroc", "auprc"):
                found[f"{metric}_{hour[1]}"] = getattr(scores, metric)(kept["test_outcome"], p)
    return found


def _calibrator(kept: Probabilities) -> Calibrator | None:
    """Fitted on the validation stays; None where these show nothing to calibrate."""
    try:
        return Calibrator.fit(kept["validation_outcome"], kept["validation"])
    except UserError:
        return None


def averaged(parts: list[Probabilities]) -> Probabilities:
    """The mean of the probabilities of several entrants on the same split.  UserError when the stays differ."""
    for name in ("validation_index", "test_index"):
        if any(not np.array_equal(part[name], parts[0][name]) for part in parts):
            raise UserError("these probabilities are of different stays: an average needs one split")
    facts = {name: value for name, value in parts[0].items() if name.endswith(("_index", "_outcome"))}
    shared = [name for name in parts[0] if name not in facts and all(name in part for part in parts)]
    return facts | {name: np.mean([part[name] for part in parts], axis=0) for name in shared}


def rows_of(suite: Suite, design: str = "") -> pd.DataFrame:
    """One row per entrant and split of a design that has ended on this machine, averages last.

    Columns design, entrant, those of the record, test_stays and `scores_of`; scores of failed runs are NaN.
    """
    design, splits, entrants = suite.design(design)
    rows, kept = [], {}
    for job in jobs_of(suite, design):
        folder = Path(job["out"])
        if record := record_of(job):
            place = job["entrant"], record["seed"]
            if record["status"] == "finished":
                with np.load(folder / "probabilities.npz") as stored:
                    kept[place] = dict(stored)
            rows.append(_row(design, job["entrant"], record, kept.get(place)))
    costs = {(row["entrant"], row["seed"]): row for row in rows}
    for e in (e for e in entrants if e.kind == AVERAGE):
        for seed in range(splits):
            parts = [(name, seed) for name in e.of]
            if all(part in kept for part in parts):
                rows.append(_row(design, e.name, _average_record([costs[part] for part in parts]),
                                 averaged([kept[part] for part in parts])))  # fmt: skip
    return pd.DataFrame(rows)


def _row(design: str, entrant: str, record: dict, kept: Probabilities | None) -> dict:
    found = {"test_stays": len(kept["test"]), **scores_of(kept)} if kept else {}
    return {"design": design, "entrant": entrant, **record, **found}


def _average_record(parts: list[dict]) -> dict:
    """The record of an average: what its parts cost together."""
    cost = {name: sum(part.get(name) or math.nan for part in parts) for name in ("seconds", "seconds_training")}
    rate = 1 / sum(1 / part["stays_per_second"] for part in parts)
    return {"id": "+".join(part["id"] for part in parts), "kind": AVERAGE, "seed": parts[0]["seed"],
            "status": "finished", "error": "", "stays_per_second": rate, **cost}  # fmt: skip


# --- comparisons -----------------------------------------------------------------------------------------------------


def standings(suite: Suite, rows: pd.DataFrame, design: str = "") -> pd.DataFrame:
    """One line per entrant of a design and metric: mean and SD over the splits, and the paired difference.

    Columns entrant, title, metric, mean, sd, n, failed, against, and of the difference to the entrant `against`
    (NaN without one) estimate, low, high (95 % t interval), low_overlap, high_overlap (the same for splits that share
    stays), p (exact sign flips), pairs, against_mean (of the other entrant, on these pairs), and `words`.
    `rows` are those of `rows_of`, or of the published table.
    """
    design, _, entrants = suite.design(design)
    rows, lines = rows[rows["design"] == design], []
    titles = {e.name: e.title for e in entrants}
    for e in entrants:
        own = rows[rows["entrant"] == e.name].set_index("seed")
        other = rows[rows["entrant"] == e.against].set_index("seed")
        for metric in METRICS:
            values, reference = (part.reindex(columns=[metric])[metric].astype(float) for part in (own, other))
            line = {"entrant": e.name, "title": e.title, "metric": metric, "mean": values.mean(), "sd": values.std(),
                    "n": int(values.count()), "failed": int((own["status"] != "finished").sum()), "words": "",
                    "against": e.against}  # fmt: skip
            if e.against:
                d = (values - reference).dropna().sort_index()
                overlap = suite.overlap(e)
                c, (low, high) = compare(d), t_interval(d, overlap=overlap)
                line |= {"estimate": c.estimate, "low": c.low, "high": c.high, "p": c.p, "pairs": c.n}
                line |= {"low_overlap": low, "high_overlap": high, "against_mean": reference[d.index].mean()}
                line["words"] = wording(metric, c, titles[e.against], low < 0 < high, overlap)
            lines.append(line)
    return pd.DataFrame(lines)


def wording(metric: str, c: Comparison, against: str, only_here: bool = False, overlap: float = 0.0) -> str:
    """What a paired comparison says, uncorrected for other comparisons: the 95 % t interval decides, and it is said
    where the sign flips do not agree, and where the interval that counts the overlap of the splits holds zero
    (`only_here`)."""
    _, better, unit = METRICS[metric]
    if c.n < 3:  # two splits that happen to differ alike have an interval of any width
        return f"not compared with {against} at n={c.n}"
    if not (c.low > 0 or c.high < 0):
        seen = detectable(c.sd, c.n) * widening(c.n, overlap) * unit
        seen = f" (could have seen {seen:.2g})" if seen < math.inf else ""
        return f"not told apart from {against}{seen}" + (", but p by sign flips is below" if c.p < ALPHA else "")
    least = 2 / 2**c.n  # p of the sign flips when all splits agree
    doubt = (
        ""
        if c.p < ALPHA
        else ", p by sign flips is above"
        if least < ALPHA
        else f", p is at least {least:g} at n={c.n}"
    )
    return f"{'better' if np.sign(c.estimate) == better else 'worse'} than {against}{ONLY if only_here else ''}{doubt}"


# --- the table -------------------------------------------------------------------------------------------------------


def rows_at_hand(suite: Suite, design: str = "") -> pd.DataFrame:
    """The rows of a design from this machine's records and, where it has none, the published ones.

    Published rows count if they are of the present code and settings and of the table of events; where that is not at
    hand, of the one that the last published row saw.
    """
    design, kept = suite.design(design)[0], published_rows(suite)
    if suite.data.is_file() or not len(kept):
        rows = each_once(as_published(rows_of(suite, design)), placed(suite, kept, design), by=("entrant", "seed"))
    else:
        rows = placed(suite, kept, design, here=False)
    if not len(rows):
        command = f"hsetvae study run --suite {suite.name} --design {design} --data FILE"
        raise UserError(f"no run of design {design} has ended: {command}")
    return rows


def report(suite: Suite, design: str = "") -> str:
    """The table of a design and its comparisons as text, with what failed and what is missing."""
    design, splits, entrants = suite.design(design)
    rows = rows_at_hand(suite, design)
    table = standings(suite, rows, design)
    wide = max(len(e.title) for e in entrants) + 2
    lines = [f"{suite.title}: design {design}, {splits} splits, mean ± SD, times 100 except H", ""]
    lines += [" " * wide + "".join(f"{title:>17}" for title, _, _ in METRICS.values()) + f"{'n':>5}{'minutes':>9}"]
    for e in entrants:
        cells = table[table["entrant"] == e.name].set_index("metric")
        numbers = [(cells.at[m, "mean"] * unit, cells.at[m, "sd"] * unit) for m, (_, _, unit) in METRICS.items()]
        shown = ["–" if math.isnan(mean) else f"{mean:.2f} ± {sd:.2f}" for mean, sd in numbers]
        minutes = rows.loc[rows["entrant"] == e.name, "seconds"].mean() / 60
        lines.append(f"{e.title:{wide}}" + "".join(f"{x:>17}" for x in shown) + f"{cells['n'].max():>5}{minutes:>9.1f}")
    lines += ["", "paired differences: 95 % t interval, the same for splits that share stays, exact sign-flip p"]
    for e in (e for e in entrants if e.against):
        lines += [f"{e.title}"]
        for row in table[table["entrant"] == e.name].itertuples():
            title, _, unit = METRICS[row.metric]
            seen = f"{row.estimate * unit:+.2f} [{row.low * unit:+.2f}, {row.high * unit:+.2f}] "
            seen += f"[{row.low_overlap * unit:+.2f}, {row.high_overlap * unit:+.2f}], p {row.p:.3g}, "
            lines.append(f"  {title:8} {seen if row.pairs > 1 else ''}n={int(row.pairs)}: {row.words}")
    failed = rows[rows["status"] != "finished"]
    lines += ["", f"{len(failed)} runs failed, {_missing(suite, rows, design)} are missing"]
    return "\n".join([*lines, *(f"  {row.entrant}, split {row.seed}: {row.error}" for row in failed.itertuples())])


def _missing(suite: Suite, rows: pd.DataFrame, design: str) -> int:
    _, splits, entrants = suite.design(design)
    there = set(zip(rows["entrant"], rows["seed"], strict=True)) if len(rows) else set()
    return len({(e.name, seed) for e in entrants if e.kind != AVERAGE for seed in range(splits)} - there)


def status(suite: Suite, design: str = "") -> str:
    """Number of runs per entrant that are finished or failed on this machine, published by another one, or missing, and
    what is left, as text."""
    jobs = jobs_of(suite, design)
    ids = elsewhere(suite, jobs, design)

    def state(job: dict) -> str:
        record = record_of(job)
        return record["status"] if record else "published" if job["facts"]["id"] in ids else "missing"

    rows = [(job["entrant"], state(job)) for job in jobs]
    table = pd.crosstab(*zip(*rows, strict=True), rownames=["entrant"], colnames=["state"]).reset_index()
    left = seconds_left([job for job in jobs if state(job) != "published"])
    left = f"about {span(left)} left, one run after another" if "missing" in table else "nothing is missing"
    return f"{table.to_string(index=False)}\n{left}"


def as_markdown(suite: Suite, rows: pd.DataFrame, translated: Callable[[str], str] = str) -> str:
    """Mean AUROC and AUPRC of every entrant, in brackets that of the suite's rival, and its paired differences for a
    README; times 100, 95 % t intervals.  From two splits on that both have run, all are of these splits."""
    table, shown = standings(suite, rows).set_index(["entrant", "metric"]), ("auroc", "auprc")
    rivals = table.loc[table["against"] != "", "against"]
    rival = rivals.mode().iloc[0] if len(rivals) else ""
    head = ["who", *(METRICS[m][0] + (f" ({rival} there)" if rival else "") for m in shown)]
    head += [f"{METRICS[m][0]} minus {rival} [95 %]" for m in shown if rival] + ["splits"]
    lines = []
    for entrant in (e for e in table.index.unique(0) if table.at[(e, "auroc"), "n"]):
        cells = [table.loc[(entrant, m)] for m in shown]
        paired = [bool(rival) and c.against == rival and c.pairs > 1 for c in cells]
        means = [f"{100 * (c.against_mean + c.estimate):.1f} ({100 * c.against_mean:.1f})" if p
                 else f"{100 * c['mean']:.1f}" for c, p in zip(cells, paired, strict=True)]  # fmt: skip
        apart = [f"{100 * c.estimate:+.2f} [{100 * c.low:+.2f}, {100 * c.high:+.2f}]" if p else ""
                 for c, p in zip(cells, paired, strict=True) if rival]  # fmt: skip
        lines.append([translated(cells[0].title), *means, *apart, f"{cells[0].pairs if paired[0] else cells[0].n:.0f}"])
    return markdown([translated(name) for name in head], lines)


def publish(suite: Suite, design: str = "") -> str:
    """Write the rows of a design to results/NAME_suite.csv, which is committed and which the book reads, and the table
    to the READMES -> what was done.

    Rows published before stay where they fit the present code and settings and are not on this machine; UserError when
    they are of another table of events.
    """
    design, path = suite.design(design)[0], published(suite)
    before, here = published_rows(suite), suite.data.is_file()
    if here and set(before["table"].dropna()) - {table_key(suite)}:
        raise UserError(
            f"{path} holds rows of another table of events than {suite.data}: name theirs with --data, or move that "
            "file away to begin anew"
        )
    rows = rows_at_hand(suite, design)
    missing = _missing(suite, rows, design)
    others = [before[before["design"] == d] for d in suite.designs if d != design and (before["design"] == d).any()]
    others = [placed(suite, before, part["design"].iloc[0]) for part in others] if here else others
    rows = pd.concat([part for part in (rows, *others) if len(part)])
    rows = rows.assign(table=table_key(suite)) if here else rows
    write_atomically(path, csv_of(rows).encode())
    if design == suite.design()[0]:
        renewed(suite.folder.parent, lambda language: {suite.name: as_markdown(suite, rows, language)})
    return f"wrote {path}: {len(rows)} rows; {missing} runs of design {design} are missing"
