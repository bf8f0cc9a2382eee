"""The instruments as pure functions: collapse, information, similarity, use of history, gradients, calibration.

Arrays in, numbers out, float64 throughout; `diagnostics` applies them to a run.  N sets, Z latent dimensions of one
level, KL and mutual information in nats.  Every one has a case with a known answer in the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from scipy.stats import binomtest
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .config import UserError

PARKED = 0.1  # a KL within 10 % of the free-bits floor is parked there
MI_ROWS = 500  # rows of the N × N matrix of log q in memory at a time
GRADIENT = ("gradient_norm", "gradient_norm_clipped", "clipped", "gradient_cosine")  # columns of history.csv
FOLDS = 4  # of the cross-fitted probes
BINS = 10  # of the calibration table, equal in mass


# --- posterior collapse ----------------------------------------------------------------------------------------------


def unit_variance(mu: np.ndarray) -> np.ndarray:
    """Var_x(E_q[z_i | x]) of posterior means mu (N, Z) -> (Z,); two passes, so a large mean costs no digits."""
    mu = np.asarray(mu, dtype=np.float64)
    return np.square(mu - mu.mean(axis=0)).mean(axis=0)


def active_units(mu: np.ndarray, threshold: float = 0.01) -> int:
    """AU: number of latent dimensions whose posterior mean varies over sets by more than `threshold`.

    mu (N, Z) are posterior means (Burda, Grosse & Salakhutdinov 2016).
    """
    return int((unit_variance(mu) > threshold).sum())


def collapsed(kl: np.ndarray, eps: float = 0.01, delta: float = 0.01) -> np.ndarray:
    """(eps, delta)-collapse: KL_i < eps on a share 1 − delta of the sets or more (Lucas et al. 2019).

    kl (N, Z) in nats per set and dimension -> (Z,) bool.
    """
    return (np.asarray(kl, dtype=np.float64) < eps).mean(axis=0) >= 1 - delta


def floor_shares(kl: np.ndarray, floor: float, per: str = "dimension") -> tuple[float, float]:
    """Shares of dimensions at the free-bits floor: (below it or parked, parked within 10 % of it); 0, 0 without one.

    kl (N, Z); `floor` in nats per dimension.  The floor acts on means over sets; with `per="level"` on the level's
    sum, so that the level as a whole sits there or does not.
    """
    if not floor:
        return 0.0, 0.0
    mean = np.asarray(kl, dtype=np.float64).mean(axis=0)  # (Z,)
    mean = mean.mean(keepdims=True) if per == "level" else mean
    parked = np.abs(mean - floor) <= PARKED * floor
    return float((parked | (mean <= floor)).mean()), float(parked.mean())


class LinearOptimum(NamedTuple):
    """Optimum of a linear VAE: number of dimensions alive, posterior SD and KL of each (nats)."""

    active: int
    sigma: np.ndarray
    kl: np.ndarray


def linear_vae_optimum(eigenvalues: np.ndarray, noise: float, beta: float) -> LinearOptimum:
    """Best posterior of a linear VAE (Lucas et al. 2019): dimension i is alive when eigenvalue_i > beta · noise.

    `eigenvalues` (Z,) of the data's covariance, `noise` = the decoder's variance s², `beta` = weight of the KL.
    Raises UserError unless noise and beta are positive and no eigenvalue is negative.
    """
    eigenvalues = np.asarray(eigenvalues, dtype=np.float64)
    if noise <= 0 or beta <= 0 or (eigenvalues < 0).any():
        raise UserError(f"noise = {noise} and beta = {beta} must be positive, and no eigenvalue negative")
    price = beta * noise
    variance = price / np.maximum(eigenvalues, price)  # of the posterior: min(1, beta s² / eigenvalue)
    return LinearOptimum(int((eigenvalues > price).sum()), np.sqrt(variance), -0.5 * np.log(variance))


def mutual_information(z: np.ndarray, mu: np.ndarray, logvar: np.ndarray) -> float:
    """I_q(x; z) in nats: mean of ln q(z_n | x_n) − ln q(z_n), with q(z) the mean of the N posteriors.

    z, mu, logvar (N, Z): z_n one draw from the n-th posterior.  A lower bound that cannot exceed ln N, because
    ln q(z_n | x_n) is taken from the same sum (ELBO surgery, Hoffman & Johnson 2016): print N beside it.
    """
    z, mu, logvar = (np.asarray(a, dtype=np.float64) for a in (z, mu, logvar))
    centre = mu.mean(axis=0)
    z, mu = z - centre, mu - centre
    precision = np.exp(-logvar)
    constant = (logvar + mu**2 * precision).sum(axis=1)  # (N,) of each posterior
    gain = 0.0
    for start in range(0, len(z), MI_ROWS):
        rows = np.arange(start, min(start + MI_ROWS, len(z)))
        log_q = -0.5 * (z[rows] ** 2 @ precision.T - 2 * z[rows] @ (mu * precision).T + constant)  # (rows, N)
        gain += (log_q[np.arange(len(rows)), rows] - logsumexp(log_q, axis=1)).sum()
    return float(gain / len(z) + np.log(len(z)))


# --- similarity and use of history -----------------------------------------------------------------------------------


def debiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA of features x (n, p) and y (n, q) with unbiased HSIC (Song et al. 2012): 0 for independent ones.

    The usual (biased) form reads 0.78 for independent features at n = 72, p = q = 256.  NaN for constant features.
    """
    k, m = _gram(x), _gram(y)
    own = _hsic(k, k) * _hsic(m, m)
    return float(_hsic(k, m) / np.sqrt(own)) if own > 0 else float("nan")


