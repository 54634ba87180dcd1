"""The fetcher: many hosts at once, each one gently, and only where it is allowed.

A batch holds whole registered domains (flow.py partitions by them), so the limits of a host need no coordination
beyond the actor: two requests in flight and a second apart unless robots.txt says otherwise. Every address ends as
bytes or as a reason; the reasons' classes are in schemas.py.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urljoin

import aiohttp
import pyarrow as pa
from yarl import URL

from pipeline.data.addresses import NotPublicError, PublicResolver, check_url, parse_target, public_sockets
from pipeline.data.robots import MAX_ROBOTS_BYTES, Robots, tag_forbids
from pipeline.schemas import TRANSIENT, Reason, with_reasons

OPERATIONAL = {"operational": True}
"""Of a field that does not change what a run produces (cluster/runs.py leaves it out of the identity)."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """How the crawler behaves."""

    user_agent: str = "clip-on-ray"
    """Product token, sent and looked up in robots.txt."""
    contact: str = ""
    """An address or page where the owner of a site reaches you; sent with the user agent. Needed for the open web."""
    total_timeout_seconds: float = 30.0
    connect_timeout_seconds: float = 5.0
    read_timeout_seconds: float = 10.0
    max_bytes: int = 20 * 2**20
    max_redirects: int = 5
    attempts: int = 2
    """Requests for one address, at most; only transient failures are asked for again."""
    min_interval_seconds: float = 1.0
    """Between the starts of two requests to one host, unless its robots.txt asks for more."""
    max_interval_seconds: float = 60.0
    """A host whose robots.txt asks for longer pauses than this is left alone."""
    max_in_flight_per_host: int = 2
    max_in_flight: int = field(default=256, metadata=OPERATIONAL)
    """In one actor, over all hosts."""
    connect_to: Mapping[str, str] = field(default_factory=dict, metadata=OPERATIONAL)
    """Host pattern -> address:port to connect to instead, as curl's --connect-to: for a web of your own."""

    def __post_init__(self) -> None:
        for name in ("attempts", "max_in_flight", "max_in_flight_per_host"):
            if getattr(self, name) < 1:
                raise ValueError(f"fetch.{name} = {getattr(self, name)}: must be at least 1")
        for pattern, target in self.connect_to.items():
            try:
                parse_target(target)
            except ValueError as error:
                raise ValueError(f"fetch.connect_to: {error} (of {pattern!r})") from error


class _Refused(Exception):  # noqa: N818 (an outcome, not a fault)
    """A fetch that ended with a reason."""

    def __init__(self, reason: Reason, detail: str = "", retry_after_seconds: float = 0.0) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail, self.retry_after_seconds = reason, detail, retry_after_seconds


