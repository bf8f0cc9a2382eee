"""The suite of models on Challenge 2012 as the book shows it, from the published records, which need no data."""

from __future__ import annotations

import functools
import html
from pathlib import Path

import bookkit
import numpy as np
import pandas as pd
from challenge import RESULTS
from IPython.display import HTML, display

from hsetvae.diagnostics import MI_SETS
from hsetvae.standings import METRICS, standings
from hsetvae.statistics import t_interval
from hsetvae.suite import Suite, fitting, load_suite, published_rows

NAME = "challenge2012"
INSTRUMENTS = {
    "au_ratio_top": "active units at the top level (share)", "au_ratio": "active units, mean over levels (share)",
    "mi": f"mutual information (nats, at most {np.log(MI_SETS):.2f})", "kl_per_set": "KL (nats per set)",
    "decoder_use_current": "decoder use, current set (nats per set)",
    "decoder_use_next": "decoder use, next set (nats per set)", "s_past": "S_past",
    "s_past_untrained": "S_past, untrained", "nll_per_event": "distortion (nats per event)",
    "negative_elbo": "distortion and KL, the negative ELBO (nats per event)",
}  # fmt: skip
COSTS = {
    "seconds_training": ("minutes of training", 1 / 60), "stays_per_second": ("stays predicted a second", 1),
    "peak_mib": ("peak memory (GiB)", 1 / 1024), "parameters": ("parameters", 1), "threads": ("threads", 1),
}  # fmt: skip


@functools.cache
def suite() -> Suite:
    return load_suite(str(Path(RESULTS).parent / f"{NAME}.toml"))


@functools.cache
def at_hand() -> pd.DataFrame:
    """The published rows of the present code and settings; the page says once when there are others."""
    table = published_rows(suite())
    fit = fitting(suite(), table, here=False)
    if stale := len(table) - len(fit):
        _not_yet(f"{stale} published rows are of other settings or of other code", f"hsetvae study run --suite {NAME}")
    return fit


@functools.cache
def rows(design: str = "table") -> pd.DataFrame:
    """The published rows of a design that have finished and are of the present code and settings; may be empty.

    `negative_elbo` spreads the KL of a set over its events, so many as the sets of all stays have on average.
    """
    table = at_hand()
    facts = pd.read_csv(RESULTS / "challenge2012.csv").set_index("name")["value"]
    bound = table["nll_per_event"] + table["kl_per_set"] / facts["events per set, mean"]
    return table.assign(negative_elbo=bound)[(table["design"] == design) & (table["status"] == "finished")]


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
    """The rows of these entrants on the splits that all of them have: means of these compare.

    Without names these are all entrants but those that have run fewer than half as many splits as another, or they
    would take the splits of all others along.
    """
    table = rows()
    run = table.groupby("entrant")["seed"].nunique()
    names = set(run.index) & set(entrants) if entrants else set(run.index[run >= run.max() / 2])
    table = table[table["entrant"].isin(names)]
    table = table.groupby("seed").filter(lambda split: names <= set(split["entrant"]))
    return table.sort_values("entrant", key=lambda e: e.map(list(titles()).index), kind="stable")


def _over(table: pd.DataFrame) -> None:
    """Say over which splits the means of a table are taken."""
    display(HTML(f"<p>Means over the {table['seed'].nunique()} splits that all of these entrants have run.</p>"))


def complete(design: str) -> pd.DataFrame:
    """The rows of the splits that every entrant of a design has run: only their means can be set side by side."""
    wanted = {e.name for e in suite().design(design)[2]}
    table = rows(design).groupby("seed").filter(lambda split: wanted <= set(split["entrant"]))
    if not len(table):
        _not_yet(f"No split of the {design} is complete", f"hsetvae study run --suite {NAME} --design {design}")
    return table


