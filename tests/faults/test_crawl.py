"""A crawl whose crawlers, decoders and driver are killed at random: it ends as if nothing had been, and was polite.

One web, one disturbed crawl; what the server saw is read from its log.
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

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

SEED = 4
KILLS = ("crawler", "driver", "decoder", "crawler", "driver")
"""What is killed, each after a random number of requests."""
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
"""28 domains of a host or two, one of many hosts, a slow and a closed one."""


def answers() -> dict[str, Answer]:
    """How the web answers; some images take their time."""
    pictures = [picture(seed, 64) for seed in range(40)]
    found: dict[str, Answer] = {
        url: (pictures[number % 40], Route(delay_seconds=0.3 if number % 6 == 0 else 0.02))
        for number, url in enumerate(URLS)
    }
    for n in range(6):
        found[f"http://img.d{n}.example/0.jpg"] = Route(status=404)
        found[f"http://img.d{n}.example/1.jpg"] = pictures[n][:700]
        there = f"http://img.d{n + 7}.example/moved/{n}.jpg"
        found[f"http://img.d{n}.example/2.jpg"] = Route(status=302, headers={"Location": there})
        found[there] = pictures[-n]
    return found


def without_delay(answer: Answer) -> Answer:
    return (answer[0], replace(answer[1], delay_seconds=0.0)) if isinstance(answer, tuple) else answer


class Kill(NamedTuple):
    """What there was at a kill."""

    complete_parts: list[int]
    num_requests: int


class Disturbed(NamedTuple):
    """What is left of a crawl that went through all of KILLS, and of one that went through none."""

    rows: dict[str, dict[str, Any]]
    undisturbed: dict[str, dict[str, Any]]
    parts: dict[int, list[str]]
    """The addresses of each part that has some."""
    kills: list[Kill]
    log: list[LogEntry]
    late_seconds: float
    """So much later than it came the server may have logged a request: it is accepted, handed over and read."""


@pytest.fixture(scope="module")
def disturbed(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("faults")
    site_answers = answers()
    crawl = crawl_of(folder / "disturbed", URLS, *OPTIONS)
    with web(folder / "web", site_answers | ROBOTS) as site, lateness() as late:
        kills, log = survive(crawl, site), site.log
    alone = crawl_of(folder / "undisturbed", URLS, *OPTIONS)
    with web(
        folder / "fast", {url: without_delay(answer) for url, answer in site_answers.items()} | PERMISSIONS
    ) as site:
        alone.run(site, "--fetch.min_interval_seconds=0", "--fetch_pool.size=1")
    parts = {number: pq.read_table(file)["url"].to_pylist() for number, file in part_files(crawl)}
    return Disturbed(crawl.rows(), alone.rows(), parts, kills, log, 0.02 + 3 * max(late))


@contextmanager
def lateness() -> Iterator[list[float]]:
    """By how many seconds a thread of this process runs later than it should, over and over again."""
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
    """Run a crawl to its end, however often it takes, while KILLS happen."""
    moments, left, kills = random.Random(SEED), list(KILLS), []
    while left:
        with crawl.driver(site) as driver:
            for victim in _until_driver(left):
                wait_for_requests(driver, site, moments.randrange(20, 60))
                kills.append(Kill(complete_parts(crawl), len(site.log)))
                if victim in TITLES:
                    os.kill(moments.choice(one_at_least(driver, TITLES[victim])), signal.SIGKILL)
    with crawl.driver(site) as driver:
        assert driver.process.wait(120) == 0, driver.log.read_text()
    return kills


def complete_parts(crawl: Crawl) -> list[int]:
    return [int(file.name[6:11]) for file in (crawl.folder / "fetched").glob("_part-?????.json")]


def _until_driver(kills: list[str]) -> Iterator[str]:
    """Take the kills up to the driver's, that included, which ends its process."""
    while kills:
        victim = kills.pop(0)
        yield victim
        if victim == "driver":
            return


def wait_for_requests(driver: Driver, site: Web, number: int) -> None:
    there = len(site.log)
    driver.wait_until(lambda: len(site.log) >= there + number)


