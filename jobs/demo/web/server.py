"""A web on loopback: many hosts behind one port of 127.0.0.1, told apart by the Host header.

A site folder holds `www/HOST/PATH`, one file for each address, and `routes.json` for the addresses that answer
otherwise (see `Route`). A client reaches it as curl's `--connect-to` does, or as an HTTP proxy.

    python -m jobs.demo.web.server FOLDER --port 8080
"""

import argparse
import json
import math
import mimetypes
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import unquote, urlsplit

_CONTENT_TYPES = {".html": "text/html; charset=utf-8", ".txt": "text/plain; charset=utf-8", ".webp": "image/webp"}
_IDLE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Route:
    """How one address answers, where that is more than `200 OK` with its file."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent as well as, or instead of, the server's own Content-Type."""
    declared_length: int | None = None
    """Content-Length to announce; when the body has fewer bytes, the connection closes after them."""
    fault: Literal["", "reset"] = ""
    """"reset": the connection is reset instead of an answer."""
    delay_seconds: float = 0.0
    """Silence before the answer."""


class LogEntry(NamedTuple):
    """One request that the server saw."""

    time: float
    """Seconds of the monotonic clock, when the request had been read."""
    host: str
    path: str
    """With its query."""
    status: int
    """0 for a connection that was reset."""
    answered: float = math.inf
    """Seconds of the same clock, when its answer, or the reset, began to be sent."""


def address_key(url: str) -> str:
    """The key of an http address in routes.json: `HOST/PATH`, percent-decoded, without port and query."""
    parts = urlsplit(url)
    return f"{(parts.hostname or '').lower()}{unquote(parts.path) or '/'}"


class SiteWriter:
    """Writes a site folder: files and routes one by one, then `finish`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_bytes = 0
        """Of all bodies so far."""
        self._routes: dict[str, Route] = {}

    def put(self, url: str, body: bytes | None = None, route: Route | None = None) -> None:
        """Let `url` answer with `body` (None: a short page that says the status), by `route` where it is not plain."""
        key = address_key(url)
        if route is not None:
            self._routes[key] = route
        if body is not None:
            file = self.folder / "www" / (f"{key}index.html" if key.endswith("/") else key)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(body)
            self.num_bytes += len(body)

    def finish(self) -> None:
        """Write routes.json."""
        (self.folder / "www").mkdir(parents=True, exist_ok=True)
        text = json.dumps({key: asdict(self._routes[key]) for key in sorted(self._routes)}, indent=1)
        (self.folder / "routes.json").write_text(text + "\n", encoding="utf-8")


def read_routes(folder: Path) -> dict[str, Route]:
    """Read `folder`/routes.json.

    Raises:
        FileNotFoundError: `folder` is no site.
    """
    path = folder / "routes.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no routes.json: build a site there first")
    return {key: Route(**value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()}


class SiteServer:
    """Serves a site folder on 127.0.0.1 while its `with` block runs.

    `port` is the port it listens on (a free one unless given) and `log` every request, in the order of arrival.

    Raises:
        FileNotFoundError: `folder` is no site.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.log: list[LogEntry] = []
        self._http = _Http(("127.0.0.1", port), folder / "www", read_routes(folder), self.log)
        self.port: int = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, name="site", kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.drop_connections()
        self._http.server_close()
        self._thread.join()


class _Http(ThreadingMixIn, HTTPServer):
    """Threads, one a connection; all are gone when `server_close` returns."""

    request_queue_size = 256

    def __init__(self, address: tuple[str, int], root: Path, routes: dict[str, Route], log: list[LogEntry]) -> None:
        self.root, self.routes, self.log = root.resolve(), routes, log
        self.stopping = threading.Event()
        self.resetting: set[socket.socket] = set()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def arrived(self, entry: LogEntry) -> int:
        """Log a request; its number in the log."""
        with self._lock:
            self.log.append(entry)
            return len(self.log) - 1

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        if request in self.resetting:
            self.resetting.discard(request)
            self.close_request(request)  # without the orderly shutdown before it
        else:
            super().shutdown_request(request)

    def drop_connections(self) -> None:
        """End the keep-alive connections that clients have left open, and the answers that are being delayed."""
        self.stopping.set()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):  # the client was faster
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are a crawler's daily bread; anything else is printed by the base class."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"
    server_version = "site"
    timeout = _IDLE_SECONDS
    # Headers and body in one packet: Nagle's algorithm would add 40 ms to each answer.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Requests go to `SiteServer.log`."""

    def _answer(self) -> None:
        asked = time.monotonic()
        # A proxy request carries the whole address, any other one its host in a header.
        parts = urlsplit(self.path)
        url = self.path if parts.scheme else f"http://{self.headers.get('Host', '')}{self.path}"
        key = address_key(url)
        route = self.server.routes.get(key, Route())
        file = self._file(key)
        status = route.status if key in self.server.routes or file else HTTPStatus.NOT_FOUND.value
        path = urlsplit(url).path + (f"?{parts.query}" if parts.query else "")
        entry = LogEntry(asked, key.partition("/")[0], path, 0 if route.fault else status)
        place = self.server.arrived(entry)
        if route.delay_seconds:
            self.server.stopping.wait(route.delay_seconds)
        self.server.log[place] = entry._replace(answered=time.monotonic())
        if route.fault == "reset":
            self._reset()
            return
        body = file.read_bytes() if file else f"<h1>{status} {HTTPStatus(status).phrase}</h1>\n".encode()
        kind = _CONTENT_TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] if file else "text/html"
        headers = {"Content-Type": kind or "application/octet-stream", **route.headers}
        length = len(body) if route.declared_length is None else route.declared_length
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()
        self.close_connection = self.close_connection or length != len(body)

    def _file(self, key: str) -> Path | None:
        file = (self.server.root / key).resolve()
        if key.endswith("/"):
            file /= "index.html"
        return file if file.is_relative_to(self.server.root) and file.is_file() else None

    def _reset(self) -> None:
        # A socket that lingers for 0 seconds sends RST when it is closed.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.resetting.add(self.connection)
        self.close_connection = True


def main() -> None:
    """Serve a site folder in the foreground until interrupted."""
    parser = argparse.ArgumentParser(description="Serve a demo site on 127.0.0.1.")
    parser.add_argument("folder", type=Path, help="a folder that build_site wrote")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born ignoring it
    with SiteServer(arguments.folder, arguments.port) as server, suppress(KeyboardInterrupt):
        print(f"serving {arguments.folder} on http://127.0.0.1:{server.port} (Ctrl-C ends)", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