def _gram(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    x = x - x.mean(axis=0)
    gram = x @ x.T
    np.fill_diagonal(gram, 0.0)
    return gram


def _hsic(k: np.ndarray, m: np.ndarray) -> float:
    n = len(k)
    if n < 4:
        raise UserError(f"similarity of {n} sets: the unbiased estimate needs at least 4, so give more stays")
    trace = (k * m).sum()
    means = k.sum() * m.sum() / ((n - 1) * (n - 2))
    cross = 2 * (k.sum(axis=0) @ m.sum(axis=0)) / (n - 2)
    return (trace + means - cross) / (n * (n - 3))


def squared_distance(a: np.ndarray, b: np.ndarray) -> float:
    """E‖a − b‖² over rows."""
    return float(np.square(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).sum(axis=-1).mean())


def share_of(part: float, whole: float) -> float:
    """part / whole; NaN where the whole is 0 (states that are the same for every stay say nothing)."""
    return part / whole if whole > 0 else float("nan")


def past_swap(
    history: Callable[[Any, Any], np.ndarray], own: tuple[Any, Any], other: tuple[Any, Any]
) -> tuple[float, float]:
    """Sensitivity of h to the past and to the current set: (S_past, S_cur).

    `history(past, now)` -> (n, D) is any map; `own` and `other` are (past, now) of n stays and of their partners, put
    at the same times.  S_past = E‖h − h(other past, own now)‖² / E‖h − h(other past, other now)‖², S_cur likewise for
    the current set.  S_past is exactly 0 for a map without memory and exactly 1 for one that sees the past only.
    """
    (past, now), (other_past, other_now) = own, other
    h = history(past, now)
    apart = squared_distance(h, history(other_past, other_now))
    s_past = share_of(squared_distance(h, history(other_past, now)), apart)
    return s_past, share_of(squared_distance(h, history(past, other_now)), apart)


def noise_share(h: np.ndarray, again: np.ndarray, other: np.ndarray) -> float:
    """E‖h − h under new posterior noise‖² / E‖h − h of another stay‖², all (n, D): 1 when h is nothing but noise."""
    return share_of(squared_distance(h, again), squared_distance(h, other))


def mean_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows of cos(a, b); rows of zeros count as 0."""
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(np.divide((a * b).sum(axis=-1), size, out=np.zeros(len(a)), where=size > 0).mean())


def ridge_r2(features: np.ndarray, target: np.ndarray, group: np.ndarray) -> np.ndarray:
    """R² of ridge regression on stays not fitted: features (n, D), target (n, k), group (n,) = stay -> (k,).

    Cross-fitted by stay; the penalty is chosen within the fitted folds.  NaN with fewer stays than folds and for a
    constant target; at most 0 in expectation where the features say nothing.
    """
    if len(np.unique(group)) < FOLDS:
        return np.full(target.shape[1], np.nan)
    predicted = np.empty(target.shape)
    for fit, held in GroupKFold(FOLDS).split(features, groups=group):
        ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 7), alpha_per_target=True))
        predicted[held] = ridge.fit(features[fit], target[fit]).predict(features[held]).reshape(len(held), -1)
    residual = np.square(target - predicted).mean(axis=0)
    variance = target.var(axis=0)
    return 1 - np.divide(residual, variance, out=np.full(len(variance), np.nan), where=variance > 0)


def effective_sets(weights: np.ndarray, stay: np.ndarray) -> np.ndarray:
    """exp(entropy) of the pooling weights (M,) of each stay (M,) -> (B,): how many sets the outcome head looks at."""
    surprise = -weights * np.log(np.where(weights > 0, weights, 1.0))
    return np.exp(np.bincount(stay, surprise))


# --- training and calibration ----------------------------------------------------------------------------------------


def gradient_health(history: pd.DataFrame) -> dict[str, float]:
    """From the table of a run: norms before and after clipping (medians), share of clipped steps, cosine of the raw and
    the clipped gradient, largest over median norm, skipped steps as a count and as a share.

    A row of the table is a mean over up to a quarter of an epoch, and each counts once: one step that jumps is seen in
    the mean of its interval.  A run that skipped every step has no norms: they are NaN.
    """
    history = history.reindex(columns=["step", "skipped", *GRADIENT])
    steps = history["step"].max()
    norm = history["gradient_norm"].median()
    return {
        "norm": float(norm),
        "norm_clipped": float(history["gradient_norm_clipped"].median()),
        "clipped": float(history["clipped"].mean()),
        "cosine": float(history["gradient_cosine"].mean()),
        "largest_over_median": float(history["gradient_norm"].max() / norm),
        "skipped": float(history["skipped"].sum()),
        "skipped_share": float(history["skipped"].sum() / steps),
    }


def learning(history: pd.DataFrame) -> dict[str, float]:
    """From the table of a run: epochs done, the epoch whose weights were kept, the outcome's cross-entropy (nats per
    stay) on validation stays there and at the end, and on training stays at the end; NaN where no outcome is known."""
    scored = history.dropna(subset=["validation_loss"])
    best = scored.loc[scored["validation_loss"].idxmin()]
    return {
        "epochs": int(scored["epoch"].iloc[-1]),
        "best_epoch": int(best["epoch"]),
        "validation_bce_best": float(best["validation_bce"]),
        "validation_bce_last": float(scored["validation_bce"].iloc[-1]),
        "bce_last": float(history["bce"].iloc[-1]) if history["bce"].any() else float("nan"),
    }


def calibration_table(outcome: np.ndarray, probability: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """Equal-mass bins of predicted probability: predicted (mean), observed (share), low, high (95 %, Wilson), stays.

    Bins that ties make equal are merged.  outcome (n,) is 0 or 1, none unknown.
    """
    edges = np.unique(np.quantile(probability, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, probability, side="left")
    rows = []
    for one in np.unique(place):
        inside = place == one
        n, events = int(inside.sum()), int(outcome[inside].sum())
        interval = binomtest(events, n).proportion_ci(method="wilson")
        rows.append((probability[inside].mean(), events / n, interval.low, interval.high, n))
    return pd.DataFrame(rows, columns=["predicted", "observed", "low", "high", "stays"])
