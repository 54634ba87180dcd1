"""Build the query list from Wikipedia, plain text and page views, on Ray Data (cluster/stages.py).

articles, counts, totals, terms     text -> words and bigrams -> totals -> scores  | by first word, by last word
views, titles                       page views -> totals                           | by title
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from cluster.stages import Stages
from pipeline.data.flows.bucketing import by, by_word
from pipeline.data.flows.input_files import open_uri
from pipeline.data.queries import counting, page_views, query_list, wikipedia
from pipeline.data.sources.byte_ranges import ByteRange, read_lines, sha256
from pipeline.schemas import ARTICLES, PAGE_VIEWS, SCORED_TERMS


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The sources of a query list."""

    dumps: Sequence[ByteRange] = ()
    """XML dumps of Wikipedia."""
    texts: Sequence[ByteRange] = ()
    """Plain text, one document per line."""
    page_views: Sequence[str] = ()
    """URIs of page view files."""
    synsets: Sequence[str] = ()
    """Synsets of WordNet."""
    language: str = "en"
    """Language of the Wikipedia whose page views are counted."""


def build_queries(stages: Stages, corpus: Corpus, num_buckets: int, config: query_list.QueriesConfig) -> pa.Table:
    """QUERIES: terms are counted by part, summed by their first word and scored by their last; titles are summed."""
    dumps, texts, files = corpus.dumps, corpus.texts, corpus.page_views
    articles = stages(
        "articles",
        len(dumps),
        lambda part: wikipedia.read_articles(open_uri(dumps[part].uri), dumps[part]),
        bucketing=by("title", num_buckets),
        num_buckets=num_buckets,
    )

    def documents(part: int) -> pa.Table | None:
        if part < len(dumps):
            return articles.part(part, ["text"])
        byte_range = texts[part - len(dumps)]
        return pa.table({"text": list(read_lines(open_uri(byte_range.uri), byte_range))})

    counts = stages(
        "counts",
        len(dumps) + len(texts),
        documents,
        finish=lambda table: counting.count_terms(table["text"].to_pylist(), config.fold),
        bucketing=by_word(0, num_buckets),
        num_buckets=num_buckets,
    )
    totals = stages(
        "totals",
        num_buckets,
        counts.bucket,
        finish=lambda table: query_list.sum_terms(table, config),
        bucketing=by_word(-1, num_buckets),
        num_buckets=num_buckets,
    )
    words = stages(
        "words",
        num_buckets,
        lambda part: totals.part(part, ["length", "count"]),
        finish=lambda table: pa.table({"words": [query_list.num_words(table)]}),
    )
    num_words = sum(words.table(pa.schema([("words", pa.int64())]))["words"].to_pylist())
    terms = stages("terms", num_buckets, totals.bucket, finish=lambda table: query_list.score(table, num_words, config))
    views = stages(
        "views",
        len(files),
        lambda part: page_views.read_views(
            open_uri(files[part]), files[part], corpus.language, config.rules.min_file_views
        ),
        bucketing=by("title", num_buckets),
        num_buckets=num_buckets,
    )

    def popular(part: int) -> pa.Table | None:
        viewed, known = views.bucket(part), articles.bucket(part, ["title"])
        if dumps and known is None:
            known = ARTICLES.empty_table()
        return None if viewed is None else query_list.popular_titles(viewed, known, config)

    titles = stages("titles", num_buckets, popular)
    return query_list.select_queries(terms.table(SCORED_TERMS), titles.table(PAGE_VIEWS), corpus.synsets, config)


def digests(stages: Stages, uris: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each file."""
    found = stages("digests", len(uris), lambda part: pa.table({"sha256": [sha256(open_uri(uris[part]))]}))
    table = found.table(pa.schema([("sha256", pa.string())]))
    return dict(zip(uris, table["sha256"].to_pylist(), strict=True))