def one_at_least(driver: Driver, title: str) -> list[int]:
    """The processes of a kind, as soon as there is one."""
    driver.wait_until(lambda: processes(title))
    return processes(title)


def test_the_rows_are_those_of_an_undisturbed_crawl(disturbed: Disturbed) -> None:
    rows, undisturbed = (
        {url: (row["reason"], row["jpg"]) for url, row in one.items()}
        for one in (disturbed.rows, disturbed.undisturbed)
    )
    assert rows == undisturbed
    counts = Counter(reason for reason, _ in rows.values())
    assert counts == {
        None: len(rows) - 17,
        Reason.NOT_FOUND: 6,
        Reason.CORRUPT_IMAGE: 6,
        Reason.ROBOTS_TXT: 5,
    }


def test_what_was_complete_is_not_asked_for_again(disturbed: Disturbed) -> None:
    """Only the parts that were in flight at a kill are done over."""
    for kill in disturbed.kills:
        done = {url for part in kill.complete_parts for url in disturbed.parts.get(part, ())}
        later = {f"http://{entry.host}{entry.path}" for entry in disturbed.log[kill.num_requests :]}
        assert not done & later
    assert {*disturbed.kills[-1].complete_parts} & disturbed.parts.keys(), "otherwise all of this says nothing"
    asked = Counter(f"{entry.host}{entry.path}" for entry in images(disturbed.log))
    assert max(asked.values()) > 1, "nothing was in flight"


def images(log: Iterable[LogEntry]) -> list[LogEntry]:
    return [entry for entry in log if entry.path != "/robots.txt"]


def by_host(log: Iterable[LogEntry]) -> dict[str, list[LogEntry]]:
    found = defaultdict(list)
    for entry in log:
        found[entry.host].append(entry)
    return found


def by_domain(log: Iterable[LogEntry]) -> dict[str, list[LogEntry]]:
    found = defaultdict(list)
    for entry in log:
        found[registered_domain(f"http://{entry.host}/")].append(entry)
    return found


def assert_apart(log: list[LogEntry], interval_seconds: float, late_seconds: float) -> None:
    """Of any n + 1 requests, the last comes n intervals after the first, as far as the server can tell."""
    times = [entry.time for entry in log]
    for first, start in enumerate(times):
        for last in range(first + 1, len(times)):
            seconds = times[last] - start
            assert seconds >= (last - first) * interval_seconds - late_seconds, (log[first], log[last])


def most_open(log: list[LogEntry]) -> int:
    """The most requests that waited for their answer at once."""
    return max(sum(one.time <= entry.time < one.answered for one in log) for entry in log)


def test_no_host_is_asked_more_often_than_it_may_be(disturbed: Disturbed) -> None:
    for log in by_host(disturbed.log).values():
        assert_apart(log, INTERVAL_SECONDS, disturbed.late_seconds)
    for log in by_domain(disturbed.log).values():
        assert_apart(log, INTERVAL_SECONDS / HOSTS_PER_DOMAIN, disturbed.late_seconds)


def test_no_host_has_more_to_answer_at_once_than_it_may_have(disturbed: Disturbed) -> None:
    assert max(most_open(log) for log in by_host(disturbed.log).values()) == MAX_IN_FLIGHT
    assert max(most_open(log) for log in by_domain(disturbed.log).values()) <= MAX_IN_FLIGHT * HOSTS_PER_DOMAIN


def test_hosts_are_asked_side_by_side(disturbed: Disturbed) -> None:
    assert most_open(disturbed.log) > MAX_IN_FLIGHT


def test_crawl_delay_is_kept(disturbed: Disturbed) -> None:
    log = by_host(disturbed.log)["slow.example"]
    assert len(images(log)) >= 4
    assert_apart(log, CRAWL_DELAY_SECONDS, disturbed.late_seconds)


def test_robots_txt_is_read_first_and_kept(disturbed: Disturbed) -> None:
    for log in by_host(disturbed.log).values():
        assert log[0].path == "/robots.txt"
    assert FORBIDDEN.isdisjoint(f"http://{entry.host}{entry.path}" for entry in disturbed.log)
