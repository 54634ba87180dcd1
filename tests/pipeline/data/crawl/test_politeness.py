import asyncio
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from jobs.demo.web.server import Route
from pipeline.data.crawl import politeness
from pipeline.data.crawl.fetch import Fetcher
from pipeline.data.crawl.fetch_budget import FetchBudget
from pipeline.data.crawl.politeness import Hosts, PolitenessConfig, Refused
from pipeline.reasons import Reason
from tests.pipeline.data.fetching import A, config, outcomes, refusals
from tests.pipeline.data.raw_server import RawServer, ok
from tests.web import Answer, web


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the pauses before another attempt to tens of milliseconds."""
    monkeypatch.setattr("random.uniform", lambda *_: 0.02)


class TestPoliteness:
    """Times come from the server's log, whose threads see a request up to tens of milliseconds late."""

    @staticmethod
    def gaps(times: list[float]) -> list[float]:
        return [after - before for before, after in pairwise(times)]

    @pytest.mark.parametrize("max_in_flight", [1, 256])
    def test_requests_to_a_host_are_spaced_and_hosts_run_concurrently(self, tmp_path: Path, max_in_flight: int) -> None:
        hosts = [f"{name}.example" for name in "abcde"]
        urls = [f"http://{host}/{i}.jpg" for host in hosts for i in range(3)]
        with web(tmp_path, dict.fromkeys(urls, b"image")) as site:
            start = time.monotonic()
            settings = config(site.address, min_interval_seconds=0.25, max_in_flight=max_in_flight)
            assert set(outcomes(settings, *urls)) == {b"image"}
            seconds = time.monotonic() - start
            for host in hosts:
                times = [entry.time for entry in site.log if entry.host == host]
                assert len(times) == 4
                assert min(self.gaps(times)) > 0.12
                assert times[-1] - times[0] > 0.65
        assert 0.75 <= seconds < 2.5

    def test_crawl_delay_lengthens_the_pause(self, tmp_path: Path) -> None:
        answers: dict[str, Answer] = {
            f"{A}/robots.txt": b"User-agent: *\nCrawl-delay: 0.4",
            f"{A}/1": b"image",
            f"{A}/2": b"image",
        }
        with web(tmp_path, answers) as site:
            assert outcomes(config(site.address), f"{A}/1", f"{A}/2") == [b"image", b"image"]
            assert min(self.gaps([entry.time for entry in site.log])) > 0.3, "including the pause after robots.txt"

    def test_a_crawler_begins_with_a_pause(self, tmp_path: Path) -> None:
        """A crawler that was killed may have sent a request a moment ago."""
        with web(tmp_path, {f"{A}/1": b"image"}) as site:
            for _ in range(2):
                outcomes(config(site.address, min_interval_seconds=0.2), f"{A}/1")
            times = [entry.time for entry in site.log]
            assert len(times) == 4
            assert min(self.gaps(times)) > 0.1

    def test_a_host_with_a_very_long_crawl_delay_is_not_crawled(self, tmp_path: Path) -> None:
        answers: dict[str, Answer] = {
            f"{A}/robots.txt": b"User-agent: *\nCrawl-delay: 86400",
            f"{A}/1": b"image",
            f"{A}/2": b"image",
        }
        with web(tmp_path, answers) as site:
            found = refusals(config(site.address), f"{A}/1", f"{A}/2")
            assert {refusal.reason for refusal in found} == {Reason.ROBOTS_TXT}
            assert found[0].detail == "robots.txt: asks for 86400 s between requests"
            assert len(site.log) == 1

    def test_the_number_of_requests_in_flight_is_limited(self, tmp_path: Path) -> None:
        urls = [f"{A}/{i}" for i in range(6)]
        with web(tmp_path, dict.fromkeys(urls, (b"image", Route(delay_seconds=0.3)))) as site:
            outcomes(config(site.address, max_in_flight_per_host=2), *urls)
            times = [entry.time for entry in site.log if entry.path != "/robots.txt"]
            # Each response takes 0.3 s, so a request starts only when the second one before it has ended
            assert min(after - before for before, after in zip(times, times[2:], strict=False)) > 0.2

    def test_all_spellings_of_a_host_share_its_limits(self, tmp_path: Path) -> None:
        urls = [f"{A}/1", "http://A.EXAMPLE/2", "http://a.example:80/3", "http://a.example./4"]
        with web(tmp_path, {f"{A}/{i}": b"image" for i in range(1, 5)}) as site:
            settings = config(site.address, min_interval_seconds=0.2)
            outcomes(settings, *urls)
            assert min(self.gaps([entry.time for entry in site.log])) > 0.1

    def test_all_hosts_of_a_domain_share_its_limits(self, tmp_path: Path) -> None:
        urls = [f"http://www{i}.a.example/x.jpg" for i in range(8)]
        with web(tmp_path, dict.fromkeys(urls, (b"image", Route(delay_seconds=0.1)))) as site:
            settings = config(site.address, min_interval_seconds=0.2, hosts_per_domain=2)
            assert set(outcomes(settings, *urls)) == {b"image"}
            times = [entry.time for entry in site.log]
            assert len(times) == 16
            assert min(self.gaps(times)) > 0.05
            assert times[-1] - times[0] > 15 * 0.1 - 0.1

    def test_retry_after_applies_to_the_whole_host(self) -> None:
        times: list[float] = []

        def answer(path: str, n: int) -> bytes:
            if path != "/robots.txt":
                times.append(time.monotonic())
            return b"HTTP/1.1 429 Slow\r\nRetry-After: 1\r\n\r\n" if path == "/busy" and n == 0 else ok(b"image")

        with RawServer(answer) as server:
            settings = config(server.address, max_in_flight_per_host=1)
            assert outcomes(settings, f"{A}/busy", f"{A}/1", f"{A}/2") == [b"image"] * 3
        first, *others = times
        assert len(others) == 3
        assert min(others) - first > 0.9

    def test_a_host_with_a_long_retry_after_counts_as_down(self) -> None:
        with RawServer(
            lambda path, _: ok(b"") if path == "/robots.txt" else b"HTTP/1.1 503 Busy\r\nRetry-After: 7200\r\n\r\n"
        ) as server:
            settings = config(server.address, max_in_flight_per_host=1)
            found = outcomes(settings, *(f"{A}/{i}.jpg" for i in range(20)))
            assert found == [Reason.HOST_DOWN] * 20
            assert server.paths == ["/robots.txt", "/0.jpg"]

    def test_a_failing_host_counts_as_down_and_is_retried_later(self) -> None:
        alive = [True]

        def answer(*_: object) -> bytes | None:
            return ok(b"image") if alive[0] else None

        async def crawl(server: RawServer) -> tuple[list[bytes | Reason], bytes | Reason, bytes | Reason]:
            settings = config(
                server.address, breaker_failures=3, breaker_seconds=1.0, attempts=1, max_in_flight_per_host=1
            )
            fetcher = Fetcher(settings, lambda _: None, owns_all=True)

            async def fetch(url: str) -> bytes | Reason:
                try:
                    return await fetcher.fetch(url)
                except Refused as refusal:
                    return refusal.reason

            await fetch(f"{A}/first.jpg")
            alive[0] = False
            dying = [await fetch(f"{A}/{i}.jpg") for i in range(10)]
            alive[0] = True
            still_down = await fetch(f"{A}/x.jpg")
            await asyncio.sleep(1.1)
            found = dying, still_down, await fetch(f"{A}/y.jpg")
            await fetcher.close()
            return found

        with RawServer(answer) as server:
            dying, still_down, later = asyncio.run(crawl(server))
            assert dying == [Reason.CONNECTION] * 3 + [Reason.HOST_DOWN] * 7
            assert (still_down, later) == (Reason.HOST_DOWN, b"image")
            assert server.paths == ["/robots.txt", "/first.jpg", "/0.jpg", "/1.jpg", "/2.jpg", "/y.jpg"]


def test_only_idle_hosts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(politeness, "MAX_HOSTS", 2)
    hosts = Hosts(PolitenessConfig(min_interval_seconds=0.1), FetchBudget(1, 1))
    time.sleep(0.1)  # the initial pause of every crawler
    names = [URL(f"http://{name}.example/") for name in "abc"]
    kept = [hosts[url] for url in names]
    kept[0].begin_pause()
    hosts.forget_idle()
    assert hosts[names[0]] is kept[0], "its pause has not ended"
    assert hosts[names[1]] is not kept[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_in_flight_per_host": 0}, r"fetch\.max_in_flight_per_host = 0: must be at least 1"),
        ({"hosts_per_domain": 0}, r"fetch\.hosts_per_domain = 0: must be at least 1"),
        ({"min_interval_seconds": -1.0}, r"fetch\.min_interval_seconds = -1\.0: cannot be negative"),
    ],
)
def test_invalid_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolitenessConfig(**options)
