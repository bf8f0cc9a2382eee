"""Records of a study's runs -> paired effects -> verdicts.

A record is one row per run.  Effects are computed from records only, and a record made by other code, data or settings
is never shown.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from pathlib import Path

import pandas as pd

from .config import UserError
from .declaration import Study, expand
from .files import write_atomically
from .statistics import Comparison, compare, holm, verdict


class StaleRecords(UserError):
    """Records are missing, or were made by other code, data or settings than the present ones."""


# --- records ---------------------------------------------------------------------------------------------------------


def runs_folder(study: Study, budget: str) -> Path:
    """Where the runs of a budget lie, a folder each (HSETVAE_RUNS replaces ablations/runs)."""
    return Path(os.environ.get("HSETVAE_RUNS", study.folder / "runs")) / budget


def published(study: Study, budget: str) -> Path:
    return study.folder / "results" / f"{budget}.csv"


def local_records(study: Study, budget: str) -> pd.DataFrame:
    """One row per run of the present declaration that has ended on this machine; failed ones have status "failed"."""
    rows = []
    for spec in expand(study, budget):
        path = runs_folder(study, budget) / spec.id / "record.json"
        if path.exists():
            rows.append(json.loads(path.read_text()))
    return pd.DataFrame(rows)


def load_records(study: Study, budget: str) -> pd.DataFrame:
    """The records of all runs of a budget: this machine's when complete, else the published ones when they fit.

    Raises StaleRecords, with the number of runs that are missing, when neither is complete for the present code.
    """
    wanted = [spec.id for spec in expand(study, budget)]
    local = local_records(study, budget)
    if len(local) == len(wanted):
        return local
    table = published(study, budget)
    found = pd.read_csv(table, dtype={"id": str}) if table.exists() else pd.DataFrame({"id": []})
    fitting = found[found["id"].isin(wanted)]
    if len(fitting) == len(wanted):
        return fitting.reset_index(drop=True)
    raise StaleRecords(
        f"the {budget} records are not of the present code and declaration: {len(wanted) - len(local)} of "
        f"{len(wanted)} runs are missing; `hsetvae study run --budget {budget}` makes them"
    )


def publish(study: Study, budget: str) -> Path:
    """Write this machine's complete records to results/<budget>.csv, which is committed and which the book reads."""
    records, wanted = local_records(study, budget), expand(study, budget)
    if len(records) < len(wanted):
        raise UserError(f"{len(wanted) - len(records)} of {len(wanted)} runs are missing: run the suite first")
    path = published(study, budget)
    write_atomically(path, records.to_csv(index=False, float_format="%.6g").encode())
    return path


# --- effects ---------------------------------------------------------------------------------------------------------


def effects(study: Study, records: pd.DataFrame, question: str, measure: str) -> pd.Series:
    """Paired differences changed − reference of a measure, one per replicate (index), averaged over the settings of
    the other factors; a pair with a failed run drops out, and a replicate without a pair is missing."""
    factors = [name for name in study.factorial if name != question]
    rows = records[records["status"] == "finished"]
    if rows.empty:
        return pd.Series(dtype=float)
    for name in study.questions:
        if name not in study.factorial and name != question and name in rows:
            rows = rows[rows[name] != "changed"]
    if question not in study.factorial:
        rows = rows[(rows[factors] == "reference").all(axis=1)]
    side = rows[question].where(rows[question] == "changed", "reference")
    table = rows.assign(side=side).pivot(index=["replicate", *factors], columns="side", values=measure)
    if not {"changed", "reference"} <= set(table.columns):
        return pd.Series(dtype=float)
    return (table["changed"] - table["reference"]).dropna().groupby("replicate").mean()


def interaction(study: Study, records: pd.DataFrame, a: str, b: str, measure: str) -> pd.Series:
    """Half the difference of the effect of `a` between the settings of `b`, one per replicate (both factors)."""
    rows = records[(records["status"] == "finished")]
    rows = rows[rows[[n for n in study.questions if n not in study.factorial]].ne("changed").all(axis=1)]
    parts = [effects(study, rows[rows[b] == level], a, measure) for level in ("changed", "reference")]
    return ((parts[0] - parts[1]) / 2).dropna()


def summary(study: Study, records: pd.DataFrame) -> pd.DataFrame:
    """Every question on every endpoint: question, endpoint, the fields of Comparison, verdict ("" unless it is the
    question's own endpoint).  Holm's correction holds over the questions within a family of endpoints."""
    rows = []
    for (name, q), (measure, e) in itertools.product(study.questions.items(), study.endpoints.items()):
        rows.append({"question": name, "endpoint": measure, "family": e.family, "primary": q.endpoint == measure,
                     **dataclasses.asdict(compare(effects(study, records, name, measure)))})  # fmt: skip
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby("family")["p"].transform(lambda p: holm(p.to_numpy()))
    names = [f.name for f in dataclasses.fields(Comparison)]
    table["verdict"] = [
        verdict(Comparison(**{n: row[n] for n in names}), study.questions[row.question].direction,
                study.endpoints[row.endpoint].delta, failed_share(study, records, row.question))
        if row.primary else "" for _, row in table.iterrows()
    ]  # fmt: skip
    return table


def failed_share(study: Study, records: pd.DataFrame, question: str) -> float:
    """Share of the runs behind a question that did not finish."""
    rows = records if question in study.factorial else records[records[question].isin(["changed"])]
    return float((rows["status"] != "finished").mean())


def interactions(study: Study, records: pd.DataFrame, question: str) -> pd.DataFrame:
    """Interactions of a factor with the other factors on every endpoint, corrected together: other, endpoint, …"""
    rows = [
        {"other": other, "endpoint": measure,
         **dataclasses.asdict(compare(interaction(study, records, question, other, measure)))}
        for other in study.factorial if other != question for measure in study.endpoints
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"].to_numpy()))


def report(study: Study, budget: str) -> str:
    """The verdict table as text, with what failed.  Raises StaleRecords when records are missing."""
    records = load_records(study, budget)
    table = summary(study, records)
    lines = [f"{study.title}: {len(records)} runs, {records['replicate'].nunique()} replicates, budget {budget}", ""]
    for _, row in table[table["primary"]].iterrows():
        q, e = study.questions[row.question], study.endpoints[row.endpoint]
        lines += [
            f"{q.name}: {q.claim}",
            f"  {row.verdict}",
            f"  {e.name} {row.estimate:+.4f} [{row.low:+.4f}, {row.high:+.4f}], claimed "
            f"{'up' if q.direction > 0 else 'down'}, matters from {e.delta:g}, Holm p {row.p_holm:.3g}, n={row.n}",
        ]
    failed = records[records["status"] != "finished"]
    lines += ["", f"{len(failed)} runs failed"] + [f"  {row.id}: {row.error}" for _, row in failed.iterrows()]
    if other := int((records["declaration"] != study.key).sum()):
        lines.append(f"{other} runs were made before the declaration was last changed")
    return "\n".join(lines)


def status(study: Study, budget: str) -> pd.DataFrame:
    """Number of runs per arm that are finished, failed or missing on this machine."""
    local = local_records(study, budget)
    state = dict(zip(local["id"], local["status"], strict=True)) if len(local) else {}
    rows = [
        {"arm": spec.name.rpartition(", ")[0], "state": state.get(spec.id, "missing")} for spec in expand(study, budget)
    ]
    return pd.crosstab(*(pd.DataFrame(rows)[c] for c in ("arm", "state"))).reset_index()
