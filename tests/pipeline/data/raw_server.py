"""Run a loopback server that sends arbitrary bytes and records every connection."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

Answer = Callable[[str, int], bytes | None]
"""Returns the bytes to send for the n-th request of a path (from 0), or None to close without a response."""


def ok(body: bytes, *headers: str) -> bytes:
    """A complete 200 response."""
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class RawServer:
    """Serve while the `with` block runs, with one connection per request."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, name="raw server")
        self.port: int = self._socket.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.num_connections = 0
        self.requests: list[str] = []
        """The request line and headers of each request."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    @property
    def paths(self) -> list[str]:
        """The requested paths, in order."""
        return [request.split(" ", 2)[1] for request in self.requests]

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            self.num_connections += 1
            with connection, suppress(ConnectionError):  # a client may close the connection early
                self._reply(connection)

    def _reply(self, connection: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            received = connection.recv(1 << 16)
            head += received
            if not received or not head[:1].isalpha():  # not HTTP; for example TLS
                return
        self.requests.append(head.decode("latin-1"))
        path = self.paths[-1]
        answer = self._answer(path, self.paths.count(path) - 1)
        if answer is not None:
            connection.sendall(answer)
