"""A hostile web on loopback: hosts that send any bytes at any pace, and that resolve to public addresses.

Host names end in .test. Inside the `with` block of the web, this process resolves these names with the web, and asyncio
connections to its public addresses reach it. Connections to any other address reach the canary, which counts them.
"""

import asyncio
import datetime
import socket
import ssl
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp.connector
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

PUBLIC = "93.184.216.34"
PUBLIC_IPV6 = "2606:2800:220:1::1"
PLAIN_AT_443 = "93.184.216.35"
SILENT = "93.184.216.36"
"""Accepts connections and sends nothing, so that TLS handshakes never end."""
EARLY = "93.184.216.37"
"""Sends a response before it receives a request."""

Writer = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]
Answer = bytes | Writer
NO_RULES = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Host:
    """A host of the web: its responses for /robots.txt and for all other paths, and its IP addresses."""

    answer: Answer
    robots: Answer = NO_RULES
    addresses: tuple[tuple[str, ...], ...] = ((PUBLIC,),)
    """The results of the first lookup, the second and so on. Later lookups get the last entry."""
    lookup_seconds: float = 0.0


@dataclass
class HostLog:
    """Requests, connections and lookups of one host."""

    paths: list[str] = field(default_factory=list)
    connection_seconds: list[float] = field(default_factory=list)
    """Duration of each connection."""
    num_lookups: int = 0


