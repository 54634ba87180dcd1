"""Compose the data card of a snapshot: its contents, its sources, what was left out and why (Gebru et al. 2021).

Pairs are counted by topic, shard by shard, and the counts are summed by name; topics with many names keep the most
frequent ones. The card is a function of these counts and of the version's record. It is plain data, which card_pages.py
renders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.web.addresses import registered_domain
from pipeline.schemas import CARD_COUNTS

NUM_NAMES = 25
"""Maximum number of names that a topic lists."""
_RANGES = {
    "words": (0, 4, 8, 16, 32, 64),
    "pixels": (0, 128, 256, 512, 1024, 2048, 4096),
    "queries": (0, 1, 2, 3, 6, 11),
    "spares": (0, 1, 2, 5, 10),
}
"""Start of each range, for topics that are numbers."""
_PAIRS_PER_QUERY = (1, 2, 10, 100, 1_000, 10_000)
"""Start of each range of the number of pairs per query."""
TOPICS = {
    "domain": "Domains",
    "language": "Languages of the captions",
    "source": "Sources of the captions",
    "words": "Words per caption",
    "pixels": "Shorter side of the original image, in pixels",
    "queries": "Queries per pair",
    "spares": "Spare captions per pair",
}
"""Properties by which pairs are counted, with their headings on the card."""
STEPS = {
    "candidates": "Images with a caption, from pages",
    "unique": "One per URL",
    "fetched": "After early balancing, fetching and checking",
    "addresses": "One per URL across all crawls",
    "placed": "One per picture, balanced",
}
"""Stages that pairs pass through, with a description of the pairs that each stage keeps."""
_SETTINGS = (
    ("Balancing", "balance", "mode"),
    ("Maximum pairs per query", "balance", "max_pairs_per_query"),
    ("Maximum differing hash bits of duplicate pictures", "dedupe", "radius"),
    ("Maximum differing hash bits if they share a caption", "dedupe", "caption_radius"),
)
_CRAWL_SETTINGS = (
    ("Language of captions", "caption", "language"),
    ("Personal data in captions", "caption", "personal_data"),
    ("Side of an image, in pixels", "image", "image_size"),
    ("User agent", "fetch", "user_agent"),
)


@dataclass(frozen=True)
class Count:
    """One line of a topic or a step."""

    name: str
    num: int
    share: float


@dataclass(frozen=True)
class Topic:
    """Counts of the pairs, or of the queries, by one property."""

    title: str
    counts: tuple[Count, ...]
    num_others: int
    """Number of pairs with other names."""


@dataclass(frozen=True)
class Step:
    """Numbers of rows that a stage kept and dropped."""

    title: str
    kept: int
    dropped: tuple[Count, ...]
    """Dropped rows by reason, as shares of the stage's input."""


@dataclass(frozen=True)
class Card:
    """The contents of a data card."""

    name: str
    snapshot_id: str
    parent: str | None
    totals: Mapping[str, int]
    funnels: tuple[tuple[str, tuple[Step, ...]], ...]
    """Title and steps of each crawl, and of the curation."""
    topics: tuple[Topic, ...]
    queries: Topic
    overlaps: tuple[Count, ...]
    """Pictures of evaluation sets that were found, by set, as shares of the set."""
    overlap_mode: str | None
    """Whether pairs that show such a picture were dropped or only marked; None if there was no search for them."""
    settings: tuple[tuple[str, str], ...]
    limits: tuple[str, ...]


def count(table: pa.Table) -> pa.Table:
    """Count PAIRS by topic and name, as CARD_COUNTS."""
    domains = [registered_domain(url) for url in table["url"].to_pylist()]
    sides = np.minimum(*(table[name].to_numpy() for name in ("original_width", "original_height")))
    words = pc.add(pc.count_substring(pc.utf8_trim_whitespace(table["caption"]), " "), 1).to_numpy()
    names = {
        "domain": domains,
        "language": table["language"],
        "source": table["caption_source"],
        "words": _ranges(words, _RANGES["words"]),
        "pixels": _ranges(sides, _RANGES["pixels"]),
        "queries": _ranges(_lengths(table["query_ids"]), _RANGES["queries"]),
        "spares": _ranges(_lengths(table["spare_captions"]), _RANGES["spares"]),
    }
    return pa.concat_tables([CARD_COUNTS.empty_table(), *(_counted(topic, names[topic]) for topic in TOPICS)])


def _counted(topic: str, names: Any) -> pa.Table:
    counts = pc.value_counts(pa.chunked_array(pa.array(names, pa.string())) if isinstance(names, list) else names)
    columns = [pa.repeat(topic, len(counts)), counts.field("values"), counts.field("counts")]
    return pa.Table.from_arrays(columns, names=CARD_COUNTS.names).cast(CARD_COUNTS)


def _lengths(lists: pa.ChunkedArray) -> Any:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy()


def _ranges(values: Any, starts: Sequence[int]) -> list[str]:
    """The name of each value's range."""
    names = _names(starts)
    return [names[index] for index in (np.searchsorted(starts, values, side="right") - 1).tolist()]


