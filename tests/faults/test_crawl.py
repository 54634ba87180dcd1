"""Kill crawlers, decoders and the driver of a crawl at random: the result is the same, and the crawl stays polite.

All tests use one web and one disturbed crawl. The log of the server shows the requests that it received.
"""

import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from jobs.demo.web.server import LogEntry, Route
from pipeline.data.web.addresses import registered_domain
from pipeline.reasons import Reason
from tests.crawls import CRAWLERS, DECODERS, Crawl, Driver, crawl_of, processes
from tests.web import Answer, Web, picture, web

pytestmark = [pytest.mark.faults, pytest.mark.cluster, pytest.mark.timeout(240)]

SEED = 4
KILLS = ("crawler", "driver", "decoder", "crawler", "driver")
"""The processes to kill, in order, each after a random number of requests."""
TITLES = {"crawler": CRAWLERS, "decoder": DECODERS}
NUM_CRAWLERS, NUM_PARTS = 2, 12
INTERVAL_SECONDS, CRAWL_DELAY_SECONDS, HOSTS_PER_DOMAIN, MAX_IN_FLIGHT = 0.12, 0.5, 2, 2
PERMISSIONS: dict[str, Answer] = {
    "http://closed.example/robots.txt": b"User-agent: *\nDisallow: /private",
    "http://img.d3.example/robots.txt": b"User-agent: clip-on-ray\nDisallow: /*7.jpg$",
}
ROBOTS = PERMISSIONS | {"http://slow.example/robots.txt": f"User-agent: *\nCrawl-delay: {CRAWL_DELAY_SECONDS}".encode()}
FORBIDDEN = {f"http://closed.example/private/{n}.jpg" for n in range(4)} | {"http://img.d3.example/7.jpg"}
OPTIONS = (
    f"--num_fetch_parts={NUM_PARTS}",
    f"--fetch_pool.size={NUM_CRAWLERS}",
    "--fetch_pool.cpus=0.5",
    "--fetch_pool.max_calls=1",
    f"--fetch.min_interval_seconds={INTERVAL_SECONDS}",
    f"--fetch.max_in_flight_per_host={MAX_IN_FLIGHT}",
    f"--fetch.hosts_per_domain={HOSTS_PER_DOMAIN}",
)


URLS = [
    f"http://{host}/{number}.jpg"
    for hosts, count in (
        ([f"img.d{n}.example" for n in range(28)], 8),
        ([f"www.d{n}.example" for n in range(6)], 4),
        ([f"s{n}.many.example" for n in range(4)], 5),
        (["slow.example", "closed.example"], 4),
        (["closed.example/private"], 4),
    )
    for host in hosts
    for number in range(count)
]
"""28 domains with one or two hosts each, one domain with many hosts, a slow domain, and one with forbidden paths."""


def answers() -> dict[str, Answer]:
    """The answers of the web by URL. Some images have a delay."""
    pictures = [picture(seed, 64) for seed in range(40)]
    by_url: dict[str, Answer] = {
        url: (pictures[number % 40], Route(delay_seconds=0.3 if number % 6 == 0 else 0.02))
        for number, url in enumerate(URLS)
    }
    for n in range(6):
        by_url[f"http://img.d{n}.example/0.jpg"] = Route(status=404)
        by_url[f"http://img.d{n}.example/1.jpg"] = pictures[n][:700]
        target = f"http://img.d{n + 7}.example/moved/{n}.jpg"
        by_url[f"http://img.d{n}.example/2.jpg"] = Route(status=302, headers={"Location": target})
        by_url[target] = pictures[-n]
    return by_url


def without_delay(answer: Answer) -> Answer:
    return (answer[0], replace(answer[1], delay_seconds=0.0)) if isinstance(answer, tuple) else answer


class Kill(NamedTuple):
    """The state of the crawl at a kill."""

    complete_parts: list[int]
    num_requests: int


class Disturbed(NamedTuple):
    """The results of a crawl disturbed by all KILLS, and of an undisturbed crawl."""

    rows: dict[str, dict[str, Any]]
    undisturbed: dict[str, dict[str, Any]]
    parts: dict[int, list[str]]
    """The URLs of each part that has rows."""
    kills: list[Kill]
    log: list[LogEntry]
    late_seconds: float
    """Upper bound of the delay between the arrival of a request and its entry in the log of the server."""