def overlap(*entrants: str, design: str = "table") -> float:
    """Test stays per stay that these entrants learn from, the largest of them; without names the recommended preset."""
    return max(suite().overlap(e) for e in suite().design(design)[2] if e.name in (entrants or ("recommended",)))


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
        table = at_hand()
        failed = ((table["design"] == design) & (table["status"] != "finished")).sum()
        fewer = []
        for n, same in sorted(done[done < wanted].groupby(done), reverse=True):
            who = html.escape(titles(design)[same.index[0]]) if len(same) == 1 else f"each of {len(same)} entrants"
            fewer.append(f"{n} by {who}")
        text = f"fewer so far: {', '.join(fewer)}" if fewer else "every entrant has run all of them"
        display(HTML(f"<p>Declared: {wanted} splits; {text}. Failed runs: {failed}.</p>"))


def scores() -> None:
    """Mean and SD of every metric over the splits that all entrants have run."""
    if there():
        table, lines = shared(), []
        for title, part in standings(suite(), table).query("n > 0").groupby("title", sort=False):
            line = {"entrant": title}
            for row in part.itertuples():
                name, better, unit = METRICS[row.metric]
                line[f"{name} {'↑' if better > 0 else '↓'}"] = f"{row.mean * unit:.1f} ± {row.sd * unit:.1f}"
            lines.append(line)
        bookkit.table(lines)
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
                lines.append({"entrant": row.title, "metric": name, "so it is": row.words, "difference [95 %]": seen,
                              "[95 %], overlap counted": wide, "p": f"{row.p:.3g}",
                              "pairs": int(row.pairs)})  # fmt: skip
        if lines:
            bookkit.table(lines)
        else:
            display(HTML("<p>No two entrants that are compared have two splits yet, the least for an interval.</p>"))


def points(difference: pd.Series, overlap: float = 0.0, digits: int = 2) -> str:
    """Mean of a paired difference with its 95 % t interval, which counts the `overlap` of the splits."""
    d = difference.dropna()
    low, high = t_interval(d, overlap=overlap)
    interval = f" [{low:+.{digits}f}, {high:+.{digits}f}]" if len(d) > 1 else ""
    return f"{d.mean():+.{digits}f}{interval}" if len(d) else "–"


def difference(metric: str, one: str = "recommended", other: str = "boosting", design: str = "table") -> pd.Series:
    """Score of one entrant minus that of another on the same splits; empty where either has not run."""
    values = rows(design).pivot(index="seed", columns="entrant", values=metric)
    return values.reindex(columns=[other, one]).diff(axis=1)[one]


def calibration() -> None:
    """Calibration error before and after, beside what true probabilities would have."""
    if there():
        lines = []
        table = shared()
        for title, part in table.groupby(table["entrant"].map(titles()), sort=False):
            mean = part[["ece", "ece_calibrated", "ece_expected"]].mean()
            lines.append({"entrant": title, "as predicted": f"{mean['ece']:.4f}",
                          "calibrated": f"{mean['ece_calibrated']:.4f}",
                          "if every probability were true": f"{mean['ece_expected']:.4f}"})  # fmt: skip
        bookkit.table(lines)
        _over(table)


@functools.cache
def titles(design: str = "table") -> dict[str, str]:
    return {e.name: e.title for e in suite().design(design)[2]}


def instruments(entrants: tuple[str, ...]) -> None:
    """What the instruments show on the test stays: mean ± SD over the splits."""
    if there():
        table = shared(entrants)
        found = table.groupby("entrant", sort=False)
        mean, sd = (getattr(found[list(INSTRUMENTS)], how)() for how in ("mean", "std"))
        bookkit.table([
            {"measure": text, **{titles()[e]: _plus_minus(mean.at[e, name], sd.at[e, name]) for e in mean.index}}
            for name, text in INSTRUMENTS.items()
        ])  # fmt: skip
        _over(table)


def _plus_minus(mean: float, sd: float) -> str:
    return "–" if np.isnan(mean) else f"{mean:.3g}" + ("" if np.isnan(sd) else f" ± {sd:.2g}")


def costs() -> None:
    """What a run of each entrant takes: the median over the splits that all have run, as other work slows some runs."""
    if there():
        found = shared().groupby("entrant", sort=False)[list(COSTS)].median()
        lines = [{"entrant": titles()[e], **{text: "–" if np.isnan(found.at[e, n]) else found.at[e, n] * unit
                                             for n, (text, unit) in COSTS.items()}} for e in found.index]  # fmt: skip
        bookkit.table(lines)
