"""The fetcher: many hosts at once, each one gently, and only where it is allowed.

Every address ends as bytes or as a reason; the reasons' classes are in reasons.py. What a host may be asked, and how
often, is in politeness.py and robots.py, and where the crawler may connect to in addresses.py.
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
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from pipeline.data.crawl.fetch_budget import Capacity
from pipeline.data.crawl.politeness import Host, Hosts, PolitenessConfig, Refused, Rules
from pipeline.data.web.addresses import (
    ALLOWED_PORTS,
    NotPublicError,
    PublicResolver,
    check_url,
    parse_target,
    public_sockets,
    registered_domain,
)
from pipeline.data.web.robots import MAX_ROBOTS_BYTES, Robots, tag_forbids
from pipeline.reasons import TRANSIENT, Reason
from pipeline.resume_safe import RESUME_SAFE

_PRODUCT_TOKEN = re.compile(r"[A-Za-z_-]+")
REDIRECTS = frozenset({301, 302, 303, 307, 308})
LARGE_BYTES = 2**20
"""A body that grows beyond this goes on only while there is room for large ones."""
MAX_LARGE = 8
"""Large bodies that are read at once."""
RULES_SECONDS, NO_RULES_SECONDS = 86_400.0, 3_600.0
"""How long robots.txt is believed (RFC 9309, section 2.4), and that it could not be read."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FetchConfig(PolitenessConfig):
    """How the crawler behaves."""

    user_agent: str = "clip-on-ray"
    """Product token, sent and looked up in robots.txt."""
    contact: str = ""
    """An address or page where the owner of a site reaches you; sent with the user agent. Needed for the open web."""
    total_timeout_seconds: float = field(default=30.0, metadata=RESUME_SAFE)
    """For an image, over all its redirects, less what politeness waits."""
    connect_timeout_seconds: float = field(default=5.0, metadata=RESUME_SAFE)
    read_timeout_seconds: float = field(default=10.0, metadata=RESUME_SAFE)
    max_bytes: int = 20 * 2**20
    max_redirects: int = 5
    allowed_ports: tuple[int, ...] = tuple(sorted(ALLOWED_PORTS))
    attempts: int = field(default=2, metadata=RESUME_SAFE)
    """Requests for one address, at most; only transient failures are asked for again."""
    max_in_flight: int = field(default=256, metadata=RESUME_SAFE)
    """In one actor, over all hosts."""
    max_waiting_bytes: int = field(default=16 * 2**20, metadata=RESUME_SAFE)
    """While more bytes than this wait to be decoded, no request starts."""
    connect_to: Mapping[str, str] = field(default_factory=dict, metadata=RESUME_SAFE)
    """Host pattern -> address:port to connect to instead, as curl's --connect-to: for a web of your own."""

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
                raise ValueError(f"fetch.connect_to: {error} (of {pattern!r})") from error


@dataclass
class _TimeLeft:
    """For all requests that one address leads to."""

    seconds: float


