"""The pages of the whole register and of the ledger: tables and figures from declaration and records."""

from __future__ import annotations

import functools
import html
import os

import numpy as np
import pandas as pd
import readings
from bookkit import DIRECTIONS, STUDY, box, days, picture, provenance, settings_text, signed, table
from IPython.display import HTML, display
from simple import how_far

from hsetvae import plots
from hsetvae.config import PRESETS, Config
from hsetvae.declaration import Question, Study
from hsetvae.designs import expand, plan
from hsetvae.study import (
    HASHES,
    StaleRecords,
    asked,
    compared,
    effects,
    labelled,
    load_records,
    replicated,
    steps,
    summary,
)
from hsetvae.verdicts import control_table, tally, verdicts

LOWER_IS_BETTER = ("brier", "nll_per_event", "gradient_jump", "diverged")
REAL = STUDY.on(STUDY.tables["physionet2012"].source)  # the same questions asked of Challenge 2012


@functools.cache
def records(design: str, study: Study = STUDY) -> pd.DataFrame | None:
    """The records of a design; None where they are not of the present code."""
    try:
        return load_records(study, design=design)
    except StaleRecords:
        return None


def complete(*designs: str, study: Study = STUDY) -> bool:
    """Whether all these designs have records; if not, the page says what makes them."""
    missing = [name for name in designs if records(name, study) is None]
    if missing:
        data = f" --data {os.path.relpath(study.data['source'], study.folder.parent)}" if study.elsewhere else ""
        commands = "<br>".join(f"<code>hsetvae study run --design {name}{data}</code>" for name in missing)
        box("No results are shown", f"<p>The present code and declaration have no complete records of: "
            f"{', '.join(missing)}. These commands make them:<br>{commands}</p>", "warning")  # fmt: skip
    return not missing


def designs() -> None:
    """What each design holds, and the hours that its runs took, one after another."""

    def hours(name: str, study: Study = STUDY) -> str:
        found = records(name, study)
        return "" if found is None else f"{found['seconds'].sum() / 3600:.1f}"

    rows = []
    for name, design in STUDY.designs.items():
        arms, contrasts = plan(STUDY, name)
        replicates = STUDY.budgets[design.budget]["replicates"]
        rows.append({"design": name, "arms": len(arms), "comparisons": len(contrasts), "budget": design.budget,
                     "replicates": replicates, "runs": len(arms) * replicates, "hours": hours(name),
                     "hours, Challenge 2012": hours(name, REAL)})  # fmt: skip
    table(rows)


def register() -> None:
    """Every question as it was declared: claim, reason, prediction."""
    for endpoint in STUDY.endpoints.values():
        questions = [q for q in STUDY.questions.values() if q.endpoint == endpoint.name]
        if questions:
            display(HTML(f"<h3>{html.escape(endpoint.name)}: {html.escape(endpoint.text)}</h3>"))
            table([
                {"question": f"<b>{q.name.replace('_', '_<wbr>')}</b> {' '.join(q.ledger)}",
                 "claim and settings": f"{html.escape(q.claim)} (claimed: {DIRECTIONS[q.direction]})<br>"
                 f"<code>{'all of improved' if _whole(q) else html.escape(settings_text(q.changed))}</code>",
                 "expected, and why": f"<b>{DIRECTIONS[q.expected]}</b>: {html.escape(q.why)}"} for q in questions
            ], escape=False)  # fmt: skip


def controls() -> None:
    if complete("controls"):
        found = control_table(STUDY, records("controls"))
        table(found.assign(holds=found["holds"].map({True: "holds", False: "DOES NOT HOLD"})))


def forests(study: Study = STUDY, design: str = "add", rows: pd.DataFrame | None = None) -> None:
    """For each endpoint the effects of the questions that it judges, every replicate visible."""
    if rows is None and not complete(design, study=study):
        return
    found = records(design, study) if rows is None else rows
    judged = summary(study, found, design).query("primary and n > 0").assign(label=lambda t: t["question"])
    for endpoint, part in judged.groupby("endpoint", sort=False):
        part, e = part.sort_values("estimate", ascending=False), study.endpoints[endpoint]
        dots = pd.concat([
            pd.DataFrame({"label": name, "difference": effects(study, found, name, endpoint, design)})
            for name in part["question"]
        ])  # fmt: skip
        alt = "; ".join(f"{row.question}: {signed(row)}, {row.verdict}" for row in part.itertuples())
        picture(plots.forest(part, dots, e.delta, e.unit), f"Effects on {endpoint}. {alt}",
                f"What each question changes in {endpoint} ({e.text}); n = {part['n'].max()} replicates.")  # fmt: skip
        display(HTML(f"<p>{readings.far_out(part)}</p>"))


