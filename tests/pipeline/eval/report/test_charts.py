import math
import re
from xml.etree import ElementTree

import pytest

from pipeline.eval.report.charts import (
    MAX_POINTS,
    SMALL,
    Axis,
    Bar,
    Mark,
    Series,
    interval_chart,
    line_chart,
    smooth,
    stacked_bars,
    thin,
)

SVG = "{http://www.w3.org/2000/svg}"


def draw(
    *series: Series, x: Axis | None = None, y: Axis | None = None, **options: tuple[int, int]
) -> ElementTree.Element:
    return ElementTree.fromstring(line_chart("Loss", series, x or Axis(label="step"), y or Axis(), **options))


def points_of(chart: ElementTree.Element, name: str) -> list[tuple[float, float]]:
    (line,) = (line for line in chart.iter("polyline") if line.get("class") == name)
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.get("points", "").split())]


def test_points_are_drawn_at_their_values() -> None:
    chart = draw(Series(label="loss", points=[(0, 4.0), (50, 3.0), (100, 0.0)]))
    (left, top), (middle, quarter), (right, bottom) = points_of(chart, "line line-0")
    assert middle == pytest.approx((left + right) / 2, abs=0.1)
    assert quarter == pytest.approx(top + (bottom - top) / 4, abs=0.1)
    level = {text.text: float(text.get("y", "")) for text in chart.iter("text") if text.get("class") == "end"}
    assert level["4"] == pytest.approx(top, abs=0.1)
    assert level["0"] == pytest.approx(bottom, abs=0.1)


def test_a_logarithmic_axis_spaces_powers_of_ten_evenly() -> None:
    x = Axis(label="rank", log=True)
    chart = draw(
        Series(label="queries", points=[(1, 1_000.0), (10, 100.0), (100, 10.0), (1_000, 1.0)]), x=x, y=Axis(log=True)
    )
    points = points_of(chart, "line line-0")
    assert [points[i + 1][0] - points[i][0] for i in range(3)] == pytest.approx(
        [points[1][0] - points[0][0]] * 3, abs=0.2
    )
    labels = [text.text for text in chart.iter("text") if text.get("class") == "middle"]
    assert labels == ["1", "10", "100", "1,000"]


def test_points_that_an_axis_cannot_show_are_omitted() -> None:
    points = [(1, math.nan), (2, 3.0), (3, math.inf), (4, 5.0)]
    assert len(points_of(draw(Series(label="loss", points=points)), "line line-0")) == 2
    chart = draw(Series(label="count", points=[(1, 5.0), (2, 0.0), (3, 2.0)]), y=Axis(log=True))
    assert len(points_of(chart, "line line-0")) == 2


@pytest.mark.parametrize("points", [[(7, 2.5)], [(7, 0.0), (7, 0.0)], [(1, -3.0), (2, -3.0)]])
@pytest.mark.parametrize("size", [SMALL, (520, 270)])
def test_a_single_value_gives_a_chart(points: list[tuple[float, float]], size: tuple[int, int]) -> None:
    chart = draw(Series(label="loss", points=points), size=size)
    for x, y in points_of(chart, "line line-0"):
        assert 0 < x < size[0]
        assert 0 < y < size[1]


def test_without_points_the_chart_is_empty() -> None:
    assert line_chart("Loss", [Series(label="loss", points=[])], Axis(), Axis()) == ""


def test_a_legend_appears_for_several_lines_only() -> None:
    one = Series(label="a", points=[(1, 1.0), (2, 2.0)])
    assert not list(draw(one).iter("tspan"))
    assert [key.text for key in draw(one, Series(label="b", points=[(1, 2.0)])).iter("tspan")] == ["a", "b"]


def test_texts_are_escaped_and_the_chart_has_a_description() -> None:
    chart = draw(Series(label='<b>"loss"', points=[(1, 5.0), (9, 1.25)]), Series(label="x", points=[(1, 1.0)]))
    words = chart.get("aria-label", "")
    assert words.startswith('Loss: <b>"loss" goes from 5 at step 1 to 1.25 at step 9; x goes from')
    assert next(key.text for key in chart.iter("tspan")) == '<b>"loss"'


def test_ticks_are_round_numbers_inside_the_range() -> None:
    for low, high in ((0.0, 0.617), (-3.2, 11.0), (1_234.0, 98_765.0), (0.99991, 1.0)):
        chart = draw(Series(label="loss", points=[(0, low), (1, high)]))
        labels = [text.text or "" for text in chart.iter("text") if text.get("class") == "end"][:-1]
        assert 2 <= len(labels) <= 7
        assert all(re.fullmatch(r"-?[\d,.]+(e-\d+)?", label) for label in labels)


