"""A crossed factor on its page: prediction, verdict, figure, tables, from the declaration and the records."""

from __future__ import annotations

import html

import pandas as pd
import readings
from bookkit import (
    BUDGET,
    DIRECTIONS,
    STUDY,
    box,
    effects_table,
    picture,
    records,
    settings_text,
    signed,
    study_provenance,
    table,
)
from IPython.display import HTML, display
from simple import how_far

from hsetvae import plots
from hsetvae.declaration import Question, Study
from hsetvae.designs import expand
from hsetvae.statistics import compare, widening
from hsetvae.study import StaleRecords, effects, interactions, load_records, summary


class Factor:
    """One page's view of a crossed factor: everything on it comes from the declaration and the records."""

    def __init__(self, name: str, budget: str = BUDGET) -> None:
        self.q, self.budget = STUDY.questions[name], budget
        self.e = STUDY.endpoints[self.q.endpoint]

    def verdict(self) -> None:
        if records(self.budget) is None:
            return
        row = effects_table(self.budget).query("primary and question == @self.q.name").iloc[0]
        kind = "tip" if row.verdict.startswith("supported") else "warning" if "refuted" in row.verdict else "note"
        box(f"Verdict: {row.verdict}",
            f"<p>{html.escape(self.q.claim)}. Judged by {self.judge()}; claimed: {DIRECTIONS[self.q.direction]}; "
            f"seen: {signed(row)} {html.escape(self.e.unit)} at n = {row.n}, Holm-corrected p = {row.p_holm:.3g}; "
            f"matters from {self.e.delta:g}.</p>", kind)  # fmt: skip

    def judge(self) -> str:
        """The endpoint by its name and in words, as HTML."""
        return f"<code>{self.e.name}</code> ({html.escape(self.e.text)})"

    def prediction(self) -> None:
        """What was written down before the runs."""
        display(HTML(
            f"<p>Declared before the runs: {self.judge()} is claimed to go {DIRECTIONS[self.q.direction]}, "
            f"and we expected {'it to go ' * (self.q.expected != 0)}{DIRECTIONS[self.q.expected]}. "
            f"{html.escape(self.q.why)} "
            f"A difference below {self.e.delta:g} {html.escape(self.e.unit)} would not matter.</p>"
        ))  # fmt: skip

    def arms(self) -> None:
        names = self.q.changed
        base = STUDY.config(budget=self.budget).to_dict() | self.q.reference
        table([{"setting": n, "reference": str(base[n]), "changed": str(self.q.changed[n])} for n in names])

    def figure(self) -> None:
        if records(self.budget) is None:
            return box("Nothing to draw", "<p>There is no result until the runs are made again; see the top.</p>")
        r, name, measure = records(self.budget), self.q.name, self.e.name
        parts = {"mean over the other factors": effects(STUDY, r, name, measure)}
        for other in (f for f in STUDY.factorial if f != name):
            for level in ("reference", "changed"):
                setting = settings_text(getattr(STUDY.questions[other], level))
                parts[f"with {setting}"] = effects(STUDY, r[r[other] == level], name, measure)
        rows = pd.DataFrame([{"label": label, **vars(compare(d.to_numpy()))} for label, d in parts.items()])
        dots = pd.concat([pd.DataFrame({"label": label, "difference": d}) for label, d in parts.items()])
        n = len(r["replicate"].unique())
        alt = "; ".join(f"{row.label}: {signed(row)}" for _, row in rows.iterrows())
        picture(plots.forest(rows, dots, self.e.delta, self.e.unit), f"Effects on {measure}, n = {n}. {alt}",
                f"Effect of {settings_text(self.q.changed)} instead of {settings_text(self.q.reference)} on {measure}; "
                f"n = {n} replicates, {len(r)} runs.")  # fmt: skip
        self.reading(rows, next(iter(parts.values())))

    def reading(self, rows: pd.DataFrame, differences: pd.Series) -> None:
        """The figure in words."""
        top, held = rows.iloc[0], rows.iloc[1:]
        d = self.e.delta
        inside, outside = -d < top.low and top.high < d, top.low > d or top.high < -d
        where = "within the band" if inside else "beyond the band" if outside else "partly within the band"
        low, high = held.loc[held["estimate"].idxmin()], held.loc[held["estimate"].idxmax()]
        display(HTML(
            "<p>Each dot is one replicate: in the top row the paired difference of the two settings, averaged over the "
            "other factors; in a row below one of these factors is held at one setting. "
            f"The line is the 95 % interval of the mean, the grey band is ±{d:g}, the smallest effect of interest. "
            f"In the top row the difference is above zero in {(differences > 0).sum()} of {len(differences)} "
            f"replicates, and the interval lies {where}. The rows below range from {low.estimate:+.3f} "
            f"({html.escape(low.label)}) to {high.estimate:+.3f} ({html.escape(high.label)}).</p>"
        ))  # fmt: skip

    def table(self) -> None:
        if (r := records(self.budget)) is not None:
            self._endpoints(effects_table(self.budget))
            box("How far these models get", f"<p>{how_far(r, STUDY.data | STUDY.budget(self.budget))}</p>")

    def _endpoints(self, found: pd.DataFrame, overlap: float = 0.0) -> None:
        """The effect on every endpoint; where splits share their stays, with the interval that counts this."""

        def wider(row) -> dict[str, str]:
            reach = (row.high - row.estimate) * (widening(row.n, overlap) if row.sd else 1)
            return {"[95 %], overlap counted": f"[{row.estimate - reach:+.3f}, {row.estimate + reach:+.3f}]"}

        table([
            {"endpoint": row.endpoint + (" (primary)" if row.primary else ""), "difference [95 %]": signed(row),
             **(wider(row) if overlap else {}), "p (Holm)": f"{row.p_holm:.3g}",
             "matters from": STUDY.endpoints[row.endpoint].delta, "positive": f"{row.positive:.0%}",
             "p": f"{row.p:.3g}", "n": row.n}
            for _, row in found.query("question == @self.q.name").iterrows()
        ])  # fmt: skip

    def interactions(self) -> None:
        if records(self.budget) is None:
            return
        r, name, e = records(self.budget), self.q.name, self.e
        others = [f for f in STUDY.factorial if f != name]
        mean = {other: r.groupby([name, other])[e.name].mean() for other in others}
        alt = "; ".join(f"{name} {a}, {other} {b}: {x:.3g}" for other in others for (a, b), x in mean[other].items())
        drawn = r.assign(**{f: r[f].map(self._values(STUDY.questions[f])) for f in STUDY.factorial})
        picture(plots.interaction_grid(drawn, name, others, e.name, f"{e.name} ({e.unit})"), f"Mean {e.name}. {alt}",
                f"{e.name} with both settings of {name}, beside each other factor: lines join means, a dot is a "
                "replicate. Parallel lines: no interaction.")  # fmt: skip
        display(HTML(f"<p>{readings.depends(STUDY, r, self.q)}</p>"))
        rows = interactions(STUDY, r, name)
        table([
            {"with": row.other, "endpoint": row.endpoint, "interaction [95 %]": signed(row),
             "p (Holm)": f"{row.p_holm:.3g}"}
            for _, row in rows.iterrows()
        ])  # fmt: skip

    @staticmethod
    def _values(q: Question) -> dict[str, str]:
        """The values behind "reference" and "changed", as a legend has room for them."""
        return {level: ", ".join(map(str, getattr(q, level).values())) for level in ("reference", "changed")}

    def mechanism(self, explanations: dict[str, dict[str, str]]) -> None:
        """The measures that should move if an explanation holds, and what each explanation asks of them."""
        display(HTML(f"<p>{readings.rule(self.q)}</p>"))
        if (r := records(self.budget)) is not None:
            self._mechanism(STUDY, r, explanations, effects_table(self.budget))

    def _mechanism(self, study: Study, r: pd.DataFrame, explanations: dict, found: pd.DataFrame) -> None:
        """Means and paired differences of the measures, and which of the explanations stands."""
        moves, rows = readings.moves(study, r, self.q), []
        for move in moves:
            reference, changed = readings.told_apart(*move.means)
            rows.append({"measure": move.measure, "moved": move.seen(), "difference [95 %]": readings.effect(move.c),
                         "reference": reference, "changed": changed})  # fmt: skip
        table(rows)
        verdict = found.query("primary and question == @self.q.name")["verdict"].iloc[0]
        display(HTML(readings.explained(moves, explanations, verdict)))

    def elsewhere(self, explanations: dict[str, dict[str, str]]) -> None:
        """The verdict on the same question from every other table that the study declares, how far the arms get, all
        endpoints there, the measures of the mechanism and the explanations."""
        for name, study in ((name, STUDY.on(other.source)) for name, other in STUDY.tables.items()):
            try:
                there = load_records(study, design="factorial")
            except StaleRecords:
                box(f"On {name}", "<p>The present code and declaration have no complete records there.</p>")
                continue
            found = summary(study, there, "factorial")
            row = found.query("primary and question == @self.q.name").iloc[0]
            box(f"On {name}: {row.verdict}", f"<p>Seen: {signed(row)} in {self.judge()}, n = {row.n}.</p>"
                f"<p>{readings.reached(study, there)}</p>")  # fmt: skip
            self._endpoints(found, study.overlap)
            self._mechanism(study, there, explanations, found)

    def reproduce(self) -> None:
        specs = expand(STUDY, self.budget, "factorial")
        index = next(i for i, spec in enumerate(specs) if spec.arm.settings == self.q.changed)
        code = (
            f"make ablations                                   # all runs, records and pages\n"
            f"hsetvae study run --index {index:<3}                    # one run: only {settings_text(self.q.changed)}\n"
            f"hsetvae study run --data events.csv --outcomes outcomes.csv   # on other data"
        )
        display(HTML(f"<pre>{html.escape(code)}</pre>"))

    def provenance(self) -> None:
        study_provenance(self.budget)
