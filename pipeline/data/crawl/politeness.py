"""Limit requests per host and domain: pauses, requests in flight, robots.txt, and a circuit breaker for failing hosts.

One crawler owns all hosts of a registered domain (crawl_flow.py partitions by domain), so limits need no coordination
between processes. Every host has its own limits, and a domain with many hosts is limited to the requests of
`hosts_per_domain` hosts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from yarl import URL

from pipeline.data.crawl.fetch_budget import FetchBudget
from pipeline.data.web.addresses import registered_domain
from pipeline.data.web.robots import Robots
from pipeline.printable import printable
from pipeline.reasons import Reason
from pipeline.resume_safe import RESUME_SAFE

MAX_HOSTS = 100_000
"""Beyond this number, idle hosts are forgotten."""
_FAILURES = frozenset({Reason.TIMEOUT, Reason.CONNECTION, Reason.SERVER_ERROR})


class Refused(Exception):  # noqa: N818 (an outcome, not a fault)
    """A request ended with a reason instead of bytes; `redirect_url` is the URL to request instead, if known."""

    def __init__(
        self, reason: Reason, detail: str = "", *, retry_after_seconds: float = 0.0, redirect_url: str | None = None
    ) -> None:
        self.reason, self.detail = reason, printable(detail)
        super().__init__(reason, self.detail)
        self.retry_after_seconds, self.redirect_url = retry_after_seconds, redirect_url


@dataclass(frozen=True, kw_only=True)
class PolitenessConfig:
    """Limits per host. They do not affect the output, so a run may be resumed with other values."""

    min_interval_seconds: float = field(default=1.0, metadata=RESUME_SAFE)
    """Minimum time between the starts of two requests to a host; its robots.txt may ask for more."""
    max_interval_seconds: float = field(default=60.0, metadata=RESUME_SAFE)
    """A host whose robots.txt asks for longer pauses is not crawled. A host whose Retry-After is longer counts as down
    for that time; its images wait for a later attempt."""
    max_in_flight_per_host: int = field(default=2, metadata=RESUME_SAFE)
    hosts_per_domain: int = field(default=16, metadata=RESUME_SAFE)
    """A registered domain gets at most as many requests as this many single hosts would."""
    breaker_failures: int = field(default=8, metadata=RESUME_SAFE)
    """A host counts as down after this many consecutive timeouts, broken connections and server errors."""
    breaker_seconds: float = field(default=300.0, metadata=RESUME_SAFE)
    """How long a host that is down gets no requests; its images wait for a later attempt (`--retry transient`)."""

    def __post_init__(self) -> None:
        for name in ("max_in_flight_per_host", "hosts_per_domain", "breaker_failures"):
            if getattr(self, name) < 1:
                raise ValueError(f"fetch.{name} = {getattr(self, name)}: must be at least 1")
        for name in ("min_interval_seconds", "max_interval_seconds", "breaker_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"fetch.{name} = {getattr(self, name)}: cannot be negative")


class Pace:
    """A limit on requests in flight, and a minimum interval between the starts of two requests."""

    def __init__(self, max_in_flight: int, interval_seconds: float) -> None:
        self.in_flight = asyncio.Semaphore(max_in_flight)
        self.start_lock = asyncio.Lock()
        self.interval_seconds = interval_seconds
        self.next_start = 0.0

    async def pause(self) -> None:
        """Wait until the next request may start. The caller must hold `start_lock`."""
        while (seconds := self.next_start - time.monotonic()) > 0:
            await asyncio.sleep(seconds)

    def begin_pause(self) -> None:
        """Start the interval to the next request."""
        self.next_start = max(self.next_start, time.monotonic() + self.interval_seconds)


@dataclass
class Rules:
    """The robots.txt rules of an origin, or the reason why they cannot be read, and the time when they expire."""

    verdict: Robots | Refused
    expires: float


class Host:
    """One host: its pace, the pace of its domain, its robots.txt rules, and whether it is down."""

    def __init__(self, config: PolitenessConfig, domain: Pace, budget: FetchBudget, first_start: float) -> None:
        self._config, self._domain, self._budget = config, domain, budget
        self._pace = Pace(config.max_in_flight_per_host, config.min_interval_seconds)
        self._pace.next_start = first_start
        self._num_failures = 0
        self._down_until = 0.0
        self.num_users = 0
        self.rules: dict[URL, Rules] = {}
        self.rules_lock = asyncio.Lock()

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """Wait until a request may start; the context lasts for the request.

        Raises:
            Refused: the host is down.
        """
        self.num_users += 1
        try:
            self._check_is_up()
            async with self._pace.in_flight, self._domain.in_flight:
                # The locks are held until the request starts, so that waiting for the budget shortens no pause
                async with self._pace.start_lock:
                    self._check_is_up()
                    await self._pace.pause()
                    async with self._domain.start_lock:
                        await self._domain.pause()
                        await self._budget.acquire()
                        self.begin_pause()
                try:
                    self._check_is_up()
                    yield
                finally:
                    self._budget.release()
        finally:
            self.num_users -= 1

    def _check_is_up(self) -> None:
        if time.monotonic() < self._down_until:
            raise Refused(Reason.HOST_DOWN)

    def begin_pause(self) -> None:
        """Start the pause: when a request starts and again when it is sent, since connecting may outlast the pause."""
        self._pace.begin_pause()
        self._domain.begin_pause()

    def slow_down(self, interval_seconds: float) -> None:
        """Raise the interval to at least this value (Crawl-delay), counted from the last request."""
        additional = max(0.0, interval_seconds - self._pace.interval_seconds)
        self._pace.interval_seconds += additional
        self._pace.next_start += additional

    def succeeded(self) -> None:
        """Report that the host has responded."""
        self._num_failures = 0

    def failed(self, refusal: Refused) -> None:
        """Report that a request failed or that the host asked for a pause."""
        now = time.monotonic()
        self._num_failures += refusal.reason in _FAILURES
        if self._num_failures >= self._config.breaker_failures:
            self._down_until = now + self._config.breaker_seconds
        if refusal.retry_after_seconds > self._config.max_interval_seconds:
            self._down_until = now + refusal.retry_after_seconds
        elif refusal.retry_after_seconds:
            self._pace.next_start = max(self._pace.next_start, now + refusal.retry_after_seconds)
        elif refusal.reason is Reason.TOO_MANY_REQUESTS:
            self.slow_down(min(2 * self._pace.interval_seconds, self._config.max_interval_seconds))

    @property
    def is_idle(self) -> bool:
        """Whether the host can be forgotten without allowing an earlier next request."""
        now = time.monotonic()
        return not self.num_users and max(self._pace.next_start, self._down_until) <= now


class Hosts:
    """All known hosts, by name."""

    def __init__(self, config: PolitenessConfig, budget: FetchBudget) -> None:
        self._config, self._budget = config, budget
        # A crawler that was killed may have sent a request to any host a moment ago
        self._first_start = time.monotonic() + config.min_interval_seconds
        self._hosts: dict[str, Host] = {}
        self._domains: dict[str, Pace] = {}

    def __getitem__(self, url: URL) -> Host:
        """The host of a URL."""
        name = (url.raw_host or "").rstrip(".")
        host = self._hosts.get(name)
        if host is None:
            domain = self._domain(registered_domain(str(url)))
            host = self._hosts[name] = Host(self._config, domain, self._budget, self._first_start)
        return host

    def _domain(self, name: str) -> Pace:
        num_hosts = self._config.hosts_per_domain
        interval_seconds = self._config.min_interval_seconds / num_hosts
        return self._domains.setdefault(name, Pace(self._config.max_in_flight_per_host * num_hosts, interval_seconds))

    def forget_idle(self) -> None:
        """Forget idle hosts if more than MAX_HOSTS are known."""
        if len(self._hosts) > MAX_HOSTS:
            self._hosts = {name: host for name, host in self._hosts.items() if not host.is_idle}
            used_domains = {registered_domain(f"http://{name}") for name in self._hosts}
            self._domains = {name: pace for name, pace in self._domains.items() if name in used_domains}