def test_smoothing_keeps_lines_straight_and_removes_noise() -> None:
    straight = [(float(i), 2.0 * i) for i in range(50)]
    assert smooth(straight, 5)[2:-2] == straight[2:-2]
    noisy = [(float(i), (-1.0) ** i) for i in range(50)]
    assert max(abs(y) for _, y in smooth(noisy, 9)) <= 0.2


@pytest.mark.parametrize("log", [False, True])
def test_thinning_keeps_the_ends_and_the_order(log: bool) -> None:
    points = [(float(i), -float(i)) for i in range(5_000)]
    thinned = thin(points, log=log)
    assert thinned == sorted(set(thinned))
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    assert len(thinned) <= MAX_POINTS
    assert len([point for point in thinned if point[0] < 100]) > (60 if log else 1)
    assert thin(points[:7]) == points[:7]


def boxes_of(chart: ElementTree.Element) -> list[list[tuple[str, float, float]]]:
    """(class, left, width) of every part of each bar."""
    return [
        [(box.get("class", ""), float(box.get("x", "")), float(box.get("width", ""))) for box in group.iter("rect")]
        for group in chart.iter("g")
    ]


@pytest.mark.parametrize("width", [520, 1_080])
def test_shares_are_stacked_from_zero_to_the_whole(width: int) -> None:
    bars = [
        Bar(label="a.example", shares=[0.5, 0.25, 0.0, 0.25], note="50%"),
        Bar(label="b.example", shares=[0, 0, 0, 1], note="0%"),
    ]
    chart = ElementTree.fromstring(stacked_bars("Domains", bars, width))
    (first, second, third), (whole,) = boxes_of(chart)
    assert [box[0] for box in (first, second, third, whole)] == [
        "part part-0",
        "part part-1",
        "part part-3",
        "part part-3",
    ]
    assert first[2] == pytest.approx(whole[2] / 2, abs=0.1)
    assert second[1] == pytest.approx(first[1] + first[2], abs=0.1)
    assert third[1] + third[2] == pytest.approx(whole[1] + whole[2], abs=0.2)
    ticks = {text.text: float(text.get("x", "")) for text in chart.iter("text") if text.get("class") == "middle"}
    assert ticks["0%"] == pytest.approx(whole[1], abs=0.1)
    assert ticks["100%"] == pytest.approx(whole[1] + whole[2], abs=0.1)
    assert chart.get("aria-label") == "Domains: a.example 50%; b.example 0%"


def test_long_and_hostile_labels_are_cut_and_escaped() -> None:
    bars = [Bar(label="<b>" + "long-" * 50, shares=[1.0], note="<i>")]
    chart = ElementTree.fromstring(stacked_bars("Domains", bars, 520))
    (title,) = chart.iter("title")
    (label,) = (text.text or "" for text in chart.iter("text") if text.get("class") == "end")
    assert title.text == bars[0].label
    assert label == "<b>" + ("long-" * 50)[:20] + "…"
    ((box,),) = boxes_of(chart)
    assert 160 < box[1] < 200


def test_without_bars_the_chart_is_empty() -> None:
    assert stacked_bars("Domains", [], 520) == ""


MARKS = [
    Mark(label="a", x=0.0, y=0.2, low=-0.1, high=0.4),
    Mark(label="b", x=0.1, y=-0.4, low=-0.6, high=0.3, strong=True),
    Mark(label="beside b", x=0.1, y=-0.4, low=-0.4, high=-0.4),
]


def test_marks_lie_within_their_intervals_around_a_line_at_zero() -> None:
    chart = ElementTree.fromstring(interval_chart("Difference", MARKS, Axis(label="share"), Axis(percent=True)))
    (zero,) = (path for path in chart.iter("path") if path.get("class") == "axis")
    level = float(re.search(r",([\d.]+)H", zero.get("d", "")).group(1))  # type: ignore[union-attr]
    circles = {circle.get("class"): circle for circle in chart.iter("circle")}
    assert set(circles) == {"mark", "mark strong"}
    heights = sorted(float(circle.get("cy", "")) for circle in chart.iter("circle"))
    assert heights[0] < level < heights[1] == heights[2]
    whiskers = [path.get("d", "") for path in chart.iter("path") if "mark" in path.get("class", "")]
    low, high = (float(value) for value in re.findall(r",([\d.]+)V([\d.]+)", whiskers[0])[0])
    assert high < float(circles["mark strong"].get("cy", "")) < low


def test_labels_of_marks_do_not_overlap() -> None:
    chart = ElementTree.fromstring(interval_chart("Difference", MARKS, Axis(), Axis()))
    shown = [text.text for group in chart.iter("g") for text in group.iter("text")]
    assert sorted(str(text) for text in shown) == ["a", "b"]
    assert len([title.text for title in chart.iter("title")]) == 3
    assert interval_chart("Difference", [], Axis(), Axis()) == ""
