"""What was judged and scored before the present declaration and preset, so that nobody takes these for the first.

No code here makes these records any more; the column *commit* says where in the history of the repository they were
published.
"""

from __future__ import annotations

import functools
import html

import competition
import pandas as pd
import registerkit
from bookkit import STUDY, table
from challenge import RESULTS
from IPython.display import HTML, display

from hsetvae.statistics import sign_flip_p
from hsetvae.study import summary
from hsetvae.verdicts import NOT_RUN, verdicts

MEASURES = {"auroc": "AUROC", "auprc": "AUPRC", "auroc_12h": "AUROC at 12 hours"}  # of presets


@functools.cache
def _judged() -> pd.DataFrame:
    """Verdicts at earlier scales: published, commit, design, question, verdict, effect, n, data; verdict, effect and n
    of now."""
    now = verdicts(STUDY).rename(columns={"verdict": "now", "effect": "effect_now", "n": "n_now"})
    now = now[now["data"].str.startswith("simulated")].drop_duplicates("judged by")
    now[["question", "design"]] = now["judged by"].astype(str).str.extract(r"^(\w+), (\w+)$").to_numpy()
    earlier = pd.read_csv(STUDY.folder / "results" / "earlier_verdicts.csv")
    there = now[["question", "design", "now", "effect_now", "n_now"]]
    return earlier.merge(there, on=["question", "design"], how="left").fillna(
        {"now": NOT_RUN, "effect_now": "", "n_now": ""}
    )


def _kind(verdict: str) -> str:
    """A verdict without what it says of n and of what could have been seen."""
    return verdict.partition(" (")[0].partition(" at n=")[0]


def factors() -> None:
    """The crossed factors at every scale at which they were judged."""
    found = _judged().query("design == 'factorial'").sort_values(["question", "published"], kind="stable")
    lines = []
    for question, rows in found.groupby("question", sort=False):
        for row in rows.itertuples():
            lines.append({"question": question, "verdict": _kind(row.verdict), "effect [95 %]": row.effect,
                          "published": f"{row.published} ({row.commit})", "data": row.data, "n": row.n})  # fmt: skip
        now = rows.iloc[0]
        lines.append({"question": question, "verdict": _kind(now["now"]), "effect [95 %]": now["effect_now"],
                      "published": "present", "data": "as declared", "n": now["n_now"]})  # fmt: skip
    table(lines)


def elsewhere() -> None:
    """The verdict on each crossed factor beside those on the same question in other surroundings."""
    judged = _judged().query("design == 'factorial'")
    real = {f"on {name}": STUDY.on(other.source) for name, other in STUDY.tables.items()}
    places = {
        "crossed": (STUDY, "factorial", registerkit.records("factorial")),
        "alone, added to the baseline": (STUDY, "add", registerkit.records("add")),
        "crossed on another machine": (STUDY, "factorial", registerkit.on_another_machine()),
        **{place: (study, "factorial", registerkit.records("factorial", study)) for place, study in real.items()},
    }
    found = {place: summary(study, made, design).query("primary").set_index("question")["verdict"]
             for place, (study, design, made) in places.items() if made is not None}  # fmt: skip
    lines = [
        {"surroundings": place, **{q: _kind(verdict[q]) for q in STUDY.factorial}} for place, verdict in found.items()
    ]
    suites = judged.assign(kind=judged["verdict"].map(_kind)).groupby("question", sort=False)["kind"]
    counts = {q: ", ".join(f"{kind} ({n})" for kind, n in own.value_counts(sort=False).items()) for q, own in suites}
    table([*lines, {"surroundings": "at earlier scales (suites)", **{q: counts[q] for q in STUDY.factorial}}])


def alone() -> None:
    """Every question that was added alone at an earlier scale, where its verdict is another one now."""
    found = _judged().query("design == 'add' and now != @NOT_RUN")
    if not len(found):
        return
    other = found[found["verdict"].map(_kind) != found["now"].map(_kind)]
    first = found.iloc[0]
    display(HTML(
        f"<p>Published {first['published']} ({first['commit']}; {html.escape(first['data'])}): {len(found)} questions "
        f"that are judged now were judged then, and {len(found) - len(other)} of them alike. The others:</p>"
    ))  # fmt: skip
    table([{"question": row.question, "then": _kind(row.verdict), "effect then": row.effect, "now": _kind(row.now),
            "effect now": row.effect_now} for row in other.itertuples()])  # fmt: skip


def presets() -> None:
    """The recommended presets that were scored on the test stays, in their order, and the present one: differences with
    the interval that counts the overlap, and p by sign flips, which does not, from six splits on."""
    old = pd.read_csv(RESULTS / "challenge2012_earlier.csv")
    columns = ["entrant", "seed", "parameters", *MEASURES]
    now = competition.rows().query("entrant in ('recommended', 'boosting')")[columns]
    parts = [(f"{when} ({commit})", rows) for (when, commit), rows in old.groupby(["published", "commit"])]
    lines = []
    parts += [("present", now)] * ("recommended" in set(now["entrant"]))
    for name, rows in parts:
        values = rows.pivot(index="seed", columns="entrant", values=list(MEASURES))
        own = rows[rows["entrant"] == "recommended"]
        line = {"preset, published": name, "parameters": f"{own['parameters'].iloc[0]:,.0f}", "splits": len(own)}
        for measure, title in MEASURES.items():
            d = 100 * (values[measure]["recommended"] - values[measure]["boosting"])
            p = f"; p {sign_flip_p(d.dropna()):.2g}" if d.count() > 5 else ""
            line[f"{title}, minus boosting's [95 %]"] = competition.points(d, competition.overlap()) + p
        lines.append(line)
    table(lines)
