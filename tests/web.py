"""Serve a small web on loopback for tests: a few URLs, each with a given response.

with web(tmp_path, {"http://a.example/x.jpg": picture(), "http://a.example/slow": Route(delay_seconds=5)}) as site:
    fetch("http://a.example/x.jpg", connect_to=site.connect_to)
    assert site.paths("a.example") == ["/x.jpg"]
"""

import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jobs.demo.web.render import encode_jpeg, render
from jobs.demo.web.scenes import sample_scene
from jobs.demo.web.server import LogEntry, Route, SiteServer, SiteWriter

Answer = bytes | Route | tuple[bytes, Route]
"""A body, or a route (whose body is its status), or both."""


class Reply(NamedTuple):
    """The response that a client received."""

    status: int
    headers: Message
    body: bytes


@dataclass(frozen=True)
class Web:
    """A running web server and its log."""

    server: SiteServer

    @property
    def address(self) -> str:
        """The address of all hosts, 127.0.0.1:PORT."""
        return f"127.0.0.1:{self.server.port}"

    @property
    def connect_to(self) -> dict[str, str]:
        """The value of `fetch.connect_to` that sends requests for all hosts in .example to this server."""
        return {"*.example": self.address}

    @property
    def log(self) -> list[LogEntry]:
        """All requests so far."""
        return list(self.server.log)

    def paths(self, host: str) -> list[str]:
        """The paths requested from `host`, in order."""
        return [entry.path for entry in self.log if entry.host == host]

    def get(self, url: str, timeout_seconds: float = 10.0) -> Reply:
        """GET `url` with the standard library, using this server as a proxy and not following redirects."""
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({"http": f"http://{self.address}"}), _NoRedirects()
        )
        try:
            with opener.open(url, timeout=timeout_seconds) as response:
                return Reply(response.status, response.headers, response.read())
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, error.headers, error.read())


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


@contextmanager
def serve(folder: Path) -> Iterator[Web]:
    """Serve an existing site folder."""
    with SiteServer(folder) as server:
        yield Web(server)


@contextmanager
def web(folder: Path, answers: Mapping[str, Answer]) -> Iterator[Web]:
    """Write `answers` to `folder` and serve them. Every other URL gets 404."""
    writer = SiteWriter(folder)
    for url, answer in answers.items():
        body, route = (
            answer if isinstance(answer, tuple) else (answer, None) if isinstance(answer, bytes) else (None, answer)
        )
        writer.put(url, body, route)
    writer.finish()
    with serve(folder) as site:
        yield site


def picture(seed: int = 0, size_px: int = 96) -> bytes:
    """A small JPEG. Different seeds give different pictures."""
    return encode_jpeg(render(sample_scene(np.random.default_rng(seed), "shape"), size_px))
