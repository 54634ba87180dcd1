"""A store that behaves like a real S3 server except for its quirks."""

from __future__ import annotations

import http.client
import itertools
import re
import ssl
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from urllib3 import HTTPHeaderDict

from tests.stores.loopback import Handler, LoopbackServer
from tests.stores.messages import Answer, NoAnswerError, Request

Forward = Callable[[Request], Answer]
Quirk = Callable[[Request, Forward], Answer]

_OF_THE_CONNECTION = ("connection", "keep-alive", "transfer-encoding", "expect", "host", "content-length", "server")
"""Headers that are about one connection, and are not forwarded."""


class Seen(NamedTuple):
    """A request that the store has answered."""

    method: str
    path: str
    """Percent-encoded, with the query."""
    status: int
    """0: the connection was closed without a response."""


class ImitatedStore(LoopbackServer):
    """Forwards requests to the S3 server at `endpoint`, and applies quirks. The first quirk sees a request first.

    With a context (tests/stores/certificates.py) the store speaks TLS.
    """

    def __init__(self, endpoint: str, *quirks: Quirk, context: ssl.SSLContext | None = None) -> None:
        self.quirks = quirks
        """May be replaced between requests."""
        self.seen: list[Seen] = []
        """The requests in the order of their answers, as the client sent them."""
        self.operations: list[str] = []
        """The S3 operations of `seen`."""
        upstream = urlsplit(endpoint).netloc
        store = self

        class StoreHandler(Handler):
            server_connection: http.client.HTTPConnection | None = None

            def _respond(self) -> None:
                path, _, query = self.path.partition("?")
                headers = HTTPHeaderDict(self.headers.items())
                request = Request(self.command, path, query, headers, self.read_body(), store.closed)
                target, operation = request.target, request.operation
                answer: Answer | None = None
                try:
                    answer = _applied(store.quirks, self._forward)(request)
                except NoAnswerError:
                    self.close_connection = True
                store.seen.append(Seen(self.command, target, answer.status if answer else 0))
                store.operations.append(operation)
                if answer is not None:
                    self._send(answer)

            def _forward(self, request: Request) -> Answer:
                headers = {name: request.headers[name] for name in request.headers}
                headers = {name: value for name, value in headers.items() if name.lower() not in _OF_THE_CONNECTION}
                while True:
                    connection, kept = self.server_connection, True
                    if connection is None:
                        connection, kept = http.client.HTTPConnection(upstream), False
                        self.server_connection = connection
                    try:
                        connection.request(request.method, request.target, request.body, headers)
                        response = connection.getresponse()
                        body = response.read()
                        break
                    except (http.client.HTTPException, OSError):
                        self._hang_up()
                        if not kept:  # a connection that was kept open may have been closed meanwhile
                            raise
                found = [(name, value) for name, value in response.getheaders()]
                answer_headers = HTTPHeaderDict(
                    (name, value) for name, value in found if name.lower() not in _OF_THE_CONNECTION
                )
                length = response.getheader("Content-Length") if request.method == "HEAD" else None
                return Answer(response.status, answer_headers, body, None if length is None else int(length))

            def _send(self, answer: Answer) -> None:
                self.send_response_only(answer.status)
                for name, value in answer.headers.iteritems():
                    self.send_header(name, value)
                length = len(answer.body) if answer.length is None else answer.length
                if answer.status not in (204, 304) and length >= 0:
                    self.send_header("Content-Length", str(length))
                if self.command != "HEAD" and length > len(answer.body):
                    self.close_connection = True
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else answer.body)

            def _hang_up(self) -> None:
                if self.server_connection is not None:
                    self.server_connection.close()
                    self.server_connection = None

            def finish(self) -> None:
                self._hang_up()
                super().finish()

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _respond  # noqa: N815

        super().__init__(StoreHandler, context)


Opener = Callable[..., ImitatedStore]
"""Takes quirks, and the arguments of ImitatedStore after them."""


def _applied(quirks: tuple[Quirk, ...], forward: Forward) -> Forward:
    for quirk in reversed(quirks):
        forward = _before(quirk, forward)
    return forward


def _before(quirk: Quirk, forward: Forward) -> Forward:
    return lambda request: quirk(request, forward)


def only(quirk: Quirk, what: str = "", path: str = "") -> Quirk:
    """Apply a quirk only to some requests.

    Args:
        what: a regular expression for the whole HTTP method or the whole S3 operation, e.g. "GET" or "List.*".
        path: a regular expression that is searched in the decoded /bucket/key.
    """
    operations, paths = re.compile(what or ".*"), re.compile(path)

    def limited(request: Request, forward: Forward) -> Answer:
        named = operations.fullmatch(request.method) or operations.fullmatch(request.operation)
        return quirk(request, forward) if named and paths.search(request.name) else forward(request)

    return limited


def first(number: int, quirk: Quirk) -> Quirk:
    """Apply a quirk only to the first requests. Limited by `only`, it counts the requests that `only` lets through."""
    count = itertools.count()
    return lambda request, forward: quirk(request, forward) if next(count) < number else forward(request)


def after(number: int, quirk: Quirk) -> Quirk:
    """Apply a quirk only after the first requests, counted as by `first`."""
    count = itertools.count()
    return lambda request, forward: forward(request) if next(count) < number else quirk(request, forward)
