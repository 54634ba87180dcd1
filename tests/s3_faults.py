"""A proxy in front of an S3 server that injects the faults of real S3 and networks into chosen requests."""

import enum
import http.client
import itertools
import random
import threading
from collections.abc import Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_CONFLICT = b"<Error><Code>ConditionalRequestConflict</Code><Message>conflict</Message></Error>"
_ERROR = b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"
_UNAVAILABLE = b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>"


class Fault(enum.Enum):
    NONE = "pass on"
    CONFLICT = "respond with 409, as in a race of conditional puts"
    ERROR = "respond with 500"
    UNAVAILABLE = "respond with 503"
    RESET = "close the connection before the request is passed on"
    LOST_ANSWER = "pass on, then close the connection without a response"
    DROPPED_BYTES = "pass on half of the body, with the length of that half"
    STALLED = "pass on, send half of the body, then send nothing more"


def at_random(share: float, kinds: Sequence[Fault], seed: int) -> Iterator[Fault]:
    """An endless sequence that gives this share of requests a fault, cycling through `kinds`."""
    generator, faults = random.Random(seed), itertools.cycle(kinds)
    while True:
        yield next(faults) if generator.random() < share else Fault.NONE


class FaultyS3:
    """Forwards requests to `endpoint` and injects `faults`, in order, into requests of one method (None: all methods).

    When `faults` is exhausted, requests are forwarded without faults. `num_requests` counts the requests of the method,
    `given` lists the faults that were injected.
    """

    def __init__(self, endpoint: str, method: str | None, faults: Iterable[Fault]) -> None:
        self.num_requests = 0
        self.given: list[Fault] = []
        self._closing = threading.Event()
        upstream = urlsplit(endpoint).netloc
        pending = iter(faults)
        lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = Fault.NONE
                if method in (None, self.command):
                    with lock:
                        proxy.num_requests += 1
                        fault = next(pending, Fault.NONE)
                        proxy.given += [] if fault is Fault.NONE else [fault]
                self.close_connection = True
                if fault is Fault.CONFLICT:
                    self._answer(409, _CONFLICT)
                elif fault is Fault.ERROR:
                    self._answer(500, _ERROR)
                elif fault is Fault.UNAVAILABLE:
                    self._answer(503, _UNAVAILABLE)
                elif fault is not Fault.RESET:
                    self._answer_of_server(body, fault)

            def _answer_of_server(self, body: bytes, fault: Fault) -> None:
                connection = http.client.HTTPConnection(upstream)
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                content = response.read()
                connection.close()
                if fault is Fault.LOST_ANSWER:
                    return
                if fault is Fault.DROPPED_BYTES:
                    content = content[: len(content) // 2]
                headers = {name: value for name, value in response.getheaders() if name.lower() in _FORWARDED_HEADERS}
                length = response.getheader("Content-Length") if self.command == "HEAD" else None
                if fault is Fault.STALLED:
                    length = length or str(len(content))
                    content = content[: len(content) // 2]
                self._answer(response.status, content, headers, length)
                if fault is Fault.STALLED:
                    self.wfile.flush()
                    proxy._closing.wait()

            def _answer(
                self, status: int, body: bytes, headers: dict[str, str] | None = None, length: str | None = None
            ) -> None:
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", length or str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass_on  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()


_FORWARDED_HEADERS = {"content-type", "etag", "last-modified", "content-range", "accept-ranges"}
