"""What was asked of the recommended preset and what came of it, what its choice promised, and what may be missing."""

from __future__ import annotations

import bookkit
import competition
import pandas as pd
from competition import difference, overlap, points, suite

from hsetvae.calibration import HOURS
from hsetvae.lineup import AVERAGE
from hsetvae.standings import METRICS
from hsetvae.statistics import ONLY, sign_flip_p, t_interval

IF_TRUE = "the same, if every probability were true"


def _there() -> bool:
    return competition.there() and "recommended" in set(competition.rows()["entrant"])


def _before_refit(metric: str, other: str) -> pd.Series:
    """Score of the recommended preset when it has learned from the training stays only, minus that of an entrant."""
    own, others = (competition.rows(d).query("entrant == @e").set_index("seed")[metric]
                   for d, e in (("ladder", "recommended"), ("table", other)))  # fmt: skip
    return own - others


def promise(metrics: tuple[str, ...], chosen_on: tuple[int, ...]) -> None:
    """The recommended preset minus boosting, on validation and on test stays: where it was chosen, and elsewhere; with
    intervals that count the overlap of the splits."""
    if _there():
        training, validation, _ = suite().shares
        counted = {"validation stays": validation / training, "test stays": overlap()}
        lines = []
        for title, chosen in (("on which settings were chosen", True), ("the others", False)):
            for metric in metrics:
                parts = {"validation stays": f"validation_{metric}", "test stays": metric}
                both = pd.DataFrame({part: difference(m) for part, m in parts.items()}).dropna()
                both = both[both.index.isin(chosen_on) == chosen] * METRICS[metric][2]
                lost = points(both["validation stays"] - both["test stays"], overlap())
                ahead = f"{(both['test stays'] > 0).sum()} of {len(both)}"
                seen = {part: points(both[part], counted[part]) for part in both}
                lines.append({"splits": title, "metric": METRICS[metric][0], **seen, "lost on the way": lost,
                              "test stays: above boosting on": ahead})  # fmt: skip
        bookkit.table(lines)


def account(
    calibrated: float = 0.015, active: float = 0.5, minutes: float = 20, a_second: float = 1000, gib: float = 2
) -> None:
    """What was asked of the recommended preset in numbers, and what came of it: margins with 95 % t intervals."""
    if not _there():
        return
    own = competition.rows()[competition.rows()["entrant"] == "recommended"].set_index("seed")
    own_overlap, scores = overlap(), [(m, METRICS[m][0]) for m in ("auroc", "auprc")]
    beside = "by one thread beside another run"

    def against(text: str, metric: str, other: str, unit: float = 1, one: str = "recommended") -> tuple:
        return text, unit * difference(metric, one, other), overlap(*({one, other} & set(_with_runs())))

    def unrefitted(text: str, metric: str, other: str, unit: float = 1) -> tuple:
        return text, unit * _before_refit(metric, other), overlap(design="ladder")

    asked = [
        *(against(f"{title} above that of boosting, times 100", m, "boosting", 100) for m, title in scores),
        *(unrefitted(f"the same before the refit ({title})", m, "boosting", 100) for m, title in scores),
        *(against(f"{title} above that of tuned boosting, times 100", m, "tuned", 100) for m, title in scores),
        *(against(f"{title} of the average of both above that of {text}, times 100", m, other, 100, "average")
          for other, text in (("boosting", "boosting"), ("twice", "two boostings, averaged")) for m, title in scores),
        *(against(f"AUROC above that of boosting at {hour:g} hours, times 100", f"auroc_{hour:g}h", "boosting", 100)
          for hour in HOURS[:-1]),
        (f"calibrated, an error of at most {calibrated:g} (times 100)", 100 * (calibrated - own["ece_calibrated"]),
         own_overlap),
        (IF_TRUE, 100 * (calibrated - own["ece_expected"]), own_overlap),
        (f"more than {active:g} of the units active at the top level", own["au_ratio_top"] - active, own_overlap),
        ("a decoder that uses its latents (nats per set)", own["decoder_use_current"], own_overlap),
        against("an h that uses more of the past than the baseline's (S_past)", "s_past", "baseline"),
        unrefitted("the same before the refit (S_past)", "s_past", "baseline"),
        against("a likelihood not below improved's, by distortion and KL together (nats per event)", "negative_elbo",
                "improved", -1),
        against("the same for the distortion alone", "nll_per_event", "improved", -1),
        against("not asked: a likelihood not below the baseline's, by both together", "negative_elbo", "baseline", -1),
        (f"trained twice, for the refit, within {minutes:g} minutes, {beside} (once and alone: see above)",
         minutes - own["seconds_training"] / 60, own_overlap),
        (f"{a_second:,g} stays predicted a second, {beside} (alone: see above)",
         own["stays_per_second"] - a_second, own_overlap),
        (f"no more than {gib:g} GiB of memory", gib - own["peak_mib"] / 1024, own_overlap),
    ]  # fmt: skip
    lines = []
    for goal, margin, counted in asked:
        d = margin.dropna()
        if not len(d):
            continue
        inner, wide = (t_interval(d, overlap=shared_stays) for shared_stays in (0, counted))
        said = "reached" if inner[0] > 0 else "missed" if inner[1] < 0 else "neither shown nor excluded"
        said += ONLY if (inner[0] > 0 or inner[1] < 0) and wide[0] < 0 < wide[1] else ""
        said = "–" if goal == IF_TRUE else said if len(d) > 2 else "too few splits yet"
        digits = 3 if "S_past" in goal else 2
        lines.append({"asked for": goal, "so it is": said, "margin [95 %]": points(margin, digits=digits),
                      "[95 %], overlap counted": points(margin, counted, digits).partition(" ")[2] or "–",
                      "p": "–" if goal == IF_TRUE else f"{sign_flip_p(d):.2g}", "splits": len(d)})  # fmt: skip
    bookkit.table(lines)


