"""One table of verdicts for the whole ledger of claims, shared by the book, both READMEs and `hsetvae study report`.

A row of the ledger is judged by the questions and controls that name it: crossed factors by the factorial, all other
questions by add-one-in.  A row that no arm can judge says where its instrument is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from .config import UserError, nearest
from .declaration import Control, Study
from .designs import plan
from .files import write_atomically
from .jobs import host_facts
from .readme import markdown, renewed
from .study import HOST, StaleRecords, load_records, published, summary

COLUMNS = ["row", "claim", "verdict", "effect", "n", "data", "judged by"]
NOT_RUN = "not yet run"
HEAD = ["row", "claim", "verdict", "effect [95 %]", "n", "data"]


def verdicts(study: Study, budget: str = "") -> pd.DataFrame:
    """One line per row of the ledger and question or control that judges it: COLUMNS, all text.

    Designs without complete records of the present code and declaration, at `budget` or at their own when it is empty,
    give "not yet run".  What other tables that the study declares have to say follows on the lines of the same claim.
    """
    judged = {name: [found] for name, found in (_controls(study, budget) | _questions(study, budget)).items()}
    for table in () if study.elsewhere else study.tables.values():
        for name, found in _questions(study.on(table.source), budget).items():
            judged[name] += [found] if found[0] != NOT_RUN else []
    lines, named = [], set()
    path = study.folder / "ledger.csv"
    ledger = pd.read_csv(path, keep_default_na=False) if path.exists() else pd.DataFrame({"id": []})
    claims = {**study.controls, **study.questions}
    for row in ledger.itertuples():
        judges = [name for name, one in claims.items() if row.id in one.ledger]
        named |= set(judges)
        lines += [(row.id, claims[name].claim, *found) for name in judges for found in judged[name]]
        if not judges:
            lines.append((row.id, row.claim, "not evaluable: an instrument, no arm", "", "", "", row.shown))
    rest = [name for name in claims if name not in named]
    lines += [("", claims[name].claim, *found) for name in rest for found in judged[name]]
    return pd.DataFrame(lines, columns=COLUMNS)


def _questions(study: Study, budget: str) -> dict[str, tuple[str, ...]]:
    """Question -> verdict, effect, n, data, judged by."""
    found = {}
    for design in [name for name in ("add", "factorial") if name in study.designs]:
        names = study.factorial if design == "factorial" else study.questions
        found |= {name: (NOT_RUN, "", "", "", f"{name}, {design}") for name in names}
        try:
            records = load_records(study, budget, design)
        except StaleRecords:
            continue
        table = summary(study, records, design)
        for row in table[table["primary"]].itertuples():
            q = study.questions[row.question]
            beyond = "" if q.bound is None else f" beyond {q.bound:g}"
            effect = f"{row.endpoint} {row.estimate:+.3g} [{row.low:+.3g}, {row.high:+.3g}]{beyond}" if row.n else ""
            found[q.name] = (row.verdict, effect, str(row.n), _data(study, budget, design), f"{q.name}, {design}")
    return found


def _controls(study: Study, budget: str) -> dict[str, tuple[str, ...]]:
    found = {name: (NOT_RUN, "", "", "", f"{name}, controls") for name in study.controls}
    if "controls" in study.designs:
        try:
            table = control_table(study, load_records(study, budget, "controls"))
        except StaleRecords:
            return found
        for row in table.itertuples():
            words = "supported" if row.holds else "refuted: the control does not hold"
            seen = f"{row.seen} (wanted {row.wanted})"
            found[row.control] = (words, seen, str(row.n), _data(study, budget, "controls"), f"{row.control}, controls")
    return found


def _data(study: Study, budget: str, design: str) -> str:
    if study.data["source"] != "simulated":
        return Path(study.data["source"]).stem
    stays = (study.data | study.budget(budget or study.design(design).budget))["stays"]
    return f"simulated, {stays} stays"


def control_table(study: Study, records: pd.DataFrame) -> pd.DataFrame:
    """Every control: control, claim, wanted, seen, n, holds.  A control with a failed run does not hold."""
    rows, reference = [], records[records["arm"] == "reference"]
    for c in plan(study, "controls")[1]:
        control, arm = study.controls[c.question], records[records["arm"] == c.changed.name]
        wanted, seen, holds = _held(control, arm, reference)
        complete = bool((arm["status"] == "finished").all())
        rows.append((control.name, control.claim, wanted, seen, len(arm), holds and complete))
    return pd.DataFrame(rows, columns=["control", "claim", "wanted", "seen", "n", "holds"])


def _held(control: Control, arm: pd.DataFrame, reference: pd.DataFrame) -> tuple[str, str, bool]:
    if control.between is None:
        of_machine = [*HOST, *host_facts()]
        a, b = (side.drop(columns=of_machine, errors="ignore").sort_values("replicate") for side in (arm, reference))
        different = [n for n in a if not (a[n].reset_index(drop=True)).equals(b[n].reset_index(drop=True))]
        return "every number of the reference, to six digits", f"measures that differ: {len(different)}", not different
    low, high = control.between
    if control.measure not in arm and (arm["status"] == "finished").any():
        hint = nearest(control.measure, arm)
        raise UserError(f'[controls.{control.name}]: no record has the measure "{control.measure}"{hint}')
    mean = arm.get(control.measure, pd.Series(dtype=float)).mean()  # NaN when no run has ended well
    return f"{control.measure} from {low:g} to {high:g}", f"{control.measure} {mean:.3g}", bool(low <= mean <= high)


def as_text(table: pd.DataFrame) -> str:
    """The table for a terminal: three lines a claim."""
    lines = []
    for row in table.to_dict("records"):
        lines.append(f"{row['row'] or '--':3} {row['claim']}")
        lines.append(f"    {row['verdict']}")
        if row["effect"]:
            lines.append(f"    {row['effect']}, n={row['n']}, {row['data']} ({row['judged by']})")
    return "\n".join([*lines, "", tally(table)])


def tally(table: pd.DataFrame) -> str:
    """How often each verdict was given, in one sentence; in one more for each table that follows on the same claims.

    A claim that stands behind several rows of the ledger counts once.
    """
    table = table.drop_duplicates(["claim", "judged by", "data"])
    words = table["verdict"].str.partition(" at n=")[0].str.partition(" (")[0]
    words = words.where(words != "not evaluable: an instrument, no arm", "no arm can judge")
    further = table.duplicated(["claim", "judged by"])
    counts = [
        (f"On {name}: " * bool(name), "; ".join(f"{word}: {number}" for word, number in part.value_counts().items()))
        for name, part in words.groupby(table["data"].where(further, ""), sort=False)
    ]
    return " ".join(f"{place}{said}." for place, said in counts)


def crossed(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of the crossed factors, each claim once for each table of events."""
    return table[table["judged by"].str.endswith(", factorial")].drop_duplicates(["claim", "data"])


