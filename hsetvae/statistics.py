"""Paired comparisons: intervals, exact tests, correction for several questions, and the words of a verdict.

All functions take the paired differences d (n,) of an arm and its reference, one per replicate.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from .config import UserError, stream

ALPHA = 0.05  # family-wise error of a verdict
POWER = 0.8  # of "an effect that this study could have seen"
MOST_COUNTED = 10_000  # replicates that a comparison is said to need
MOST_FAILED = 0.2  # a question with a larger share of failed runs is not evaluable
EXACT = 16  # up to this n all 2^n sign flips are counted, above it a random sample of them
FLIPS = 100_000
FEW = 12  # up to this n the power of the sign flips is counted on DRAWS samples
DRAWS = 1000


@functools.lru_cache
def _all_signs(n: int) -> np.ndarray:
    return np.array(list(itertools.product((1.0, -1.0), repeat=n))).reshape(-1, n)


def widening(n: int, overlap: float) -> float:
    """How many times wider an interval of n replicates is when their overlap is counted (see `t_interval`)."""
    return math.sqrt(1 + n * overlap)


def t_interval(d: np.ndarray, level: float = 0.95, overlap: float = 0.0) -> tuple[float, float]:
    """Student's interval of the mean of d.  It covers at small n, where the bootstrap does not.

    Replicates that split the same stays again and again are not independent.  With `overlap`, the number of test stays
    per stay learned from, the interval counts that: the mean has variance s²(1/n + overlap) (Nadeau & Bengio 2003).
    """
    n = len(d)
    if n < 2:
        return math.nan, math.nan
    reach = stdtrit(n - 1, 0.5 + level / 2) * np.std(d, ddof=1) / math.sqrt(n) * widening(n, overlap)
    return float(np.mean(d) - reach), float(np.mean(d) + reach)


def sign_flip_p(d: np.ndarray) -> float:
    """Two-sided p of "the sign of every difference is a coin flip": share of flips with a mean as far from 0 (Fisher).

    Exact up to n = 16, by 100,000 random flips above.  The smallest possible p is 2/2^n: .0078 at n = 8.
    """
    d = np.asarray(d, dtype=np.float64)
    n = len(d)
    seen = abs(d.sum()) * (1 - 1e-12) - 1e-300
    if n <= EXACT:
        return float((np.abs(_all_signs(n) @ d) >= seen).mean())
    rng = np.random.default_rng(stream(0, "sign flips", n))
    beyond = sum(int((np.abs(rng.choice((1.0, -1.0), (FLIPS // 10, n)) @ d) >= seen).sum()) for _ in range(10))
    return (beyond + 1) / (FLIPS + 1)  # the data are one of the flips


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of a family of p values -> corrected p, in the same order; NaN stays out."""
    p = np.asarray(p, dtype=np.float64)
    out = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p[i]))
        out[i] = highest
    return out


def detectable(sd: float, n: int, alpha: float = ALPHA) -> float:
    """The smallest true mean difference that n pairs show at p < alpha with a power of 80 %, when differences are
    normal; infinite where even the smallest possible p of the sign-flip test is larger."""
    return _detectable(n, alpha) * sd if 2 / 2**n < alpha else math.inf


@functools.lru_cache
def _detectable(n: int, alpha: float) -> float:
    """`detectable` in units of the SD.  Where n pairs have few flips, the test needs more than the t approximation
    says, and its power is counted on DRAWS samples of normal differences."""
    found = _approximately(n, alpha)
    if n > FEW:
        return found
    noise, flips = np.random.default_rng(stream(0, "power", n)).standard_normal((DRAWS, n)), _all_signs(n)[: 2**n // 2]

    def power(shift: float) -> float:
        d = noise + shift
        return ((np.abs(d @ flips.T) >= np.abs(d.sum(1, keepdims=True)) * (1 - 1e-12)).mean(1) < alpha).mean()

    low, high = 0.9 * found, 3 * found
    while high - low > 0.005 * found:
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle) < POWER else (low, middle)
    return high


def _approximately(n: int, alpha: float) -> float:
    return float((stdtrit(n - 1, 1 - alpha / 2) + stdtrit(n - 1, POWER)) / math.sqrt(n))