class HostileWeb:
    """Serves during its `with` block. Certificates are written to `folder`."""

    def __init__(self, hosts: Mapping[str, Host], early: bytes, folder: Path) -> None:
        self.hosts = hosts
        self.seen: dict[str, HostLog] = defaultdict(HostLog)
        self.strays: list[tuple[str, int]] = []
        """Connections to addresses outside the web."""
        self.num_canary_connections = 0
        self._early = early
        self._certificates = _Certificates(folder)
        self._patch = pytest.MonkeyPatch()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda *_: None)  # clients disconnect, also during handshakes
        self._thread = threading.Thread(target=self._loop.run_forever, name="hostile web")
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._routes: dict[tuple[str, int], int] = {}
        self._canary = 0

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        self._patch.setattr(socket, "getaddrinfo", self._getaddrinfo(socket.getaddrinfo))
        loop_class = asyncio.selector_events.BaseSelectorEventLoop
        self._patch.setattr(loop_class, "sock_connect", self._sock_connect(loop_class.sock_connect))
        # aiohttp creates this context on import
        self._patch.setenv("SSL_CERT_FILE", str(self._certificates.authority))
        self._patch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", ssl.create_default_context())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patch.undo()
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        tls = self._certificates.context("good.test")
        tls.sni_callback = self._choose_certificate
        plain = await self._listen(self._serve)
        secure = await self._listen(self._serve, tls)
        silent = await self._listen(self._send_nothing)
        early = await self._listen(self._answer_early)
        self._canary = await self._listen(self._count_connection)
        self._routes = {(PUBLIC, 80): plain, (PUBLIC, 443): secure, (PUBLIC_IPV6, 80): plain}
        self._routes |= {
            (PLAIN_AT_443, 80): plain,
            (PLAIN_AT_443, 443): plain,
            (SILENT, 443): silent,
            (EARLY, 80): early,
        }

    async def _listen(
        self,
        serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]],
        tls: ssl.SSLContext | None = None,
    ) -> int:
        async def tracked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                with suppress(OSError, ssl.SSLError):  # clients disconnect when they refuse a response
                    await serve(reader, writer)
            finally:
                self._tasks.discard(task)
                writer.transport.abort()

        server = await asyncio.start_server(tracked, "127.0.0.1", 0, ssl=tls, backlog=512, limit=1 << 20)
        self._servers.append(server)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = time.monotonic()
        name = ""
        try:
            while True:
                head = await reader.read(1)
                if not head or not head.isalpha():  # the end of the connection, or TLS
                    writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" if head else b"")
                    return
                head += await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode()
                name = head.lower().partition(b"\r\nhost: ")[2].partition(b"\r\n")[0].decode()
                host = self.hosts[name]
                self.seen[name].paths.append(path)
                answer = host.robots if path == "/robots.txt" else host.answer
                if isinstance(answer, bytes):
                    writer.write(answer)
                    await writer.drain()
                    if b"keep-alive" in answer:
                        continue
                else:
                    await self._write_until_disconnect(reader, answer(writer))
                if writer.can_write_eof():
                    writer.write_eof()
                await reader.read()  # until the client has read everything and disconnects
                return
        except asyncio.IncompleteReadError:
            return
        finally:
            self.seen[name].connection_seconds.append(time.monotonic() - start)

    @staticmethod
    async def _write_until_disconnect(reader: asyncio.StreamReader, writing: Coroutine[Any, Any, None]) -> None:
        tasks = [asyncio.ensure_future(writing), asyncio.ensure_future(reader.read())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_nothing(self, reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while await reader.read(1 << 16):
            pass

    async def _answer_early(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._early)
        await self._send_nothing(reader, writer)

    async def _count_connection(self, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_canary_connections += 1
        writer.write(self._early)
        await writer.drain()

    def _choose_certificate(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        connection.context = self._certificates.context(name or "")

    def _getaddrinfo(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def getaddrinfo(host: str, port: int, *arguments: Any, **options: Any) -> Any:
            if not str(host).endswith(".test"):
                return original(host, port, *arguments, **options)
            if host not in self.hosts:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            known = self.hosts[host]
            time.sleep(known.lookup_seconds)
            lookup = min(self.seen[host].num_lookups, len(known.addresses) - 1)
            self.seen[host].num_lookups += 1
            families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in known.addresses[lookup]]
            return [
                (kind, socket.SOCK_STREAM, 6, "", (address, port))
                for kind, address in zip(families, known.addresses[lookup], strict=True)
            ]

        return getaddrinfo

    def _sock_connect(self, original: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def sock_connect(loop: Any, sock: socket.socket, address: tuple[Any, ...]) -> None:
            port = self._routes.get(address[:2])
            if port is None:
                self.strays.append(address[:2])
                port = self._canary
            here = ("::ffff:127.0.0.1" if sock.family == socket.AF_INET6 else "127.0.0.1", port)
            await original(loop, sock, here)

        return sock_connect


class _Certificates:
    """A certificate authority that clients trust, and server certificates, some of them invalid."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._contexts: dict[str, ssl.SSLContext] = {}
        self.authority = folder / "authority.pem"
        certificate = self._sign("authority.test", "authority.test", is_authority=True)
        self.authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def context(self, name: str) -> ssl.SSLContext:
        """The TLS context with the certificate for a host name."""
        if name not in self._contexts:
            issuer = name if name == "self-signed.test" else "authority.test"
            subject = "another.test" if name == "wrong-host.test" else name
            certificate = self._sign(subject, issuer, has_expired=name == "expired.test")
            file = self._folder / f"{name}.pem"
            key = self._key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            file.write_bytes(key + certificate.public_bytes(serialization.Encoding.PEM))
            self._contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._contexts[name].load_cert_chain(file)
        return self._contexts[name]

    def _sign(
        self, subject: str, issuer: str, is_authority: bool = False, has_expired: bool = False
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        day = datetime.timedelta(days=1)
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]),
            subject_name=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]),
            public_key=self._key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - 3 * day,
            not_valid_after=now - day if has_expired else now + day,
        )
        names = x509.SubjectAlternativeName([x509.DNSName(subject)])
        builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        return builder.sign(self._key, hashes.SHA256())


def page(status: str, *headers: str, body: bytes = b"") -> bytes:
    """A response with this status line."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def raw(head: str, body: bytes = b"") -> bytes:
    """A response with only these header lines."""
    return f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode("latin-1") + body


def drip(begin: bytes, drop: bytes, pause_seconds: float) -> Writer:
    """Send `begin`, then send `drop` again and again without end."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while not writer.transport.is_closing():
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(pause_seconds)

    return write


async def hang(_: asyncio.StreamWriter) -> None:
    """Send nothing."""
    await asyncio.sleep(3600)


def reset_after(answer: bytes) -> Writer:
    """Send bytes and reset the connection shortly afterwards."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        await asyncio.sleep(0.1)
        # A socket with a linger time of 0 seconds sends RST when it is closed
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return write


def send(answer: bytes) -> Writer:
    """Send bytes and close the connection, even if the response announces keep-alive."""

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return write
