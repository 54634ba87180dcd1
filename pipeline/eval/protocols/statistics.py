"""Compute the uncertainty of scores: exact binomial intervals, a bootstrap for grouped samples, chance levels.

The CLIP paper uses the interval of Clopper and Pearson (1934) (tables 10 and 11 at 99.5%). This module computes it from
its definition, by bisection on the exact binomial tail. That costs O(trials) per step and needs no statistics package.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
NUM_RESAMPLES = 2_000
_BISECTIONS = 64
_RESAMPLES_AT_ONCE = 64

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of the results table: `value` with its interval [`low`, `high`] and its chance level.

    All four are fractions in [0, 1]. `num_samples` is the number of samples that the value averages.
    """

    value: float
    low: float
    high: float
    chance: float
    metric: str
    num_samples: int


def proportion_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Compute the Clopper-Pearson interval of a proportion: all probabilities that are consistent with the outcome.

    Args:
        successes: number of hits, 0 to `trials`.
        trials: number of independent draws, at least 1.
        confidence: coverage, such as 0.95, or 0.995 for the paper's tables.

    Returns:
        (low, high) with 0 <= low <= successes / trials <= high <= 1.

    Raises:
        ValueError: the numbers are not a proportion, or `confidence` is not between 0 and 1.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"not a proportion: {successes} successes of {trials} trials")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else _solve_upper_tail(successes, trials, tail)
    # P(X <= k | p) is the upper tail of the failures, P(trials - X >= trials - k | 1 - p).
    high = 1.0 if successes == trials else 1 - _solve_upper_tail(trials - successes, trials, tail)
    return low, high


def upper_tail(successes: int, trials: int, p: float) -> float:
    """P(X >= successes) for X ~ Binomial(trials, p): the probability of at least this many hits by chance.

    Raises:
        ValueError: the numbers are not a proportion.
    """
    if not 0 <= successes <= trials or not 0 <= p <= 1:
        raise ValueError(f"no binomial tail: {successes} successes of {trials} trials at p = {p}")
    if successes == 0 or p == 1.0:
        return 1.0
    if p == 0.0:
        return 0.0
    ks = np.arange(successes, trials + 1)
    log_terms = _log_choose(trials)[successes:] + ks * np.log(p) + (trials - ks) * np.log1p(-p)
    return min(1.0, float(np.exp(log_terms).sum()))


def _log_choose(trials: int) -> Floats:
    """The logarithms of the binomial coefficients (trials over k) for k = 0, 1, ... trials."""
    ks = np.arange(1, trials + 1)
    return np.concatenate([[0.0], np.cumsum(np.log((trials - ks + 1) / ks))])


def _solve_upper_tail(successes: int, trials: int, tail: float) -> float:
    """Find the p with P(X >= successes) = tail for X ~ Binomial(trials, p). The probability increases with p."""
    log_choose = _log_choose(trials)[successes:]
    ks = np.arange(successes, trials + 1)
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        p = (low + high) / 2
        log_terms = log_choose + ks * np.log(p) + (trials - ks) * np.log1p(-p)
        low, high = (p, high) if np.exp(log_terms).sum() < tail else (low, p)
    return (low + high) / 2


def bootstrap_interval(
    hits: Floats, counts: Floats, *, confidence: float = CONFIDENCE, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of sum(hits) / sum(counts), resampling whole groups.

    Use it if the samples within a group depend on each other, such as the five captions of an image.

    Args:
        hits: hits of each group, float64 [N].
        counts: samples of each group, float64 [N], all positive.
        confidence: coverage.
        num_resamples: number of resamples.
        seed: seed of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: `hits` and `counts` do not match.
    """
    if hits.shape != counts.shape or hits.ndim != 1 or len(hits) == 0 or (counts <= 0).any():
        raise ValueError(f"hits {hits.shape} and counts {counts.shape} must be two equal lists, with counts above 0")
    share = hits.sum() / counts.sum()
    if share in (0.0, 1.0):
        # All resamples are equal here, but the score is not certain: count each group as one draw instead.
        return proportion_interval(len(hits) if share else 0, len(hits), confidence)
    rng = np.random.default_rng(seed)
    shares = []
    for start in range(0, num_resamples, _RESAMPLES_AT_ONCE):
        rows = min(_RESAMPLES_AT_ONCE, num_resamples - start)
        drawn = rng.integers(0, len(hits), (rows, len(hits)))
        shares.append(hits[drawn].sum(axis=1) / counts[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(shares), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def chance_of_recall(num_relevant: int, num_candidates: int, k: int) -> float:
    """The probability that k randomly drawn candidates include at least one relevant candidate.

    Raises:
        ValueError: `num_relevant` is larger than `num_candidates`.
    """
    if not 0 <= num_relevant <= num_candidates:
        raise ValueError(f"{num_relevant} relevant of {num_candidates} candidates")
    if k > num_candidates - num_relevant:
        return 1.0 if num_relevant else 0.0
    drawn = np.arange(k)
    return float(1 - np.prod((num_candidates - num_relevant - drawn) / (num_candidates - drawn)))
