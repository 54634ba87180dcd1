import struct

import pyarrow as pa
import pytest

from pipeline.eval.report.objectives import CURVES, compare, draw_chart, draw_figure, images_needed
from pipeline.eval.report.report import ReportInputs, render_report
from pipeline.model.config import OBJECTIVES
from tests.pipeline.eval.objective_rows import IMAGES, score_rows


def test_images_needed_are_interpolated_logarithmically_at_the_first_crossing() -> None:
    points = [(100.0, 0.2), (200.0, 0.4), (400.0, 0.3), (800.0, 0.6)]
    assert images_needed(points, 0.4) == pytest.approx(200)
    assert images_needed(points, 0.3) == pytest.approx(100 * 2**0.5)
    assert images_needed(points, 0.45) == pytest.approx(400 * 2**0.5)
    assert images_needed(points, 0.1) == 100
    assert images_needed(points, 0.7) is None


def test_the_comparison_computes_how_many_times_faster_each_objective_is() -> None:
    comparison = compare(score_rows())
    assert list(comparison.curves) == list(OBJECTIVES)
    for k, (images, accuracy) in enumerate(comparison.curves["bag"][1]):
        assert images == IMAGES[k]
        assert accuracy == pytest.approx(0.35 + 0.1 * k)
    assert comparison.chance == pytest.approx(0.2)
    by_accuracy = {row.accuracy: row for row in comparison.needed}
    assert max(by_accuracy) == 0.85
    half = by_accuracy[0.55]
    assert half.images["caption"] == pytest.approx(800)
    assert half.images["bag"] == pytest.approx(400)
    assert half.images["contrastive"] == pytest.approx(100)
    assert half.times_faster("contrastive-bag") == pytest.approx(4)
    assert by_accuracy[0.85].images["caption"] is None
    assert by_accuracy[0.85].times_faster("contrastive") is None
    assert comparison.finals["shapes"]["caption"] == pytest.approx((0.5, 0.5, 0.5))
    assert comparison.num_seeds == 2


def test_an_accuracy_is_reached_only_if_all_seeds_reach_it() -> None:
    table = score_rows(("bag", "caption"))
    slow = [
        row | {"accuracy": 0.3} if (row["objective"], row["seed"]) == ("bag", 1) else row for row in table.to_pylist()
    ]
    comparison = compare(pa.Table.from_pylist(slow, schema=CURVES))
    assert all(row.images["bag"] is None for row in comparison.needed if row.accuracy > 0.3)
    assert comparison.finals["colours"]["bag"] == pytest.approx(((0.7 + 0.3) / 2, 0.3, 0.7))


def test_the_figure_is_drawn_as_png_and_svg() -> None:
    comparison = compare(score_rows(("contrastive", "caption")))
    png = draw_figure(comparison)
    assert png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", png[16:24])
    assert width > height > 300
    chart = draw_chart(comparison)
    assert chart.count("<polygon") == chart.count("<polyline") == 2


def test_the_page_has_a_section_for_a_comparison() -> None:
    page = render_report(ReportInputs(title="Figure 2", objectives=compare(score_rows())))
    assert '<section id="objectives">' in page
    assert "8.0×" in page
    assert '<a href="#objectives">' in page
    assert "objectives" not in render_report(ReportInputs(title="none")).split("<body>")[1]
