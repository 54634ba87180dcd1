"""The flow from checked images to a snapshot, on Ray Data (cluster/stages.py). What comes before is in crawl_flow.py.

No shuffle moves an image but the last one. The stages of the duplicate graph are in duplicates_flow.py, those of
embeddings, where there is an encoder, in embedding_flow.py.

    addresses                           one pair for each address, over several crawls | by crawl
    pictures                            perceptual hashes                              | by hash
    leading, embeddings                 the best row of each picture, embedded         | by part
    embedding_sample, centroids, cells  like embeddings meet                           | by cell
    fingerprints, edges                 like hashes meet                               | by band
    links, settled, spread, gone        the duplicate graph, in rounds                 | by hash
    duplicates, spares                  rows that go, and their captions               | by part
    overlaps                            pictures of evaluation sets                    |
    final_counts ... final_limits       every query's pairs that are left              | by query
    sizes                               how many pairs will be left, so how many shards
    placed                              duplicates and overlaps out -> final balance   | by shard
    shards                              in the order of the shuffle                    |
    settled_overlaps                    overlaps of the pairs in the snapshot          |
    kept_counts, kept_totals            every query's pairs in the snapshot -> commit  | by query
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
from cluster.stages import Read, Stages
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
    """How a curation is done; jobs/curate.py adds where from and where to."""

    num_buckets: int = 64
    """Parts of the stages that are partitioned by hash or by query."""
    dedupe: DedupeConfig = field(default_factory=DedupeConfig)
    cells: CellsConfig = field(default_factory=CellsConfig)
    """How like embeddings are found, where there is an encoder."""
    overlap: overlap.OverlapConfig = field(default_factory=overlap.OverlapConfig)
    balance: balancing.BalanceConfig = field(default_factory=balancing.BalanceConfig)
    shard: shard.ShardConfig = field(default_factory=shard.ShardConfig)


@dataclass(frozen=True)
class Sight:
    """What tells pictures beside their hashes."""

    encoder: Callable[[], Encode] | None = None
    """Makes an encoder, once in each actor of the pool."""
    pool: Pool = field(default_factory=Pool)
    index: overlap.OverlapIndex | None = None
    """Of the evaluation sets; with embeddings of the same encoder, if of any."""


def curate(
    stages: Stages,
    crawls: Sequence[Output],
    dataset: str,
    metadata: Mapping[str, Any],
    config: CurateConfig,
    sight: Sight,
) -> snapshot.Snapshot:
    """From resized images to a committed snapshot: one copy of each picture, balanced, shuffled, in shards.

    `crawls` are FETCHED of one query list with one number of parts each, so that all rows of an address are in parts
    of one number.
    """
    fetched = global_counts_flow.join(stages, crawls)
    buckets, parts = config.num_buckets, fetched.num_parts
    hashed = pictures(stages, parts, fetched.part, config.dedupe, buckets)
    seen: embedding_flow.PictureRead = partial(hashed.part, columns=["pair_id", "phash"])
    near = None
    if sight.encoder is not None:
        best, embeddings = embedding_flow.embed(stages, parts, fetched.part, hashed, sight.encoder, sight.pool)
        seen = embedding_flow.embedded(best, embeddings)
        near = embedding_flow.near_embeddings(stages, best, embeddings, config.cells, buckets)
    going, spares = duplicates(stages, parts, fetched.part, hashed, near, config.dedupe, buckets)
    overlaps = None if sight.index is None else embedding_flow.overlaps(stages, parts, seen, sight.index)

    def marked(part: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        table = fetched.part(part, columns)
        if table is None:
            return None
        table = dedupe.mark(table, going.bucket(part) or DUPLICATES.empty_table())
        if overlaps is None or config.overlap.mode == "mark":
            return table
        return overlap.drop_overlaps(table, overlaps.part(part) or OVERLAPS.empty_table())

    def left(part: int, columns: Sequence[str]) -> pa.Table | None:
        table = marked(part, sorted({*columns, "pair_id", "reason"}))
        return None if table is None else table.filter(table["reason"].is_null())

    limits = global_counts_flow.limits(
        stages, "final_", parts, left, config.balance, config.balance.max_pairs_per_query, buckets
    )
    draw = balancing.Selection(limits, config.balance.seed)

    def drawn(part: int) -> pa.Table | None:
        table = marked(part)
        if table is None:
            return None
        table = dedupe.with_spares(draw(table), spares.bucket(part) or SPARES.empty_table())
        return dedupe.with_phash(table, hashed.part(part, ["pair_id", "phash"]))

    sizes = stages(
        "sizes", parts, lambda part: left(part, ["pair_id", "query_ids"]), finish=lambda table: shard.size(draw(table))
    )
    left_share = sum(sizes.table(shard.SIZES)["num_pairs"].to_pylist()) / max(1, fetched.num_rows)
    count = shard.num_shards(int(fetched.num_bytes * left_share), config.shard)
    placed = stages(
        "placed",
        parts,
        drawn,
        place=lambda table: shard.shard_of(table, count, config.shard.seed),
        num_buckets=count,
        row_groups=IMAGE_GROUPS,
    )
    shards, records = make_shards(stages, count, placed.bucket, dataset, config.shard)
    told = None
    if sight.index is not None and overlaps is not None:
        found = embedding_flow.settled_overlaps(stages, overlaps, placed).table(OVERLAPS)
        told = overlap.overlap_record(overlap.count_overlaps(sight.index, found), config.overlap)
        told = {**told, "sha256": put_overlaps(dataset, found)}
    kept = global_counts_flow.totals(stages, "kept_", count, shards.part, buckets).select(["query_id", "num_pairs"])
    version = commit(dataset, records, kept, {**metadata, "overlap": told, "funnel": stages.funnel()})
    about = card.card(version.metadata, global_counts_flow.card_counts(stages, count, shards.part, buckets), kept)
    for ending, page in (("md", to_markdown(about)), ("html", to_html(about))):
        storage.write_bytes(storage.join(dataset, "cards", f"{version.name}.{ending}"), page.encode())
    return version


def make_shards(
    stages: Stages, count: int, read: Read, dataset: str, config: shard.ShardConfig
) -> tuple[Output, list[snapshot.Shard]]:
    """The last shuffle: the rows that `read` gives for each shard, in order, below the data set; and what they are."""
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