class _Host:
    """The limits and the rules of one host."""

    def __init__(self, config: FetchConfig, slots: asyncio.Semaphore) -> None:
        self._slots = slots
        self._in_flight = asyncio.Semaphore(config.max_in_flight_per_host)
        self._turn = asyncio.Lock()
        self._next_start = 0.0
        self.interval_seconds = config.min_interval_seconds
        self.rules: dict[URL, Robots | _Refused] = {}
        """robots.txt by origin, or why it cannot be read."""
        self.rules_lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._in_flight.acquire()
        async with self._turn:  # kept until the request starts, so that waiting for a slot shortens no pause
            while (pause := self._next_start - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            await self._slots.acquire()
            self.begin_pause()

    def begin_pause(self) -> None:
        """When a request starts, and again when it has been sent: connecting may take as long as the pause."""
        self._next_start = time.monotonic() + self.interval_seconds

    async def __aexit__(self, *_: object) -> None:
        self._slots.release()
        self._in_flight.release()


class Fetcher:
    """Fetches the images of a table. Keeps its connections, DNS answers and robots.txt rules between calls."""

    def __init__(self, config: FetchConfig) -> None:
        self._config = config
        self._agent = f"{config.user_agent} (+{config.contact})" if config.contact else config.user_agent
        self._loop = asyncio.new_event_loop()
        self._session = self._loop.run_until_complete(self._open())
        self._hosts: dict[str, _Host] = {}
        self._slots = asyncio.Semaphore(config.max_in_flight)

    def __call__(self, table: pa.Table) -> pa.Table:
        """CANDIDATES with `image` filled with the bytes as they came, or a reason and an `error_message`.

        Rows that are out already, or that hold their image, are not asked for.
        """
        return self._loop.run_until_complete(self._fetch_all(table))

    def close(self) -> None:
        """End all connections; a second time does nothing."""
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._session.close())
            self._loop.close()

    def __del__(self) -> None:
        self.close()

    async def _open(self) -> aiohttp.ClientSession:
        resolver = PublicResolver(self._config.connect_to)
        connector = aiohttp.TCPConnector(
            resolver=resolver,
            socket_factory=public_sockets(self._config.connect_to),
            limit=self._config.max_in_flight,
            ttl_dns_cache=300,
        )
        timeout = aiohttp.ClientTimeout(
            sock_connect=self._config.connect_timeout_seconds, sock_read=self._config.read_timeout_seconds
        )
        headers = {"User-Agent": self._agent, "Accept-Encoding": "identity", "Accept": "image/*"}
        return aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            middlewares=(_once,),
            trace_configs=[_trace()],
        )

    async def _fetch_all(self, table: pa.Table) -> pa.Table:
        rows = table.select(["image_url", "reason", "image"]).to_pylist()
        outcomes = await asyncio.gather(
            *(self._fetch_row(row["image_url"]) for row in rows if row["reason"] is None and row["image"] is None)
        )
        images, reasons, messages = [], [], []
        done = iter(outcomes)
        for row in rows:
            held = row["reason"] is not None or row["image"] is not None
            image, reason, message = (row["image"], row["reason"], None) if held else next(done)
            images.append(image)
            reasons.append(reason)
            messages.append(message)
        table = table.set_column(table.schema.get_field_index("image"), "image", pa.array(images, pa.large_binary()))
        return with_reasons(table, reasons).append_column("error_message", pa.array(messages, pa.string()))

    async def _fetch_row(self, url: str) -> tuple[bytes | None, Reason | None, str | None]:
        try:
            return await self._with_attempts(lambda: self._fetch(url)), None, None
        except _Refused as refusal:
            return None, refusal.reason, refusal.detail or refusal.reason.value

    async def _with_attempts(self, ask: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, self._config.attempts + 1):
            try:
                return await ask()
            except _Refused as refusal:
                if refusal.reason not in TRANSIENT or attempt == self._config.attempts:
                    raise
                backoff = 2.0 ** (attempt - 1) * random.uniform(0.5, 1.0)  # jitter decides no data
                await asyncio.sleep(max(refusal.retry_after_seconds, backoff))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _fetch(self, address: str) -> bytes:
        """The bytes at an address, after at most `max_redirects` redirects, each of which is checked anew."""
        url = self._check(address)
        for _ in range(self._config.max_redirects + 1):
            await self._check_rules(url)
            status, headers, body = await self._get(url, self._config.max_bytes)
            if status not in REDIRECTS or "Location" not in headers:
                return self._accept(status, headers, body)
            url = self._check(headers["Location"], str(url))
        raise _Refused(Reason.TOO_MANY_REDIRECTS)

    def _check(self, address: str, base: str = "") -> URL:
        try:
            return check_url(urljoin(base, address), self._config.connect_to)
        except NotPublicError as error:
            raise _Refused(Reason.NOT_PUBLIC, str(error)) from error
        except ValueError as error:
            raise _Refused(Reason.BAD_SCHEME, str(error)) from error

    def _accept(self, status: int, headers: Any, body: bytes) -> bytes:
        if status in {404, 410}:
            raise _Refused(Reason.NOT_FOUND, f"HTTP {status}")
        if status == 429:
            raise _Refused(Reason.TOO_MANY_REQUESTS, "HTTP 429", _retry_after(headers))
        if status >= 500:
            raise _Refused(Reason.SERVER_ERROR, f"HTTP {status}", _retry_after(headers))
        if status != 200:
            raise _Refused(Reason.CLIENT_ERROR, f"HTTP {status}")
        if tag_forbids(headers.getall("X-Robots-Tag", []), self._config.user_agent):
            raise _Refused(Reason.X_ROBOTS_TAG)
        return body

    def _host(self, url: URL) -> _Host:
        return self._hosts.setdefault((url.raw_host or "").rstrip("."), _Host(self._config, self._slots))

    async def _check_rules(self, url: URL) -> None:
        """Whether robots.txt of the address's origin lets us ask for it; what cannot be read forbids (RFC 9309)."""
        host, origin = self._host(url), url.origin()
        async with host.rules_lock:
            if origin not in host.rules:
                host.rules[origin] = await self._read_rules(origin, host)
        rules = host.rules[origin]
        if isinstance(rules, _Refused):
            raise _Refused(rules.reason, f"robots.txt: {rules.detail or rules.reason.value}")
        if not rules.allows(str(url)):
            raise _Refused(Reason.ROBOTS_TXT)

    async def _read_rules(self, origin: URL, host: _Host) -> Robots | _Refused:
        try:
            rules = await self._with_attempts(lambda: self._get_rules(origin / "robots.txt"))
        except _Refused as refusal:
            forbids = refusal.reason is Reason.SERVER_ERROR  # section 2.3.1.4
            return _Refused(Reason.ROBOTS_TXT, refusal.detail) if forbids else refusal
        delay = rules.crawl_delay_seconds or 0.0
        if delay > self._config.max_interval_seconds:
            return _Refused(Reason.ROBOTS_TXT, f"asks for {delay:g} s between requests")
        host.interval_seconds = max(host.interval_seconds, delay)
        return rules

    async def _get_rules(self, url: URL) -> Robots:
        for _ in range(self._config.max_redirects + 1):
            status, headers, body = await self._get(url, MAX_ROBOTS_BYTES, cut=True)
            if status >= 500:
                raise _Refused(Reason.SERVER_ERROR, f"HTTP {status}", _retry_after(headers))
            if status not in REDIRECTS or "Location" not in headers:
                return Robots(status, body, self._config.user_agent)
            url = self._check(headers["Location"], str(url))
        raise _Refused(Reason.ROBOTS_TXT, "too many redirects")

    async def _get(self, url: URL, max_bytes: int, cut: bool = False) -> tuple[int, Any, bytes]:
        """One request within the host's limits and the total deadline; redirects are not followed.

        A body of more than `max_bytes` is cut there, or refused.
        """
        host = self._host(url)
        try:
            async with (
                host,
                asyncio.timeout(self._config.total_timeout_seconds),
                self._session.get(url, allow_redirects=False, trace_request_ctx=host) as response,
            ):
                body = b"" if response.status != 200 else await _read(response, max_bytes, cut)
                return response.status, response.headers, body
        except TimeoutError as error:
            raise _Refused(Reason.TIMEOUT) from error
        except aiohttp.ClientPayloadError as error:
            raise _Refused(Reason.INCOMPLETE, str(error)) from error
        except (aiohttp.ClientError, OSError) as error:
            raise _refusal_of(error) from error


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


