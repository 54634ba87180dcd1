"""The flow from archives to a snapshot, on Ray Data (cluster/stages.py). That of queries is in query_flow.py.

A stage writes its rows in buckets, and the next one reads one bucket of all parts: what must meet, meets there. No
shuffle ever moves an image but the last one.

    candidates                          archive -> extract -> caption rules -> match   | by address
    unique                              an address -> its best caption                 | by registered domain
    counts, totals, sketches, limits    every query's pairs: counted, sketched, merged | by query
    fetched                             early balance -> fetch -> check and resize     |
    attempts, answers, fetched          what had failed, once more                     | by registered domain
    outcomes, survival                  every query's tried and kept pairs             | by query
    addresses                           one pair for each address, over several crawls | by crawl
    pictures                            perceptual hashes                              | by hash
    fingerprints, edges                 like pictures                                  | by band
    links, settled, spread, gone        the duplicate graph, in rounds                 | by hash
    duplicates, spares                  rows that go, and their captions               | by part
    final_counts ... final_limits       every query's pairs that are left              | by query
    sizes                               how many pairs will be left, so how many shards
    placed                              duplicates out -> final balance                | by shard
    shards                              in the order of the shuffle                    |
    kept_counts, kept_totals            every query's pairs in the snapshot -> commit  | by query
    card_counts, card_totals            the data card                                  | by name
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any

import pyarrow as pa
import ray

from cluster import storage
from cluster.parts import Output, RowGroups
from cluster.resources import Pool
from cluster.stages import Factory, Read, Stages, Transform
from pipeline.data import (
    balance,
    caption,
    card,
    dedupe,
    extract,
    match,
    passes,
    shard,
    snapshot,
)
from pipeline.data.block_lists import NO_LISTS, BlockLists, apply_lists
from pipeline.data.card_pages import to_html, to_markdown
from pipeline.data.commit import commit
from pipeline.data.crawler import Crawler
from pipeline.data.duplicate_graph import DedupeConfig
from pipeline.data.duplicate_passes import duplicates
from pipeline.data.fetch import FetchConfig
from pipeline.data.held import HeldImages
from pipeline.data.image import ImageConfig
from pipeline.data.places import by_domain, by_url
from pipeline.data.safety import SafetyConfig, Screen
from pipeline.data.sources import read_input
from pipeline.schemas import DUPLICATES, SPARES

IMAGE_GROUPS = RowGroups(max_rows=1024)


@dataclass(frozen=True, kw_only=True)
class CrawlConfig:
    """How a crawl is done; jobs/crawl.py adds where from and where to."""

    num_buckets: int = 64
    """Parts of every stage after extraction."""
    num_fetch_parts: int | None = None
    """Parts of fetching, which a worker holds whole, 30 KB an image; a registered domain is in one of them. As many as
    num_buckets unless given."""
    extract: extract.ExtractConfig = field(default_factory=extract.ExtractConfig)
    caption: caption.CaptionConfig = field(default_factory=caption.CaptionConfig)
    match_mode: match.MatchMode = "paper"
    """Whole words, or metaclip's rule for its own list."""
    balance: balance.BalanceConfig = field(default_factory=balance.BalanceConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    match_pool: Pool = field(default_factory=Pool)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    fetch_pool: Pool = field(default_factory=lambda: Pool(max_calls=4))
    """Crawlers; each has image.num_decoders processes beside it, and max_calls parts at once, so that a slow host of
    one part keeps nobody waiting."""
    screen_pool: Pool = field(default_factory=Pool)
    """Classifiers of unsafe images, where there are any."""

    @property
    def fetch_parts(self) -> int:
        """Parts of fetching."""
        return self.num_fetch_parts or self.num_buckets

    @property
    def pools(self) -> list[Pool]:
        """What the cluster must hold at once."""
        return [self.match_pool, self.fetch_pool, *([self.screen_pool] if self.safety.classifier else [])]


@dataclass(frozen=True, kw_only=True)
class CurateConfig:
    """How a curation is done; jobs/curate.py adds where from and where to."""

    num_buckets: int = 64
    """Parts of the stages that are partitioned by hash or by query."""
    dedupe: DedupeConfig = field(default_factory=DedupeConfig)
    balance: balance.BalanceConfig = field(default_factory=balance.BalanceConfig)
    shard: shard.ShardConfig = field(default_factory=shard.ShardConfig)


def crawl(
    stages: Stages,
    inputs: Sequence[str],
    query_texts: Sequence[str],
    config: CrawlConfig,
    lists: BlockLists = NO_LISTS,
    early: balance.MaxPairs | None = None,
) -> Output:
    """From archives and tables to checked, resized images: FETCHED, one part for each bucket of registered domains.

    Without queries nothing is matched or balanced. `early` is how many pairs a query may have before fetching,
    `early_margin` times the limit where it is left out.
    """
    buckets, parts = config.num_buckets, config.fetch_parts
    early = config.balance.max_pairs_before_fetch if early is None else early
    texts, block_lists = ray.put(list(query_texts)), ray.put(lists)
    screens_held = bool(lists.pictures) or config.safety.classifier is not None

    def read(part: int) -> pa.Table:
        found = apply_lists(read_input(inputs[part], config.extract), ray.get(block_lists))
        return caption.apply_rules(found, config.caption)

    def prepare() -> Transform:
        steps: list[Transform] = []
        if query_texts:
            steps.append(partial(match.match_captions, matcher=match.Matcher(ray.get(texts), config.match_mode)))
        if screens_held:
            crawler = Crawler(config.fetch, config.image, ray.get(block_lists))
            steps.append(HeldImages(crawler, Screen(config.safety)))
        return lambda table: reduce(lambda done, step: step(done), steps, table)

    candidates = stages(
        "candidates",
        len(inputs),
        read,
        pools=[(prepare, config.match_pool)] if query_texts or screens_held else [],
        place=by_url("image_url", buckets),
        num_buckets=buckets,
    )
    unique = stages(
        "unique",
        buckets,
        candidates.bucket,
        finish=dedupe.same_url,
        place=by_domain("image_url", parts),
        num_buckets=parts,
    )
    addresses: Read = unique.bucket
    if query_texts:
        limits = passes.limits(stages, "", buckets, unique.part, config.balance, early, buckets)
        addresses = _then(unique.bucket, balance.Selection(limits, config.balance.seed))
    return stages(
        "fetched",
        parts,
        addresses,
        pools=crawlers(config, lists),
        row_groups=IMAGE_GROUPS,
    )


def crawlers(config: CrawlConfig, lists: BlockLists) -> list[tuple[Factory, Pool]]:
    """What fetches, checks, resizes and screens."""
    alone = config.fetch_pool.max_size == 1  # then a redirect to another domain is nobody else's to follow
    block_lists = ray.put(lists)
    pools: list[tuple[Factory, Pool]] = [
        (lambda: Crawler(config.fetch, config.image, ray.get(block_lists), owns_all=alone), config.fetch_pool)
    ]
    if config.safety.classifier is not None:
        pools.append((partial(Screen, config.safety), config.screen_pool))
    return pools


def curate(
    stages: Stages, crawls: Sequence[Output], dataset: str, metadata: Mapping[str, Any], config: CurateConfig
) -> snapshot.Snapshot:
    """From resized images to a committed snapshot: one copy of each picture, balanced, shuffled, in shards.

    `crawls` are FETCHED of one query list with one number of parts each, so that all rows of an address are in parts
    of one number.
    """
    fetched = passes.join(stages, crawls)
    buckets, parts = config.num_buckets, fetched.num_parts
    pictures, going, spares = duplicates(stages, parts, fetched.part, config.dedupe, buckets)

    def left(part: int, columns: Sequence[str]) -> pa.Table | None:
        table = fetched.part(part, sorted({*columns, "pair_id", "reason"}))
        if table is None:
            return None
        marked = dedupe.mark(table, going.bucket(part) or DUPLICATES.empty_table())
        return marked.filter(marked["reason"].is_null())

    limits = passes.limits(stages, "final_", parts, left, config.balance, config.balance.max_pairs_per_query, buckets)
    draw = balance.Selection(limits, config.balance.seed)

    def drawn(part: int) -> pa.Table | None:
        table = fetched.part(part)
        if table is None:
            return None
        table = draw(dedupe.mark(table, going.bucket(part) or DUPLICATES.empty_table()))
        table = dedupe.with_spares(table, spares.bucket(part) or SPARES.empty_table())
        return dedupe.with_phash(table, pictures.part(part, ["pair_id", "phash"]))

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
    kept = passes.totals(stages, "kept_", count, shards.part, buckets).select(["query_id", "num_pairs"])
    version = commit(dataset, records, kept, {**metadata, "funnel": stages.funnel()})
    counts = passes.card_counts(stages, count, shards.part, buckets)
    about = card.card(version.metadata, counts, kept, {})
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


def _then(read: Callable[[int], pa.Table | None], transform: Transform) -> Read:
    def composed(part: int) -> pa.Table | None:
        table = read(part)
        return None if table is None else transform(table)

    return composed
