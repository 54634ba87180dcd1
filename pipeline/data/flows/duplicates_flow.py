"""Find duplicate rows over all parts, with the stages of the duplicate graph (duplicate_graph.py).

No stage is a single task over all rows. No worker needs more than one bucket in memory, or the last few links of the
graph.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from cluster.parts import Output
from cluster.stages import Stages
from pipeline.data.duplicates import dedupe
from pipeline.data.duplicates import duplicate_graph as graph
from pipeline.data.duplicates.duplicate_graph import DedupeConfig
from pipeline.data.flows.bucketing import by_number, by_part
from pipeline.data.flows.global_counts_flow import ReadColumns
from pipeline.schemas import DROPPED_PICTURES, EDGES, LINKS


def pictures(stages: Stages, parts: int, read: ReadColumns, config: DedupeConfig, buckets: int) -> Output:
    """PICTURES of the images that `read` returns, in buckets with all rows of each hash."""
    columns = ["pair_id", "sha256", "jpg", "original_width", "original_height", "caption", "caption_source"]

    def with_part(part: int) -> pa.Table | None:
        table = read(part, columns)
        return None if table is None else table.append_column("part", pa.array(np.full(table.num_rows, part, np.int32)))

    return stages(
        "pictures",
        parts,
        with_part,
        finish=lambda table: dedupe.pictures(table, config),
        bucketing=by_number("phash", buckets),
        num_buckets=buckets,
    )


def duplicates(
    stages: Stages,
    parts: int,
    read: ReadColumns,
    pictures: Output,
    near: Output | None,
    config: DedupeConfig,
    buckets: int,
) -> tuple[Output, Output]:
    """DUPLICATES among PICTURES, and SPARES for the kept rows; both with one bucket per part of the images.

    Args:
        stages: the stages of the run.
        parts: number of parts of the images.
        read: returns columns of FETCHED of a part.
        pictures: PICTURES, in buckets with all rows of each hash.
        near: EDGES found by embeddings (embedding_flow.py), in `buckets` parts; None without an encoder.
        config: when two pictures count as the same.
        buckets: number of buckets of hashes.
    """
    dropped_pictures = _resolved(stages, pictures, near, config, buckets)

    def find(bucket: int) -> pa.Table | None:
        table = pictures.bucket(bucket)
        return None if table is None else dedupe.duplicates(table, dropped_pictures(bucket))

    found = stages("duplicates", buckets, find, bucketing=by_part("part"), num_buckets=parts)

    def spares_of(part: int) -> pa.Table | None:
        dropped, table = found.bucket(part), read(part, ["pair_id", "caption", "spare_captions"])
        return None if dropped is None or table is None else dedupe.spares(table, dropped)

    return found, stages("spares", parts, spares_of, bucketing=by_part("kept_part"), num_buckets=parts)


def _resolved(
    stages: Stages, pictures: Output, near: Output | None, config: DedupeConfig, buckets: int
) -> Callable[[int], pa.Table]:
    """Resolve the graph in rounds over all workers, then the rest in one.

    Returns:
        A function from a bucket of hashes to its DROPPED_PICTURES.
    """
    fingerprints = stages(
        "fingerprints",
        buckets,
        pictures.bucket,
        finish=lambda table: graph.fingerprints(table, config),
        bucketing=by_number("key", buckets),
        num_buckets=buckets,
    )
    edges = stages("edges", buckets, fingerprints.bucket, finish=lambda table: graph.edges(table, config))

    def all_edges(part: int) -> pa.Table | None:
        found = [output.part(part, EDGES.names) for output in (edges, near) if output is not None]
        tables = [table for table in found if table is not None]
        return pa.concat_tables(tables) if tables else None

    by_node = by_number("node", buckets)
    links = stages("links", buckets, all_edges, finish=graph.links, bucketing=by_node, num_buckets=buckets)
    rounds: list[Output] = []
    while links.num_kept > config.max_links_at_once:
        number, open_links = len(rounds) + 1, links
        settled = stages(
            f"settled-{number}",
            buckets,
            open_links.bucket,
            finish=graph.settle,
            bucketing=by_node,
            num_buckets=buckets,
        )
        links = stages(
            f"spread-{number}", buckets, settled.bucket, finish=graph.spread, bucketing=by_node, num_buckets=buckets
        )
        rounds.append(links)
    rest = stages(
        "gone",
        1,
        lambda _: links.table(LINKS),
        finish=graph.resolve,
        bucketing=by_number("phash", buckets),
        num_buckets=buckets,
    )

    def dropped_pictures(bucket: int) -> pa.Table:
        dropped = (output.dropped(bucket) for output in rounds)
        tables = [rest.bucket(bucket), *(graph.dropped_pictures(table) for table in dropped if table is not None)]
        return pa.concat_tables([DROPPED_PICTURES.empty_table(), *(table for table in tables if table is not None)])

    return dropped_pictures
