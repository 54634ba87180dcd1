"""How often a host may be asked: pauses, requests in flight, what its robots.txt says, and a breaker for dying hosts.

One crawler owns all hosts of a registered domain (crawl_flow.py partitions by them), so limits need no coordination
beyond
the process. A host has its own, and a domain with many hosts gets no more than `hosts_per_domain` of them would.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from yarl import URL

from pipeline.data.crawl.fetch_budget import Capacity
from pipeline.data.web.addresses import registered_domain
from pipeline.data.web.robots import Robots
from pipeline.reasons import Reason
from pipeline.resume_safe import RESUME_SAFE

MAX_HOSTS = 100_000
"""Hosts that are remembered, at most, beside those that are busy."""
MAX_DETAIL_CHARACTERS = 300
"""Errors may quote all that a server has sent."""
_FAILURES = frozenset({Reason.TIMEOUT, Reason.CONNECTION, Reason.SERVER_ERROR})


class Refused(Exception):  # noqa: N818 (an outcome, not a fault)
    """A request that ended with a reason; `redirect_url` is where to ask instead."""

    def __init__(
        self, reason: Reason, detail: str = "", *, retry_after_seconds: float = 0.0, redirect_url: str | None = None
    ) -> None:
        self.reason, self.detail = reason, detail[:MAX_DETAIL_CHARACTERS]
        super().__init__(reason, self.detail)
        self.retry_after_seconds, self.redirect_url = retry_after_seconds, redirect_url


@dataclass(frozen=True, kw_only=True)
class PolitenessConfig:
    """What the crawler grants every host. It changes no image, so a run may go on with other values."""

    min_interval_seconds: float = field(default=1.0, metadata=RESUME_SAFE)
    """Between the starts of two requests to one host, unless its robots.txt asks for more."""
    max_interval_seconds: float = field(default=60.0, metadata=RESUME_SAFE)
    """A host whose robots.txt asks for longer pauses than this is left alone, and so is, until a later attempt, one
    whose Retry-After does."""
    max_in_flight_per_host: int = field(default=2, metadata=RESUME_SAFE)
    hosts_per_domain: int = field(default=16, metadata=RESUME_SAFE)
    """A registered domain is asked as often as that many of its hosts may be, however many it has."""
    breaker_failures: int = field(default=8, metadata=RESUME_SAFE)
    """After so many timeouts, broken connections and server errors in a row a host counts as down."""
    breaker_seconds: float = field(default=300.0, metadata=RESUME_SAFE)
    """So long a host that is down is not asked; its images wait for a later attempt (`--retry transient`)."""

    def __post_init__(self) -> None:
        for name in ("max_in_flight_per_host", "hosts_per_domain", "breaker_failures"):
            if getattr(self, name) < 1:
                raise ValueError(f"fetch.{name} = {getattr(self, name)}: must be at least 1")
        for name in ("min_interval_seconds", "max_interval_seconds", "breaker_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"fetch.{name} = {getattr(self, name)}: cannot be negative")


class Pace:
    """So many requests in flight, and so long from the start of one to the start of the next."""

    def __init__(self, max_in_flight: int, interval_seconds: float) -> None:
        self.in_flight = asyncio.Semaphore(max_in_flight)
        self.turn = asyncio.Lock()
        self.interval_seconds = interval_seconds
        self.next_start = 0.0

    async def pause(self) -> None:
        """Wait until the next request may start. Its caller has the turn."""
        while (seconds := self.next_start - time.monotonic()) > 0:
            await asyncio.sleep(seconds)

    def begin_pause(self) -> None:
        """A request starts."""
        self.next_start = max(self.next_start, time.monotonic() + self.interval_seconds)


@dataclass
class Rules:
    """What robots.txt of an origin says, or why it cannot be read, and until when that is believed."""

    verdict: Robots | Refused
    expires: float


class Host:
    """One host: its pace and its domain's, its rules, and whether it is down."""

    def __init__(self, config: PolitenessConfig, domain: Pace, capacity: Capacity, first_start: float) -> None:
        self._config, self._domain, self._capacity = config, domain, capacity
        self._pace = Pace(config.max_in_flight_per_host, config.min_interval_seconds)
        self._pace.next_start = first_start
        self._num_failures = 0
        self._down_until = 0.0
        self.num_users = 0
        self.rules: dict[URL, Rules] = {}
        self.rules_lock = asyncio.Lock()

    @asynccontextmanager
    async def request(self) -> AsyncIterator[None]:
        """The time of one request.

        Raises:
            Refused: the host is down.
        """
        self.num_users += 1
        try:
            self._check_is_up()
            async with self._pace.in_flight, self._domain.in_flight:
                # Turns are kept until the request starts, so that waiting for room shortens no pause
                async with self._pace.turn:
                    self._check_is_up()
                    await self._pace.pause()
                    async with self._domain.turn:
                        await self._domain.pause()
                        await self._capacity.acquire()
                        self.begin_pause()
                try:
                    self._check_is_up()
                    yield
                finally:
                    self._capacity.release()
        finally:
            self.num_users -= 1

    def _check_is_up(self) -> None:
        if time.monotonic() < self._down_until:
            raise Refused(Reason.HOST_DOWN)

    def begin_pause(self) -> None:
        """When a request starts, and again when it has been sent: connecting may take as long as the pause."""
        self._pace.begin_pause()
        self._domain.begin_pause()

    def ask_less(self, interval_seconds: float) -> None:
        """Never ask more often than this (Crawl-delay), from the last request on."""
        longer = max(0.0, interval_seconds - self._pace.interval_seconds)
        self._pace.interval_seconds += longer
        self._pace.next_start += longer

    def succeeded(self) -> None:
        """The host has answered."""
        self._num_failures = 0

    def failed(self, refusal: Refused) -> None:
        """It has not, or asks to be left alone for a while."""
        now = time.monotonic()
        self._num_failures += refusal.reason in _FAILURES
        if self._num_failures >= self._config.breaker_failures:
            self._down_until = now + self._config.breaker_seconds
        if refusal.retry_after_seconds > self._config.max_interval_seconds:
            self._down_until = now + refusal.retry_after_seconds
        elif refusal.retry_after_seconds:
            self._pace.next_start = max(self._pace.next_start, now + refusal.retry_after_seconds)
        elif refusal.reason is Reason.TOO_MANY_REQUESTS:
            self.ask_less(min(2 * self._pace.interval_seconds, self._config.max_interval_seconds))

    @property
    def is_idle(self) -> bool:
        """Whether forgetting the host would let nobody ask it sooner."""
        now = time.monotonic()
        return not self.num_users and max(self._pace.next_start, self._down_until) <= now


