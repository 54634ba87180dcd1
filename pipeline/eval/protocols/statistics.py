"""Compute the uncertainty of scores: exact binomial intervals, intervals of grouped samples, chance levels.

The CLIP paper uses the interval of Clopper and Pearson (1934) (tables 10 and 11 at 99.5%). This module computes it from
its definition, by bisection on the binomial tail. The tail is an incomplete beta function (DLMF 8.17.5), so the number
of draws need not be whole. The interval of grouped samples uses that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
_BISECTIONS = 64
_PRECISION = 1e-15
"""Relative change at which a continued fraction has converged."""

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
    return _clopper_pearson(successes, trials, confidence)


def upper_tail(successes: int, trials: int, p: float) -> float:
    """P(X >= successes) for X ~ Binomial(trials, p): the probability of at least this many hits by chance.

    Raises:
        ValueError: the numbers are not a proportion.
    """
    if not 0 <= successes <= trials or not 0 <= p <= 1:
        raise ValueError(f"no binomial tail: {successes} successes of {trials} trials at p = {p}")
    return 1.0 if successes == 0 else _beta_cdf(p, successes, trials - successes + 1)


def grouped_interval(hits: Floats, counts: Floats, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Compute the interval of sum(hits) / sum(counts) for samples in groups, by Korn and Graubard (1998).

    Use it if the samples within a group depend on each other, such as the five captions of an image. The spread between
    groups gives the effective number of samples, and the interval is that of Clopper and Pearson for this number. The
    effective number is reduced by the quantiles of Student's t for N - 1 degrees of freedom, because few groups tell
    little about their spread. It is at most the number of samples, so groups that agree by chance give no false
    certainty. With one group, nothing is known about the spread: the samples count as independent. If there are only
    hits or only misses, each group counts as one draw.

    Source: Korn and Graubard, Survey Methodology 24 (1998), pages 193-201.

    Args:
        hits: hits of each group, float64 [N].
        counts: samples of each group, float64 [N], all positive.
        confidence: coverage.

    Returns:
        (low, high) with 0 <= low <= sum(hits) / sum(counts) <= high <= 1.

    Raises:
        ValueError: `hits` and `counts` do not match, or `confidence` is not between 0 and 1.
    """
    if hits.shape != counts.shape or hits.ndim != 1 or len(hits) == 0 or (counts <= 0).any():
        raise ValueError(f"hits {hits.shape} and counts {counts.shape} must be two equal lists, with counts above 0")
    num_groups, num_samples = len(hits), float(counts.sum())
    share = float(hits.sum()) / num_samples
    if share in (0.0, 1.0):
        return proportion_interval(num_groups if share else 0, num_groups, confidence)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1, such as 0.95")
    effective = num_samples
    if num_groups > 1:
        squares = float(((hits - share * counts) ** 2).sum())
        variance = num_groups / (num_groups - 1) * squares / num_samples**2
        few_groups = _student_quantile(num_samples - 1, confidence) / _student_quantile(num_groups - 1, confidence)
        # Not the quotient by the variance, which is 0 if all groups have the same share of hits
        if variance * num_samples > share * (1 - share) * few_groups**2:
            effective = share * (1 - share) / variance * few_groups**2
    return _clopper_pearson(share * effective, effective, confidence)


def _clopper_pearson(successes: float, trials: float, confidence: float) -> tuple[float, float]:
    """The interval of Clopper and Pearson. The numbers need not be whole."""
    tail = (1 - confidence) / 2
    low = 0.0 if successes == 0 else _beta_quantile(tail, successes, trials - successes + 1)
    # P(X <= k | p) is the upper tail of the failures, P(trials - X >= trials - k | 1 - p).
    high = 1.0 if successes == trials else 1 - _beta_quantile(tail, trials - successes, successes + 1)
    return low, high


def _student_quantile(degrees: float, confidence: float) -> float:
    """The t with P(-t < T < t) = 1 - I_x(degrees / 2, 1 / 2) = confidence, for x = degrees / (degrees + t^2)."""
    x = _beta_quantile(1 - confidence, degrees / 2, 0.5)
    return math.sqrt(degrees * (1 - x) / x)


def _beta_quantile(probability: float, a: float, b: float) -> float:
    """Find the x with I_x(a, b) = probability. I_x increases with x."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        x = (low + high) / 2
        low, high = (x, high) if _beta_cdf(x, a, b) < probability else (low, x)
    return (low + high) / 2


def _beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22).

    The fraction converges in O(sqrt(max(a, b))) terms for x < (a + 1) / (a + b + 2); symmetry gives the rest.
    """
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_cdf(1 - x, b, a)
    # Value of a continued fraction by the recurrence of Steed: each term changes the value by `change`
    denominator = 1 / (1 - (a + b) * x / (a + 1))
    change, value = denominator - 1, denominator
    m = 0
    while abs(change) > _PRECISION * abs(value):
        m += 1
        for d in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            denominator = 1 / (1 + d * denominator)
            change *= denominator - 1
            value += change
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return value * math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a


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