class Fetcher:
    """Fetches addresses. Keeps its connections, DNS answers and rules; to be used from one event loop.

    Args:
        config: how to behave.
        why_not: whether block lists forbid an address, asked of every one, those of redirects included.
        owns_all: whether no other crawler is at work. Otherwise a redirect to another registered domain is not
            followed but refused as MOVED, because the hosts there are somebody else's to ask.
    """

    def __init__(self, config: FetchConfig, why_not: Callable[[str], Reason | None], *, owns_all: bool) -> None:
        self._config, self._why_not, self._owns_all = config, why_not, owns_all
        self._large = asyncio.Semaphore(MAX_LARGE)
        self.capacity = Capacity(config.max_in_flight, config.max_waiting_bytes)
        self.hosts = Hosts(config, self.capacity)
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, address: str) -> bytes:
        """The bytes at an address, transient failures tried again.

        Raises:
            Refused: there are none, with the reason.
        """
        return await self._with_attempts(lambda: self._fetch(address))

    async def close(self) -> None:
        """End all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        config = self._config
        agent = f"{config.user_agent} (+{config.contact})" if config.contact else config.user_agent
        connector = aiohttp.TCPConnector(
            resolver=PublicResolver(config.connect_to),
            socket_factory=public_sockets(config.connect_to),
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
            trust_env=False,
            middlewares=(_once,),
            trace_configs=[_trace()],
        )

    async def _with_attempts(self, ask: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, self._config.attempts + 1):
            try:
                return await ask()
            except Refused as refusal:
                now_hopeless = refusal.reason not in TRANSIENT or refusal.reason in {Reason.HOST_DOWN, Reason.MOVED}
                if now_hopeless or attempt == self._config.attempts:
                    raise
                await asyncio.sleep(2.0 ** (attempt - 1) * random.uniform(0.5, 1.0))  # jitter decides no data
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _fetch(self, address: str) -> bytes:
        """The bytes at an address, after at most `max_redirects` redirects, each of which is checked anew."""
        url, time_left = self._check(address), self._time()
        for num_redirects in range(self._config.max_redirects + 1):
            await self._check_rules(url)
            status, headers, body = await self._get(url, self._config.max_bytes, time_left)
            if status not in REDIRECTS or "Location" not in headers:
                return self._accept(status, headers, body)
            url = self._check(headers["Location"], str(url))
            is_elsewhere = registered_domain(str(url)) != registered_domain(address)
            if is_elsewhere and not self._owns_all and num_redirects < self._config.max_redirects:
                raise Refused(Reason.MOVED, redirect_url=str(url))
        raise Refused(Reason.TOO_MANY_REDIRECTS)

    def _check(self, address: str, base: str = "") -> URL:
        try:
            url = check_url(urljoin(base, address), self._config.connect_to, self._config.allowed_ports)
            if why_not := self._why_not(str(url)):
                raise Refused(why_not)
            return url
        except NotPublicError as error:
            raise Refused(Reason.NOT_PUBLIC, str(error)) from error
        except ValueError as error:
            raise Refused(Reason.BAD_SCHEME, str(error)) from error

    def _accept(self, status: int, headers: Any, body: bytes) -> bytes:
        if status in {404, 410}:
            raise Refused(Reason.NOT_FOUND, f"HTTP {status}")
        if status != 200:
            raise Refused(Reason.CLIENT_ERROR, f"HTTP {status}")
        if tag_forbids(headers.getall("X-Robots-Tag", []), self._config.user_agent):
            raise Refused(Reason.X_ROBOTS_TAG)
        return body

    async def _check_rules(self, url: URL) -> None:
        """Whether robots.txt of the address's origin lets us ask for it; what cannot be read forbids (RFC 9309)."""
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
        host.ask_less(delay)
        return Rules(robots, now + RULES_SECONDS)

    async def _get_rules(self, url: URL) -> Robots:
        time_left = self._time()
        for _ in range(self._config.max_redirects + 1):
            status, headers, body = await self._get(url, MAX_ROBOTS_BYTES, time_left, cut=True)
            if status not in REDIRECTS or "Location" not in headers:
                return Robots(status, body, self._config.user_agent)
            url = self._check(headers["Location"], str(url))
        raise Refused(Reason.ROBOTS_TXT, "too many redirects")

    def _time(self) -> _TimeLeft:
        return _TimeLeft(self._config.total_timeout_seconds)

    async def _get(
        self, url: URL, max_bytes: int, time_left: _TimeLeft, *, cut: bool = False
    ) -> tuple[int, Any, bytes]:
        """One request within the host's limits and the time that is left; redirects are not followed.

        A body of more than `max_bytes` is cut there, or refused.
        """
        host = self.hosts[url]
        async with host.request():
            started = time.monotonic()
            try:
                answer = await self._ask(url, host, max_bytes, time_left, cut=cut)
            except Refused as refusal:
                host.failed(refusal)
                raise
            finally:
                time_left.seconds -= time.monotonic() - started
            host.succeeded()
            return answer

    async def _ask(
        self, url: URL, host: Host, max_bytes: int, time_left: _TimeLeft, *, cut: bool
    ) -> tuple[int, Any, bytes]:
        if self._session is None:
            self._session = self._open()
        try:
            async with (
                asyncio.timeout(time_left.seconds),
                self._session.get(url, allow_redirects=False, trace_request_ctx=host) as response,
            ):
                if response.status == 429:
                    seconds = _retry_after(response.headers)
                    raise Refused(Reason.TOO_MANY_REQUESTS, "HTTP 429", retry_after_seconds=seconds)
                if response.status >= 500:
                    seconds = _retry_after(response.headers)
                    raise Refused(Reason.SERVER_ERROR, f"HTTP {response.status}", retry_after_seconds=seconds)
                body = b"" if response.status != 200 else await self._read(response, max_bytes, cut)
                return response.status, response.headers, body
        except TimeoutError as error:
            raise Refused(Reason.TIMEOUT) from error
        except aiohttp.ClientPayloadError as error:
            raise Refused(Reason.INCOMPLETE, str(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _refusal_of(error) from error

    async def _read(self, response: aiohttp.ClientResponse, max_bytes: int, cut: bool) -> bytes:
        if (response.content_length or 0) > max_bytes and not cut:
            raise Refused(Reason.TOO_MANY_BYTES, f"{response.content_length} bytes announced")
        body = bytearray()
        async with AsyncExitStack() as stack:
            async for chunk in response.content.iter_any():
                if len(body) <= LARGE_BYTES < len(body) + len(chunk):
                    await stack.enter_async_context(self._large)
                    await self.capacity.wait_for_room()
                body += chunk
                if len(body) > max_bytes:
                    break
        if len(body) > max_bytes and not cut:
            raise Refused(Reason.TOO_MANY_BYTES, f"more than {max_bytes} bytes")
        return bytes(body[:max_bytes])


def _trace() -> aiohttp.TraceConfig:
    """Tells a host when a request to it has been sent."""

    async def sent(
        _session: aiohttp.ClientSession, context: Any, _params: aiohttp.TraceRequestHeadersSentParams
    ) -> None:
        context.trace_request_ctx.begin_pause()

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(sent)
    return trace


async def _once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keeps aiohttp from asking again by itself, at once, where a connection breaks: attempts are counted and paced."""
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
    """Seconds of a Retry-After header, a number or a date (RFC 9110, section 10.2.3); anything else counts as ten."""
    value = headers.get("Retry-After", "").strip()
    if not value:
        return 0.0
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return 10.0
    return max(0.0, ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
