"""The data card of a snapshot: what is in it, where it came from, what was left out and why (Gebru et al. 2021).

Pairs are counted by topic, shard by shard, and added up by name; of topics with many names the largest are kept. The
card is a function of these counts and of what the version's record tells, as plain data for card_pages.py to write.
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
"""Of a topic, that are told one by one."""
_RANGES = {
    "words": (0, 4, 8, 16, 32, 64),
    "pixels": (0, 128, 256, 512, 1024, 2048, 4096),
    "queries": (0, 1, 2, 3, 6, 11),
    "spares": (0, 1, 2, 5, 10),
}
"""Of topics that are numbers, where each range starts."""
_PAIRS = (1, 2, 10, 100, 1_000, 10_000)
TOPICS = {
    "domain": "Domains",
    "language": "Languages of the captions",
    "source": "Where captions came from",
    "words": "Words of a caption",
    "pixels": "Shorter side of the original, pixels",
    "queries": "Queries of a pair",
    "spares": "Spare captions of a pair",
}
"""What pairs are counted by, and how the card calls it."""
STEPS = {
    "candidates": "Images with a text, from the pages",
    "unique": "One for each address",
    "fetched": "Balanced early, fetched, checked",
    "addresses": "One for each address over all crawls",
    "placed": "One of each picture, balanced",
}
"""The stages that a pair goes through, and what is left after each."""
_SETTINGS = (
    ("Balancing", "balance", "mode"),
    ("Pairs drawn for a query", "balance", "max_pairs_per_query"),
    ("Bits in which hashes of one picture differ", "dedupe", "radius"),
    ("The same with a common caption", "dedupe", "caption_radius"),
)
_CRAWL_SETTINGS = (
    ("Language of captions", "caption", "language"),
    ("Personal data in captions", "caption", "personal_data"),
    ("Side of an image, pixels", "image", "image_size"),
    ("User agent", "fetch", "user_agent"),
)


@dataclass(frozen=True)
class Count:
    """A line of a topic."""

    name: str
    num: int
    share: float


@dataclass(frozen=True)
class Topic:
    """Counts of the pairs, or of the queries, by one thing."""

    title: str
    counts: tuple[Count, ...]
    num_others: int
    """What is counted under other names."""


@dataclass(frozen=True)
class Step:
    """What a stage kept and left out."""

    title: str
    kept: int
    dropped: tuple[Count, ...]
    """By reason; shares of what came in."""


@dataclass(frozen=True)
class Card:
    """All that the card tells."""

    name: str
    snapshot_id: str
    parent: str | None
    totals: Mapping[str, int]
    funnels: tuple[tuple[str, tuple[Step, ...]], ...]
    """Of each crawl, and of the curation."""
    topics: tuple[Topic, ...]
    queries: Topic
    overlaps: tuple[Count, ...]
    """Pictures of evaluation sets that were found, by set; shares of the set."""
    overlap_mode: str | None
    """Whether pairs that show one were dropped, or are only told of; null where they were not looked for."""
    settings: tuple[tuple[str, str], ...]
    limits: tuple[str, ...]


def count(table: pa.Table) -> pa.Table:
    """CARD_COUNTS of PAIRS."""
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
    found = pc.value_counts(pa.chunked_array(pa.array(names, pa.string())) if isinstance(names, list) else names)
    columns = [pa.repeat(topic, len(found)), found.field("values"), found.field("counts")]
    return pa.Table.from_arrays(columns, names=CARD_COUNTS.names).cast(CARD_COUNTS)


def _lengths(lists: pa.ChunkedArray) -> Any:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy()


def _ranges(values: Any, starts: Sequence[int]) -> list[str]:
    """The name of the range that each value is in."""
    names = _names(starts)
    return [names[place] for place in (np.searchsorted(starts, values, side="right") - 1).tolist()]


def _names(starts: Sequence[int]) -> list[str]:
    """Of the ranges from one start to the next, and from the last on."""
    between = (f"{a:,}" if b == a + 1 else f"{a:,} to {b - 1:,}" for a, b in pairwise(starts))
    return [*between, f"{starts[-1]:,} or more"]


def add(table: pa.Table) -> pa.Table:
    """One row a name from CARD_COUNTS of disjoint sets of pairs."""
    sums = table.group_by(["topic", "name"]).aggregate([("num_pairs", "sum")])
    return sums.rename_columns(CARD_COUNTS.names).cast(CARD_COUNTS)


def largest(table: pa.Table) -> pa.Table:
    """Of each topic the names of most pairs; over disjoint names those of all are among those of each set."""
    order = [("topic", "ascending"), ("num_pairs", "descending"), ("name", "ascending")]
    parts = (table.filter(pc.equal(table["topic"], topic)).sort_by(order).slice(0, NUM_NAMES) for topic in TOPICS)
    return pa.concat_tables(parts)


def card(record: Mapping[str, Any], counts: pa.Table, query_counts: pa.Table) -> Card:
    """The card of a version.

    Args:
        record: of the version (snapshot.py), with the funnels of its crawls and of its curation, and its overlap.
        counts: CARD_COUNTS, the largest of each topic.
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
    found = dict(zip(rows["name"].to_pylist(), rows["num_pairs"].to_pylist(), strict=True))
    names = _names(_RANGES[topic]) if topic in _RANGES else list(found)
    counts = (Count(name or "unknown", found[name], found[name] / num_pairs) for name in names if name in found)
    return Topic(TOPICS[topic], tuple(counts), num_pairs - sum(found.values()))


def _steps(funnel: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    latest = {stage["stage"]: stage for stage in funnel}  # of one that was done over, the last
    return tuple(_step(title, latest[name]) for name, title in STEPS.items() if name in latest)


def _step(title: str, stage: Mapping[str, Any]) -> Step:
    came = stage["kept"] + sum(stage["dropped"].values())
    dropped = sorted(stage["dropped"].items(), key=lambda item: (-item[1], item[0]))
    return Step(title, stage["kept"], tuple(Count(reason, num, num / came) for reason, num in dropped))


def _coverage(query_counts: pa.Table) -> Topic:
    pairs = query_counts["num_pairs"].to_numpy()
    found = Counter(_ranges(pairs[pairs > 0], _PAIRS))
    counts = (Count(name, found[name], found[name] / found.total()) for name in _names(_PAIRS) if name in found)
    return Topic("Queries by their number of pairs", tuple(counts), 0)


def _settings(configuration: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What of the configuration a reader looks for first; the whole of it is in the version's record."""
    for title, component, name in _SETTINGS:
        yield title, str(configuration[component][name])
    for title, component, name in _CRAWL_SETTINGS:
        values = {str(crawl[component][name]) for crawl in configuration["crawl"].values()}
        yield title, " or ".join(sorted(values))


def _limits(crawls: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    crawls = list(crawls)
    yield (
        "Captions are what people wrote beside images on the web, for readers of a page: many do not describe the "
        "image, and some are wrong or offensive."
    )
    yield (
        "Images belong to their authors. What sites forbid crawlers, and what is marked noai, was left out. A pair can "
        "be taken down with `python -m jobs.snapshot tombstone`; every reader of every version honours it."
    )
    yield "Like the web, the pairs are no fair sample of the world: of its languages, places, times and people."
    if not all(crawl["safety"]["classifier"] for crawl in crawls):
        yield "No classifier of unsafe images looked at all of them."
    if not all(any(crawl["block_lists"].values()) for crawl in crawls):
        yield "Not all of them were compared with block lists."
    if any(crawl["caption"]["language"] for crawl in crawls):
        yield "Captions that are certainly in another language were left out; of short ones it cannot be told."