def verdict_table(study: Study = STUDY, design: str = "add", rows: pd.DataFrame | None = None) -> None:
    """Verdict, effect and prediction of every question of a design."""
    if rows is None and not complete(design, study=study):
        return
    found = summary(study, records(design, study) if rows is None else rows, design).query("primary")
    table([
        {"question": row.question, "verdict": row.verdict, "difference [95 %]": f"{signed(row)} in {row.endpoint}",
         "claimed, expected": ", ".join(DIRECTIONS[way] for way in (q.direction, q.expected)),
         "p (Holm)": f"{row.p_holm:.3g}", "n": row.n}
        for row in found.itertuples() if (q := study.questions[row.question])
    ])  # fmt: skip


def added() -> pd.DataFrame | None:
    """Each question of two arms that was added alone, on its own endpoint; None without records."""
    found = records("add")
    if found is None:
        return None
    table = summary(STUDY, found, "add").query("primary")
    return table[[STUDY.questions[name].bound is None for name in table["question"]]].reset_index(drop=True)


def _whole(q: Question) -> bool:
    """Whether a question asks about the improved preset and not about a part of it."""
    return len(q.changed) > 4


def added_alone(found: pd.DataFrame) -> str:
    """How many remedies did what was claimed of them, and how many harms were claimed rightly, in words."""
    asked = [STUDY.questions[name] for name in found["question"]]
    harm = np.array([q.direction == (1 if q.endpoint in LOWER_IS_BETTER else -1) for q in asked])
    whole, said = np.array([_whole(q) for q in asked]), []
    for kind, chosen in (("remedies", ~harm & ~whole), ("claims of harm", harm)):
        words = found.loc[chosen, "verdict"]
        parts = {
            name: words.str.startswith(name).sum() for name in ("supported", "refuted", "not evaluable", "undecided")
        }
        said.append(f"{len(words)} {kind} ({', '.join(f'{name} {n}' for name, n in parts.items())})")
    return f"Added alone and not counting claims about the whole improved preset: {' and '.join(said)}."


def without(seen: tuple[int, ...]) -> None:
    """The verdicts on the crossed factors with all replicates and without those that were seen beforehand."""
    found = records("factorial")
    if found is not None:
        kept = found[~found["replicate"].isin(seen)]
        pair = [summary(STUDY, r, "factorial").query("primary").set_index("question") for r in (found, kept)]
        table([
            {"question": f"{name}: {ours.endpoint}", f"n = {ours.n}": ours.verdict, f"n = {less.n}": less.verdict,
             "difference [95 %]": signed(ours), "difference without them": signed(less)}
            for (name, ours), (_, less) in zip(pair[0].iterrows(), pair[1].iterrows(), strict=True)
        ])  # fmt: skip


@functools.cache
def on_another_machine() -> pd.DataFrame | None:
    """The records of the crossed factors from another machine; None where they are not of the present code."""
    there = pd.read_csv(replicated(STUDY, STUDY.design("factorial").budget), dtype=HASHES)
    specs = [spec for spec in expand(STUDY, design="factorial") if spec.id in set(there["id"])]
    return labelled(STUDY, specs, there) if len(specs) == len(there) else None


