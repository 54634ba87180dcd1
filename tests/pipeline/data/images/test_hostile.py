"""Crawl all hostile cases and good pictures together: each case ends in time with an accepted outcome."""

import asyncio
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.data.crawl.crawler import Crawler
from pipeline.data.images.image_header import ImageConfig
from tests.hostile import HostileWeb
from tests.pipeline.data.hostile_cases import CASES, CONFIG, MAX_SECONDS, PHOTO, host_of, url_of
from tests.pipeline.data.hostile_images import is_whole
from tests.pipeline.data.raw_server import ok
from tests.pipeline.data.rows import candidates

MAX_MESSAGE_CHARACTERS = 500
MAX_GROWTH_BYTES = 300 * 2**20
"""Maximum growth of this process, which also runs the web server."""


def crawl(urls: list[str]) -> list[dict[str, Any]]:
    """Crawl the URLs, and return rows of FETCHED."""
    crawler = Crawler(CONFIG, ImageConfig())
    try:
        return list(crawler(candidates(url=urls)).to_pylist())
    finally:
        crawler.close()


class Run(NamedTuple):
    """The results of crawling all cases at once."""

    web: HostileWeb
    rows: dict[str, dict[str, Any]]
    """Rows by the name of their case."""
    seconds: float
    growth_bytes: int
    """Peak memory of the process above its memory before the crawl."""
    num_strays: int


def _resident_bytes(field_name: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition(f"{field_name}:")[2].split()[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    hosts = {host_of(name): one.host for name, one in CASES.items()}
    assert len(hosts) == len(CASES)
    crawl([])  # run all imports first
    with HostileWeb(hosts, ok(PHOTO), tmp_path_factory.mktemp("hostile")) as web:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak memory
        before = _resident_bytes("VmRSS")
        start = time.monotonic()
        rows = crawl([url_of(name) for name in CASES])
        seconds = time.monotonic() - start
        growth = _resident_bytes("VmHWM") - before
        yield Run(web, dict(zip(CASES, rows, strict=True)), seconds, growth, len(web.strays))


@pytest.mark.parametrize("name", CASES)
def test_a_case_ends_in_time_with_an_accepted_outcome(run: Run, name: str) -> None:
    row = run.rows[name]
    assert row["url"] == url_of(name)
    assert (row["reason"] is None) == (row["status"] == "success") == (row["jpg"] is not None)
    assert (row["reason"] is None) == (row["error_message"] is None)
    assert row["reason"] in CASES[name].expected, row["error_message"]
    assert len(row["error_message"] or "") <= MAX_MESSAGE_CHARACTERS
    if row["reason"] is None:
        assert is_whole(row["jpg"])
    assert max(run.web.seen[host_of(name)].connection_seconds, default=0.0) < CASES[name].max_seconds


def test_the_whole_crawl_takes_little_time_and_memory(run: Run) -> None:
    assert len(CASES) > 200
    assert run.seconds < 2 * MAX_SECONDS
    assert run.growth_bytes < MAX_GROWTH_BYTES


def test_nothing_was_connected_outside(run: Run) -> None:
    assert run.num_strays == 0


def test_data_appended_to_a_picture_is_removed(run: Run) -> None:
    assert b"payload.js" not in run.rows["file: zip behind a JPEG"]["jpg"]


def test_the_canary_can_be_reached(run: Run) -> None:
    """Every connection out of the test web ends at the canary, so the tests above cannot pass for lack of a route."""

    async def connect() -> None:
        with socket.socket() as sock:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, ("10.0.0.1", 80))
            assert await asyncio.get_running_loop().sock_recv(sock, 8) == b"HTTP/1.1"

    asyncio.run(connect())
    assert run.web.strays[run.num_strays :] == [("10.0.0.1", 80)]
    assert run.web.num_canary_connections == run.num_strays + 1