def replicates_needed(sd: float, delta: float, alpha: float = ALPHA) -> int:
    """Number of pairs after which a difference of delta is detectable; at most MOST_COUNTED are counted."""
    close = (n for n in range(3, 200) if 0.95 * _approximately(n, alpha) * sd <= delta)  # the exact answer takes longer
    n = next((n for n in close if detectable(sd, n, alpha) <= delta), None)
    return n or min(MOST_COUNTED, math.ceil(((ndtri(1 - alpha / 2) + ndtri(POWER)) * sd / delta) ** 2))


@dataclass(frozen=True)
class Comparison:
    """Everything a verdict rests on: n pairs, their mean, SD and intervals, p (raw and Holm-corrected)."""

    n: int
    estimate: float
    sd: float
    low: float  # 95 % interval
    high: float
    low90: float  # 90 % interval: inside ±delta means negligible (two one-sided tests)
    high90: float
    positive: float  # share of replicates with a positive difference
    p: float
    p_holm: float = math.nan


def compare(d: np.ndarray) -> Comparison:
    """Paired differences -> Comparison, before correction for the other questions of the family."""
    d = np.asarray(d, dtype=np.float64)
    if len(d) == 0:
        return Comparison(0, *[math.nan] * 8)
    sd = float(np.std(d, ddof=1)) if len(d) > 1 else math.nan
    return Comparison(
        len(d), float(d.mean()), sd, *t_interval(d), *t_interval(d, 0.9), float((d > 0).mean()), sign_flip_p(d)
    )


def compare_events(d: np.ndarray) -> Comparison:
    """`compare` for differences of what happens in a run or does not.  Where no pair differs, Student's interval has no
    width; the exact bounds of the share of pairs that differ take its place: at n = 10 it may still be .26 (90 %)."""
    c = compare(d)
    if c.n < 2 or np.any(d):
        return c
    reach, reach90 = (1 - (1 - level) ** (1 / c.n) for level in (0.975, 0.95))
    return dataclasses.replace(c, low=-reach, high=reach, low90=-reach90, high90=reach90)


ONLY = " on these splits only"  # an answer that the overlap of the splits takes away again


def verdict(
    c: Comparison, direction: int, delta: float, failed: float = 0.0, corrected_for: int = 1, overlap: float = 0.0
) -> str:
    """The words for a comparison.  `direction` is the claimed sign, `delta` the smallest effect of interest, `failed`
    the share of runs that did not finish, `corrected_for` the number of questions that share the error of 5 %, and
    `overlap` that of `t_interval` where replicates split the same stays: an answer that its wider interval no longer
    gives holds ONLY for these splits."""
    if delta <= 0 or direction not in (1, -1):
        raise UserError(f"a question needs a direction of +1 or -1 and a delta above 0; got {direction} and {delta}")
    if failed > MOST_FAILED:
        return f"not evaluable: {failed:.0%} of the runs failed"
    if c.n < 2:
        return f"not evaluable at n={c.n}"
    wider = widening(c.n, overlap)
    if c.p_holm < ALPHA:
        only = ONLY if overlap and abs(c.estimate) <= wider * (c.high - c.estimate) else ""
        if np.sign(c.estimate) != direction:
            return "refuted: harmful" + only
        return ("supported" if abs(c.estimate) >= delta else "supported, below the size of interest") + only
    if -delta < c.low90 and c.high90 < delta:
        reach = abs(c.estimate) + wider * (c.high90 - c.estimate)
        return "refuted: negligible" + (ONLY if overlap and reach >= delta else "")
    alpha = ALPHA / corrected_for  # what the first step of Holm's method asks for
    if c.sd > 1e-12 * abs(c.estimate):
        seen, more = wider * detectable(c.sd, c.n, alpha), replicates_needed(c.sd, delta, alpha)
        seen = f"could have seen {f'{seen:.2g}' if seen < math.inf else 'nothing'}"
        more = f"{more if more < MOST_COUNTED else f'more than {MOST_COUNTED}'} replicates would show {delta:g}"
    elif c.estimate:  # and the smallest p that n sign flips have is too large
        seen, more = "all pairs differ by the same", math.floor(math.log2(2 / alpha)) + 1
        more = f"{more} such replicates would decide it"
    else:
        seen, more = "no pair differs", math.ceil(math.log(ALPHA) / math.log1p(-delta))
        more = f"{more} such replicates would refute it"
    # more splits of the same stays bring no new ones
    return f"undecided at n={c.n} ({seen if overlap else f'{seen}; {more}'})"