def _refusal_of(error: aiohttp.ClientError | OSError) -> _Refused:
    if isinstance(error, aiohttp.ClientConnectorError):
        if isinstance(error.os_error, NotPublicError):
            return _Refused(Reason.NOT_PUBLIC, str(error.os_error))
        if isinstance(error.os_error, socket.gaierror) and error.os_error.errno != socket.EAI_AGAIN:
            return _Refused(Reason.NO_SUCH_HOST, str(error.os_error))
    return _Refused(Reason.CONNECTION, str(error))


async def _read(response: aiohttp.ClientResponse, max_bytes: int, cut: bool) -> bytes:
    if (response.content_length or 0) > max_bytes and not cut:
        raise _Refused(Reason.TOO_MANY_BYTES, f"{response.content_length} bytes announced")
    body = bytearray()
    async for chunk in response.content.iter_chunked(1 << 16):
        body += chunk
        if len(body) > max_bytes:
            if cut:
                break
            raise _Refused(Reason.TOO_MANY_BYTES, f"more than {max_bytes} bytes")
    return bytes(body[:max_bytes])


def _retry_after(headers: Any) -> float:
    """Seconds of a Retry-After header, at most a minute (a date, or anything else, counts as ten seconds)."""
    value = headers.get("Retry-After", "")
    if not value:
        return 0.0
    return min(float(value), 60.0) if value.isascii() and value.isdigit() else 10.0
