"""Build the query list from Wikipedia, plain text and page views, on Ray Data (cluster/stages.py).

letters                             text -> share of scripts without blanks        | by part
articles, counts, totals, terms     text -> words and bigrams -> totals -> scores  | by first word, by last word
views, titles                       page views -> totals                           | by title
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cluster.stages import Stages
from pipeline.data.flows.bucketing import by, by_word
from pipeline.data.flows.input_files import open_uri
from pipeline.data.queries import counting, page_views, query_list, wikipedia
from pipeline.data.queries.wiki_site import Site
from pipeline.data.queries.wikitext import decode_entities
from pipeline.data.sources.byte_ranges import ByteRange, read_lines, sha256
from pipeline.schemas import ARTICLES, PAGE_VIEWS, SCORED_TERMS

logger = logging.getLogger("clip")

MAX_UNSPACED_SHARE = 0.2
"""Maximum share of a file's letters in scripts without blanks. A Chinese sentence has about a third of the letters of
its English translation, so at this share almost half of the text would be missing from the list."""
REPORTED_UNSPACED_SHARE = 0.01
"""Above this share, the job says how much is missing. English Wikipedia has less by far: 4 letters in a million."""
MAX_FILES_CHECKED = 64
"""Number of files of page views whose form is checked before work begins; later ones get a row with a reason."""
_UNSPACED = "scripts without blanks between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan)"


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
    sites = read_sites(dict.fromkeys(dump.uri for dump in dumps))
    articles = stages(
        "articles",
        len(dumps),
        lambda part: wikipedia.read_articles(open_uri(dumps[part].uri), dumps[part], sites[dumps[part].uri]),
        bucketing=by("title", num_buckets),
        num_buckets=num_buckets,
    )

    def documents(part: int) -> pa.Table | None:
        if part < len(dumps):
            return articles.part(part, ["text"])
        byte_range = texts[part - len(dumps)]
        return pa.table({"text": list(map(decode_entities, read_lines(open_uri(byte_range.uri), byte_range)))})

    def letters(part: int) -> pa.Table | None:
        table = documents(part)
        if table is None:
            return None
        uri = [*dumps, *texts][part].uri
        return counting.count_letters(table["text"].to_pylist()).append_column("uri", pa.array([uri]))

    by_file = stages("letters", len(dumps) + len(texts), letters).table(
        pa.schema([*counting.LETTERS, ("uri", pa.string())])
    )
    check_scripts(by_file, {dump.uri for dump in dumps}, has_titles=bool(files))
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
    capital_titles = all(site.capital_titles for site in sites.values())
    min_views = config.rules.min_file_views
    views = stages(
        "views",
        len(files),
        lambda part: page_views.read_views(
            open_uri(files[part]), files[part], corpus.language, min_views, capital_titles=capital_titles
        ),
        bucketing=by("title", num_buckets),
        num_buckets=num_buckets,
    )
    if files and not views.num_kept:
        raise ValueError(
            f"page_views={files[0]} ({len(files)} files): no title of language={corpus.language!r} with "
            f"queries.min_file_views={min_views} views or more; is the language right? Rows without a title: "
            f"{dict(views.reasons())}"
        )

    def popular(part: int) -> pa.Table | None:
        viewed, known = views.bucket(part), articles.bucket(part, ["title"])
        if dumps and known is None:
            known = ARTICLES.empty_table()
        return None if viewed is None else query_list.popular_titles(viewed, known, config)

    titles = stages("titles", num_buckets, popular).table(PAGE_VIEWS)
    titles = titles.sort_by([("views", "descending"), ("title", "ascending")])
    return query_list.select_queries(terms.table(SCORED_TERMS), titles, corpus.synsets, config)


def read_sites(dumps: Iterable[str]) -> dict[str, Site]:
    """The wiki of each dump. A dump without names of namespaces has those of the others, if these agree."""
    sites = {uri: wikipedia.read_site(open_uri(uri)) for uri in dumps}
    named = {site for site in sites.values() if site.named}
    shared = named.pop() if len(named) == 1 else None
    if unnamed := [uri for uri, site in sites.items() if not site.named]:
        logger.warning(
            "wikipedia=%s (and %d more files): no <siteinfo> with names of namespaces at its start (is it the rest of "
            "a dump?). Links to files and categories are recognised by %s.",
            unnamed[0],
            len(unnamed) - 1,
            "the names in the other files" if shared else "English names and the best-known local ones",
        )
    return {uri: site if site.named or shared is None else shared for uri, site in sites.items()}


def check_page_views(uris: Sequence[str]) -> None:
    """Raise ValueError if one of the first files has no form of Wikimedia's page views."""
    for uri in uris[:MAX_FILES_CHECKED]:
        with open_uri(uri) as file:
            page_views.check_views(file, uri)


def check_scripts(by_file: pa.Table, dumps: set[str], *, has_titles: bool) -> None:
    """Say how much text is in scripts whose words are not counted.

    Args:
        by_file: letters, unspaced and uri, one row a part (`counting.count_letters`).
        dumps: URIs of the files that are dumps of Wikipedia.
        has_titles: whether page views are given, so that the titles of a dump are queries.

    Raises:
        ValueError: such text is more than MAX_UNSPACED_SHARE of a text file, or of a dump without page views.
    """
    letters, unspaced = Counter[str](), Counter[str]()
    for row in by_file.to_pylist():
        letters[row["uri"]] += row["letters"]
        unspaced[row["uri"]] += row["unspaced"]
    shares: Mapping[str, float] = {uri: unspaced[uri] / max(1, letters[uri]) for uri in letters}
    for uri, share in shares.items():
        option = "wikipedia" if uri in dumps else "text"
        if share > MAX_UNSPACED_SHARE and not (has_titles and uri in dumps):
            advice = (
                "Give page views as well, so that its titles become queries: --page_views FILES --language CODE"
                if uri in dumps
                else "Leave it out. Titles work in these scripts: --page_views FILES --language CODE"
            )
            raise ValueError(
                f"{option}={uri}: {share:.0%} of its letters are in {_UNSPACED}. Their words cannot be counted, so the "
                f"query list would lack them. {advice}"
            )
        if share > REPORTED_UNSPACED_SHARE:
            logger.warning(
                "%s=%s: %.1f%% of its letters are in %s. The query list has no words and bi-grams of them%s.",
                option,
                uri,
                100 * share,
                _UNSPACED,
                ", but titles" if has_titles else "",
            )


def digests(stages: Stages, uris: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each file."""
    found = stages("digests", len(uris), lambda part: pa.table({"sha256": [sha256(open_uri(uris[part]))]}))
    table = found.table(pa.schema([("sha256", pa.string())]))
    return dict(zip(uris, table["sha256"].to_pylist(), strict=True))
