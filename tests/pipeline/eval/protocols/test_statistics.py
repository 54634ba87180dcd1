import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.eval.protocols.statistics import bootstrap_interval, chance_of_recall, proportion_interval, upper_tail

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


def test_bootstrap_of_single_samples_agrees_with_the_normal_interval() -> None:
    hits = np.zeros(1_000)
    hits[:300] = 1
    low, high = bootstrap_interval(hits, np.ones(1_000))
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1_000)
    assert low == pytest.approx(0.3 - half, abs=0.004)
    assert high == pytest.approx(0.3 + half, abs=0.004)


def test_bootstrap_over_groups_is_wider_when_the_samples_of_a_group_agree() -> None:
    rng = np.random.default_rng(0)
    counts = np.full(200, 5.0)
    agreeing = np.where(rng.random(200) < 0.5, 5.0, 0.0)
    independent = rng.binomial(5, 0.5, 200).astype(np.float64)
    wide, narrow = bootstrap_interval(agreeing, counts), bootstrap_interval(independent, counts)
    assert (wide[1] - wide[0]) > 1.8 * (narrow[1] - narrow[0])


def test_bootstrap_depends_only_on_the_seed() -> None:
    hits = np.random.default_rng(1).binomial(5, 0.4, 80).astype(np.float64)
    counts = np.full(80, 5.0)
    assert bootstrap_interval(hits, counts, seed=7) == bootstrap_interval(hits, counts, seed=7)
    assert bootstrap_interval(hits, counts, seed=7) != bootstrap_interval(hits, counts, seed=8)


def test_bootstrap_with_only_hits_or_only_misses_counts_each_group_as_one_draw() -> None:
    counts = np.full(30, 5.0)
    assert bootstrap_interval(counts, counts) == proportion_interval(30, 30)
    assert bootstrap_interval(np.zeros(30), counts) == proportion_interval(0, 30)


@pytest.mark.parametrize(("hits", "counts"), [([], []), ([1.0], [1.0, 1.0]), ([0.0], [0.0])])
def test_bootstrap_refuses_lists_that_do_not_match(hits: list[float], counts: list[float]) -> None:
    with pytest.raises(ValueError, match="two equal lists"):
        bootstrap_interval(np.array(hits, np.float64), np.array(counts, np.float64))


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
