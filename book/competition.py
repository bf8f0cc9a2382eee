"""The suite of models on Challenge 2012 as the book shows it, from the published records, which need no data."""

from __future__ import annotations

import dataclasses
import functools
import html
from pathlib import Path

import bookkit
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from challenge import RESULTS
from IPython.display import HTML, display

from hsetvae import plots
from hsetvae.calibration import HOURS
from hsetvae.config import PRESETS
from hsetvae.lineup import CORE
from hsetvae.standings import METRICS, standings
from hsetvae.suite import Suite, load_suite, published_rows

NAME = "challenge2012"
MARKERS = "osd^v"  # of entrants, beside their colours
INSTRUMENTS = {
    "au_ratio_top": "active units at the top level (share)", "au_ratio": "active units, mean over levels (share)",
    "mi": "mutual information (nats)", "kl_per_set": "KL (nats per set)",
    "decoder_use_current": "decoder use, current set (nats per set)",
    "decoder_use_next": "decoder use, next set (nats per set)", "s_past": "S_past",
    "s_past_untrained": "S_past, untrained", "nll_per_event": "negative log likelihood (nats per event)",
}  # fmt: skip
COSTS = {
    "seconds_training": ("minutes of training", 1 / 60), "stays_per_second": ("stays predicted a second", 1),
    "peak_mib": ("peak memory (GiB)", 1 / 1024), "parameters": ("parameters", 1), "threads": ("threads", 1),
}  # fmt: skip


@functools.cache
def suite() -> Suite:
    return load_suite(str(Path(RESULTS).parent / f"{NAME}.toml"))


@functools.cache
def rows(design: str = "table") -> pd.DataFrame:
    """The published rows of a design that have finished; may be empty."""
    table = published_rows(suite())
    return table[(table["design"] == design) & (table["status"] == "finished")]


@functools.cache
def _not_yet(title: str, command: str) -> None:
    """Say what makes the records that are missing, once a page."""
    text = f"<p>What rests on these records is left out of this page: <code>{command}</code> makes them.</p>"
    bookkit.box(title, text, "warning")


def there(design: str = "table") -> bool:
    """Whether a design has records; if not, the page says once what makes them."""
    if len(rows(design)):
        return True
    _not_yet(f"The {design} has not yet run", f"hsetvae study run --suite {NAME} --design {design}")
    return False


def shared(entrants: tuple[str, ...] = ()) -> pd.DataFrame:
    """The rows of these entrants (all that have run) on the splits that all of them have: means of these compare."""
    table = rows()
    names = set(table["entrant"]) & set(entrants or table["entrant"])
    table = table[table["entrant"].isin(names)]
    return table.groupby("seed").filter(lambda split: names <= set(split["entrant"]))


def _over(table: pd.DataFrame) -> None:
    """Say over which splits the means above are taken."""
    display(HTML(f"<p>Means over the {table['seed'].nunique()} splits that all of these entrants have run.</p>"))


def complete(design: str) -> pd.DataFrame:
    """The rows of the splits that every entrant of a design has run: only their means can be set side by side."""
    wanted = {e.name for e in suite().design(design)[2]}
    table = rows(design).groupby("seed").filter(lambda split: wanted <= set(split["entrant"]))
    if not len(table):
        _not_yet(f"No split of the {design} is complete", f"hsetvae study run --suite {NAME} --design {design}")
    return table


@functools.cache
def compared(design: str = "table") -> pd.DataFrame:
    """The standings of a design, entrants without a record left out."""
    table = standings(suite(), rows(design), design)
    return table[table["n"] > 0]


def protocol() -> None:
    """How stays are split, from the declaration."""
    learned, selecting, scored = (f"{share:.0%}" for share in suite().shares)
    stays = f"the stays of sets {' and '.join(suite().groups)}"
    display(HTML(f"<p>For every one of {suite().design()[1]} seeds {stays} are split anew, stratified by outcome: "
                 f"{learned} are learned from, {selecting} select, {scored} are scored.</p>"))  # fmt: skip


def entrants() -> None:
    """Who competes, and with what."""
    lines = []
    for e in suite().design()[2]:
        facts = e.settings | ({"refit": True} if e.refit else {})
        settings = ", ".join(f"{name} = {value}" for name, value in facts.items())
        kind = f"preset {e.preset}" if e.preset else f"mean of {' and '.join(e.of)}" if e.of else e.kind
        lines.append({"entrant": e.title, "what it is": kind, "settings": settings, "compared with": e.against})
    bookkit.table(lines)


