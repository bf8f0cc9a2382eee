"""Records of a study's runs -> paired effects -> verdicts.

A record is one row per run.  Effects are computed from records only, and a record made by other code, data or settings
is never shown.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .config import UserError, nearest
from .declaration import Question, Study
from .designs import expand, plan, table_hash
from .files import write_atomically
from .statistics import ONLY, Comparison, compare, compare_events, holm, verdict

DIVERGED = "TrainingDiverged"  # how the error of a run begins whose training diverged: a result, not a mishap
# what the words of a paired comparison mean where the other side is a fixed value that nothing was changed from
AT_A_BOUND = {"refuted: harmful": "refuted", "refuted: negligible": "undecided (closer to the bound than matters)"}
NOT_SEEN = ("refuted: negligible", "undecided")  # not earned by a change that has no room to show itself
COMPARED = [f.name for f in dataclasses.fields(Comparison)]
HASHES = dict.fromkeys(("id", "declaration", "code", "table"), str)  # may look like numbers
# differ between equal runs
HOST = "id arm changes declaration code table status error seconds seconds_training date".split()


class StaleRecords(UserError):
    """Records are missing, or were made by other code, data or settings than the present ones."""


# --- records ---------------------------------------------------------------------------------------------------------


def runs_folder(study: Study) -> Path:
    """Where runs lie, a folder each, named by their hash (HSETVAE_RUNS replaces ablations/runs)."""
    return Path(os.environ.get("HSETVAE_RUNS", study.folder / "runs"))


def ended_record(folder: Path) -> dict[str, Any] | None:
    """The record of a run that need not run again: a finished one, or one that diverged and would diverge again."""
    record = read_record(folder)
    return record if record and _ended(record) else None


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a run; None where there is none that can be read: the run is made again."""
    try:
        return json.loads((folder / "record.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def _ended(record: dict[str, Any]) -> bool:
    return record["status"] == "finished" or str(record["error"]).startswith(DIVERGED)


def published(study: Study, budget: str) -> Path:
    return study.folder / "results" / f"{study.elsewhere + '-' if study.elsewhere else ''}{budget}.csv"


def replicated(study: Study, budget: str) -> Path:
    """Where records of the same runs lie that another machine has made."""
    return published(study, f"{budget}_replication")


def local_records(study: Study, budget: str = "", design: str = "") -> pd.DataFrame:
    """One row per run of a design that has ended on this machine; failed ones have status "failed"."""
    return records_of(study, [spec.id for spec in expand(study, budget, design)])


def records_of(study: Study, ids: Sequence[str]) -> pd.DataFrame:
    """The records of some runs that have ended on this machine, each once."""
    rows = []
    for name in dict.fromkeys(ids):
        if record := read_record(runs_folder(study) / name):
            rows.append(record)
    return pd.DataFrame(rows)


def published_records(study: Study, budget: str) -> pd.DataFrame:
    table = published(study, budget)
    return pd.read_csv(table, dtype=HASHES) if table.exists() else pd.DataFrame({"id": []})


def csv_of(records: pd.DataFrame) -> str:
    """Records as they are published: CSV with six significant digits."""
    return records.to_csv(index=False, float_format="%.6g")


def as_published(records: pd.DataFrame) -> pd.DataFrame:
    """Records as they would be read back, so that ties stay ties between runs of this machine and published ones."""
    return pd.read_csv(io.StringIO(csv_of(records)), dtype=HASHES) if len(records) else records


def published_ids(records: pd.DataFrame) -> set[str]:
    """The runs of a published table that need not run again."""
    return {row["id"] for row in records.to_dict("records") if _ended(row)}


def each_once(*tables: pd.DataFrame, by: tuple[str, ...] = ("id",)) -> pd.DataFrame:
    """The records of several tables, each run once: a result comes before a failure, the first table before others."""
    found = [table for table in tables if len(table)]
    if not found:
        return pd.DataFrame({name: [] for name in by})
    both = pd.concat(found, ignore_index=True)
    failed = [not _ended(row) for row in both[["status", "error"]].to_dict("records")]
    return both.iloc[np.argsort(failed, kind="stable")].drop_duplicates(list(by)).sort_index().reset_index(drop=True)


def load_records(study: Study, budget: str = "", design: str = "") -> pd.DataFrame:
    """The records of all runs of a design: this machine's where it has them, else the published ones that fit.

    Beside what a run left, a row says which `arm` it is and, of a crossed factor, "reference" or "changed".  When the
    study's table is not at hand, it is the one that the last published run saw.
    Raises StaleRecords, with the number of runs that are missing, when some are missing for the present code, and
    UserError for an endpoint that no run measures.
    """
    budget, design = budget or study.design(design).budget, study.design(design).name
    known = published_records(study, budget)
    specs = expand(study, budget, design, table=_table(study, known))
    local = as_published(records_of(study, [spec.id for spec in specs]))
    records = each_once(local, known)
    wanted = {spec.id for spec in specs}
    if missing := len(wanted - set(records["id"])):
        raise StaleRecords(
            f"the {budget} records of design {design} are not of the present code and declaration: {missing} of "
            f"{len(wanted)} runs are missing; `hsetvae study run{study.options} --design {design} --budget {budget}` "
            "makes them"
        )
    labels = labelled(study, specs, records)
    unknown = [name for name in study.endpoints if name not in labels]
    if unknown and (labels["status"] == "finished").any():
        raise UserError(f'{study.file}: no run measures "{unknown[0]}", [endpoints]{nearest(unknown[0], labels)}')
    return labels


def _table(study: Study, known: pd.DataFrame) -> str:
    """The hash of the study's table, of which records are known: they can be read where the table is not."""
    try:
        return table_hash(study)
    except UserError as error:
        if "table" in known:
            return str(known["table"].iloc[-1])
        if study.elsewhere:
            raise StaleRecords(str(error)) from None
        raise


def labelled(study: Study, specs: list, records: pd.DataFrame) -> pd.DataFrame:
    """The records of `specs`, in their order, with the columns arm, diverged and one per crossed factor."""
    rows = records.set_index("id").loc[[spec.id for spec in specs]].reset_index()
    labels = {"arm": [spec.arm.name for spec in specs]}
    for q in (study.questions[name] for name in study.factorial):
        turned = [q.changed.items() <= spec.arm.settings.items() for spec in specs]
        labels[q.name] = np.where(turned, "changed", "reference")
    diverged = np.where(rows["error"].astype(str).str.startswith(DIVERGED), 1.0, np.nan)
    labels["diverged"] = np.where(rows["status"] == "finished", 0.0, diverged)
    return rows.assign(**labels)


def publish(study: Study, budget: str = "", design: str = "") -> tuple[Path, int]:
    """Write a design's records to results/<budget>.csv, which is committed and which the book reads -> the file, and
    how many runs of the design it still lacks.

    What was published there before stays as long as it fits the present code and declaration.  Verdicts wait until
    nothing is missing; a part that is published need not run again on another machine (`run_study(published=True)`).
    """
    budget = budget or study.design(design).budget
    specs = expand(study, budget, design)
    records = local_records(study, budget, design)
    if not len(records):
        raise UserError(f"no run of design {study.design(design).name} has ended on this machine: run it first")
    known = {spec.id for name in study.designs for spec in expand(study, budget, name)}
    before = published_records(study, budget)
    path, tables = published(study, budget), set(before["table"].dropna() if "table" in before else ())
    if study.elsewhere and tables - {table_hash(study)}:
        raise UserError(f"{path} holds records of another table of this name: rename one table, or delete the file")
    before = before[before["id"].isin(known)]
    both = each_once(records, before)
    write_atomically(path, csv_of(both).encode())
    return path, len({spec.id for spec in specs} - set(both["id"]))


# --- effects ---------------------------------------------------------------------------------------------------------


class _Table:
    """Measures of a design's records as an array [arm, replicate, measure]; NaN where a run failed."""

    def __init__(self, study: Study, records: pd.DataFrame, measures: Sequence[str], design: str) -> None:
        self.study, (arms, self.contrasts) = study, plan(study, design)
        self.place = {arm.name: i for i, arm in enumerate(arms)}
        self.measures = list(measures)
        arm = records["arm"].map(self.place).to_numpy(dtype=float)
        self.replicates, replicate = np.unique(records["replicate"].to_numpy(), return_inverse=True)
        self.values = np.full((len(arms), len(self.replicates), len(measures)), np.nan)
        of_design = ~np.isnan(arm)
        where = arm[of_design].astype(int), replicate[of_design]
        found = records.reindex(columns=self.measures).to_numpy(dtype=float)
        self.values[where] = found[of_design]
        self.failed, self.diverged = np.zeros((2, *self.values.shape[:2]), dtype=bool)
        self.failed[where] = (records["status"] != "finished").to_numpy()[of_design]
        if "diverged" in records:
            self.diverged[where] = (records["diverged"] == 1).to_numpy()[of_design]

    def differences(self, question: str) -> np.ndarray:
        """Changed − reference of every measure, a mean over the question's contrasts -> (replicate, measure)."""
        asked = [c for c in self.contrasts if c.question == question]
        if not asked:
            return np.full(self.values.shape[1:], np.nan)
        changed = self.values[[self.place[c.changed.name] for c in asked]]
        bound = self.study.questions[question].bound
        if bound is None:
            pairs = changed - self.values[[self.place[c.reference.name] for c in asked]]
        else:
            pairs = changed - bound
        there = ~np.isnan(pairs)  # (contrast, replicate, measure)
        number = there.sum(axis=0)
        total = np.where(there, pairs, 0.0).sum(axis=0)
        return np.divide(total, number, out=np.full(number.shape, np.nan), where=number > 0)

    def failed_share(self, question: Question) -> float:
        """Share of the runs behind a question that did not finish; where divergence is what is measured, a run that
        diverged has not failed."""
        arms = {
            arm.name for c in self.contrasts if c.question == question.name for arm in (c.changed, c.reference) if arm
        }
        failed = self.failed & ~self.diverged if question.endpoint == "diverged" else self.failed
        return float(failed[[self.place[name] for name in arms]].mean())

    def reference(self, question: Question) -> float:
        """Mean of a question's endpoint over the runs without the change; NaN where none has it."""
        arms = [self.place[c.reference.name] for c in self.contrasts if c.question == question.name and c.reference]
        values = self.values[arms, :, self.measures.index(question.endpoint)]
        return float(values[~np.isnan(values)].mean()) if np.isfinite(values).any() else np.nan


def effects(study: Study, records: pd.DataFrame, question: str, measure: str, design: str = "") -> pd.Series:
    """Paired differences changed − reference of a measure, one per replicate (index), averaged over the question's
    contrasts in the design; a pair with a failed run drops out, and a replicate without a pair is missing."""
    if not len(records):
        return pd.Series(dtype=float)
    table = _Table(study, records, [measure], design)
    return pd.Series(table.differences(question)[:, 0], index=table.replicates).dropna()


def compared(measure: str, d: np.ndarray) -> Comparison:
    """What paired differences of a measure say; `diverged` happens in a run or does not and has exact bounds."""
    return (compare_events if measure == "diverged" else compare)(d)


def interaction(study: Study, records: pd.DataFrame, a: str, b: str, measure: str) -> pd.Series:
    """Half the difference of the effect of `a` between the settings of `b`, one per replicate (both factors)."""
    parts = [effects(study, records[records[b] == level], a, measure) for level in ("changed", "reference")]
    return ((parts[0] - parts[1]) / 2).dropna()


def asked(study: Study, design: str = "") -> list[Question]:
    """The questions of a design, in the order of the declaration."""
    names = {c.question for c in plan(study, design)[1]}
    return [q for q in study.questions.values() if q.name in names]


def summary(study: Study, records: pd.DataFrame, design: str = "") -> pd.DataFrame:
    """Every question of a design on every endpoint: question, endpoint, the fields of Comparison, the number of
    questions that it is corrected for, verdict ("" unless it is the question's own endpoint).

    Holm's correction holds within a family over the questions that are judged by one of its endpoints; the other
    endpoints are read beside them and corrected among themselves.
    """
    table, rows = _Table(study, records, list(study.endpoints), design), []
    for q in asked(study, design):
        for (measure, e), d in zip(study.endpoints.items(), table.differences(q.name).T, strict=True):
            if q.bound is None or measure == q.endpoint:
                place = {"question": q.name, "endpoint": measure, "family": e.family, "primary": measure == q.endpoint}
                rows.append(place | vars(compared(measure, d[~np.isnan(d)])))
    for corrected in {(row["family"], row["primary"]) for row in rows}:
        together = [row for row in rows if (row["family"], row["primary"]) == corrected]
        for row, p in zip(together, holm([row["p"] for row in together]), strict=True):
            row |= {"p_holm": float(p), "corrected_for": len(together), "verdict": ""}
    for row in (row for row in rows if row["primary"]):
        q, c = study.questions[row["question"]], Comparison(**{name: row[name] for name in COMPARED})
        e, failed = study.endpoints[row["endpoint"]], table.failed_share(q)
        words = verdict(c, q.direction, e.delta, failed, row["corrected_for"], study.overlap)
        if q.bound is not None:
            plain = words.removesuffix(ONLY)
            meant = AT_A_BOUND.get(plain, plain)
            words = meant if meant.startswith("undecided") else meant + words.removeprefix(plain)
        elif words.startswith(NOT_SEEN) and e.room(at := table.reference(q), q.direction) < e.delta:
            words = f"not evaluable: no room to move (the reference is at {at:.3g})"
        row["verdict"] = words
    return pd.DataFrame(rows)


def interactions(study: Study, records: pd.DataFrame, question: str) -> pd.DataFrame:
    """Interactions of a factor with the other factors on the factors' endpoints, corrected together: other, …"""
    measures = dict.fromkeys(study.questions[name].endpoint for name in study.factorial)
    rows = [
        {"other": other, "endpoint": measure,
         **dataclasses.asdict(compare(interaction(study, records, question, other, measure)))}
        for other in study.factorial if other != question for measure in measures
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"].to_numpy()))


def steps(study: Study, records: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The roadmap as a table: order (0 = as declared), step (0 = the start), label, arm, replicate, value."""
    rows, order, step = [], -1, 0
    for c in plan(study, "roadmap")[1]:
        step += 1
        if c.reference.name == "reference":
            order, step = order + 1, 1
            rows.append((order, 0, "reference", "reference"))
        rows.append((order, step, c.question, c.changed.name))
    places = pd.DataFrame(rows, columns=["order", "step", "label", "arm"])
    return places.merge(records[["arm", "replicate", measure]].rename(columns={measure: "value"}), on="arm")


# --- what is there --------------------------------------------------------------------------------------------------


def status(study: Study, budget: str = "", design: str = "") -> pd.DataFrame:
    """Number of runs per arm that are finished or failed on this machine, published by another one, or missing."""
    ended = published_ids(published_records(study, budget or study.design(design).budget))
    local = local_records(study, budget, design).to_dict("records")
    state = {row["id"]: row["status"] for row in local if _ended(row) or row["id"] not in ended}
    state = dict.fromkeys(ended, "published") | state  # a failure here takes no result away
    rows = [(spec.arm.name, state.get(spec.id, "missing")) for spec in expand(study, budget, design)]
    return pd.crosstab(*zip(*rows, strict=True), rownames=["arm"], colnames=["state"]).reset_index()