def _names(starts: Sequence[int]) -> list[str]:
    """The names of the ranges from each start to the next; the last range is open."""
    between = (f"{a:,}" if b == a + 1 else f"{a:,} to {b - 1:,}" for a, b in pairwise(starts))
    return [*between, f"{starts[-1]:,} or more"]


def sum_card_counts(table: pa.Table) -> pa.Table:
    """Sum CARD_COUNTS of disjoint sets of pairs: one row per topic and name."""
    sums = table.group_by(["topic", "name"]).aggregate([("num_pairs", "sum")])
    return sums.rename_columns(CARD_COUNTS.names).cast(CARD_COUNTS)


def most_frequent_names(table: pa.Table) -> pa.Table:
    """Keep the most frequent names of each topic.

    If tables have no name in common, the most frequent names of all tables are among those kept of each.
    """
    order = [("topic", "ascending"), ("num_pairs", "descending"), ("name", "ascending")]
    parts = (table.filter(pc.equal(table["topic"], topic)).sort_by(order).slice(0, NUM_NAMES) for topic in TOPICS)
    return pa.concat_tables(parts)


def card(record: Mapping[str, Any], counts: pa.Table, query_counts: pa.Table) -> Card:
    """Compose the card of a version.

    Args:
        record: the version's record (snapshot.py), with its overlap and the funnels of its crawls and its curation.
        counts: CARD_COUNTS of the most frequent names of each topic.
        query_counts: QUERY_COUNTS.
    """
    num_pairs, overlap = int(record["num_pairs"]), record["overlap"] or {"sets": {}, "mode": None}
    crawls = sorted(record["crawl_funnel"].items())
    funnels = [(f"Crawl {run_id}" if len(crawls) > 1 else "Crawl", _steps(stages)) for run_id, stages in crawls]
    return Card(
        name=record["name"],
        snapshot_id=record["snapshot_id"],
        parent=record["parent"],
        totals={name: int(record[name]) for name in ("num_pairs", "num_bytes", "num_shards")},
        funnels=(*funnels, ("Curation", _steps(record["funnel"]))),
        topics=tuple(_topic(topic, counts.filter(pc.equal(counts["topic"], topic)), num_pairs) for topic in TOPICS),
        queries=_coverage(query_counts),
        overlaps=tuple(Count(name, of["num_overlapping"], of["share"]) for name, of in sorted(overlap["sets"].items())),
        overlap_mode=overlap["mode"],
        settings=tuple(_settings(record["configuration"])),
        limits=tuple(_limits(record["configuration"]["crawl"].values())),
    )


def _topic(topic: str, rows: pa.Table, num_pairs: int) -> Topic:
    pairs = dict(zip(rows["name"].to_pylist(), rows["num_pairs"].to_pylist(), strict=True))
    names = _names(_RANGES[topic]) if topic in _RANGES else list(pairs)
    counts = (Count(name or "unknown", pairs[name], pairs[name] / num_pairs) for name in names if name in pairs)
    return Topic(TOPICS[topic], tuple(counts), num_pairs - sum(pairs.values()))


def _steps(funnel: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    latest = {stage["stage"]: stage for stage in funnel}  # a repeated stage counts as its last run
    return tuple(_step(title, latest[name]) for name, title in STEPS.items() if name in latest)


def _step(title: str, stage: Mapping[str, Any]) -> Step:
    num_input = stage["kept"] + sum(stage["dropped"].values())
    dropped = sorted(stage["dropped"].items(), key=lambda item: (-item[1], item[0]))
    return Step(title, stage["kept"], tuple(Count(reason, num, num / num_input) for reason, num in dropped))


def _coverage(query_counts: pa.Table) -> Topic:
    pairs = query_counts["num_pairs"].to_numpy()
    queries = Counter(_ranges(pairs[pairs > 0], _PAIRS_PER_QUERY))
    names = [name for name in _names(_PAIRS_PER_QUERY) if name in queries]
    counts = (Count(name, queries[name], queries[name] / queries.total()) for name in names)
    return Topic("Queries by their number of pairs", tuple(counts), 0)


def _settings(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The settings that readers look for first; the version's record has the full configuration."""
    for title, component, name in _SETTINGS:
        yield title, str(configuration[component][name])
    for title, component, name in _CRAWL_SETTINGS:
        values = {str(crawl[component][name]) for crawl in configuration["crawl"].values()}
        yield title, " or ".join(sorted(values))


def _limits(crawls: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    crawls = list(crawls)
    yield (
        "Captions are texts that people wrote beside images for readers of a web page: many do not describe the "
        "image, and some are wrong or offensive."
    )
    yield (
        "Images belong to their authors. Images that sites forbid to crawlers or mark as noai were left out. A pair "
        "can be taken down with `python -m jobs.snapshot tombstone`; readers of any version then omit it."
    )
    yield "Like the web, the pairs do not represent the world's languages, places, times and people evenly."
    if not all(crawl["safety"]["classifier"] for crawl in crawls):
        yield "Not all images were judged by a classifier of unsafe images."
    if not all(any(crawl["block_lists"].values()) for crawl in crawls):
        yield "Not all images were compared with block lists."
    if any(crawl["caption"]["language"] for crawl in crawls):
        yield "Captions clearly in another language were left out; the language of short captions is uncertain."
