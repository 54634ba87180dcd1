"""Turn checked images into a snapshot, on Ray Data (cluster/stages.py). crawl_flow.py produces the images.

Only the last shuffle moves images. duplicates_flow.py defines the stages of the duplicate graph; embedding_flow.py
defines the stages of embeddings, which need an encoder. The stages, with the key of their buckets:

    addresses                           one pair per URL, over several crawls          | by crawl
    pictures                            perceptual hashes                              | by hash
    leading, embeddings                 embed the best row of each picture             | by part
    embedding_sample, centroids, cells  group similar embeddings                       | by cell
    fingerprints, edges                 group and compare similar hashes               | by band
    links, settled, spread, gone        the duplicate graph, in rounds                 | by hash
    duplicates, spares                  rows to drop, and their captions               | by part
    overlaps                            pictures of evaluation sets                    |
    final_counts ... final_limits       the remaining pairs of every query             | by query
    sizes                               number of kept pairs, for the number of shards |
    placed                              drop duplicates and overlaps -> final balance  | by shard
    shards                              pairs in the order of the shuffle              |
    settled_overlaps                    overlaps of the pairs in the snapshot          |
    kept_counts, kept_totals            pairs per query in the snapshot -> commit      | by query
    card_counts, card_totals            the data card                                  | by name
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from cluster import storage
from cluster.part_file import RowGroups
from cluster.parts import Output
from cluster.resources import Pool
from cluster.stages import ReadPart, Stages
from pipeline.data.balance import balancing
from pipeline.data.cards import card
from pipeline.data.cards.card_pages import to_html, to_markdown
from pipeline.data.duplicates import dedupe, overlap
from pipeline.data.duplicates.duplicate_graph import DedupeConfig
from pipeline.data.duplicates.embedding_neighbours import CellsConfig
from pipeline.data.duplicates.embeddings import Encode
from pipeline.data.flows import embedding_flow, global_counts_flow
from pipeline.data.flows.crawl_flow import IMAGE_GROUPS
from pipeline.data.flows.duplicates_flow import duplicates, pictures
from pipeline.data.snapshots import shard, snapshot
from pipeline.data.snapshots.commit import commit, put_overlaps
from pipeline.schemas import DUPLICATES, OVERLAPS, SPARES


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """The options of a curation; jobs/curate.py adds crawls and output."""

    num_buckets: int = 64
    """Number of parts of the stages that are partitioned by hash or by query."""
    dedupe: DedupeConfig = field(default_factory=DedupeConfig)
    cells: CellsConfig = field(default_factory=CellsConfig)
    """How similar embeddings are found; needs an encoder."""
    overlap: overlap.OverlapConfig = field(default_factory=overlap.OverlapConfig)
    balance: balancing.BalanceConfig = field(default_factory=balancing.BalanceConfig)
    shard: shard.ShardConfig = field(default_factory=shard.ShardConfig)


@dataclass(frozen=True)
class PictureMatching:
    """The optional encoder and overlap index that are used in addition to perceptual hashes."""

    encoder: Callable[[], Encode] | None = None
    """Creates an encoder, once in each actor of the pool. If None, pictures are compared by their hashes only."""
    pool: Pool = field(default_factory=Pool)
    """The actors that embed pictures."""
    index: overlap.OverlapIndex | None = None
    """The evaluation sets to search for. If the index has embeddings, they must come from the same encoder."""


def curate(
    stages: Stages,
    crawls: Sequence[Output],
    dataset: str,
    metadata: Mapping[str, Any],
    config: CurateConfig,
    matching: PictureMatching,
) -> snapshot.Snapshot:
    """Turn resized images into a committed snapshot: one copy of each picture, balanced, shuffled, in shards.

    Args:
        stages: the stages of the run.
        crawls: FETCHED of one or more crawls with the same query list and the same number of parts, so that all rows of
            a URL are in parts with the same index.
        dataset: URI of the data set to which the new version is committed.
        metadata: plain data for the version's record.
        config: the options of the curation.
        matching: the optional encoder and overlap index.
    """
    images = global_counts_flow.join(stages, crawls)
    buckets, parts = config.num_buckets, images.num_parts
    rows = _match_pictures(stages, images, config, matching)
    max_pairs = config.balance.max_pairs_per_query
    limits = global_counts_flow.limits(stages, "final_", parts, rows.remaining, config.balance, max_pairs, buckets)
    selection = balancing.Selection(limits, config.balance.seed)
    num_shards = _num_shards(stages, rows, selection, config.shard)
    placed = stages(
        "placed",
        parts,
        partial(rows.balanced, selection),
        bucketing=lambda table: shard.shard_of(table, num_shards, config.shard.seed),
        num_buckets=num_shards,
        row_groups=IMAGE_GROUPS,
    )
    shards, records = make_shards(stages, num_shards, placed.bucket, dataset, config.shard)
    overlap_record = _record_overlaps(stages, rows, placed, dataset, config, matching)
    kept = global_counts_flow.totals(stages, "kept_", num_shards, shards.part, buckets)
    kept = kept.select(["query_id", "num_pairs"])
    version = commit(dataset, records, kept, {**metadata, "overlap": overlap_record, "funnel": stages.funnel()})
    write_card(stages, version, shards, kept, dataset, buckets)
    return version


@dataclass(frozen=True)
class CuratedRows:
    """The images of all crawls with the results of the duplicate and overlap stages, part by part."""

    images: global_counts_flow.Images
    hashed: Output
    """PICTURES."""
    duplicates: Output
    """DUPLICATES, one bucket per part of the images."""
    spares: Output
    """SPARES, one bucket per part of the images."""
    overlaps: Output | None
    """OVERLAPS, one part per part of the images; None if overlaps were not searched for."""
    drop_overlaps: bool
    """Whether pairs that overlap with an evaluation set are dropped, or only recorded."""

    def judged(self, part: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """FETCHED of a part, with a reason for each duplicate and each overlap to drop."""
        table = self.images.part(part, columns)
        if table is None:
            return None
        table = dedupe.mark(table, self.duplicates.bucket(part) or DUPLICATES.empty_table())
        if self.overlaps is None or not self.drop_overlaps:
            return table
        return overlap.drop_overlaps(table, self.overlaps.part(part) or OVERLAPS.empty_table())

    def remaining(self, part: int, columns: Sequence[str]) -> pa.Table | None:
        """The given columns of the rows that are neither duplicates nor overlaps to drop."""
        table = self.judged(part, sorted({*columns, "pair_id", "reason"}))
        return None if table is None else table.filter(table["reason"].is_null())

    def balanced(self, selection: balancing.Selection, part: int) -> pa.Table | None:
        """FETCHED of a part with phash, merged spare captions, and a reason for each row that no query selects."""
        table = self.judged(part)
        if table is None:
            return None
        table = dedupe.with_spares(selection(table), self.spares.bucket(part) or SPARES.empty_table())
        return dedupe.with_phash(table, self.hashed.part(part, ["pair_id", "phash"]))


def _match_pictures(
    stages: Stages, images: global_counts_flow.Images, config: CurateConfig, matching: PictureMatching
) -> CuratedRows:
    """Hash all images (and embed them, given an encoder); find duplicates (and overlaps, given an index)."""
    buckets, parts = config.num_buckets, images.num_parts
    hashed = pictures(stages, parts, images.part, config.dedupe, buckets)
    comparable: ReadPart = partial(hashed.part, columns=["pair_id", "phash"])
    near = None
    if matching.encoder is not None:
        best, embeddings = embedding_flow.embed(stages, parts, images.part, hashed, matching.encoder, matching.pool)
        comparable = embedding_flow.embedded(best, embeddings)
        near = embedding_flow.near_embeddings(stages, best, embeddings, config.cells, buckets)
    found, spares = duplicates(stages, parts, images.part, hashed, near, config.dedupe, buckets)
    overlaps = None
    if matching.index is not None:
        overlaps = embedding_flow.overlaps(stages, parts, comparable, matching.index)
    return CuratedRows(images, hashed, found, spares, overlaps, drop_overlaps=config.overlap.mode != "mark")


def _num_shards(stages: Stages, rows: CuratedRows, selection: balancing.Selection, config: shard.ShardConfig) -> int:
    """The number of shards for the kept pairs, estimated from their share of all images and the bytes of all images."""
    sizes = stages(
        "sizes",
        rows.images.num_parts,
        lambda part: rows.remaining(part, ["pair_id", "query_ids"]),
        finish=lambda table: shard.size(selection(table)),
    )
    share = sum(sizes.table(shard.SIZES)["num_pairs"].to_pylist()) / max(1, rows.images.num_rows)
    return shard.num_shards(int(rows.images.num_bytes * share), config)


def _record_overlaps(
    stages: Stages, rows: CuratedRows, placed: Output, dataset: str, config: CurateConfig, matching: PictureMatching
) -> Mapping[str, Any] | None:
    """Write the overlaps of the pairs in the snapshot to the data set; return the entry for the version's record."""
    if matching.index is None or rows.overlaps is None:
        return None
    found = embedding_flow.settled_overlaps(stages, rows.overlaps, placed).table(OVERLAPS)
    record = overlap.overlap_record(overlap.count_overlaps(matching.index, found), config.overlap)
    return {**record, "sha256": put_overlaps(dataset, found)}