def meanings(study: Study, table: pd.DataFrame) -> str:
    """What the measures are by which the claims were judged, one line each, for a README."""
    named = set(table["effect"].str.partition(" ")[0])
    return "\n".join(f"- `{e.name}`: {e.text} ({e.unit})" for e in study.endpoints.values() if e.name in named)


def as_markdown(table: pd.DataFrame, translated: Callable[[str], str] = str, head: Sequence[str] = tuple(HEAD)) -> str:
    """The table for a README, without what was not run; all but the claims goes through `translated`."""
    run = table[table["verdict"] != NOT_RUN].rename(columns={"effect": "effect [95 %]"})
    cells = [
        [(str if name in ("row", "claim") else translated)(str(row[name])) for name in head]
        for row in run.to_dict("records")
    ]
    return markdown([translated(name) for name in head], cells)


def sections(study: Study, table: pd.DataFrame, translated: Callable[[str], str] = str) -> dict[str, str]:
    """What stands between the marks of a README: the crossed factors, their claims translated as well, and the whole
    ledger with its measures."""
    ledger = [translated(tally(table)), as_markdown(table, translated), meanings(study, table)]
    factors = crossed(table).assign(claim=lambda found: found["claim"].map(translated))
    return {"findings": as_markdown(factors, translated, HEAD[1:]), "verdicts": "\n\n".join(ledger)}


def publish_verdicts(study: Study, budget: str = "") -> list[Path]:
    """Write results/verdicts.csv, and the marked sections of the READMES beside the study's folder that have one.

    Verdicts on other data than the declared ones rest on records at `budget` and go to a file of their own, with what
    was judged, and not to a README; those on the declared data, and on the tables that are declared beside it, rest on
    the declared budgets.
    """
    if study.elsewhere in study.tables and not budget:
        study = study.home
    if study.elsewhere:
        table = verdicts(study, budget)
        judged = table[table["effect"] != ""]
        if not len(judged):
            return []
        path = published(study, f"{budget}-verdicts" if budget else "verdicts")
        write_atomically(path, judged.to_csv(index=False).encode())
        return [path]
    table, written = verdicts(study), [published(study, "verdicts")]
    write_atomically(written[0], table.to_csv(index=False).encode())
    return written + renewed(study.folder.parent, lambda language: sections(study, table, language))


# --- one design ------------------------------------------------------------------------------------------------------


def report(study: Study, budget: str = "", design: str = "") -> str:
    """The verdicts of a design as text, with what failed.  Raises StaleRecords when records are missing."""
    design = study.design(design).name
    records = load_records(study, budget, design)
    budget = budget or study.design(design).budget
    runs = records.drop_duplicates("id")
    lines = [f"{study.title}: design {design}, {len(runs)} runs, {records['replicate'].nunique()} replicates, "
             f"budget {budget}", ""]  # fmt: skip
    if design == "controls":
        for row in control_table(study, records).itertuples():
            state = "holds" if row.holds else "DOES NOT HOLD"
            lines += [f"{row.control}: {row.claim}", f"  {state}: wanted {row.wanted}, seen {row.seen}, n={row.n}"]
    else:
        table = summary(study, records, design)
        for row in table[table["primary"]].itertuples():
            q, e = study.questions[row.question], study.endpoints[row.endpoint]
            against = "" if q.bound is None else f" beyond {q.bound:g}"
            lines += [
                f"{q.name}: {q.claim}",
                f"  {row.verdict}",
                f"  {e.name} {row.estimate:+.4f} [{row.low:+.4f}, {row.high:+.4f}]{against}, claimed "
                f"{'up' if q.direction > 0 else 'down'}, matters from {e.delta:g}, Holm p {row.p_holm:.3g}, n={row.n}",
            ]
    failed = runs[runs["status"] != "finished"]
    lines += ["", f"{len(failed)} runs failed"] + [f"  {row.id}: {row.error}" for row in failed.itertuples()]
    if other := int((runs["declaration"] != study.key).sum()):
        lines.append(f"{other} runs were made before the declaration was last changed")
    return "\n".join(lines)
