"""Records of the study in words: what moved, which explanation stands, how far the arms get; all of it generated."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from challenge import bars

from hsetvae.declaration import Question, Study
from hsetvae.statistics import Comparison, compare, widening
from hsetvae.study import compared, effects, interactions

# the smallest change that counts, of measures that are no endpoints and move by amounts that mean nothing; set after
# the runs: a mean cosine of .95 is a turn by 18 degrees
LEAST = {"gradient_cosine": 0.05}
ENDINGS = ("supported", "refuted", "undecided", "not evaluable")


def effect(c: Comparison | pd.Series) -> str:
    """An effect with its 95 % interval, with as many digits as it takes not to be nothing but zeros."""
    size = max(abs(c.low), abs(c.high))
    digits = max(3, 1 - math.floor(math.log10(size))) if 0 < size < math.inf else 3
    return f"{c.estimate:+.{digits}f} [{c.low:+.{digits}f}, {c.high:+.{digits}f}]"


def told_apart(a: float, b: float) -> tuple[str, str]:
    """Two numbers with three digits, or as many as it takes to tell them apart."""
    texts = ((f"{a:.{digits}g}", f"{b:.{digits}g}") for digits in range(3, 7))
    return next((pair for pair in texts if pair[0] != pair[1]), (f"{a:.3g}", f"{b:.3g}"))


def listed(names) -> str:
    """Names as HTML, or a word where there is none."""
    return ", ".join(f"<code>{html.escape(str(name))}</code>" for name in names) or "none"


def leaves_out_zero(c: Comparison | pd.Series, wider: float = 1.0) -> bool:
    """Whether the 95 % interval, made wider by this factor, holds no zero: what counts as moved."""
    return abs(c.estimate) > wider * (c.high - c.estimate)


@dataclass(frozen=True)
class Move:
    """What a question does to a measure: mean with either setting, effect, and the smallest effect that counts."""

    measure: str
    means: tuple[float, float]  # reference, changed
    c: Comparison
    wider: float  # by how much the overlap of the splits widens the interval
    least: float
    room: tuple[float, float]  # how far the reference can go down and up

    @property
    def reach(self) -> float:
        return self.wider * (self.c.high - self.c.estimate)

    @property
    def counts(self) -> bool:
        """Whether it is seen to move, by as much as counts."""
        return leaves_out_zero(self.c, self.wider) and abs(self.c.estimate) >= self.least

    @property
    def negligible(self) -> bool:
        return abs(self.c.estimate) + self.reach < self.least

    def seen(self) -> str:
        """Whether and which way it moved."""
        way = "up" if self.c.estimate > 0 else "down"
        if self.negligible:
            return "less than counts"
        if leaves_out_zero(self.c, self.wider):
            return way + ("" if self.counts else ", perhaps less than counts")
        return f"{way}, on these splits only" if leaves_out_zero(self.c) else "not seen to move"

    def said(self) -> str:
        """The same as the end of a sentence."""
        a, b = told_apart(*self.means)
        words = {"up": f"rose from {a} to {b}", "down": f"fell from {a} to {b}"}
        way, _, rest = self.seen().partition(",")
        if way in words:
            return words[way] + (f",{rest}" if rest else "")
        if way.startswith("not"):
            return "was not seen to move"
        moved = "moved, by less than counts," if leaves_out_zero(self.c, self.wider) else "did not move by what counts,"
        return f"{moved} from {a} to {b}"

    def answers(self, wanted: str) -> bool | None:
        """Whether a prediction ("up", "down", "differs" or "still") came true; None where that is open."""
        if wanted in ("differs", "still"):
            found = True if self.counts else False if self.negligible else None
            return found if wanted == "differs" or found is None else not found
        toward = self.c.estimate if wanted == "up" else -self.c.estimate
        if self.counts and toward > 0:
            return True
        return False if toward + self.reach < self.least or (not self.least and toward + self.reach < 0) else None

    def has_no_room(self, wanted: str) -> bool:
        return wanted in ("up", "down") and self.room[wanted == "up"] < self.least


def moves(study: Study, records: pd.DataFrame, q: Question) -> list[Move]:
    """The measures of a crossed factor: its endpoint, and those that should move if its explanation holds."""
    finished, found = records[records["status"] == "finished"], []
    for measure in dict.fromkeys((q.endpoint, *q.mechanism)):
        means = finished.groupby(q.name)[measure].mean().reindex(["reference", "changed"])
        c, e = compared(measure, effects(study, finished, q.name, measure).to_numpy()), study.endpoints.get(measure)
        least = e.delta if e else LEAST.get(measure, 0.0)
        room = tuple(e.room(means["reference"], way) if e else math.inf for way in (-1, 1))
        found.append(Move(measure, tuple(means), c, widening(c.n, study.overlap), least, room))
    return found


def rule(q: Question) -> str:
    """When an explanation stands, and from which size on a move counts, as sentences."""
    own = "".join(f" (from {LEAST[m]:g} on for <code>{m}</code>, which was set after the runs)"
                  for m in q.mechanism if m in LEAST)  # fmt: skip
    return (
        "What each explanation asks for was put into this form after the runs, and the verdict does not depend on it. "
        "An explanation stands when all that it asks for was seen, but for what has no room to move, and does not "
        "stand when one answer is against it. A move of an endpoint counts from the smallest effect of interest on, "
        f"that of another measure as soon as it is seen{own}."
    )


def explained(found: list[Move], explanations: dict[str, dict[str, str]], verdict: str) -> str:
    """For each explanation what it asks of the measures, what they did, and whether it stands; then the rest."""
    by, said, stands = {move.measure: move for move in found}, [], []
    for title, wanted in explanations.items():
        judged = [by[m].answers(way) for m, way in wanted.items() if not by[m].has_no_room(way)]
        words = (
            "cannot be judged" if not judged else "stands" if all(judged)
            else "does not stand" if False in judged else "is left open"
        )  # fmt: skip
        stands.append(words == "stands")
        asked = ", ".join(f"<code>{m}</code> {way}" for m, way in wanted.items())
        did = "; ".join(
            f"<code>{m}</code> " + (f"has no room (the reference is at {by[m].means[0]:.3g}) and does not count"
                                    if by[m].has_no_room(way) else by[m].said())
            for m, way in wanted.items()
        )  # fmt: skip
        said.append(f"<li><b>{html.escape(title)}</b> (asks for {asked}): {words}. Seen: {did}.</li>")
    named = {m for wanted in explanations.values() for m in wanted}
    rest = "; ".join(f"<code>{m.measure}</code> {m.said()}" for m in found if m.measure not in named)
    more = f"<p>Beside these, {rest}.</p>" if rest else ""
    if verdict.startswith("supported") and not any(stands):
        more += "<p>The claim is supported and none of these explanations stands: the records do not say why.</p>"
    return f"<ul>{''.join(said)}</ul>{more}"


def far_out(part: pd.DataFrame) -> str:
    """The verdicts of one figure as a sentence, with the effects that lie furthest from zero."""
    words = part["verdict"]
    if len(part) == 1:
        return (
            f"One question, {listed(part['question'])} ({part['estimate'].iloc[0]:+.3g}): {html.escape(words.iloc[0])}."
        )
    counts = ", ".join(f"{n} {end}" for end in ENDINGS if (n := words.str.startswith(end).sum()))
    order = part["estimate"].abs().sort_values(ascending=False, kind="stable").index[:2]
    far = " and ".join(
        f"{listed([row.question])} ({row.estimate:+.3g}, {next(end for end in ENDINGS if row.verdict.startswith(end))})"
        for row in part.loc[order].itertuples()
    )
    return f"Of {len(part)} questions: {counts}. Furthest from zero: {far}."


def surviving(found: dict[str, dict[str, pd.Series]]) -> str:
    """Step -> surroundings -> differences by replicate, as a conclusion: which steps keep their sign, which matter more
    when they come last."""
    signs = {step: {float(np.sign(d.mean())) for d in kinds.values()} for step, kinds in found.items()}
    seen = {
        step: {float(np.sign(d.mean())) for d in kinds.values() if leaves_out_zero(compare(d.to_numpy()))}
        for step, kinds in found.items()
    }
    always = [s for s, kinds in found.items() if all(leaves_out_zero(compare(d.to_numpy())) for d in kinds.values())]
    kept, more, less = sum(s in ({1.0}, {-1.0}) for s in signs.values()), [], []
    for step, kinds in found.items():
        alone, last = kinds["add"], kinds["leave"]
        if leaves_out_zero(compare((last - alone).dropna().to_numpy())):
            (more if abs(last.mean()) > abs(alone.mean()) else less).append(step)
    return (
        f"Of {len(found)} steps {kept} keep the sign of their estimate in all three columns. An interval "
        f"that leaves out zero, always on one side, in all three have: "
        f"{listed(s for s in always if len(seen[s]) == 1)}; on one side in one column and on the other in another: "
        f"{listed(s for s, ways in seen.items() if len(ways) > 1)}. The effects alone and last differ, by the interval "
        f"of their paired difference, and lie further from zero when the step comes last, for: {listed(more)}; "
        f"nearer for: {listed(less)}. Of so many intervals one in twenty leaves out zero by chance."
    )


def depends(study: Study, records: pd.DataFrame, q: Question) -> str:
    """Whether the effect of a crossed factor changes with another factor, as sentences."""
    rows = interactions(study, records, q.name)
    out = rows[[leaves_out_zero(row) for _, row in rows.iterrows()]]
    kept = out[out["p_holm"] < 0.05]

    def named(part: pd.DataFrame) -> str:
        return f"{len(part)}" + (
            f" ({', '.join(f'{r.other}: {r.endpoint}' for r in part.itertuples())})" * bool(len(part))
        )

    own = set(kept.loc[kept["endpoint"] == q.endpoint, "other"])
    says = f"depends on {listed(sorted(own))}" if own else "is not seen to depend on another factor"
    return (
        f"Of {len(rows)} interactions {named(out)} have an interval that leaves out zero, and {named(kept)} have a "
        f"corrected p below .05. By that count the effect of {q.name} on its own endpoint, <code>{q.endpoint}</code>, "
        f"{says}."
    )


def reached(study: Study, records: pd.DataFrame) -> str:
    """How far the arms get on the stays of Challenge 2012, and both bars on the same test stays."""
    mean, tested = records.groupby("arm")["auroc"].mean(), records["n"].median()
    text = (
        f"The {len(mean)} arms reach mean AUROCs from {mean.min():.3f} ({html.escape(mean.idxmin())}) to "
        f"{mean.max():.3f} ({html.escape(mean.idxmax())}) on {tested:.0f} unseen stays."
    )
    bar = bars().query("metric == 'auroc' and n == @tested")
    bar = bar.assign(split=pd.to_numeric(bar["protocol"].str.removeprefix("split "), errors="coerce"))
    bar = bar[bar["split"].isin(records["replicate"])]
    if study.elsewhere != "physionet2012" or not len(bar):
        return text
    same = records[records["replicate"].isin(bar["split"])].groupby("arm")["auroc"].mean()
    bar, last = bar.groupby("model")["value"].mean(), bar["split"].max()
    above = (same > bar["logistic regression"]).sum()
    return (
        f"{text} The bars on the same test stays, those of the replicates 0 to {last:.0f}: logistic regression "
        f"{bar['logistic regression']:.3f}, gradient boosting {bar['gradient boosting']:.3f}. "
        "Both also learn from the stays that the arms select on. In these replicates "
        f"{above} of {len(same)} arms lie above logistic regression and "
        f"{(same > bar['gradient boosting']).sum()} above boosting."
    )
