"""Serve many hosts of the demo's web on one port of 127.0.0.1, distinguished by the Host header.

A site folder contains `www/HOST/PATH`, one file for each address, and `routes.json` with the special responses (see
`Route`). Clients connect with an option like curl's `--connect-to`, or use the server as an HTTP proxy.

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
    """The response of an address that is not simply `200 OK` with its file."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    """Additional headers. They may replace the server's own Content-Type."""
    declared_length: int | None = None
    """Content-Length to announce. If the body has fewer bytes, the server closes the connection after sending them."""
    fault: Literal["", "reset"] = ""
    """"reset": the server resets the connection instead of answering."""
    delay_seconds: float = 0.0
    """Time to wait before answering."""


class LogEntry(NamedTuple):
    """One request that the server received."""

    time: float
    """Monotonic time in seconds at which the request had been read."""
    host: str
    path: str
    """The path with its query."""
    status: int
    """HTTP status, or 0 if the connection was reset."""
    answered: float = math.inf
    """Monotonic time in seconds at which the server began to send the answer or the reset."""


def address_key(url: str) -> str:
    """The key of an HTTP address in routes.json: `HOST/PATH`, percent-decoded, without port and query."""
    parts = urlsplit(url)
    return f"{(parts.hostname or '').lower()}{unquote(parts.path) or '/'}"


class SiteWriter:
    """Writes a site folder. Call `put` for each address, then `finish`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.num_bytes = 0
        """Total size of the bodies written so far."""
        self._routes: dict[str, Route] = {}

    def put(self, url: str, body: bytes | None = None, route: Route | None = None) -> None:
        """Set the response of `url`: `body` (None: a short page with the status), sent as `route` specifies."""
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
        FileNotFoundError: `folder` is not a site.
    """
    path = folder / "routes.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} contains no routes.json: build a site there first")
    return {key: Route(**value) for key, value in json.loads(path.read_text(encoding="utf-8")).items()}


class SiteServer:
    """Serves a site folder on 127.0.0.1 while its `with` block runs.

    `port` is the port on which it listens; 0 chooses a free one. `log` lists all requests in the order of arrival.

    Raises:
        FileNotFoundError: `folder` is not a site.
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
    """One thread per connection. All threads have ended when `server_close` returns."""

    request_queue_size = 256

    def __init__(self, address: tuple[str, int], root: Path, routes: dict[str, Route], log: list[LogEntry]) -> None:
        self.root, self.routes, self.log = root.resolve(), routes, log
        self.stopping = threading.Event()
        self.resetting: set[socket.socket] = set()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def add_entry(self, entry: LogEntry) -> int:
        """Log a request, and return its index in the log."""
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
            self.close_request(request)  # closing without an orderly shutdown sends the reset
        else:
            super().shutdown_request(request)

    def drop_connections(self) -> None:
        """Close the connections that clients keep alive, and end the delays of answers."""
        self.stopping.set()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):  # the client has closed it already
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore closed connections, which are normal for crawlers; the base class prints all other errors."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"
    server_version = "site"
    timeout = _IDLE_SECONDS
    # Send headers and body in one packet, because Nagle's algorithm would add 40 ms to each answer.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Do nothing: `SiteServer.log` records the requests."""

    def _answer(self) -> None:
        received = time.monotonic()
        # A proxy request contains the whole address. Other requests have the host in a header.
        parts = urlsplit(self.path)
        url = self.path if parts.scheme else f"http://{self.headers.get('Host', '')}{self.path}"
        key = address_key(url)
        route = self.server.routes.get(key, Route())
        file = self._file(key)
        status = route.status if key in self.server.routes or file else HTTPStatus.NOT_FOUND.value
        path = urlsplit(url).path + (f"?{parts.query}" if parts.query else "")
        entry = LogEntry(received, key.partition("/")[0], path, 0 if route.fault else status)
        index = self.server.add_entry(entry)
        if route.delay_seconds:
            self.server.stopping.wait(route.delay_seconds)
        self.server.log[index] = entry._replace(answered=time.monotonic())
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
        # A socket with a linger time of 0 seconds sends RST when it is closed.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.server.resetting.add(self.connection)
        self.close_connection = True


def main() -> None:
    """Serve a site folder in the foreground until interrupted."""
    parser = argparse.ArgumentParser(description="Serve a demo site on 127.0.0.1.")
    parser.add_argument("folder", type=Path, help="a folder that build_site wrote")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    with SiteServer(arguments.folder, arguments.port) as server, suppress(KeyboardInterrupt):
        print(f"serving {arguments.folder} on http://127.0.0.1:{server.port} (Ctrl-C ends)", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
