import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.eval.protocols.statistics import (
    Floats,
    chance_of_recall,
    grouped_interval,
    proportion_interval,
    upper_tail,
)

scipy_stats = pytest.importorskip("scipy.stats")


@pytest.mark.parametrize(
    ("successes", "trials"),
    [(0, 1), (1, 1), (0, 10), (10, 10), (3, 10), (1, 400), (399, 400), (211, 1_797), (31_600, 50_000), (7, 50_000)],
)
@pytest.mark.parametrize("confidence", [0.95, 0.995])
def test_clopper_pearson_equals_scipy(successes: int, trials: int, confidence: float) -> None:
    expected = scipy_stats.binomtest(successes, trials).proportion_ci(confidence, method="exact")
    low, high = proportion_interval(successes, trials, confidence)
    assert low == pytest.approx(expected.low, rel=1e-8, abs=1e-12)
    assert high == pytest.approx(expected.high, rel=1e-8, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_clopper_pearson_contains_the_proportion_and_is_symmetric(draw: tuple[int, int]) -> None:
    successes, trials = draw
    low, high = proportion_interval(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    mirrored = proportion_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize(("successes", "trials"), [(-1, 4), (5, 4), (0, 0)])
def test_invalid_proportions_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {trials} trials"):
        proportion_interval(successes, trials)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_outside_zero_and_one_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match=f"confidence is {confidence}"):
        proportion_interval(1, 2, confidence)


def groups_of(rng: np.random.Generator, num_groups: int, share: float, correlation: float) -> tuple[Floats, Floats]:
    """Hits and counts of groups of 1 to 10 samples, whose samples agree with the given intraclass correlation."""
    counts = rng.integers(1, 11, num_groups)
    shares = np.full(num_groups, share)
    if correlation:
        scale = (1 - correlation) / correlation
        shares = rng.beta(share * scale, (1 - share) * scale, num_groups)
    return rng.binomial(counts, shares).astype(np.float64), counts.astype(np.float64)


def percentile_interval(hits: Floats, counts: Floats) -> tuple[float, float]:
    """The percentile bootstrap over groups, which is sound for hundreds of groups only."""
    drawn = np.random.default_rng(0).integers(0, len(hits), (4_000, len(hits)))
    low, high = np.quantile(hits[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)


@pytest.mark.parametrize(("share", "correlation"), [(0.5, 0.0), (0.2, 0.3)])
@pytest.mark.parametrize("num_groups", [1, 2, 3, 5, 10, 30, 300])
def test_the_interval_of_groups_covers_the_true_share(num_groups: int, share: float, correlation: float) -> None:
    """Of 200 intervals of 95%, 182 or fewer cover it with a probability of 1.2%. The bootstrap of 2 groups had 56%."""
    rng = np.random.default_rng(1)
    intervals = [grouped_interval(*groups_of(rng, num_groups, share, correlation)) for _ in range(200)]
    assert sum(low <= share <= high for low, high in intervals) >= 183
    assert all(0 <= low <= high <= 1 for low, high in intervals)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_interval_of_many_groups_agrees_with_the_bootstrap(share: float, correlation: float) -> None:
    groups = groups_of(np.random.default_rng(2), 500, share, correlation)
    expected = percentile_interval(*groups)
    assert grouped_interval(*groups) == pytest.approx(expected, abs=0.1 * (expected[1] - expected[0]))


def test_one_group_has_the_interval_of_its_samples() -> None:
    assert grouped_interval(np.array([3.0]), np.array([5.0])) == proportion_interval(3, 5)


def test_groups_that_agree_by_chance_have_the_interval_of_their_samples() -> None:
    assert grouped_interval(np.full(4, 3.0), np.full(4, 5.0)) == proportion_interval(12, 20)


def test_opposite_groups_tell_nothing() -> None:
    low, high = grouped_interval(np.array([5.0, 0.0]), np.array([5.0, 5.0]))
    assert low < 0.001
    assert high > 0.999


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.9, 0.95, 0.995]))
def test_the_interval_of_groups_equals_the_formula_in_scipy(num_groups: int, seed: int, confidence: float) -> None:
    hits, counts = groups_of(np.random.default_rng(seed), num_groups, 0.4, 0.3)
    share, num_samples = hits.sum() / counts.sum(), counts.sum()
    assume(0 < share < 1)
    variance = np.cov(hits - share * counts) * num_groups / num_samples**2
    t_samples, t_groups = (scipy_stats.t.ppf((1 + confidence) / 2, n - 1) for n in (num_samples, num_groups))
    assume(variance > 0)
    effective = min(num_samples, share * (1 - share) / variance * (t_samples / t_groups) ** 2)
    a, b = share * effective, (1 - share) * effective
    expected = scipy_stats.beta.ppf([(1 - confidence) / 2, (1 + confidence) / 2], [a, a + 1], [b + 1, b])
    assert grouped_interval(hits, counts, confidence=confidence) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_the_interval_of_groups_is_wider_when_the_samples_of_a_group_agree() -> None:
    rng = np.random.default_rng(0)
    counts = np.full(200, 5.0)
    agreeing = np.where(rng.random(200) < 0.5, 5.0, 0.0)
    independent = rng.binomial(5, 0.5, 200).astype(np.float64)
    wide, narrow = grouped_interval(agreeing, counts), grouped_interval(independent, counts)
    assert (wide[1] - wide[0]) > 1.8 * (narrow[1] - narrow[0])


