"""Embed pictures, find near embeddings, and find overlaps with evaluation sets, on Ray.

Each function runs a chain of stages (cluster/stages.py) over functions of embeddings.py, embedding_neighbours.py and
overlap.py; curate_flow.py calls them. Only the stage of the centroids is a single task, and it reads only a sample.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.parts import Output
from cluster.resources import Pool
from cluster.stages import ReadPart, Stages, shared
from pipeline.data.duplicates import embedding_neighbours, overlap
from pipeline.data.duplicates.duplicate_graph import leaders
from pipeline.data.duplicates.embeddings import Embedder, Encode, to_matrix
from pipeline.data.flows.bucketing import by_part
from pipeline.data.flows.global_counts_flow import ReadColumns
from pipeline.schemas import CENTROIDS, EMBEDDINGS


def embed(
    stages: Stages, parts: int, read: ReadColumns, pictures: Output, encoder: Callable[[], Encode], pool: Pool
) -> tuple[Output, Output]:
    """The best row of each picture (phash, rank, pair_id, part) by part, and EMBEDDINGS of these rows.

    All other rows are dropped as duplicates in any case, so they are not embedded.

    Args:
        stages: the stages of the run.
        parts: number of parts of the images.
        read: returns columns of FETCHED of a part.
        pictures: PICTURES, in buckets with all rows of each hash.
        encoder: creates an encoder, once in each actor (jobs.options.encoders.EncoderConfig.open).
        pool: the actors that embed.
    """
    leading = stages(
        "leading",
        len(pictures.num_kept_by_bucket()),
        pictures.bucket,
        finish=lambda table: table.take(pa.array(leaders(table))).select(["phash", "rank", "pair_id", "part"]),
        bucketing=by_part("part"),
        num_buckets=parts,
    )

    def images(part: int) -> pa.Table | None:
        rows, table = leading.bucket(part), read(part, ["pair_id", "jpg"])
        if rows is None or table is None:
            return None
        return table.take(pc.index_in(rows["pair_id"], table["pair_id"].combine_chunks()))

    return leading, stages("embeddings", parts, images, pools=[(lambda: Embedder(encoder()), pool)])


def embedded(leading: Output, embeddings: Output) -> ReadPart:
    """A function that reads phash, rank, pair_id, part and embedding of a part, from the two outputs of `embed`."""

    def read(part: int) -> pa.Table | None:
        table, rows = embeddings.part(part), leading.bucket(part)
        if table is None or rows is None:
            return None
        assert table["pair_id"] == rows["pair_id"]
        return rows.append_column("embedding", table["embedding"])

    return read


def near_embeddings(
    stages: Stages, leading: Output, embeddings: Output, config: embedding_neighbours.CellsConfig, buckets: int
) -> Output:
    """EMBEDDING_EDGES between pictures whose embeddings are near, in `buckets` parts of whole cells.

    Args:
        stages: the stages of the run.
        leading: first output of `embed`.
        embeddings: second output of `embed`.
        config: cells and thresholds.
        buckets: number of tasks among which the cells are divided.
    """
    parts = len(embeddings.parts)
    sample_size, total = config.num_cells * config.sample_per_cell, embeddings.num_kept
    sampled = stages(
        "embedding_sample",
        parts,
        embeddings.part,
        finish=lambda table: embedding_neighbours.sample(table, sample_size, total, config.seed),
    )
    learned = stages(
        "centroids",
        1,
        lambda _: sampled.table(EMBEDDINGS),
        finish=lambda table: embedding_neighbours.centroid_table(embedding_neighbours.learn_centroids(table, config)),
    )
    centroids = shared(to_matrix(learned.table(CENTROIDS)["centroid"]))

    members = stages(
        "cells",
        parts,
        embedded(leading, embeddings),
        finish=lambda table: embedding_neighbours.cell_members(table, centroids(), config.num_cells_each),
        bucketing=lambda table: (table["cell"].to_numpy() % buckets).astype(np.int32),
        num_buckets=buckets,
    )
    return stages(
        "embedding_edges",
        buckets,
        members.bucket,
        finish=lambda table: embedding_neighbours.embedding_edges(table, config.min_similarity, config.max_edges_each),
    )


def overlaps(stages: Stages, num_parts: int, pictures: ReadPart, index: overlap.OverlapIndex) -> Output:
    """OVERLAPS of each part's pictures with the evaluation sets.

    Args:
        stages: the stages of the run.
        num_parts: number of parts of the pictures.
        pictures: reads the columns pair_id and phash of a part, or `embedded` if the index has embeddings.
        index: the evaluation sets.
    """
    shared_index = shared(index)
    return stages("overlaps", num_parts, pictures, finish=lambda table: overlap.find_overlaps(table, shared_index()))


def settled_overlaps(stages: Stages, found: Output, placed: Output) -> Output:
    """The OVERLAPS that a snapshot records: of the pairs that it contains, and of pairs dropped as overlaps.

    Args:
        stages: the stages of the run.
        found: output of `overlaps`.
        placed: pair_id and reason of all pairs after balancing, in the same parts.
    """

    def read(part: int) -> pa.Table | None:
        table, outcomes = found.part(part), placed.with_dropped(part, ["pair_id", "reason"])
        return None if table is None or outcomes is None else overlap.settled(table, outcomes)

    return stages("settled_overlaps", len(found.parts), read)
