from xml.etree import ElementTree

import pytest

from pipeline.eval.report.queries import QueryCount, view_queries
from pipeline.eval.report.report import ReportInputs, render_report
from tests.pipeline.eval.conftest import HOSTILE


def test_head_and_tail_of_the_queries(report_inputs: ReportInputs) -> None:
    view = view_queries(report_inputs.queries)
    assert (view.num_queries, view.num_unmatched, view.most) == (438, 37, 2_400)
    assert [query.text for query in view.head[:3]] == ["circle", "square", "red"]
    assert len(view.tail) == 10
    assert view.tail[-1].text == HOSTILE
    assert view.head_after < view.head_before < 1


def test_few_queries_are_not_listed_twice() -> None:
    view = view_queries([QueryCount(f"q{index}", "unigram", 10 - index, 1) for index in range(5)])
    assert [query.text for query in view.head] == ["q0", "q1", "q2", "q3", "q4"]
    assert view.tail == []


def points_of(chart: str, line: int) -> list[tuple[float, float]]:
    """The points of a line as shares of the plot, measured from its lower left corner."""
    svg = ElementTree.fromstring(chart)
    left, right, top, bottom = 50, 520 - 12, 32, 270 - 40
    points = [node.get("points", "") for node in svg.iter("polyline") if node.get("class") == f"line line-{line}"]
    pixels = [tuple(map(float, point.split(","))) for point in points[0].split()]
    return [((x - left) / (right - left), (bottom - y) / (bottom - top)) for x, y in pixels]


def test_the_curves_show_the_cumulative_shares_of_the_most_frequent_queries() -> None:
    counts = [
        QueryCount("rare", "title", 10, 10),
        QueryCount("head", "unigram", 80, 20),
        QueryCount("mid", "x", 10, 10),
    ]
    view = view_queries([*counts, QueryCount("none", "wordnet", 0, 0)])
    assert [y for _, y in points_of(view.shares, 0)] == pytest.approx([0.8, 0.9, 1.0], abs=0.002)
    # The order after balancing is the same, so that both curves show the same queries
    assert [y for _, y in points_of(view.shares, 1)] == pytest.approx([0.5, 0.75, 1.0], abs=0.002)
    assert [x for x, _ in points_of(view.shares, 1)] == pytest.approx([0.0, 0.631, 1.0], abs=0.002)
    assert (view.half_before, view.half_after) == (1, 1)
    assert "half of the matches are in 1 before balancing and in 1 after" in view.shares


def test_after_balancing_more_queries_have_half_of_the_matches(report_inputs: ReportInputs) -> None:
    view = view_queries(report_inputs.queries)
    ranked = sorted(report_inputs.queries, key=lambda query: -query.before)
    for half, counts in ((view.half_before, [q.before for q in ranked]), (view.half_after, [q.after for q in ranked])):
        assert sum(counts[: half - 1]) < sum(counts) / 2 <= sum(counts[:half])
    assert view.half_after > view.half_before
    page = " ".join(render_report(report_inputs).split())
    expected = f"Before balancing, {view.half_before} queries had half of all matches; now {view.half_after} queries"
    assert f"{expected} share them." in page


def test_sources_are_summed_in_the_order_of_the_paper() -> None:
    queries = [
        QueryCount("a", "wordnet", 0, 0),
        QueryCount("b", "my list", 7, 6),
        QueryCount("c", "unigram", 50, 20),
        QueryCount("d", "unigram", 3, 3),
        QueryCount("e", "title", 4, 4),
    ]
    rows = [(s.title, s.num_queries, s.num_matched, s.before, s.after) for s in view_queries(queries).sources]
    assert rows == [
        ("single words", 2, 2, 53, 23),
        ("article titles", 1, 1, 4, 4),
        ("WordNet synsets", 1, 0, 0, 0),
        ("my list", 1, 1, 7, 6),
    ]


def test_a_source_is_escaped_and_may_have_no_pairs() -> None:
    page = render_report(ReportInputs(title="x", queries=[QueryCount("a", HOSTILE, 0, 0)]))
    assert "Where the queries come from" in page
    assert HOSTILE not in page
    assert "<figure" not in page[page.index('<section id="queries">') :]
