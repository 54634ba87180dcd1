"""Embeddings on Ray: pictures embedded by a pool, near ones found cell by cell, overlaps with evaluation sets.

Each is a chain of stages (cluster/stages.py) over the functions of embeddings.py, cells.py and overlap.py, for flow.py
to call. No stage but that of the centroids is a single task, and that one reads a sample.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import ray

from cluster.parts import Output
from cluster.resources import Pool
from cluster.stages import Stages
from pipeline.data import cells, overlap
from pipeline.data.embeddings import Embedder, Encode, to_matrix
from pipeline.schemas import CENTROIDS, EMBEDDINGS

Read = Callable[[int], pa.Table | None]
"""The rows of a part."""


def embed(stages: Stages, num_parts: int, images: Read, encoder: Callable[[], Encode], pool: Pool) -> Output:
    """EMBEDDINGS of the images, row by row, part by part.

    Args:
        stages: of the run.
        num_parts: parts of the images.
        images: columns pair_id and jpg of a part.
        encoder: makes an encoder, once in each actor (jobs.encoders.load_encoder with its arguments).
        pool: the actors.
    """
    return stages(
        "embeddings",
        num_parts,
        images,
        pools=[(lambda: Embedder(encoder()), pool)],
    )


def near_embeddings(
    stages: Stages, embeddings: Output, ranks: Read, config: cells.CellsConfig, num_buckets: int
) -> Output:
    """EMBEDDING_EDGES between pictures whose embeddings are near, in `num_buckets` parts of whole cells.

    Args:
        stages: of the run.
        embeddings: of `embed`.
        ranks: pair_id and rank (uint64, lower is better) of a part, in the order of the embeddings.
        config: of cells and thresholds.
        num_buckets: tasks that share out the cells.
    """
    parts = len(embeddings.parts)
    wanted, total = config.num_cells * config.sample_per_cell, embeddings.num_kept
    sampled = stages(
        "embedding_sample",
        parts,
        embeddings.part,
        finish=lambda table: cells.sample(table, wanted, total, config.seed),
    )
    learned = stages(
        "centroids",
        1,
        lambda _: sampled.table(EMBEDDINGS),
        finish=lambda table: cells.centroid_table(cells.learn_centroids(table, config)),
    )
    centroids = ray.put(to_matrix(learned.table(CENTROIDS)["centroid"]))

    def ranked(part: int) -> pa.Table | None:
        table, rank = embeddings.part(part), ranks(part)
        if table is None or rank is None:
            return None
        assert table["pair_id"] == rank["pair_id"]
        return table.append_column("rank", rank["rank"])

    members = stages(
        "cells",
        parts,
        ranked,
        finish=lambda table: cells.cell_members(table, ray.get(centroids), config.num_cells_each),
        place=lambda table: (table["cell"].to_numpy() % num_buckets).astype(np.int32),
        num_buckets=num_buckets,
    )
    return stages(
        "embedding_edges",
        num_buckets,
        members.bucket,
        finish=lambda table: cells.embedding_edges(table, config.min_similarity, config.max_edges_each),
    )


def overlaps(stages: Stages, num_parts: int, pictures: Read, index: overlap.OverlapIndex) -> Output:
    """OVERLAPS of each part's pictures with the evaluation sets.

    Args:
        stages: of the run.
        num_parts: parts of the pictures.
        pictures: columns pair_id and phash of a part, and embedding where the index has embeddings.
        index: the evaluation sets.
    """
    known = ray.put(index)
    return stages("overlaps", num_parts, pictures, finish=lambda table: overlap.find_overlaps(table, ray.get(known)))


def settled_overlaps(stages: Stages, found: Output, placed: Output) -> Output:
    """The OVERLAPS that a snapshot carries: of pairs that it holds, or that were dropped as overlaps.

    Args:
        stages: of the run.
        found: of `overlaps`.
        placed: what became of the pairs, in the same parts: columns pair_id and reason.
    """

    def read(part: int) -> pa.Table | None:
        table, outcomes = found.part(part), placed.everything(part, ["pair_id", "reason"])
        return None if table is None or outcomes is None else overlap.settled(table, outcomes)

    return stages("settled_overlaps", len(found.parts), read)
