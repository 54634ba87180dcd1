"""Compute results over all parts that later stages need: limits of queries, unique URLs of several crawls, totals.

Each function runs a chain of stages (cluster/stages.py) over functions of balancing.py, survival.py, link_rot.py,
dedupe.py or card.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.parts import Output
from cluster.stages import Stages
from pipeline.data.balance import balancing, survival
from pipeline.data.cards import card
from pipeline.data.crawl import link_rot as rot
from pipeline.data.duplicates import dedupe
from pipeline.data.flows.bucketing import by_name, by_query
from pipeline.schemas import ADDRESSES, CARD_COUNTS, LINK_ROT, OUTCOMES, SKETCHES, THRESHOLDS

ReadColumns = Callable[[int, Sequence[str]], pa.Table | None]
"""A function that reads the given columns of a part."""
NUM_NAMES = 1_000
"""Number of domains, and of hosts, whose link rot is reported individually; takes about 100 kB."""


@dataclass(frozen=True)
class Images:
    """The images of several crawls without duplicate URLs; part i is part i mod P of crawl i div P.

    `addresses` contains the kept rows of each part, one bucket per crawl.
    """

    crawls: Sequence[Output]
    addresses: Output

    @property
    def num_parts(self) -> int:
        """Number of parts of all crawls together."""
        return len(self.crawls) * len(self.addresses.parts)

    @property
    def num_rows(self) -> int:
        """Number of images of all crawls, including those with duplicate URLs."""
        return sum(crawl.num_kept for crawl in self.crawls)

    @property
    def num_bytes(self) -> int:
        """Bytes of the files of all crawls."""
        return sum(part.num_bytes for crawl in self.crawls for part in crawl.parts)

    def part(self, index: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """FETCHED of a part, or the given columns (which must include pair_id); None if the part is empty."""
        crawl, bucket = divmod(index, len(self.addresses.parts))
        table = self.crawls[crawl].part(bucket, columns)
        kept = self.addresses.stage.read(self.addresses.parts[bucket], crawl)
        if table is None or kept is None:
            return None
        table = table.filter(pc.is_in(table["pair_id"], kept["pair_id"].combine_chunks()))
        assert table["pair_id"] == kept["pair_id"]
        if "spare_captions" not in table.column_names:
            return table
        position = table.schema.get_field_index("spare_captions")
        return table.set_column(position, "spare_captions", kept["spare_captions"])


def join(stages: Stages, crawls: Sequence[Output]) -> Images:
    """Combine several crawls: of all rows with the same URL, keep the one with the best caption."""
    columns = ["pair_id", "url", "caption", "caption_source", "spare_captions", "page_url", "reason"]

    def read(bucket: int) -> pa.Table | None:
        parts = [crawl.part(bucket, columns) for crawl in crawls]
        numbered = [
            table.append_column("crawl", pa.array(np.full(table.num_rows, number, np.int32)))
            for number, table in enumerate(parts)
            if table is not None
        ]
        return pa.concat_tables(numbered) if numbered else None

    addresses = stages(
        "addresses",
        len(crawls[0].parts),
        read,
        finish=lambda table: dedupe.drop_duplicate_urls(table).select(ADDRESSES.names),
        bucketing=lambda table: table["crawl"].to_numpy(),
        num_buckets=len(crawls),
    )
    return Images(crawls, addresses)


def totals(stages: Stages, prefix: str, parts: int, read: ReadColumns, buckets: int) -> pa.Table:
    """SKETCHES, without draws, of the pairs that `read` returns: counted by part, then summed by query."""
    counts = stages(
        f"{prefix}counts",
        parts,
        lambda part: read(part, ["query_ids"]),
        finish=balancing.count,
        bucketing=by_query(buckets),
        num_buckets=buckets,
    )
    added = stages(
        f"{prefix}totals", buckets, counts.bucket, finish=lambda table: balancing.merge([table], max_pairs=0)
    )
    return added.table(SKETCHES)


def limits(
    stages: Stages,
    prefix: str,
    parts: int,
    read: ReadColumns,
    config: balancing.BalanceConfig,
    max_pairs: balancing.MaxPairs,
    buckets: int,
) -> pa.Table:
    """THRESHOLDS of every query over the pairs that `read` returns.

    The pairs are counted, then sketched by part, and the sketches are merged by query. Mode metaclip needs only counts.
    """
    counted = totals(stages, prefix, parts, read, buckets)
    if config.mode == "metaclip":
        return balancing.thresholds(counted, max_pairs, config.mode)
    bound = balancing.bounds(counted, max_pairs)
    sketches = stages(
        f"{prefix}sketches",
        parts,
        lambda part: read(part, ["pair_id", "query_ids"]),
        finish=lambda table: balancing.sketch(table, max_pairs, config.seed, bound),
        bucketing=by_query(buckets),
        num_buckets=buckets,
    )
    merged = stages(
        f"{prefix}limits",
        buckets,
        sketches.bucket,
        finish=lambda table: balancing.thresholds(balancing.merge([table], max_pairs), max_pairs, config.mode),
    )
    return merged.table(THRESHOLDS)


def outcomes(stages: Stages, fetched: Output, buckets: int) -> pa.Table:
    """OUTCOMES of a crawl: the numbers of tried and of kept pairs of each query."""
    parts, generation = len(fetched.parts), fetched.stage.generation
    counts = stages(
        "outcomes",
        parts,
        lambda part: fetched.with_dropped(part, ["query_ids", "reason"]),
        finish=survival.count_outcomes,
        bucketing=by_query(buckets),
        num_buckets=buckets,
        generation=generation,
    )
    return stages("survival", buckets, counts.bucket, finish=survival.sum_outcomes, generation=generation).table(
        OUTCOMES
    )


def link_rot(stages: Stages, fetched: Output, buckets: int, num_names: int = NUM_NAMES) -> pa.Table:
    """LINK_ROT of a crawl, by year and for the `num_names` domains and hosts with the most URLs."""
    generation = fetched.stage.generation
    counts = stages(
        "rot_counts",
        len(fetched.parts),
        lambda part: fetched.with_dropped(part, ["url", "page_date", "reason"]),
        finish=rot.count,
        bucketing=by_name(buckets),
        num_buckets=buckets,
        generation=generation,
    )
    added = stages(
        "link_rot",
        buckets,
        counts.bucket,
        finish=lambda table: rot.busiest_names(rot.add(table), num_names),
        generation=generation,
    )
    return rot.busiest_names(added.table(LINK_ROT), num_names)


def card_counts(stages: Stages, parts: int, read: Callable[[int], pa.Table | None], buckets: int) -> pa.Table:
    """CARD_COUNTS of the pairs that `read` returns: the largest counts of each topic."""
    counts = stages("card_counts", parts, read, finish=card.count, bucketing=by_name(buckets), num_buckets=buckets)
    added = stages(
        "card_totals",
        buckets,
        counts.bucket,
        finish=lambda table: card.most_frequent_names(card.sum_card_counts(table)),
    )
    return card.most_frequent_names(added.table(CARD_COUNTS))
