"""The flow from archives to a snapshot, on Ray Data (cluster/stages.py): with passes.py all that knows of stages here.

A stage writes its rows in buckets, and the next one reads one bucket of all parts: what must meet, meets there. No
shuffle ever moves an image but the last one.

    articles, counts, totals, terms     text -> words and pairs -> added up -> scored  | by first, by last word
    views, titles                       page views -> added up                         | by title

    candidates                          archive -> extract -> caption rules -> match   | by address
    unique                              an address -> its best caption                 | by registered domain
    counts, totals, sketches, limits    every query's pairs: counted, sketched, merged | by query
    fetched                             early balance -> fetch -> check and resize     |
    outcomes, survival                  every query's tried and kept pairs             | by query
    addresses                           one pair for each address, over several crawls | by crawl
    fingerprints, edges, duplicates     the duplicate graph                            | by band
    final_counts ... final_limits       every query's pairs that are left              | by query
    placed                              duplicates out -> final balance                | by shard
    shards                              in the order of the shuffle                    |
    kept_counts, kept_totals            every query's pairs in the snapshot -> commit  | by query
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from cluster import storage
from cluster.resources import Pool
from cluster.runs import Output
from cluster.stages import Place, Read, Stages, Transform
from pipeline.data import (
    balance,
    caption,
    counting,
    dedupe,
    extract,
    img2dataset,
    match,
    page_views,
    passes,
    queries,
    shard,
    snapshot,
    tables,
    wikipedia,
)
from pipeline.data.addresses import registered_domain
from pipeline.data.extents import Extent, read_lines, sha256
from pipeline.data.fetch import FetchConfig, Fetcher
from pipeline.data.image import ImageConfig, ImageProcessor
from pipeline.hashing import bucket_of, hash64
from pipeline.schemas import ARTICLES, DUPLICATES, EDGES, PAGE_VIEWS, SCORED_TERMS

IMAGES_PER_ROW_GROUP = 1024
READ_AHEAD_BYTES = 8 * 2**20
MAX_ARCHIVES_CHECKED = 64  # each is read ahead of what is looked at


@dataclass(frozen=True, kw_only=True)
class CrawlConfig:
    """How a crawl is done; jobs/crawl.py adds where from and where to."""

    num_buckets: int = 64
    """Parts of every stage after extraction; a domain is in one of them."""
    extract: extract.ExtractConfig = field(default_factory=extract.ExtractConfig)
    caption: caption.CaptionConfig = field(default_factory=caption.CaptionConfig)
    match_mode: match.MatchMode = "paper"
    """Whole words, or metaclip's rule for its own list."""
    balance: balance.BalanceConfig = field(default_factory=balance.BalanceConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    match_pool: Pool = field(default_factory=Pool)
    fetch_pool: Pool = field(default_factory=lambda: Pool(cpus=0.5))
    image_pool: Pool = field(default_factory=Pool)


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """How a curation is done; jobs/curate.py adds where from and where to."""

    num_buckets: int = 64
    """Parts of the stages that are partitioned by hash or by query."""
    dedupe: dedupe.DedupeConfig = field(default_factory=dedupe.DedupeConfig)
    balance: balance.BalanceConfig = field(default_factory=balance.BalanceConfig)
    shard: shard.ShardConfig = field(default_factory=shard.ShardConfig)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What a query list is made of."""

    dumps: Sequence[Extent] = ()
    """Wikipedia's XML."""
    texts: Sequence[Extent] = ()
    """Plain text, one document a line."""
    page_views: Sequence[str] = ()
    synsets: Sequence[str] = ()
    language: str = "en"
    """Whose wiki's page views count."""


def build_queries(stages: Stages, corpus: Corpus, num_buckets: int, config: queries.QueriesConfig) -> pa.Table:
    """QUERIES: terms counted by part, added up by their first word and scored by their last; titles by name."""
    dumps, texts, files = corpus.dumps, corpus.texts, corpus.page_views
    articles = stages(
        "articles",
        len(dumps),
        lambda part: wikipedia.read_articles(_open(dumps[part].uri), dumps[part]),
        place=by("title", num_buckets),
        num_buckets=num_buckets,
    )

    def documents(part: int) -> pa.Table | None:
        if part < len(dumps):
            return articles.part(part, ["text"])
        extent = texts[part - len(dumps)]
        return pa.table({"text": list(read_lines(_open(extent.uri), extent))})

    counts = stages(
        "counts",
        len(dumps) + len(texts),
        documents,
        finish=lambda table: counting.count_terms(table["text"].to_pylist(), config.fold),
        place=by_word(0, num_buckets),
        num_buckets=num_buckets,
    )
    totals = stages(
        "totals",
        num_buckets,
        counts.bucket,
        finish=lambda table: queries.add_up(table, config),
        place=by_word(-1, num_buckets),
        num_buckets=num_buckets,
    )
    words = stages(
        "words",
        num_buckets,
        lambda part: totals.part(part, ["length", "count"]),
        finish=lambda table: pa.table({"words": [queries.num_words(table)]}),
    )
    num_words = sum(words.table(pa.schema([("words", pa.int64())]))["words"].to_pylist())
    terms = stages("terms", num_buckets, totals.bucket, finish=lambda table: queries.score(table, num_words, config))
    views = stages(
        "views",
        len(files),
        lambda part: page_views.read_views(
            _open(files[part]), files[part], corpus.language, config.rules.min_file_views
        ),
        place=by("title", num_buckets),
        num_buckets=num_buckets,
    )

    def popular(part: int) -> pa.Table | None:
        viewed, known = views.bucket(part), articles.bucket(part, ["title"])
        if dumps and known is None:
            known = ARTICLES.empty_table()
        return None if viewed is None else queries.popular_titles(viewed, known, config)

    titles = stages("titles", num_buckets, popular)
    return queries.select_queries(terms.table(SCORED_TERMS), titles.table(PAGE_VIEWS), corpus.synsets, config)


def crawl(
    stages: Stages,
    inputs: Sequence[str],
    query_texts: Sequence[str],
    config: CrawlConfig,
    early: balance.MaxPairs | None = None,
) -> Output:
    """From archives and tables to checked, resized images: FETCHED, one part for each bucket of registered domains.

    `early` is how many pairs a query may have before fetching, `early_margin` times the limit where it is left out.
    """
    buckets = config.num_buckets
    early = config.balance.max_pairs_before_fetch if early is None else early
    texts = ray.put(list(query_texts))

    def matcher() -> Transform:
        return partial(match.match_captions, matcher=match.Matcher(ray.get(texts), config.match_mode))

    candidates = stages(
        "candidates",
        len(inputs),
        lambda part: caption.apply_rules(read_input(inputs[part], config.extract), config.caption),
        pools=[(matcher, config.match_pool)],
        place=by("image_url", buckets),
        num_buckets=buckets,
    )
    unique = stages(
        "unique", buckets, candidates.bucket, finish=dedupe.same_url, place=by_domain(buckets), num_buckets=buckets
    )
    limits = passes.limits(stages, "", buckets, unique.part, config.balance, early, buckets)
    return stages(
        "fetched",
        buckets,
        _then(unique.bucket, balance.Selection(limits, config.balance.seed)),
        pools=[
            (partial(Fetcher, config.fetch), config.fetch_pool),
            (partial(ImageProcessor, config.image), config.image_pool),
        ],
        row_group_size=IMAGES_PER_ROW_GROUP,
    )


def curate(
    stages: Stages, crawls: Sequence[Output], dataset: str, metadata: Mapping[str, Any], config: CurateConfig
) -> snapshot.Snapshot:
    """From resized images to a committed snapshot: one copy of each picture, balanced, shuffled, in shards.

    `crawls` are FETCHED of one query list with one number of parts each, so that all rows of an address are in parts
    of one number.
    """
    fetched = passes.join(stages, crawls)
    buckets, parts = config.num_buckets, fetched.num_parts
    fingerprints = stages(
        "fingerprints",
        parts,
        lambda part: fetched.part(part, ["pair_id", "sha256", "phash", "original_width", "original_height"]),
        finish=lambda table: dedupe.fingerprints(table, config.dedupe.radius),
        place=lambda table: bucket_of(table["band"].to_numpy(), buckets),
        num_buckets=buckets,
    )
    edges = stages(
        "edges", buckets, fingerprints.bucket, finish=lambda table: dedupe.edges(table, config.dedupe.radius)
    )
    duplicates = stages("duplicates", 1, lambda _: edges.table(EDGES), finish=dedupe.resolve)
    drop = dedupe.DuplicateFilter(duplicates.table(DUPLICATES))

    def left(part: int, columns: Sequence[str]) -> pa.Table | None:
        table = fetched.part(part, sorted({*columns, "pair_id", "reason"}))
        return None if table is None else (marked := drop(table)).filter(marked["reason"].is_null())

    limits = passes.limits(stages, "final_", parts, left, config.balance, config.balance.max_pairs_per_query, buckets)
    draw = balance.Selection(limits, config.balance.seed)
    count = shard.num_shards(fetched.num_bytes, config.shard)
    placed = stages(
        "placed",
        parts,
        fetched.part,
        finish=lambda table: draw(drop(table)),
        place=lambda table: shard.shard_of(table, count, config.shard.seed),
        num_buckets=count,
        row_group_size=IMAGES_PER_ROW_GROUP,
    )
    folder = f"data/{stages.run.run_id}"
    shards = stages(
        "shards",
        count,
        placed.bucket,
        finish=lambda table: shard.arrange(table, config.shard.seed),
        row_group_size=config.shard.row_group_size,
        uri=storage.join(dataset, folder),
    )
    kept = passes.totals(stages, "kept_", count, shards.part, buckets).select(["query_id", "num_pairs"])
    return snapshot.commit(dataset, list(_records(shards, folder)), kept, metadata, storage.put_if_absent)


def digests(stages: Stages, uris: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each file."""
    found = stages("digests", len(uris), lambda part: pa.table({"sha256": [sha256(_open(uris[part]))]}))
    table = found.table(pa.schema([("sha256", pa.string())]))
    return dict(zip(uris, table["sha256"].to_pylist(), strict=True))


def check_dumps(uris: Sequence[str]) -> None:
    """Raises ValueError where a file is no dump."""
    for uri in uris:
        wikipedia.check_dump(_open(uri), uri)


def check_inputs(inputs: Sequence[str]) -> None:
    """Look into every table, and into the first archives, before work begins.

    Raises ValueError where one is empty, of another type than its name says, or lacks a column.
    """
    archives = [uri for uri in inputs if uri.endswith(extract.ARCHIVE_SUFFIXES)]
    for uri in archives[:MAX_ARCHIVES_CHECKED]:
        extract.check_archive(uri, _open)
    for uri in inputs:
        if not uri.endswith((*extract.ARCHIVE_SUFFIXES, img2dataset.SHARD_SUFFIX)):
            tables.check_table(uri, *storage.filesystem(uri))


def read_input(uri: str, config: extract.ExtractConfig) -> pa.Table:
    """CANDIDATES of one archive, table or img2dataset shard."""
    if uri.endswith(extract.ARCHIVE_SUFFIXES):
        return extract.read_archive(uri, _open, config)
    filesystem, path = storage.filesystem(uri)
    if uri.endswith(img2dataset.SHARD_SUFFIX):
        beside = path.removesuffix(img2dataset.SHARD_SUFFIX) + ".parquet"
        listed = pq.read_table(beside, filesystem=filesystem) if filesystem.get_file_info(beside).is_file else None
        with _open(uri) as stream:
            return img2dataset.read_shard(uri, stream, listed)
    return tables.read_table(uri, filesystem, path)


def by(column: str, num_buckets: int) -> Place:
    """Buckets by the hash of a column of strings."""

    def place(table: pa.Table) -> np.ndarray[Any, np.dtype[np.int32]]:
        return bucket_of(hash64(value or "" for value in table[column].to_pylist()), num_buckets)

    return place


def by_word(place: int, num_buckets: int) -> Place:
    """Buckets by the first (0) or the last (-1) word of a term."""
    return lambda table: bucket_of(hash64(queries.word_of(table["term"], place).to_pylist()), num_buckets)


def by_domain(num_buckets: int) -> Place:
    """Buckets by registered domain, so that one actor has all of a domain; by address where there is none."""

    def place(table: pa.Table) -> np.ndarray[Any, np.dtype[np.int32]]:
        return bucket_of(hash64(registered_domain(url) or url for url in table["image_url"].to_pylist()), num_buckets)

    return place


def _then(read: Callable[[int], pa.Table | None], transform: Transform) -> Read:
    def composed(part: int) -> pa.Table | None:
        table = read(part)
        return None if table is None else transform(table)

    return composed


def _open(uri: str) -> io.BufferedReader:
    """A file that tells its position, as archive readers want it, read ahead in pieces that suit an object store."""
    filesystem, path = storage.filesystem(uri)
    return io.BufferedReader(filesystem.open_input_file(path), READ_AHEAD_BYTES)


def _records(shards: Output, folder: str) -> Iterator[snapshot.Shard]:
    for part in shards.parts:
        if part.file is not None:
            whole, rest = divmod(part.num_rows, part.row_group_size)
            yield snapshot.Shard(
                path=f"{folder}/{part.file}",
                num_rows=part.num_rows,
                num_bytes=part.num_bytes,
                sha256=part.sha256,
                row_groups=(*[part.row_group_size] * whole, *([rest] if rest else [])),
            )