def how_many(design: str = "table") -> None:
    """How much of the declared suite is behind the page."""
    if there(design):
        _, wanted, declared = suite().design(design)
        done = rows(design).groupby("entrant")["seed"].nunique().reindex([e.name for e in declared], fill_value=0)
        table = published_rows(suite())
        failed = ((table["design"] == design) & (table["status"] != "finished")).sum()
        fewer = ", ".join(f"{html.escape(_titles(design)[e])} {n}" for e, n in done.items() if n < wanted)
        text = f"fewer splits so far: {fewer}" if fewer else "every entrant has run all of them"
        display(HTML(f"<p>Declared: {wanted} splits; {text}. Failed runs: {failed}.</p>"))


def scores() -> None:
    """Mean and SD of every metric over the splits that all entrants have run."""
    if there():
        table, lines = shared(), []
        for row in standings(suite(), table).query("n > 0").itertuples():
            name, better, unit = METRICS[row.metric]
            lines.append({"entrant": row.title, "metric": f"{name} {'↑' if better > 0 else '↓'}",
                          "text": f"{row.mean * unit:.1f} ± {row.sd * unit:.1f}"})  # fmt: skip
        wide = pd.DataFrame(lines).pivot(index="entrant", columns="metric", values="text")
        bookkit.table(wide.loc[*(pd.unique(pd.DataFrame(lines)[c]) for c in ("entrant", "metric"))].reset_index())
        _over(table)


def differences(metrics: tuple[str, ...], design: str = "table", entrants: tuple[str, ...] = ()) -> None:
    """Paired differences of the entrants (all that are compared), with intervals and what they say."""
    if there(design):
        lines = []
        for row in compared(design).query("metric in @metrics and pairs > 1").itertuples():
            if not entrants or row.entrant in entrants:
                name, _, unit = METRICS[row.metric]
                seen = f"{row.estimate * unit:+.2f} [{row.low * unit:+.2f}, {row.high * unit:+.2f}]"
                wide = f"[{row.low_overlap * unit:+.2f}, {row.high_overlap * unit:+.2f}]"
                lines.append({"entrant": row.title, "metric": name, "difference [95 %]": seen,
                              "[95 %], overlap counted": wide, "p": f"{row.p:.3g}",
                              "pairs": int(row.pairs), "so it is": row.words})  # fmt: skip
        bookkit.table(lines)


def forest(metric: str, delta: float, design: str = "table") -> None:
    """Paired differences of one metric, every split a dot."""
    if there(design):
        name, _, unit = METRICS[metric]
        table = compared(design).query("metric == @metric and pairs > 1").copy()
        if not len(table):
            return
        values = rows(design).pivot(index="seed", columns="entrant", values=metric)
        table["label"] = table["title"].str.cat([f", against {a}" if a == CORE else "" for a in table["against"]])
        pairs = {row.label: (values[row.entrant] - values[row.against]).dropna() * unit for row in table.itertuples()}
        dots = pd.concat([pd.DataFrame({"label": label, "difference": d}) for label, d in pairs.items()])
        table[["estimate", "low", "high"]] *= unit
        against = " or ".join(dict.fromkeys(table["against"]))
        alt = "; ".join(f"{row.label}: {bookkit.signed(row)}, {row.words}" for row in table.itertuples())
        bookkit.picture(plots.forest(table, dots, delta, f"{name}, points"), f"Paired differences in {name}. {alt}",
                        f"Difference in {name} to {against} on the same splits; a dot is one split.")  # fmt: skip


def _points(difference: pd.Series) -> str:
    """Mean of a paired difference with its 95 % t interval."""
    c = bookkit.compare(difference.dropna())
    return "–" if not c.n else f"{c.estimate:+.2f}" + (f" [{c.low:+.2f}, {c.high:+.2f}]" if c.n > 1 else "")


def _difference(metric: str, one: str = "recommended", other: str = "boosting", design: str = "table") -> pd.Series:
    """Score of one entrant minus that of another on the same splits; empty where either has not run."""
    values = rows(design).pivot(index="seed", columns="entrant", values=metric)
    return values.reindex(columns=[other, one]).diff(axis=1)[one]


def promise(metrics: tuple[str, ...], chosen_on: tuple[int, ...]) -> None:
    """The recommended preset minus boosting, on validation and on test stays: where it was chosen, and elsewhere."""
    if there() and "recommended" in set(rows()["entrant"]):
        lines = []
        for title, chosen in (("on which settings were chosen", True), ("the others", False)):
            for metric in metrics:
                parts = {"validation stays": f"validation_{metric}", "test stays": metric}
                both = pd.DataFrame({part: _difference(m) for part, m in parts.items()}).dropna()
                both = both[both.index.isin(chosen_on) == chosen] * METRICS[metric][2]
                lines.append({"splits": title, "metric": METRICS[metric][0], **both.apply(_points), "n": len(both)})
        bookkit.table(lines)