def replication() -> None:
    """The crossed factors once more on another machine: verdicts side by side, and how alike the same runs are."""
    here, there, rows = records("factorial"), on_another_machine(), []
    if here is None or there is None:
        box("No results are shown", "<p>The replication on another machine is not of the present code.</p>", "warning")
        return
    here = here[here["id"].isin(there["id"])]
    pair = [summary(STUDY, found, "factorial").query("primary").set_index("question") for found in (here, there)]
    for name, ours in pair[0].iterrows():
        theirs, measure = pair[1].loc[name], ours["endpoint"]
        apart = abs(here[measure].to_numpy() - there[measure].to_numpy()).mean()
        rows.append({"question": f"{name}: {measure}", "this book": ours["verdict"],
                     "the other machine": theirs["verdict"], "difference": signed(ours),
                     "difference there": signed(theirs),
                     "the same run differs by": f"{apart:.3f}",
                     "SD between replicates": f"{here.groupby('arm')[measure].std().mean():.3f}"})  # fmt: skip
    table(rows)
    same = sum(row["this book"].split(" at ")[0] == row["the other machine"].split(" at ")[0] for row in rows)
    facts = "; ".join(f"{name}: torch {found['torch'].iloc[0]}, {found['cores'].iloc[0]} cores"
                      for name, found in (("This book", here), ("the other machine", there)))  # fmt: skip
    display(HTML(f"<p>{facts}; of both the first {there['replicate'].nunique()} replicates. "
                 f"{same} of {len(rows)} verdicts are the same.</p>"))  # fmt: skip


def pairing() -> str:
    """What sharing split and streams was worth in the crossed factors; the range as words, "" without records.

    Variance of the difference of the means over the arms with either setting on splits of their own, over that of the
    paired difference.
    """
    rows = []
    for source, study in (("simulated", STUDY), ("Challenge 2012", REAL)):
        found = records("factorial", study)
        for q in asked(study) if found is not None else ():
            paired = effects(study, found, q.name, q.endpoint)
            means = found.groupby(["replicate", q.name])[q.endpoint].mean().unstack()
            rows.append({"question": f"{q.name}: {q.endpoint}, {source}",
                         "one paired replicate is worth, unpaired": means.var().sum() / paired.var(),
                         "SD of the paired difference": f"{paired.std():.3f}",
                         "SD on splits of their own": f"{means.var().sum() ** 0.5:.3f}",
                         "replicates": len(paired)})  # fmt: skip
    if not rows:
        return ""
    table(rows)
    worth = [row["one paired replicate is worth, unpaired"] for row in rows]
    return f"{min(worth):.1f} to {max(worth):.1f}"


def mechanisms() -> None:
    """For each question the endpoint and the measures that should move if its explanation holds: which ones did."""
    if not complete("add"):
        return
    found, refuted, others = records("add"), [], []
    verdict = summary(STUDY, found, "add").query("primary").set_index("question")["verdict"]
    for q in (q for q in asked(STUDY, "add") if q.mechanism and q.bound is None):
        parts = {True: [], False: []}
        for measure in dict.fromkeys((q.endpoint, *q.mechanism)):
            c = compared(measure, effects(STUDY, found, q.name, measure, "add").to_numpy())
            parts[readings.leaves_out_zero(c)].append(f"{measure} {readings.effect(c)}")
        seen = {"moved": "; ".join(parts[True]) or "–", "not seen to move": "; ".join(parts[False]) or "–"}
        if verdict[q.name].startswith("refuted"):
            refuted.append({"refuted claim": q.claim, **seen, "why we expected what we expected": q.why})
        else:
            others.append({"question": q.name, "verdict": verdict[q.name].partition(" (")[0], **seen})
    table(refuted)
    table(others)


def starting_point() -> None:
    """How well the baseline predicts, to which every question is added, and what simple models reach there."""
    if (found := records("add")) is not None:
        data = STUDY.data | STUDY.budget(STUDY.design("add").budget)
        box("How far these models get", f"<p>{how_far(found, data)}</p>")
        auroc = found[found["arm"] == "reference"]["auroc"]
        display(HTML(f"<p>The baseline, to which every question is added, has a mean AUROC of {auroc.mean():.3f} "
                     f"(SD {auroc.std():.3f}, {len(auroc)} replicates).</p>"))  # fmt: skip


def survival() -> None:
    """The same steps in three surroundings: alone, taken out of the whole, and on the road (mean over the orders)."""
    kinds = ("add", "leave", "roadmap")
    if complete(*kinds):
        found = {
            q.name: {kind: effects(STUDY, records(kind), q.name, q.endpoint, kind) for kind in kinds}
            for q in (STUDY.questions[name] for name in STUDY.path)
        }
        table([
            {"step": name, **{kind: signed(compared(endpoint, d.to_numpy())) for kind, d in by.items()},
             "endpoint": endpoint}
            for name, by in found.items() if (endpoint := STUDY.questions[name].endpoint)
        ])  # fmt: skip
        display(HTML(f"<p>{readings.surviving(found)}</p>"))