@pytest.fixture(scope="module")
def disturbed(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("faults")
    site_answers = answers()
    crawl = crawl_of(folder / "disturbed", URLS, *OPTIONS)
    with web(folder / "web", site_answers | ROBOTS) as site, lateness() as late:
        kills, log = survive(crawl, site), site.log
    undisturbed = crawl_of(folder / "undisturbed", URLS, *OPTIONS)
    with web(
        folder / "fast", {url: without_delay(answer) for url, answer in site_answers.items()} | PERMISSIONS
    ) as site:
        undisturbed.run(site, "--fetch.min_interval_seconds=0", "--fetch_pool.size=1")
    parts = {number: pq.read_table(file)["url"].to_pylist() for number, file in part_files(crawl)}
    return Disturbed(crawl.rows(), undisturbed.rows(), parts, kills, log, 0.02 + 3 * max(late))


@contextmanager
def lateness() -> Iterator[list[float]]:
    """Measure repeatedly how many seconds late a sleeping thread of this process wakes up."""
    late, ended = [0.0], threading.Event()

    def measure() -> None:
        while not ended.is_set():
            started = time.monotonic()
            time.sleep(0.01)
            late.append(time.monotonic() - started - 0.01)

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        yield late
    finally:
        ended.set()
        thread.join()


def part_files(crawl: Crawl) -> list[tuple[int, Path]]:
    return [(int(file.name[5:10]), file) for file in (crawl.folder / "fetched").glob("part-*.parquet")]


def survive(crawl: Crawl, site: Web) -> list[Kill]:
    """Run a crawl to its end while KILLS happen, restarting its driver as often as needed."""
    generator, remaining, kills = random.Random(SEED), list(KILLS), []
    while remaining:
        with crawl.driver(site) as driver:
            for victim in _through_next_driver(remaining):
                wait_for_requests(driver, site, generator.randrange(20, 60))
                kills.append(Kill(complete_parts(crawl), len(site.log)))
                if victim in TITLES:
                    os.kill(generator.choice(wait_for_processes(driver, TITLES[victim])), signal.SIGKILL)
    with crawl.driver(site) as driver:
        assert driver.process.wait(120) == 0, driver.log.read_text()
    return kills


def complete_parts(crawl: Crawl) -> list[int]:
    return [int(file.name[6:11]) for file in (crawl.folder / "fetched").glob("_part-?????.json")]


def _through_next_driver(kills: list[str]) -> Iterator[str]:
    """Remove and yield the kills up to and including the next kill of the driver, which ends its process."""
    while kills:
        victim = kills.pop(0)
        yield victim
        if victim == "driver":
            return


def wait_for_requests(driver: Driver, site: Web, number: int) -> None:
    before = len(site.log)
    driver.wait_until(lambda: len(site.log) >= before + number)


def wait_for_processes(driver: Driver, title: str) -> list[int]:
    """Wait until a process with this title runs, and return all of them."""
    driver.wait_until(lambda: processes(title))
    return processes(title)


def test_the_rows_are_those_of_an_undisturbed_crawl(disturbed: Disturbed) -> None:
    rows, undisturbed = (
        {url: (row["reason"], row["jpg"]) for url, row in rows_by_url.items()}
        for rows_by_url in (disturbed.rows, disturbed.undisturbed)
    )
    assert rows == undisturbed
    counts = Counter(reason for reason, _ in rows.values())
    assert counts == {
        None: len(rows) - 17,
        Reason.NOT_FOUND: 6,
        Reason.CORRUPT_IMAGE: 6,
        Reason.ROBOTS_TXT: 5,
    }


def test_urls_of_complete_parts_are_not_requested_again(disturbed: Disturbed) -> None:
    """Only parts that were in progress at a kill are redone."""
    for kill in disturbed.kills:
        done = {url for part in kill.complete_parts for url in disturbed.parts.get(part, ())}
        later = {f"http://{entry.host}{entry.path}" for entry in disturbed.log[kill.num_requests :]}
        assert not done & later
    assert {*disturbed.kills[-1].complete_parts} & disturbed.parts.keys(), "no part was complete at the last kill"
    requested = Counter(f"{entry.host}{entry.path}" for entry in images(disturbed.log))
    assert max(requested.values()) > 1, "no kill interrupted a part"


def images(log: Iterable[LogEntry]) -> list[LogEntry]:
    return [entry for entry in log if entry.path != "/robots.txt"]


def by_host(log: Iterable[LogEntry]) -> dict[str, list[LogEntry]]:
    entries = defaultdict(list)
    for entry in log:
        entries[entry.host].append(entry)
    return entries


def by_domain(log: Iterable[LogEntry]) -> dict[str, list[LogEntry]]:
    entries = defaultdict(list)
    for entry in log:
        entries[registered_domain(f"http://{entry.host}/")].append(entry)
    return entries


def assert_apart(log: list[LogEntry], interval_seconds: float, late_seconds: float) -> None:
    """Check that n + 1 requests in a row span at least n intervals, up to the delay of the log."""
    times = [entry.time for entry in log]
    for first, start in enumerate(times):
        for last in range(first + 1, len(times)):
            seconds = times[last] - start
            assert seconds >= (last - first) * interval_seconds - late_seconds, (log[first], log[last])


def most_open(log: list[LogEntry]) -> int:
    """The maximum number of requests that waited for their answer at the same time."""
    return max(sum(other.time <= entry.time < other.answered for other in log) for entry in log)


def test_requests_to_hosts_and_domains_keep_the_interval(disturbed: Disturbed) -> None:
    for log in by_host(disturbed.log).values():
        assert_apart(log, INTERVAL_SECONDS, disturbed.late_seconds)
    for log in by_domain(disturbed.log).values():
        assert_apart(log, INTERVAL_SECONDS / HOSTS_PER_DOMAIN, disturbed.late_seconds)


def test_concurrent_requests_to_hosts_and_domains_are_limited(disturbed: Disturbed) -> None:
    assert max(most_open(log) for log in by_host(disturbed.log).values()) == MAX_IN_FLIGHT
    assert max(most_open(log) for log in by_domain(disturbed.log).values()) <= MAX_IN_FLIGHT * HOSTS_PER_DOMAIN


def test_hosts_are_requested_concurrently(disturbed: Disturbed) -> None:
    assert most_open(disturbed.log) > MAX_IN_FLIGHT


def test_crawl_delay_is_respected(disturbed: Disturbed) -> None:
    log = by_host(disturbed.log)["slow.example"]
    assert len(images(log)) >= 4
    assert_apart(log, CRAWL_DELAY_SECONDS, disturbed.late_seconds)


def test_robots_txt_is_requested_first_and_obeyed(disturbed: Disturbed) -> None:
    for log in by_host(disturbed.log).values():
        assert log[0].path == "/robots.txt"
    assert FORBIDDEN.isdisjoint(f"http://{entry.host}{entry.path}" for entry in disturbed.log)