def missing(metrics: tuple[str, ...]) -> None:
    """What might stand between the recommended preset and more: numbers that speak for or against each answer."""
    if there() and "recommended" in set(rows()["entrant"]):
        half, whole = (f"at {share:g}" for share in sorted({e.share for e in suite().design("curve")[2]})[-2:])
        asked = [
            ("what boosting knows", "the average of both, minus the preset", "average", "recommended", "table"),
            ("what the preset knows", "the average of both, minus boosting", "average", "boosting", "table"),
            *(("patients", f"{e}: all stays, minus half of them", f"{e} {whole}", f"{e} {half}", "curve")
              for e in ("recommended", "boosting")),
        ]  # fmt: skip
        bookkit.table([
            {"what might be missing": answer, "the number": text,
             **{METRICS[m][0]: _points(_difference(m, one, other, design) * METRICS[m][2]) for m in metrics}}
            for answer, text, one, other, design in asked
        ])  # fmt: skip


def calibration() -> None:
    """Calibration error before and after, beside what true probabilities would have."""
    if there():
        lines = []
        table = shared()
        for title, part in table.groupby(table["entrant"].map(_titles()), sort=False):
            mean = part[["ece", "ece_calibrated", "ece_expected"]].mean()
            lines.append({"entrant": title, "as predicted": f"{mean['ece']:.4f}",
                          "calibrated": f"{mean['ece_calibrated']:.4f}",
                          "if every probability were true": f"{mean['ece_expected']:.4f}"})  # fmt: skip
        bookkit.table(lines)
        _over(table)


@functools.cache
def _titles(design: str = "table") -> dict[str, str]:
    return {e.name: e.title for e in suite().design(design)[2]}


def hours_curve(entrants: tuple[str, ...], metric: str = "auroc") -> None:
    """Scores by what was known at each hour: mean over the splits, 95 % t interval."""
    table = shared(entrants)
    if not there() or not len(table):
        return
    name, _, unit = METRICS[metric]
    axis, said = plt.subplots(figsize=(plots.WIDTH, 3.2), layout="constrained")[1], []
    for number, entrant in enumerate(e for e in entrants if e in set(table["entrant"])):
        values = table[table["entrant"] == entrant].reindex(columns=[f"{metric}_{hour:g}h" for hour in HOURS]) * unit
        found = [bookkit.compare(values[column].dropna().to_numpy()) for column in values]
        reach = [[c.estimate - c.low for c in found], [c.high - c.estimate for c in found]]
        hours, mean = np.array(HOURS) + 0.5 * number, [c.estimate for c in found]  # side by side, not one on another
        marker = MARKERS[number % len(MARKERS)]
        axis.errorbar(hours, mean, yerr=reach, marker=marker, capsize=3, label=_titles()[entrant])
        said += [f"{_titles()[entrant]} at {hour:g} h: {c.estimate:.1f}" for hour, c in zip(HOURS, found, strict=True)]
    axis.set(xlabel="hours of the stay that were seen", ylabel=f"{name} (times {unit})", xticks=HOURS)
    axis.legend(frameon=False)
    caption = (f"{name} on the test stays as they were known at an hour: mean over the same "
               f"{table['seed'].nunique()} splits, 95 % t interval.")  # fmt: skip
    bookkit.picture(axis, f"{name} against the hours seen. {'; '.join(said)}", caption)


def learning_curve(metric: str) -> None:
    """A score against the number of stays that an entrant learned from: mean over the splits, 95 % t interval."""
    table = complete("curve")
    if not len(table):
        return
    name, _, unit = METRICS[metric]
    axis = plt.subplots(figsize=(plots.WIDTH, 3.2), layout="constrained")[1]
    said = []
    learned = 1 + suite().shares[1] / suite().shares[0]  # the fits that score the test stays hold the validation stays
    table = table.assign(
        base=table["entrant"].map(lambda e: e.partition(" at ")[0]), stays=table["train_stays"] * learned
    )
    for number, (base, part) in enumerate(table.groupby("base", sort=False)):
        points = []
        for _, values in part.groupby("entrant"):
            c = bookkit.compare(values[metric].to_numpy() * unit)
            points.append((values["stays"].iloc[0], c.estimate, c.estimate - c.low, c.high - c.estimate))
        stays, mean, below, above = np.array(sorted(points)).T
        axis.errorbar(stays, mean, yerr=[below, above], marker=MARKERS[number % len(MARKERS)], capsize=3, label=base)
        said += [f"{base} with {n:.0f} stays: {value:.1f}" for n, value in zip(stays, mean, strict=True)]
    ticks = sorted(table["stays"].unique())
    axis.set(xscale="log", xlabel="stays to learn from", ylabel=f"{name} (times {unit})")
    axis.set_xticks(ticks, [f"{n:.0f}" for n in ticks])
    axis.set_xticks([], minor=True)
    axis.legend(frameon=False)
    bookkit.picture(axis, f"{name} against the number of stays. {'; '.join(said)}", f"{name} on the same test stays.")


