from xml.etree import ElementTree

import pytest

from pipeline.eval.report.link_rot import NUM_DOMAINS_SHOWN, OUTCOMES, LinkCount, view_link_rot
from tests.pipeline.eval.conftest import make_link_rot


def count(by: str, name: str | None, **outcomes: int) -> LinkCount:
    return LinkCount(by=by, name=name, tried=sum(outcomes.values()), **dict.fromkeys(OUTCOMES, 0) | outcomes)


def labels(chart: str) -> list[str | None]:
    return [title.text for title in ElementTree.fromstring(chart).iter("title")]


def test_domains_are_sorted_by_size_and_years_by_date() -> None:
    counts = make_link_rot()
    view = view_link_rot(counts[::-1])
    assert view is not None
    domains = [row.name for row in counts if row.by == "domain"]
    assert len(domains) > NUM_DOMAINS_SHOWN
    assert labels(view.domains) == domains[:NUM_DOMAINS_SHOWN]
    assert labels(view.years) == [*(str(year) for year in range(2013, 2027)), "no date"]
    assert view.oldest is not None
    assert view.newest is not None
    assert (view.oldest.name, view.newest.name) == ("2013", "2026")


def test_totals_count_all_urls_not_only_those_of_large_domains() -> None:
    view = view_link_rot(
        [
            count("domain", "a.example", kept=1),
            count("host", "i.a.example", kept=1),
            count("year", "2026", kept=1, permanent=5),
            count("year", None, transient=2),
        ]
    )
    assert view is not None
    assert view.num_tried == 8
    assert view.share_kept == 1 / 8
    assert [(outcome, share) for outcome, _, share in view.shares] == [
        ("kept", 1 / 8),
        ("transient", 2 / 8),
        ("permanent", 5 / 8),
    ]


def test_pages_of_a_single_year_have_no_chart_of_years() -> None:
    view = view_link_rot([count("year", "2026", kept=4), count("year", None, kept=3), count("domain", "a", kept=7)])
    assert view is not None
    assert view.years == ""
    assert view.oldest is view.newest is None
    assert labels(view.domains) == ["a"]


@pytest.mark.parametrize("counts", [[], [count("year", "2026")]])
def test_without_tried_urls_the_section_is_none(counts: list[LinkCount]) -> None:
    assert view_link_rot(counts) is None
