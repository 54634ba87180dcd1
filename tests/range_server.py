"""Serve files on loopback with support for range requests, and inject the faults of real servers into responses."""

import enum
import re
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


class Fault(enum.Enum):
    NONE = "answer"
    SLOW_DOWN = "respond with 503 and Retry-After"
    RESET = "close the connection without a response"
    CUT = "send half of the body and close the connection"
    SHORT = "send half of the range, with the length of that half"
    WHOLE = "send the whole file for a range request"
    CHANGED = "send the range with another file size"


class RangeServer:
    """Serves `files` by path. The first GET requests have these faults, later requests have none."""

    def __init__(self, files: Mapping[str, bytes], faults: Sequence[Fault] = ()) -> None:
        self.ranges: list[tuple[int, int]] = []
        pending = list(faults)
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_HEAD(self) -> None:
                data = files.get(self.path)
                self._answer(404 if data is None else 200, b"", len(data or b""))

            def do_GET(self) -> None:
                with lock:
                    fault = pending.pop(0) if pending else Fault.NONE
                data = files.get(self.path)
                byte_range = _RANGE.fullmatch(self.headers.get("Range", ""))
                if fault is Fault.RESET:
                    self.close_connection = True
                elif fault is Fault.SLOW_DOWN:
                    self._answer(503, b"slow down", 9, **{"Retry-After": "0"})
                elif data is None:
                    self._answer(404, b"", 0)
                elif byte_range is None or fault is Fault.WHOLE:
                    self._answer(200, data, len(data))
                else:
                    first, last = int(byte_range[1]), min(int(byte_range[2]), len(data) - 1)
                    body = data[first : last + 1]
                    with lock:
                        server.ranges.append((first, last))
                    if fault is Fault.SHORT:
                        body, last = body[: len(body) // 2], first + len(body) // 2 - 1
                    size = len(data) + (fault is Fault.CHANGED)
                    content_range = {"Content-Range": f"bytes {first}-{last}/{size}"}
                    sent = body[: len(body) // 2] if fault is Fault.CUT else body
                    self.close_connection = fault is Fault.CUT
                    self._answer(206, sent, len(body), **content_range)

            def _answer(self, status: int, body: bytes, length: int, **headers: str) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": str(length), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