def instruments(entrants: tuple[str, ...]) -> None:
    """What the instruments show on the test stays: mean ± SD over the splits."""
    if there():
        table = shared(entrants)
        found = table.groupby("entrant", sort=False)
        mean, sd = (getattr(found[list(INSTRUMENTS)], how)() for how in ("mean", "std"))
        bookkit.table([
            {"measure": text, **{_titles()[e]: _plus_minus(mean.at[e, name], sd.at[e, name]) for e in mean.index}}
            for name, text in INSTRUMENTS.items()
        ])  # fmt: skip
        _over(table)


def _plus_minus(mean: float, sd: float) -> str:
    return "–" if np.isnan(mean) else f"{mean:.3g}" + ("" if np.isnan(sd) else f" ± {sd:.2g}")


def tradeoff(metric: str) -> None:
    """Likelihood, what h keeps of the past and a score at each value of the setting; means over the same splits."""
    table = complete("tradeoff")
    if not len(table):
        return
    name, _, unit = METRICS[metric]
    others = rows()[rows()["seed"].isin(table["seed"])]
    titles = _titles("tradeoff") | {e: _titles()[e] for e in ("baseline", "improved")}
    found = pd.concat([table, others[others["entrant"].isin(titles)]]).groupby("entrant", sort=False)
    mean, splits = found[["nll_per_event", "s_past", metric]].mean(), table["seed"].nunique()
    left, right = plt.subplots(1, 2, figsize=(plots.WIDTH, 3.2), layout="constrained")[1]
    for axis, column, label, scale in ((left, "s_past", "S_past", 1), (right, metric, f"{name} (times {unit})", unit)):
        for number, part in enumerate((list(_titles("tradeoff")), ["baseline"], ["improved"])):
            points = mean[mean.index.isin(part)]
            x, y = points["nll_per_event"], scale * points[column]
            axis.plot(x, y, marker=MARKERS[number], linestyle="" if number else "-")
            for e, *place in zip(points.index, x, y, strict=True):
                beside = {"xytext": (7, -3)} if axis is left else {"xytext": (2, 6), "rotation": 45}
                axis.annotate(titles[e], place, textcoords="offset points", fontsize=8, **beside)
        axis.set_ylabel(label)
        axis.margins(0.4 if axis is left else 0.3, 0.15 if axis is left else 0.3)
    left.figure.supxlabel("negative log likelihood (nats per event)", fontsize="medium")
    said = "; ".join(f"{titles[e]}: {r.nll_per_event:.2f} nats, S_past {r.s_past:.2f}, {name} {unit * r[metric]:.1f}"
                     for e, r in mean.iterrows())  # fmt: skip
    caption = (f"What the weight of the KL trades, on the test stays: means over {splits} splits. "
               "Further left is a better likelihood, further up more of the past in h, "
               f"or a better {name}.")  # fmt: skip
    bookkit.picture([left, right], f"S_past and {name} against the likelihood. {said}", caption)


def costs() -> None:
    """What a run of each entrant takes."""
    if there():
        mean = shared().groupby("entrant", sort=False)[list(COSTS)].mean()
        lines = [{"entrant": _titles()[e], **{text: "–" if np.isnan(mean.at[e, name]) else mean.at[e, name] * unit
                                             for name, (text, unit) in COSTS.items()}} for e in mean.index]  # fmt: skip
        bookkit.table(lines)


def ingredients() -> None:
    """What the ladder takes away and adds, with the settings."""
    whole = PRESETS[suite().design("ladder")[2][0].preset]
    lines = []
    for e in suite().design("ladder")[2]:
        if e.name.startswith("without "):
            off = {k: v for k, v in e.settings.items() if v != getattr(whole, k)}
            present = {field.name: getattr(whole, field.name) for field in dataclasses.fields(whole)}
            lines.append({"ingredient": e.title.removeprefix("without "),
                          "with it": bookkit.settings_text({k: present[k] for k in off}),
                          "without it": bookkit.settings_text(off)})  # fmt: skip
    bookkit.table(lines)
