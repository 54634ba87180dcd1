import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
from pathlib import Path

import pytest

from jobs.demo.web.server import Route, SiteServer, SiteWriter, address_key, read_routes
from tests.web import picture, serve, web


def test_hosts_are_distinguished_by_the_host_header(tmp_path: Path) -> None:
    answers = {"http://a.example/x.txt": b"of a", "http://b.example/x.txt": b"of b", "http://a.example/": b"home"}
    with web(tmp_path, answers) as site:
        connection = http.client.HTTPConnection(site.address, timeout=10)
        found = []
        for host, path in (
            ("a.example", "/x.txt"),
            ("B.Example:80", "/x.txt?v=1"),
            ("a.example", "/"),
            ("c.example", "/"),
        ):
            connection.request(
                "GET", path, headers={"Host": host}
            )  # all requests use one connection, which is kept alive
            response = connection.getresponse()
            found.append((response.status, response.read()))
        connection.close()
        assert found[:3] == [(200, b"of a"), (200, b"of b"), (200, b"home")]
        assert found[3][0] == 404
        assert [entry[1:4] for entry in site.log] == [
            ("a.example", "/x.txt", 200),
            ("b.example", "/x.txt?v=1", 200),
            ("a.example", "/", 200),
            ("c.example", "/", 404),
        ]
        times = [entry.time for entry in site.log]
        assert times == sorted(times)


def test_proxy_requests_and_escaped_paths(tmp_path: Path) -> None:
    with web(tmp_path, {"http://a.example/red%20star.jpg": picture()}) as site:
        reply = site.get("http://a.example/red%20star.jpg?v=3&w=160")
        assert (reply.status, reply.body) == (200, picture())
        assert reply.headers["Content-Type"] == "image/jpeg"
        assert reply.headers["Content-Length"] == str(len(picture()))


def test_nothing_outside_the_folder_is_served(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    with web(tmp_path / "site", {"http://a.example/x.txt": b"x"}) as site:
        for path in ("/../../../secret.txt", "/%2e%2e/%2e%2e/%2e%2e/secret.txt", "/../../routes.json"):
            connection = http.client.HTTPConnection(site.address, timeout=10)
            connection.request("GET", path, headers={"Host": "a.example"})
            response = connection.getresponse()
            assert (response.status, b"secret" in response.read()) == (404, False)
            connection.close()


def test_routes_set_status_and_headers(tmp_path: Path) -> None:
    moved = Route(status=301, headers={"Location": "http://b.example/"})
    tagged = Route(headers={"X-Robots-Tag": "noai", "Content-Type": "image/x-odd"})
    with web(tmp_path, {"http://a.example/m": moved, "http://a.example/t.jpg": (picture(), tagged)}) as site:
        reply = site.get("http://a.example/m")
        assert (reply.status, reply.headers["Location"]) == (301, "http://b.example/")
        reply = site.get("http://a.example/t.jpg")
        assert (reply.status, reply.body) == (200, picture())
        assert (reply.headers["X-Robots-Tag"], reply.headers["Content-Type"]) == ("noai", "image/x-odd")


def test_head_has_no_body(tmp_path: Path) -> None:
    with web(tmp_path, {"http://a.example/x.jpg": picture()}) as site:
        connection = http.client.HTTPConnection(site.address, timeout=10)
        connection.request("HEAD", "/x.jpg", headers={"Host": "a.example"})
        response = connection.getresponse()
        assert (response.getheader("Content-Length"), response.read()) == (str(len(picture())), b"")
        connection.close()


def test_a_reset_is_a_reset_and_logged_as_status_0(tmp_path: Path) -> None:
    with web(tmp_path, {"http://a.example/x.jpg": Route(fault="reset")}) as site:
        with pytest.raises((ConnectionResetError, urllib.error.URLError), match="reset by peer"):
            site.get("http://a.example/x.jpg")
        assert [entry.status for entry in site.log] == [0]


def test_a_body_can_be_shorter_than_its_declared_length(tmp_path: Path) -> None:
    whole = picture()
    answers = {"http://a.example/x.jpg": (whole[:500], Route(declared_length=len(whole)))}
    with web(tmp_path, answers) as site, pytest.raises(http.client.IncompleteRead) as caught:
        site.get("http://a.example/x.jpg")
    assert (caught.value.partial, caught.value.expected) == (whole[:500], len(whole) - 500)


def test_an_answer_is_delayed_but_the_end_of_the_server_is_not(tmp_path: Path) -> None:
    answers = {"http://a.example/slow": Route(delay_seconds=60.0), "http://a.example/late": Route(delay_seconds=0.3)}
    start = time.monotonic()
    with web(tmp_path, answers) as site:
        site.get("http://a.example/late")
        assert time.monotonic() - start >= 0.3
        with pytest.raises(TimeoutError):
            site.get("http://a.example/slow", timeout_seconds=0.2)
    assert time.monotonic() - start < 10
    assert not [thread for thread in threading.enumerate() if "process_request" in thread.name]


def test_routes_are_read_as_they_were_written(tmp_path: Path) -> None:
    route = Route(status=302, headers={"Location": "/b"}, declared_length=7, fault="reset", delay_seconds=0.5)
    writer = SiteWriter(tmp_path)
    writer.put("http://A.example:80/a%20b?c=d", b"1234567", route)
    writer.finish()
    assert read_routes(tmp_path) == {"a.example/a b": route}
    assert (tmp_path / "www/a.example/a b").read_bytes() == b"1234567"
    assert writer.num_bytes == 7


@pytest.mark.parametrize(
    ("url", "key"), [("http://A.example", "a.example/"), ("http://a.example:8080/%C3%A9?x", "a.example/é")]
)
def test_address_key(url: str, key: str) -> None:
    assert address_key(url) == key


def test_a_folder_that_is_not_a_site_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} contains no routes.json")), serve(tmp_path):
        pass


def test_the_port_can_be_chosen(tmp_path: Path) -> None:
    with web(tmp_path, {"http://a.example/": b"a"}) as site:
        port = site.server.port
    with SiteServer(tmp_path, port) as server:
        assert server.port == port


def test_the_server_runs_as_a_command_until_interrupted(tmp_path: Path) -> None:
    writer = SiteWriter(tmp_path)
    writer.put("http://a.example/", b"home")
    writer.finish()
    command = [sys.executable, "-m", "jobs.demo.web.server", str(tmp_path), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        address = process.stdout.readline().partition("http://")[2].split()[0]
        connection = http.client.HTTPConnection(address, timeout=10)
        connection.request("GET", "/", headers={"Host": "a.example"})
        assert connection.getresponse().read() == b"home"
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
