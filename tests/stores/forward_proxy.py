"""The HTTP proxy of a company network, which knows host names that nobody else knows."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from tests.stores.loopback import Handler, LoopbackServer


class ForwardProxy(LoopbackServer):
    """Forwards requests with an absolute URI, and CONNECT, to hosts that it knows; for others it answers 502.

    Args:
        hosts: the port on 127.0.0.1 of each host name. A name stands for the names below it as well.
        refuses: a status to answer to everything instead: 407 asks for a password, 403 forbids.
    """

    def __init__(self, hosts: Mapping[str, int], refuses: int | None = None) -> None:
        self.num_requests = 0
        """Number of requests, where a tunnel counts once."""
        self.targets: list[str] = []
        """The absolute URI of each request, or host:port of a tunnel."""
        proxy = self

        def port_of(host: str) -> int | None:
            known = [port for name, port in hosts.items() if f".{host}".endswith(f".{name}")]
            return known[0] if known else None

        class ProxyHandler(Handler):
            def _respond(self) -> None:
                body = self.read_body()
                parts = urlsplit(self.path)
                port = self._port(parts.hostname or "")
                if port is None:
                    return
                connection = http.client.HTTPConnection("127.0.0.1", port)
                headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_THE_PROXY}
                target = parts.path + (f"?{parts.query}" if parts.query else "")
                with contextlib.closing(connection):
                    connection.request(self.command, target, body, headers | {"Host": parts.netloc})
                    response = connection.getresponse()
                    content = response.read()
                self.send_response_only(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding"):
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def do_CONNECT(self) -> None:  # noqa: N802
                port = self._port(self.path.rpartition(":")[0])
                if port is None:
                    return
                with socket.create_connection(("127.0.0.1", port)) as server:
                    self.send_response_only(200, "Connection established")
                    self.end_headers()
                    self.wfile.flush()
                    _relay(self.connection, server)
                self.close_connection = True

            def _port(self, host: str) -> int | None:
                """The port of the host, or None once the request is answered."""
                proxy.num_requests += 1
                proxy.targets.append(self.path)
                port = port_of(host)
                status = refuses or (502 if port is None else None)
                if status is None:
                    return port
                self.send_response_only(status)
                if status == 407:
                    self.send_header("Proxy-Authenticate", 'Basic realm="proxy"')
                content = f"<html><body>{status} by the proxy</body></html>".encode()
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(b"" if self.command == "HEAD" else content)
                return None

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _respond  # noqa: N815

        super().__init__(ProxyHandler)


_OF_THE_PROXY = ("proxy-connection", "proxy-authorization", "connection", "transfer-encoding", "expect", "host")


def _relay(first: socket.socket, second: socket.socket) -> None:
    """Copy bytes both ways until one side closes."""
    while True:
        readable, _, _ = select.select([first, second], [], [])
        for source in readable:
            data = source.recv(65536)
            if not data:
                return
            (second if source is first else first).sendall(data)
