"""The flow from archives to checked images, on Ray Data (cluster/stages.py). What follows is in curate_flow.py.

A stage writes its rows in buckets, and the next one reads one bucket of all parts: what must meet, meets there.

    candidates                          archive -> extract -> caption rules -> match   | by address
    unique                              an address -> its best caption                 | by registered domain
    counts, totals, sketches, limits    every query's pairs: counted, sketched, merged | by query
    fetched                             early balance -> fetch -> check and resize     |
    attempts, answers, fetched          what had failed, once more                     | by registered domain
    outcomes, survival                  every query's tried and kept pairs             | by query
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial, reduce

import pyarrow as pa

from cluster.part_file import RowGroups
from cluster.parts import Output
from cluster.resources import Pool
from cluster.stages import Factory, ReadPart, Stages, Transform, shared
from pipeline.data.balance import balancing
from pipeline.data.crawl.crawler import Crawler
from pipeline.data.crawl.fetch import FetchConfig
from pipeline.data.duplicates import dedupe
from pipeline.data.flows import global_counts_flow
from pipeline.data.flows.bucketing import by_domain, by_url
from pipeline.data.flows.input_files import read_input
from pipeline.data.images.image_header import ImageConfig
from pipeline.data.safety.block_lists import NO_LISTS, BlockLists, apply_lists
from pipeline.data.safety.inline_images import InlineImages
from pipeline.data.safety.screening import SafetyConfig, Screen
from pipeline.data.sources import extract
from pipeline.data.text import caption_rules, match

IMAGE_GROUPS = RowGroups(max_rows=1024, max_bytes=16 * 2**20)


@dataclass(frozen=True, kw_only=True)
class CrawlConfig:
    """How a crawl is done; jobs/crawl.py adds where from and where to."""

    num_buckets: int = 64
    """Parts of every stage after extraction."""
    num_fetch_parts: int | None = None
    """Parts of fetching, which a worker holds whole, 30 KB an image; a registered domain is in one of them. As many as
    num_buckets unless given."""
    extract: extract.ExtractConfig = field(default_factory=extract.ExtractConfig)
    caption: caption_rules.CaptionConfig = field(default_factory=caption_rules.CaptionConfig)
    match_mode: match.MatchMode = "paper"
    """Whole words, or metaclip's rule for its own list."""
    balance: balancing.BalanceConfig = field(default_factory=balancing.BalanceConfig)
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


def crawl(
    stages: Stages,
    inputs: Sequence[str],
    query_texts: Sequence[str],
    config: CrawlConfig,
    lists: BlockLists = NO_LISTS,
    early: balancing.MaxPairs | None = None,
) -> Output:
    """From archives and tables to checked, resized images: FETCHED, one part for each bucket of registered domains.

    Without queries nothing is matched or balanced. `early` is how many pairs a query may have before fetching,
    `early_margin` times the limit where it is left out.
    """
    buckets, parts = config.num_buckets, config.fetch_parts
    early = config.balance.max_pairs_before_fetch if early is None else early
    texts, block_lists = shared(list(query_texts)), shared(lists)
    screens_held = bool(lists.pictures) or config.safety.classifier is not None

    def read(part: int) -> pa.Table:
        found = apply_lists(read_input(inputs[part], config.extract), block_lists())
        return caption_rules.apply_rules(found, config.caption)

    def prepare() -> Transform:
        steps: list[Transform] = []
        if query_texts:
            steps.append(partial(match.match_captions, matcher=match.Matcher(texts(), config.match_mode)))
        if screens_held:
            crawler = Crawler(config.fetch, config.image, block_lists())
            steps.append(InlineImages(crawler, Screen(config.safety)))
        return lambda table: reduce(lambda done, step: step(done), steps, table)

    candidates = stages(
        "candidates",
        len(inputs),
        read,
        pools=[(prepare, config.match_pool)] if query_texts or screens_held else [],
        bucketing=by_url("url", buckets),
        num_buckets=buckets,
    )
    unique = stages(
        "unique",
        buckets,
        candidates.bucket,
        finish=dedupe.same_url,
        bucketing=by_domain("url", parts),
        num_buckets=parts,
    )
    addresses: ReadPart = unique.bucket
    if query_texts:
        limits = global_counts_flow.limits(stages, "", buckets, unique.part, config.balance, early, buckets)
        addresses = _then(unique.bucket, balancing.Selection(limits, config.balance.seed))
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
    block_lists = shared(lists)
    pools: list[tuple[Factory, Pool]] = [
        (lambda: Crawler(config.fetch, config.image, block_lists(), owns_all=alone).pieces, config.fetch_pool)
    ]
    if config.safety.classifier is not None:
        pools.append((partial(Screen, config.safety), config.screen_pool))
    return pools


def _then(read: ReadPart, transform: Transform) -> ReadPart:
    def composed(part: int) -> pa.Table | None:
        table = read(part)
        return None if table is None else transform(table)

    return composed