def _with_runs() -> list[str]:
    """The entrants of the table that learn themselves; an average learns from what its parts do."""
    return [e.name for e in suite().design()[2] if e.kind != AVERAGE]


def missing(metrics: tuple[str, ...]) -> None:
    """What might stand between the recommended preset and more: numbers that speak for or against each answer, with
    intervals that count the overlap of the splits."""
    if not _there():
        return
    half, whole = (f"at {share:g}" for share in sorted({e.share for e in suite().design("curve")[2]})[-2:])
    named = competition.titles("ladder")

    def gain(metric: str, e: str) -> pd.Series:
        return difference(metric, f"{e} {whole}", f"{e} {half}", "curve")

    halves = overlap(f"recommended {half}", design="curve")
    asked = [
        *(("averaging", f"{title}, minus {of}", overlap(), lambda m, pair=pair: difference(m, *pair))
          for title, of, pair in (("the average of both", "the preset", ("average", "recommended")),
                                  ("the average of both", "boosting", ("average", "boosting")),
                                  ("two boostings, averaged", "one", ("twice", "boosting")),
                                  ("five boostings, averaged", "one", ("five", "boosting")),
                                  ("the average of both", "two boostings, averaged", ("average", "twice")))),
        *(("patients", f"{e}: all stays, minus half of them", halves, lambda m, e=e: gain(m, e))
          for e in ("recommended", "boosting")),
        ("patients", "the gain of recommended, minus boosting's", halves,
         lambda m: gain(m, "recommended") - gain(m, "boosting")),
        ("patients", "recommended after the refit, minus before", overlap(design="ladder"),
         lambda m: -_before_refit(m, "recommended")),
        *(("fewer duties", named[arm].replace("without", "with", 1) + ", minus without", overlap(design="ladder"),
           lambda m, arm=arm: difference(m, "recommended", arm, "ladder"))
          for arm in ("without cut", "without masking", "without next") if arm in named),
    ]  # fmt: skip
    lines = []
    for answer, text, counted, found in asked:
        line, clear = {"what might be missing": answer, "the number": text}, []
        for m in metrics:
            d = (found(m) * METRICS[m][2]).dropna()
            low, high = t_interval(d, overlap=counted)
            line |= {METRICS[m][0]: points(d, counted)}
            clear += [f"{METRICS[m][0]} {'above' if low > 0 else 'below'} zero"] * (low > 0 or high < 0)
        if len(d):
            lines.append(line | {"splits": len(d), "told apart": ", ".join(clear) or "neither"})
    bookkit.table(lines)
