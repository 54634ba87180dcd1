"""An HTTP server on loopback for tests: it starts as a context manager and leaves no connection behind."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class Handler(BaseHTTPRequestHandler):
    """Keeps connections open between requests, sends an answer in as few packets as possible, and logs nothing."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def handle_expect_100(self) -> bool:
        """Invite the body at once. The base class leaves the invitation in the buffer."""
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    def read_body(self) -> bytes:
        """The body of the request, whether its length was announced or it comes in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers of the transfer encoding
        return b"".join(chunks)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    """Remembers its open connections, so that the end of the test closes them."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, handler: type[Handler], context: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self._context = context
        self.connections: set[socket.socket] = set()

    def get_request(self) -> tuple[socket.socket, object]:
        connection, address = super().get_request()
        if self._context is not None:
            # the thread of the connection does the handshake, when it first reads
            connection = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        assert isinstance(request, socket.socket)
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *_: object) -> None:
        """Clients that hang up or refuse the certificate are part of the tests."""


class LoopbackServer:
    """A server on a free port of 127.0.0.1 from `__enter__` to `__exit__`, with TLS if there is a context."""

    def __init__(self, handler: type[Handler], context: ssl.SSLContext | None = None) -> None:
        self._server = _Server(handler, context)
        self.port: int = self._server.server_port
        self._scheme = "http" if context is None else "https"
        self.endpoint = self.endpoint_at("127.0.0.1")
        self.closed = threading.Event()
        """Set at the end, which releases the requests that are kept waiting."""

    def endpoint_at(self, host: str) -> str:
        """The URL of the server under another name."""
        return f"{self._scheme}://{host}:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._server.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
