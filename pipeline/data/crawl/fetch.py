"""Fetch images politely and safely over HTTP(S), from many hosts at once.

Every URL gives bytes or a reason; reasons.py groups the reasons into classes. politeness.py and robots.py decide which
URLs may be requested and how often, and addresses.py decides where the crawler may connect.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from pipeline.data.crawl.fetch_budget import FetchBudget
from pipeline.data.crawl.politeness import Host, Hosts, PolitenessConfig, Refused, Rules
from pipeline.data.web.addresses import (
    ALLOWED_PORTS,
    NotPublicError,
    PublicResolver,
    check_url,
    parse_target,
    public_socket_factory,
    registered_domain,
)
from pipeline.data.web.robots import MAX_ROBOTS_BYTES, Robots, tag_forbids
from pipeline.data.web.urls import location_url
from pipeline.reasons import TRANSIENT, Reason
from pipeline.resume_safe import RESUME_SAFE

_PRODUCT_TOKEN = re.compile(r"[A-Za-z_-]+")
REDIRECTS = frozenset({301, 302, 303, 307, 308})
IMAGE_STATUSES = frozenset({200, 203})
"""The statuses of an image; the content of any other response is not read, except for that of a robots.txt (2xx)."""
LARGE_BYTES = 2**20
"""A larger body is read further only while fewer than `MAX_LARGE` large bodies are being read."""
MAX_LARGE = 8
"""Maximum number of large bodies read at once."""
RULES_SECONDS, NO_RULES_SECONDS = 86_400.0, 3_600.0
"""How long to cache robots.txt (RFC 9309, section 2.4), and how long to cache a failure to read it."""
MAX_HEADER_BYTES, MAX_HEADERS = 65_536, 1_024
"""Maximum size of a header line and number of headers. Browsers accept this much; aiohttp's defaults are lower."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FetchConfig(PolitenessConfig):
    """Limits and identity of the crawler."""

    user_agent: str = "clip-on-ray"
    """Product token, sent as User-Agent and matched in robots.txt."""
    contact: str = ""
    """E-mail address or web page for site owners to reach you, sent as part of User-Agent. Required on the open web."""
    total_timeout_seconds: float = field(default=30.0, metadata=RESUME_SAFE)
    """Timeout of an image over all its redirects, without the waiting time for politeness."""
    connect_timeout_seconds: float = field(default=5.0, metadata=RESUME_SAFE)
    read_timeout_seconds: float = field(default=10.0, metadata=RESUME_SAFE)
    max_bytes: int = 20 * 2**20
    max_redirects: int = 5
    allowed_ports: tuple[int, ...] = tuple(sorted(ALLOWED_PORTS))
    attempts: int = field(default=2, metadata=RESUME_SAFE)
    """Maximum attempts per URL; only transient failures are retried."""
    max_in_flight: int = field(default=256, metadata=RESUME_SAFE)
    """Maximum simultaneous requests of one actor, over all hosts."""
    max_waiting_bytes: int = field(default=16 * 2**20, metadata=RESUME_SAFE)
    """No request starts while more bytes than this wait to be decoded."""
    connect_to: Mapping[str, str] = field(default_factory=dict, metadata=RESUME_SAFE)
    """Host pattern -> ADDRESS:PORT to connect to instead, like curl's --connect-to; for a server of your own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("attempts", "max_in_flight", "max_waiting_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"fetch.{name} = {getattr(self, name)}: must be at least 1")
        if not _PRODUCT_TOKEN.fullmatch(self.user_agent):
            raise ValueError(f"fetch.user_agent = {self.user_agent!r}: only letters, - and _ (RFC 9309)")
        if not self.contact.isprintable():
            raise ValueError(f"fetch.contact = {self.contact!r}: must be one line")
        for pattern, target in self.connect_to.items():
            try:
                parse_target(target)
            except ValueError as error:
                raise ValueError(f"fetch.connect_to: {error} (for {pattern!r})") from error


@dataclass
class _RemainingTime:
    """The time that remains for one URL, over all its redirects."""

    seconds: float


class Fetcher:
    """Fetch URLs. Caches connections, DNS results and robots.txt rules; use each instance from one event loop only.

    Args:
        config: limits and identity.
        block_reason: returns the reason why a block list forbids a URL, or None; called for every URL, including
            redirects.
        owns_all: whether this is the only crawler. Otherwise a redirect to another registered domain is refused as
            MOVED instead of followed, because another crawler may own that domain.
    """

    def __init__(self, config: FetchConfig, block_reason: Callable[[str], Reason | None], *, owns_all: bool) -> None:
        self._config, self._block_reason, self._owns_all = config, block_reason, owns_all
        self._large = asyncio.Semaphore(MAX_LARGE)
        self.budget = FetchBudget(config.max_in_flight, config.max_waiting_bytes)
        self.hosts = Hosts(config, self.budget)
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, url: str) -> bytes:
        """Fetch the bytes at a URL; transient failures are retried.

        Raises:
            Refused: the URL gives no bytes; the exception contains the reason.
        """
        return await self._with_attempts(lambda: self._fetch(url))

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        config = self._config
        agent = f"{config.user_agent} (+{config.contact})" if config.contact else config.user_agent
        connector = aiohttp.TCPConnector(
            resolver=PublicResolver(config.connect_to),
            socket_factory=public_socket_factory(config.connect_to),
            limit=config.max_in_flight,
            ttl_dns_cache=300,
            ssl=ssl.create_default_context(),
        )
        timeout = aiohttp.ClientTimeout(
            sock_connect=config.connect_timeout_seconds, sock_read=config.read_timeout_seconds
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            headers={"User-Agent": agent, "Accept-Encoding": "identity", "Accept": "image/*"},
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
            trust_env=False,
            middlewares=(_no_hidden_retries,),
            trace_configs=[_trace_sending()],
        )

    async def _with_attempts(self, request: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, self._config.attempts + 1):
            try:
                return await request()
            except Refused as refusal:
                is_final = refusal.reason not in TRANSIENT or refusal.reason in {Reason.HOST_DOWN, Reason.MOVED}
                if is_final or attempt == self._config.attempts:
                    raise
                await asyncio.sleep(2.0 ** (attempt - 1) * random.uniform(0.5, 1.0))  # does not affect the output
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _fetch(self, start_url: str) -> bytes:
        """Fetch the bytes at a URL after at most `max_redirects` redirects, each of which is checked."""
        url, remaining_time = self._check(start_url), self._new_time()
        for num_redirects in range(self._config.max_redirects + 1):
            await self._check_rules(url)
            status, headers, body = await self._get(url, self._config.max_bytes, remaining_time)
            if status not in REDIRECTS or "Location" not in headers:
                return self._accept(status, headers, body)
            url = self._check_location(url, headers)
            is_elsewhere = registered_domain(str(url)) != registered_domain(start_url)
            if is_elsewhere and not self._owns_all and num_redirects < self._config.max_redirects:
                raise Refused(Reason.MOVED, redirect_url=str(url))
        raise Refused(Reason.TOO_MANY_REDIRECTS)

    def _check_location(self, url: URL, headers: Any) -> URL:
        """Check the URL that a response redirects to."""
        location = headers["Location"]
        try:
            return self._check(location_url(str(url), location))
        except ValueError as error:
            raise Refused(Reason.BAD_SCHEME, f"redirect to {location}") from error

    def _check(self, text: str) -> URL:
        try:
            url = check_url(text, self._config.connect_to, self._config.allowed_ports)
            if reason := self._block_reason(str(url)):
                raise Refused(reason)
            return url
        except NotPublicError as error:
            raise Refused(Reason.NOT_PUBLIC, str(error)) from error
        except ValueError as error:
            raise Refused(Reason.BAD_SCHEME, str(error)) from error

    def _accept(self, status: int, headers: Any, body: bytes) -> bytes:
        if status in {404, 410}:
            raise Refused(Reason.NOT_FOUND, f"HTTP {status}")
        if status not in IMAGE_STATUSES:
            raise Refused(Reason.CLIENT_ERROR, f"HTTP {status}")
        if tag_forbids(headers.getall("X-Robots-Tag", []), self._config.user_agent):
            raise Refused(Reason.X_ROBOTS_TAG)
        return body

    async def _check_rules(self, url: URL) -> None:
        """Make sure that robots.txt of the URL's origin allows the request; an unreadable one forbids it (RFC 9309)."""
        host, origin = self.hosts[url], url.origin()
        async with host.rules_lock:
            if origin not in host.rules or host.rules[origin].expires < time.monotonic():
                host.rules[origin] = await self._read_rules(origin, host)
        verdict = host.rules[origin].verdict
        if isinstance(verdict, Refused):
            raise Refused(verdict.reason, f"robots.txt: {verdict.detail or verdict.reason.value}")
        if not verdict.allows(str(url)):
            raise Refused(Reason.ROBOTS_TXT)

    async def _read_rules(self, origin: URL, host: Host) -> Rules:
        now = time.monotonic()
        try:
            robots = await self._with_attempts(lambda: self._get_rules(origin / "robots.txt"))
        except Refused as refusal:
            forbids = refusal.reason is Reason.SERVER_ERROR  # section 2.3.1.4
            verdict = Refused(Reason.ROBOTS_TXT, refusal.detail) if forbids else refusal
            return Rules(verdict, now + NO_RULES_SECONDS)
        delay = robots.crawl_delay_seconds or 0.0
        if delay > self._config.max_interval_seconds:
            return Rules(Refused(Reason.ROBOTS_TXT, f"asks for {delay:g} s between requests"), now + RULES_SECONDS)
        host.slow_down(delay)
        return Rules(robots, now + RULES_SECONDS)

    async def _get_rules(self, url: URL) -> Robots:
        remaining_time = self._new_time()
        for _ in range(self._config.max_redirects + 1):
            status, headers, body = await self._get(url, MAX_ROBOTS_BYTES, remaining_time, truncate=True)
            if status not in REDIRECTS or "Location" not in headers:
                return Robots(status, body, self._config.user_agent)
            url = self._check_location(url, headers)
        raise Refused(Reason.ROBOTS_TXT, "too many redirects")

    def _new_time(self) -> _RemainingTime:
        return _RemainingTime(self._config.total_timeout_seconds)

    async def _get(
        self, url: URL, max_bytes: int, remaining_time: _RemainingTime, *, truncate: bool = False
    ) -> tuple[int, Any, bytes]:
        """Make one request within the host's limits and the remaining time; redirects are not followed.

        A body longer than `max_bytes` is truncated if `truncate` is set, and refused otherwise.
        """
        host = self.hosts[url]
        async with host.request():
            started = time.monotonic()
            try:
                response = await self._request(url, host, max_bytes, remaining_time, truncate=truncate)
            except Refused as refusal:
                host.failed(refusal)
                raise
            finally:
                remaining_time.seconds -= time.monotonic() - started
            host.succeeded()
            return response

    async def _request(
        self, url: URL, host: Host, max_bytes: int, remaining_time: _RemainingTime, *, truncate: bool
    ) -> tuple[int, Any, bytes]:
        if self._session is None:
            self._session = self._open()
        try:
            async with (
                asyncio.timeout(remaining_time.seconds),
                self._session.get(url, allow_redirects=False, trace_request_ctx=host) as response,
            ):
                if response.status == 429:
                    seconds = _retry_after(response.headers)
                    raise Refused(Reason.TOO_MANY_REQUESTS, "HTTP 429", retry_after_seconds=seconds)
                if response.status >= 500:
                    seconds = _retry_after(response.headers)
                    raise Refused(Reason.SERVER_ERROR, f"HTTP {response.status}", retry_after_seconds=seconds)
                is_robots = truncate and 200 <= response.status < 300
                is_used = response.status in IMAGE_STATUSES or is_robots
                body = await self._read(response, max_bytes, truncate) if is_used else b""
                return response.status, response.headers, body
        except TimeoutError as error:
            raise Refused(Reason.TIMEOUT) from error
        except aiohttp.ClientPayloadError as error:
            raise Refused(Reason.INCOMPLETE, str(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _refusal_of(error) from error

    async def _read(self, response: aiohttp.ClientResponse, max_bytes: int, truncate: bool) -> bytes:
        if (response.content_length or 0) > max_bytes and not truncate:
            raise Refused(Reason.TOO_MANY_BYTES, f"{response.content_length} bytes announced")
        body = bytearray()
        async with AsyncExitStack() as stack:
            async for chunk in response.content.iter_any():
                if len(body) <= LARGE_BYTES < len(body) + len(chunk):
                    await stack.enter_async_context(self._large)
                    await self.budget.wait_for_room()
                body += chunk
                if len(body) > max_bytes:
                    break
        if len(body) > max_bytes and not truncate:
            raise Refused(Reason.TOO_MANY_BYTES, f"more than {max_bytes} bytes")
        return bytes(body[:max_bytes])


def _trace_sending() -> aiohttp.TraceConfig:
    """Make a trace that starts the pause of a host again when a request to it has been sent."""

    async def sent(
        _session: aiohttp.ClientSession, context: Any, _params: aiohttp.TraceRequestHeadersSentParams
    ) -> None:
        context.trace_request_ctx.begin_pause()

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(sent)
    return trace


async def _no_hidden_retries(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from silently repeating a request after a broken connection: attempts are counted and paced."""
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _refusal_of(error) from error


def _refusal_of(error: aiohttp.ClientError | OSError) -> Refused:
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, NotPublicError):
            return Refused(Reason.NOT_PUBLIC, str(error.os_error))
        if isinstance(error.os_error, socket.gaierror) and error.os_error.errno != socket.EAI_AGAIN:
            return Refused(Reason.NO_SUCH_HOST, str(error.os_error))
    return Refused(Reason.CONNECTION, str(error))


def _retry_after(headers: Any) -> float:
    """Seconds of a Retry-After header, a number or a date (RFC 9110, section 10.2.3); other values count as 10."""
    value = headers.get("Retry-After", "").strip()
    if not value:
        return 0.0
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):  # OverflowError: years that no date can have
        return 10.0