def roadmap(*measures: str, study: Study = STUDY) -> None:
    for measure in measures if complete("roadmap", study=study) else ():
        found, e = steps(study, records("roadmap", study), measure), study.endpoints[measure]
        mean, n = found[found["order"] == 0].groupby(["step", "label"])["value"].mean(), found["replicate"].nunique()
        alt = "; ".join(f"{label}: {value:.3g}" for (_, label), value in mean.items())
        picture(plots.roadmap(found, f"{measure} ({e.unit})"), f"{measure} along the roadmap. {alt}",
                f"{measure} after each step from baseline to improved; n = {n} replicates.")  # fmt: skip
        road = found[found["order"] == 0].pivot(index="replicate", columns="step", values="value")
        way = compared(measure, (road.iloc[:, -1] - road.iloc[:, 0]).dropna().to_numpy())
        change = {q: effects(study, records("roadmap", study), q, measure, "roadmap").mean() for q in study.path}
        low, high = min(change, key=change.get), max(change, key=change.get)
        display(HTML(
            f"<p>The whole way changes {measure} by {signed(way)}. As a mean over the orders {high} raises it most, "
            f"{change[high]:+.3f}, and {low} lowers it most, {change[low]:+.3f}; that these two are the extremes of so "
            "many is partly luck.</p>"
        ))  # fmt: skip


def reached(design: str) -> None:
    """How far the arms of a design get on real stays, and the bars there."""
    if (found := records(design, REAL)) is not None:
        display(HTML(f"<p>{readings.reached(REAL, found)}</p>"))


def register_provenance() -> None:
    """Version, dates and duration of the runs behind the register."""
    places = [(name, STUDY) for name in STUDY.designs] + [(n, REAL) for n in STUDY.tables[REAL.elsewhere].budgets]
    found = [r for place in places if (r := records(*place)) is not None]
    if not found:
        return provenance()
    r = pd.concat(found).drop_duplicates("id")
    versions = ", ".join(sorted(r["hsetvae"].unique()))
    provenance(f"{len(r)} runs, made {days(r['date'])} with hsetvae {versions}, "
               f"{r['seconds'].sum() / 3600:.1f} hours. Page built")  # fmt: skip


def ledger(parts: str) -> None:
    """Claims with their setting in both presets and their verdict: the table that README and terminal show too.

    `parts` holds the first letters of the rows to show.
    """
    baseline, improved = PRESETS["baseline"].to_dict(), PRESETS["improved"].to_dict()
    turned: dict[str, list[str]] = {}
    for name, *_, ids, _ in Config.describe():
        values = f"{baseline[name]} → {improved[name]}" if baseline[name] != improved[name] else f"{baseline[name]}"
        for one in ids.split():
            turned.setdefault(one, []).append(f"{name}: {values}")
    found = verdicts(STUDY)
    found = found[found["row"].str.match(f"[{parts}]|$")]  # a question beyond the ledger has no row
    rows = []
    for row in found.to_dict("records"):
        row = {name: html.escape(text) for name, text in row.items()}
        seen = f"<br>{row['effect']}<br>n = {row['n']}, {row['data']}" if row["effect"] else ""
        settings = "".join(f"<br><code>{text}</code>" for text in turned.get(row["row"], []))
        claim = f"{row['claim']} ({row['judged by']}){settings}"
        rows.append({"row": row["row"], "claim (question, design), setting: before → after": claim,
                     "verdict": row["verdict"] + seen})  # fmt: skip
    table(rows, escape=False)
    display(HTML(f"<p>{html.escape(tally(found))}</p>"))


def ledger_parts() -> None:
    """What the first letters of the ledger's rows stand for."""
    found = pd.read_csv(STUDY.folder / "ledger.csv").drop_duplicates("part")
    parts = ", ".join(f"{row.id[0]} {row.part}" for row in found.itertuples())
    display(HTML(f"<p>The first letter of a row names its part: {html.escape(parts)}.</p>"))
