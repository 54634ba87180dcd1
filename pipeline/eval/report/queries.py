"""Prepare the report's section on queries: counts before and after balancing, and the queries' sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from markupsafe import Markup

from pipeline.eval.report.charts import Axis, Series, line_chart, thin

NUM_QUERIES_LISTED = 10
HEAD_SHARE = 0.1
SOURCES = {"unigram": "single words", "bigram": "word pairs", "title": "article titles", "wordnet": "WordNet synsets"}
"""The sources of a query list with their titles, in the order of paper section 2.2."""


@dataclass(frozen=True)
class QueryCount:
    """The number of pairs that a query matches, before and after balancing."""

    text: str
    source: str
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class SourceCount:
    """Totals of the queries of one source. A pair counts once for each query that it matches."""

    title: str
    num_queries: int
    num_matched: int
    """Queries that match at least one pair."""
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class QueryView:
    """The content of the section on queries."""

    num_queries: int
    num_unmatched: int
    head_before: float
    """Share of all matches that belong to the most frequent tenth of the queries, before balancing."""
    head_after: float
    """Share of all matches that belong to the same queries, after balancing."""
    half_before: int
    """Number of most frequent queries that together have half of all matches, before balancing."""
    half_after: int
    """The same number after balancing, with the queries in the same order."""
    head: Sequence[QueryCount]
    tail: Sequence[QueryCount]
    most: int
    """The largest number of pairs of a query, before balancing."""
    shares: Markup
    """Chart: share of all matches in the n most frequent queries, against n."""
    counts: Markup
    """Chart: pairs per query, by rank."""
    sources: Sequence[SourceCount]


def view_queries(queries: Sequence[QueryCount]) -> QueryView:
    """Compute the content of the section from all queries."""
    ranked = sorted(queries, key=lambda query: (-query.before, query.text))
    matched = [query for query in ranked if query.before]
    head = matched[:NUM_QUERIES_LISTED]
    before, after = [query.before for query in matched], [query.after for query in matched]
    share_before, share_after = _cumulative(before), _cumulative(after)
    half_before, half_after = (1 + sum(share < 0.5 for share in shares) for shares in (share_before, share_after))
    title = "Share of all matches in the most frequent queries; half of the matches are "
    title += f"in {half_before:,} before balancing and in {half_after:,} after"
    return QueryView(
        num_queries=len(ranked),
        num_unmatched=len(ranked) - len(matched),
        head_before=_share_of_head(share_before),
        head_after=_share_of_head(share_after),
        half_before=half_before,
        half_after=half_after,
        head=head,
        tail=matched[len(head) :][-NUM_QUERIES_LISTED:],
        most=max(before, default=0),
        shares=_chart(
            title, share_before, share_after, "number of most frequent queries", Axis(percent=True, from_zero=True)
        ),
        counts=_chart("Pairs per query", before, sorted(after, reverse=True), "rank of the query", Axis(log=True)),
        sources=_by_source(queries),
    )


def _by_source(queries: Sequence[QueryCount]) -> list[SourceCount]:
    """One row per source, in the order of SOURCES; unknown sources come last."""
    order = [*SOURCES, *sorted({query.source for query in queries} - SOURCES.keys())]
    groups = ((name, [query for query in queries if query.source == name]) for name in order)
    return [
        SourceCount(
            title=SOURCES.get(name, name),
            num_queries=len(group),
            num_matched=sum(query.before > 0 for query in group),
            before=sum(query.before for query in group),
            after=sum(query.after for query in group),
        )
        for name, group in groups
        if group
    ]


def _chart(title: str, before: Sequence[float], after: Sequence[float], label: str, y: Axis) -> Markup:
    """A chart of values against the rank of the query, starting at 1."""
    series = [
        Series(label=name, points=thin(list(enumerate(values, 1)), log=True))
        for name, values in (("before balancing", before), ("after balancing", after))
    ]
    return line_chart(title, series, Axis(label=label, log=True), y)


def _cumulative(counts: Sequence[int]) -> list[float]:
    """The sum of the first 1, 2, 3, ... counts, as a share of the total."""
    total = sum(counts)
    return [part / total for part in accumulate(counts)] if total else []


def _share_of_head(shares: Sequence[float]) -> float:
    """The cumulative share at the first tenth of the queries."""
    return shares[max(1, round(HEAD_SHARE * len(shares))) - 1] if shares else 0.0