def test_groups_with_only_hits_or_only_misses_count_as_one_draw_each() -> None:
    counts = np.full(30, 5.0)
    assert grouped_interval(counts, counts) == proportion_interval(30, 30)
    assert grouped_interval(np.zeros(30), counts) == proportion_interval(0, 30)


@pytest.mark.parametrize(("hits", "counts"), [([], []), ([1.0], [1.0, 1.0]), ([0.0], [0.0])])
def test_groups_that_do_not_match_are_refused(hits: list[float], counts: list[float]) -> None:
    with pytest.raises(ValueError, match="two equal lists"):
        grouped_interval(np.array(hits, np.float64), np.array(counts, np.float64))


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_a_confidence_of_groups_outside_zero_and_one_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match=f"confidence is {confidence}"):
        grouped_interval(np.array([1.0, 2.0]), np.array([5.0, 5.0]), confidence=confidence)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.data())
def test_chance_of_recall_equals_the_hypergeometric_distribution(num_candidates: int, data: st.DataObject) -> None:
    num_relevant = data.draw(st.integers(0, num_candidates))
    k = data.draw(st.integers(1, num_candidates))
    expected = 1 - scipy_stats.hypergeom.pmf(0, num_candidates, num_relevant, k)
    assert chance_of_recall(num_relevant, num_candidates, k) == pytest.approx(expected, abs=1e-9)


def test_chance_of_recall_of_one_relevant_candidate_is_the_share_drawn() -> None:
    assert chance_of_recall(1, 400, 5) == pytest.approx(5 / 400)
    assert chance_of_recall(1, 4, 10) == 1.0
    with pytest.raises(ValueError, match="5 relevant of 4"):
        chance_of_recall(5, 4, 1)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 300), st.data())
def test_the_upper_tail_equals_scipy(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    p = data.draw(st.sampled_from([0.0, 1e-6, 0.3, 0.5, 0.999, 1.0]))
    expected = scipy_stats.binom.sf(successes - 1, trials, p)
    assert upper_tail(successes, trials, p) == pytest.approx(expected, rel=1e-7, abs=1e-300)


def test_a_tail_of_an_invalid_proportion_is_refused() -> None:
    with pytest.raises(ValueError, match="no binomial tail"):
        upper_tail(3, 2, 0.5)
    with pytest.raises(ValueError, match="no binomial tail"):
        upper_tail(1, 2, 1.5)