def write_card(
    stages: Stages, version: snapshot.Snapshot, shards: Output, kept: pa.Table, dataset: str, buckets: int
) -> None:
    """Write the data card of a version to the data set, as Markdown and HTML.

    Args:
        stages: the stages of the run.
        version: the version.
        shards: PAIRS, one part per shard.
        kept: columns query_id and num_pairs: the number of pairs of each query in the version.
        dataset: URI of the data set.
        buckets: number of parts in which the pairs are counted.
    """
    counts = global_counts_flow.card_counts(stages, len(shards.parts), shards.part, buckets)
    about = card.card(version.metadata, counts, kept)
    for ending, page in (("md", to_markdown(about)), ("html", to_html(about))):
        storage.write_bytes(storage.join(dataset, "cards", f"{version.name}.{ending}"), page.encode())


def make_shards(
    stages: Stages, count: int, read: ReadPart, dataset: str, config: shard.ShardConfig
) -> tuple[Output, list[snapshot.Shard]]:
    """Write the shards: the rows that `read` returns for each shard, in the order of the shuffle.

    Returns:
        The output of the stage, and the shards for the manifest.
    """
    folder = f"data/{stages.run.run_id}"
    shards = stages(
        "shards",
        count,
        read,
        finish=lambda table: shard.arrange(table, config.seed),
        row_groups=RowGroups(max_rows=config.row_group_size, max_bytes=config.row_group_bytes),
        uri=storage.join(dataset, folder),
    )
    records = [
        snapshot.Shard(
            path=f"{folder}/{part.file}",
            num_rows=part.num_rows,
            num_bytes=part.num_bytes,
            sha256=part.sha256,
            row_groups=part.row_groups,
        )
        for part in shards.parts
        if part.file is not None
    ]
    return shards, records