class Hosts:
    """All hosts that are known, by name."""

    def __init__(self, config: PolitenessConfig, capacity: Capacity) -> None:
        self._config, self._capacity = config, capacity
        # Another crawler, which has been killed, may have asked any host a moment ago
        self._first_start = time.monotonic() + config.min_interval_seconds
        self._hosts: dict[str, Host] = {}
        self._domains: dict[str, Pace] = {}

    def __getitem__(self, url: URL) -> Host:
        """The host of an address."""
        name = (url.raw_host or "").rstrip(".")
        host = self._hosts.get(name)
        if host is None:
            domain = self._domain(registered_domain(str(url)))
            host = self._hosts[name] = Host(self._config, domain, self._capacity, self._first_start)
        return host

    def _domain(self, name: str) -> Pace:
        many = self._config.hosts_per_domain
        fastest = self._config.min_interval_seconds / many
        return self._domains.setdefault(name, Pace(self._config.max_in_flight_per_host * many, fastest))

    def forget(self) -> None:
        """Forget hosts that nobody waits for, where there are too many."""
        if len(self._hosts) > MAX_HOSTS:
            self._hosts = {name: host for name, host in self._hosts.items() if not host.is_idle}
            kept = {registered_domain(f"http://{name}") for name in self._hosts}
            self._domains = {name: pace for name, pace in self._domains.items() if name in kept}
