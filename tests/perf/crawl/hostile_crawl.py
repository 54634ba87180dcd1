"""Crawl 3,000 hosts, one in ten of them hostile: `python -m tests.perf.crawl.hostile_crawl`.

Each hostile host behaves in one of more than 60 ways, drawn at random: slow, endless or malformed responses, bombs,
broken files, redirects to private addresses, hostile robots.txt, and so on (tests/pipeline/data/hostile_cases.py). The
web and the crawler share this process. Measured: the time of the crawl, and of a crawl of the good hosts alone.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.data.crawl.crawler import Crawler
from pipeline.data.images.image_header import ImageConfig
from tests.hostile import Host, HostileWeb
from tests.pipeline.data import hostile_images
from tests.pipeline.data.hostile_cases import CASES, CONFIG, PHOTO, Case, host_of
from tests.pipeline.data.raw_server import ok
from tests.pipeline.data.rows import candidates

NUM_HOSTS, HOSTILE_SHARE, SEED = 3_000, 0.1, 0
WAYS = tuple(
    name
    for name in CASES
    if host_of(name).startswith("case-")
    and not name.startswith(("tls: ", "between: ", "redirect: to good", "name: slow"))
)
"""The cases that do not depend on the name of their host."""


class Drawn(NamedTuple):
    """One host of the web."""

    way: str
    """How it behaves; empty for a good host."""
    case: Case

    @property
    def is_good(self) -> bool:
        """Whether its image must be kept."""
        return not self.way


class Crawled(NamedTuple):
    """The rows of a crawl, by host, and its duration."""

    rows: Mapping[str, dict[str, Any]]
    seconds: float


def draw_hosts(num_hosts: int = NUM_HOSTS, hostile_share: float = HOSTILE_SHARE, seed: int = SEED) -> dict[str, Drawn]:
    """Hosts by name, a share of which behaves in a randomly drawn way."""
    generator = random.Random(seed)
    photos = [ok(hostile_images.photo(200 + number, 160)) for number in range(10)]
    hosts = {}
    for number in range(num_hosts):
        way = generator.choice(WAYS) if generator.random() < hostile_share else ""
        case = CASES[way] if way else Case((None,), Host(generator.choice(photos)))
        hosts[f"host-{number}.test"] = Drawn(way, case)
    return hosts


def crawl(hosts: Mapping[str, Drawn], folder: Path) -> Crawled:
    """Crawl one image of each host."""
    web = {name: drawn.case.host for name, drawn in hosts.items()}
    targets = {host_of(name): case.host for name, case in CASES.items()}  # of redirects
    crawler = Crawler(CONFIG, ImageConfig())
    try:
        crawler(candidates(url=[]))  # starts the decoders
        with HostileWeb(targets | web, ok(PHOTO), folder):
            began = time.monotonic()
            rows = crawler(candidates(url=[f"http://{name}/x.jpg" for name in hosts])).to_pylist()
            return Crawled(dict(zip(hosts, rows, strict=True)), time.monotonic() - began)
    finally:
        crawler.close()


def main() -> None:
    """Measure and print both crawls."""
    hosts = draw_hosts()
    good = {name: drawn for name, drawn in hosts.items() if drawn.is_good}
    with tempfile.TemporaryDirectory() as folder:
        alone, mixed = (crawl(chosen, Path(folder)) for chosen in (good, hosts))
    lost = [name for name in good if mixed.rows[name]["reason"] is not None]
    ways = {drawn.way for drawn in hosts.values()} - {""}
    print(f"{len(hosts):,} hosts, {len(hosts) - len(good)} of them hostile in {len(ways)} ways")
    print(f"good hosts alone: {alone.seconds:.1f} s; with the hostile ones: {mixed.seconds:.1f} s")
    print(f"ratio: {mixed.seconds / alone.seconds:.2f}; good images lost: {len(lost)}")
    reasons = Counter(mixed.rows[name]["reason"] or "kept" for name in hosts if not hosts[name].is_good)
    for reason, count in reasons.most_common():
        print(f"{count:>6} {reason}")


if __name__ == "__main__":
    main()
