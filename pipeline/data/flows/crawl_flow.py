"""Turn archives into checked images, on Ray Data (cluster/stages.py). curate_flow.py continues with the images.

Each stage writes its rows in buckets, and each part of the next stage reads one bucket of all parts. So rows that must
be processed together get there together. The stages, with the key of their buckets:

    candidates                          archive -> extract -> caption rules -> match   | by URL
    unique                              URL -> its best caption                        | by registered domain
    counts, totals, sketches, limits    count, sketch and merge the pairs per query    | by query
    fetched                             early balance -> fetch -> check and resize     |
    attempts, answers, fetched          retry failed rows                              | by registered domain
    outcomes, survival                  tried and kept pairs per query                 | by query
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
    """The options of a crawl; jobs/crawl.py adds inputs and output."""

    num_buckets: int = 64
    """Number of parts of every stage after extraction."""
    num_fetch_parts: int | None = None
    """Number of parts of the stage that fetches; default: num_buckets. A worker keeps a whole part in memory, at 30 KB
    per image. All URLs of a registered domain are in one part."""
    extract: extract.ExtractConfig = field(default_factory=extract.ExtractConfig)
    caption: caption_rules.CaptionConfig = field(default_factory=caption_rules.CaptionConfig)
    match_mode: match.MatchMode = "paper"
    """Whether queries match whole words ("paper"), or by MetaCLIP's rule for its query list ("metaclip")."""
    balance: balancing.BalanceConfig = field(default_factory=balancing.BalanceConfig)
    fetch: FetchConfig = field(default_factory=FetchConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    match_pool: Pool = field(default_factory=Pool)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    fetch_pool: Pool = field(default_factory=lambda: Pool(max_calls=4))
    """The crawlers. Each starts image.num_decoders processes, and works on max_calls parts concurrently, so that a slow
    host in one part does not delay the others."""
    screen_pool: Pool = field(default_factory=Pool)
    """The classifiers of unsafe images, if one is configured."""

    @property
    def fetch_parts(self) -> int:
        """The number of parts of the stage that fetches."""
        return self.num_fetch_parts or self.num_buckets

    @property
    def pools(self) -> list[Pool]:
        """The pools that the cluster must have resources for at the same time."""
        return [self.match_pool, self.fetch_pool, *([self.screen_pool] if self.safety.classifier else [])]


def crawl(
    stages: Stages,
    inputs: Sequence[str],
    query_texts: Sequence[str],
    config: CrawlConfig,
    lists: BlockLists = NO_LISTS,
    early: balancing.MaxPairs | None = None,
) -> Output:
    """Turn archives and tables into checked, resized images: FETCHED, one part per bucket of registered domains.

    Args:
        stages: the stages of the run.
        inputs: URIs of archives, tables and img2dataset shards.
        query_texts: the texts of the queries; if empty, pairs are neither matched nor balanced.
        config: the options of the crawl.
        lists: URLs, domains, files and pictures to block.
        early: maximum number of pairs per query before fetching; default: config.balance.max_pairs_before_fetch.
    """
    buckets, parts = config.num_buckets, config.fetch_parts
    early = config.balance.max_pairs_before_fetch if early is None else early
    texts, block_lists = shared(list(query_texts)), shared(lists)
    screen_inline = bool(lists.pictures) or config.safety.classifier is not None

    def read(part: int) -> pa.Table:
        candidates = apply_lists(read_input(inputs[part], config.extract), block_lists())
        return caption_rules.apply_rules(candidates, config.caption)

    def prepare() -> Transform:
        steps: list[Transform] = []
        if query_texts:
            steps.append(partial(match.match_captions, matcher=match.Matcher(texts(), config.match_mode)))
        if screen_inline:
            crawler = Crawler(config.fetch, config.image, block_lists())
            steps.append(InlineImages(crawler, Screen(config.safety)))
        return lambda table: reduce(lambda result, step: step(result), steps, table)

    candidates = stages(
        "candidates",
        len(inputs),
        read,
        pools=[(prepare, config.match_pool)] if query_texts or screen_inline else [],
        bucketing=by_url("url", buckets),
        num_buckets=buckets,
    )
    unique = stages(
        "unique",
        buckets,
        candidates.bucket,
        finish=dedupe.drop_duplicate_urls,
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
    """The functions that fetch, check, resize and screen images, each with its pool."""
    owns_all = config.fetch_pool.max_size == 1  # a single crawler can follow redirects to other domains itself
    block_lists = shared(lists)
    pools: list[tuple[Factory, Pool]] = [
        (lambda: Crawler(config.fetch, config.image, block_lists(), owns_all=owns_all).pieces, config.fetch_pool)
    ]
    if config.safety.classifier is not None:
        pools.append((partial(Screen, config.safety), config.screen_pool))
    return pools


def _then(read: ReadPart, transform: Transform) -> ReadPart:
    def composed(part: int) -> pa.Table | None:
        table = read(part)
        return None if table is None else transform(table)

    return composed
