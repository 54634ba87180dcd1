import pyarrow as pa
import pytest
from scipy.stats import binomtest

from pipeline.eval.protocols.suite import RANKED
from pipeline.eval.report.overlap import Contamination, contamination, draw_differences, overlapping_items, summarise
from tests.pipeline.eval.predictions import classified


def set_of(name: str, num_overlapping: int, hits: int, num_clean: int, clean_hits: int) -> Contamination:
    right = [i < hits for i in range(num_overlapping)] + [i < clean_hits for i in range(num_clean)]
    return contamination(name, classified(right), range(num_overlapping))


def test_accuracies_of_all_overlap_and_clean() -> None:
    found = set_of("birds", num_overlapping=40, hits=30, num_clean=160, clean_hits=80)
    assert found.overlapping is not None
    assert found.clean is not None
    assert (found.whole.num_samples, found.overlapping.num_samples, found.clean.num_samples) == (200, 40, 160)
    assert (found.whole.value, found.overlapping.value, found.clean.value) == (0.55, 0.75, 0.5)
    assert found.share == 0.2
    assert found.change == pytest.approx(0.05)
    reference = binomtest(30, 40, 0.5, alternative="greater")
    assert found.p_value == pytest.approx(reference.pvalue, rel=1e-9)
    exact = binomtest(30, 40).proportion_ci(0.995, "exact")
    assert (found.overlapping.low, found.overlapping.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert found.difference is not None
    difference = (found.difference.value, found.difference.low, found.difference.high)
    assert difference == pytest.approx((0.25, exact.low - 0.5, exact.high - 0.5), abs=1e-9)


def test_samples_are_identified_by_index_not_by_row() -> None:
    predictions = classified([True, False, True, False]).take(pa.array([3, 1, 0, 2]))
    found = contamination("x", predictions, {0, 2, 77})
    assert found.overlapping is not None
    assert found.clean is not None
    assert (found.overlapping.value, found.clean.value) == (1.0, 0.0)
    assert found.p_value == 0.0


def test_sets_without_overlap_or_without_clean_samples() -> None:
    none, everything = set_of("none", 0, 0, 5, 3), set_of("everything", 5, 3, 0, 0)
    assert (none.overlapping, none.p_value, none.difference) == (None, None, None)
    assert (none.share, none.change) == (0.0, 0.0)
    assert (everything.clean, everything.p_value, everything.change, everything.share) == (None, None, 0.0, 1.0)


def test_retrieval_is_scored_by_the_first_text_of_each_image() -> None:
    rows = [("image_to_text", 0, None, 0), ("image_to_text", 1, None, 3), ("text_to_image", 0, "x", 9)]
    predictions = pa.Table.from_pylist([dict(zip(RANKED.names, row, strict=True)) for row in rows], schema=RANKED)
    found = contamination("pairs", predictions, {0})
    assert found.whole.num_samples == 2
    assert found.overlapping is not None
    assert found.overlapping.value == 1.0


def test_items_belong_to_the_set_and_its_version() -> None:
    overlaps = pa.table({"benchmark": ["a", "b", "a", "a"], "set_sha256": ["1", "2", "1", "1"], "item": [4, 5, 6, 4]})
    assert overlapping_items(overlaps, "a", "1") == {4, 6}
    assert overlapping_items(overlaps, "c", "3") == frozenset()
    with pytest.raises(ValueError, match="another version of the set b"):
        overlapping_items(overlaps, "b", "1")


SETS = [
    set_of("none", 0, 0, 100, 50),
    set_of("equal", 10, 5, 90, 45),
    set_of("better", 50, 48, 150, 75),
    set_of("worse", 20, 4, 180, 90),
]


def test_the_summary_of_all_sets() -> None:
    summary = summarise(SETS)
    assert (summary.num_sets, summary.num_without, summary.num_moved, summary.num_significant) == (4, 1, 2, 1)
    assert summary.median_share == pytest.approx(0.1)
    assert summary.mean_share == pytest.approx((0 + 0.1 + 0.25 + 0.1) / 4)


def test_the_chart_shows_only_sets_with_overlap() -> None:
    picture = draw_differences(SETS)
    assert picture.count("<circle") == 3
    assert picture.count('<circle class="mark strong"') == 1
    assert "better: " in picture
    assert "none" not in picture.replace('fill="none"', "")
    assert draw_differences(SETS[:1]) == ""
    assert "<script>" not in draw_differences([set_of("<script>", 1, 1, 1, 1)])
