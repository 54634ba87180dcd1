import gzip
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.demo.web.server import Route
from pipeline.data.crawl import fetch
from pipeline.data.crawl.fetch import FetchConfig
from pipeline.reasons import POLICY, TRANSIENT, Reason
from tests.pipeline.data.fetching import A, config, outcomes, refusals
from tests.pipeline.data.raw_server import RawServer, ok
from tests.web import Answer, picture, web


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the pauses before another attempt to tens of milliseconds."""
    monkeypatch.setattr("random.uniform", lambda *_: 0.02)


def test_images_are_returned_unchanged(tmp_path: Path) -> None:
    images = {f"{A}/{i}.jpg": picture(i) for i in range(5)} | {"http://b.example/é x.png": b"anything at all"}
    with web(tmp_path, images) as site:
        assert outcomes(config(site.address), *images) == list(images.values())
        assert outcomes(config(site.address)) == []
        assert site.paths("a.example").count("/robots.txt") == 1


@pytest.mark.parametrize(
    ("status", "reason", "requests"),
    [
        (404, Reason.NOT_FOUND, 1),
        (410, Reason.NOT_FOUND, 1),
        (401, Reason.CLIENT_ERROR, 1),
        (403, Reason.CLIENT_ERROR, 1),
        (451, Reason.CLIENT_ERROR, 1),
        (206, Reason.CLIENT_ERROR, 1),
        (302, Reason.CLIENT_ERROR, 1),  # a redirect without a Location
        (429, Reason.TOO_MANY_REQUESTS, 3),
        (500, Reason.SERVER_ERROR, 3),
        (503, Reason.SERVER_ERROR, 3),
    ],
)
def test_only_transient_failures_are_retried(tmp_path: Path, status: int, reason: Reason, requests: int) -> None:
    with web(tmp_path, {f"{A}/x.jpg": Route(status=status)}) as site:
        (refusal,) = refusals(config(site.address, attempts=3), f"{A}/x.jpg")
        assert (refusal.reason, refusal.detail) == (reason, f"HTTP {status}")
        assert site.paths("a.example").count("/x.jpg") == requests == (3 if reason in TRANSIENT else 1)


def test_another_attempt_may_succeed() -> None:
    with RawServer(
        lambda path, n: ok(b"image") if n else b"HTTP/1.1 503 Busy\r\n\r\n" if path != "/cut" else b""
    ) as server:
        assert outcomes(config(server.address), f"{A}/x", f"{A}/cut") == [b"image", b"image"]
        assert server.paths.count("/x") == server.paths.count("/cut") == 2
        assert server.paths.count("/robots.txt") == 2, "robots.txt is retried as well"


def test_broken_responses(tmp_path: Path) -> None:
    answers: dict[str, Answer] = {
        f"{A}/short.jpg": (picture()[:500], Route(declared_length=len(picture()))),
        f"{A}/reset.jpg": Route(fault="reset"),
    }
    with web(tmp_path, answers) as site:
        assert outcomes(config(site.address), *answers) == [Reason.INCOMPLETE, Reason.CONNECTION]
        assert sorted(site.paths("a.example")) == ["/reset.jpg"] * 2 + ["/robots.txt"] + ["/short.jpg"] * 2


class TestRedirects:
    """Redirects are followed up to a limit, and every URL is checked like the first."""

    def test_other_hosts_with_their_own_rules(self, tmp_path: Path) -> None:
        answers: dict[str, Answer] = {
            f"{A}/1": Route(status=301, headers={"Location": "/2"}),
            f"{A}/2": Route(status=302, headers={"Location": "//b.example/3"}),
            "http://b.example/3": Route(status=303, headers={"Location": "http://c.example/x"}),
            "http://c.example/x": Route(status=307, headers={"Location": "x.jpg"}),
            "http://c.example/x.jpg": picture(),
            f"{A}/forbidden": Route(status=308, headers={"Location": "http://d.example/x.jpg"}),
            "http://d.example/x.jpg": picture(),
            "http://d.example/robots.txt": b"User-agent: *\nDisallow: /",
        }
        with web(tmp_path, answers) as site:
            assert outcomes(config(site.address), f"{A}/1", f"{A}/forbidden") == [picture(), Reason.ROBOTS_TXT]
            assert site.paths("c.example") == ["/robots.txt", "/x", "/x.jpg"]
            assert site.paths("d.example") == ["/robots.txt"]

    def test_redirects_to_domains_of_other_crawlers_are_not_followed(self, tmp_path: Path) -> None:
        answers: dict[str, Answer] = {
            f"{A}/1": Route(status=301, headers={"Location": "http://www.a.example/2"}),
            "http://www.a.example/2": Route(status=302, headers={"Location": "//b.example/3?x"}),
            "http://b.example/3?x": picture(),
        }
        with web(tmp_path, answers) as site:
            (refusal,) = refusals(config(site.address), f"{A}/1", owns_all=False)
            assert (refusal.reason, refusal.redirect_url) == (Reason.MOVED, "http://b.example/3?x")
            assert site.paths("www.a.example") == ["/robots.txt", "/2"], "a redirect within the domain is followed"
            assert site.paths("b.example") == []

    @pytest.mark.parametrize("max_redirects", [0, 1, 5])
    def test_the_number_of_redirects_is_limited(self, tmp_path: Path, max_redirects: int) -> None:
        answers: dict[str, Any] = {
            f"{A}/{i}": Route(status=302, headers={"Location": f"/{i + 1}"}) for i in range(max_redirects)
        }
        answers |= {f"{A}/{max_redirects}": picture(), f"{A}/loop": Route(status=301, headers={"Location": "/loop"})}
        answers |= {f"{A}/begin": Route(status=301, headers={"Location": "/0"})}
        with web(tmp_path, answers) as site:
            settings = config(site.address, max_redirects=max_redirects)
            assert outcomes(settings, f"{A}/0", f"{A}/begin", f"{A}/loop") == [
                picture(),
                *[Reason.TOO_MANY_REDIRECTS] * 2,
            ]
            assert site.paths("a.example").count("/loop") == max_redirects + 1

    @pytest.mark.parametrize(
        ("location", "reason"),
        [
            (b"ftp://b.example/x.jpg", Reason.BAD_SCHEME),
            (b"file:///etc/passwd", Reason.BAD_SCHEME),
            (b"http://[bad/", Reason.BAD_SCHEME),
            (b"http://user@b.example/", Reason.BAD_SCHEME),
            (b"http://b.test:22/", Reason.BAD_SCHEME),
            (b"http://other.test:8080/b\xe4r.jpg", Reason.BAD_SCHEME),
            (b"http://other.test:8080/\xed\xa0\x80", Reason.BAD_SCHEME),
            (b"http://127.0.0.1/", Reason.NOT_PUBLIC),
            (b"//169.254.169.254/latest/meta-data/", Reason.NOT_PUBLIC),
            (b"http://0x7f.1/", Reason.NOT_PUBLIC),
            (b"http://\xef\xbc\x91\xef\xbc\x92\xef\xbc\x97.0.0.1/", Reason.NOT_PUBLIC),
            (b"http://" + b"a" * 64 + b".test/", Reason.NO_SUCH_HOST),
            (b"http://b..test/", Reason.NO_SUCH_HOST),
            (b"/\xff\xfe", Reason.CLIENT_ERROR),
            (b"http://\xff\xfe.test/", Reason.BAD_SCHEME),
        ],
    )
    def test_forbidden_targets(self, location: bytes, reason: Reason) -> None:
        redirect = (
            b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nConnection: close\r\nLocation: " + location + b"\r\n\r\n"
        )
        with RawServer(lambda path, _: redirect if path == "/x" else b"HTTP/1.1 400 What\r\n\r\n") as server:
            assert outcomes(config(server.address), f"{A}/x") == [reason]


class TestSizes:
    """No server can make the crawler hold more than its limit."""

    def test_announced_and_unannounced_sizes(self) -> None:
        def answer(path: str, _: int) -> bytes:
            if path == "/announced":
                return ok(b"x" * 2_001)
            if path == "/endless":
                return b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10**7
            if path == "/chunked":
                return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"
            if path == "/bomb":
                return ok(gzip.compress(b"x" * 10**6), "Content-Encoding: gzip")
            return ok(b"x" * 2_000) if path == "/fits" else b"HTTP/1.1 404 None\r\nContent-Length: 0\r\n\r\n"

        with RawServer(answer) as server:
            urls = [f"{A}/{name}" for name in ("announced", "endless", "chunked", "bomb", "fits")]
            found = outcomes(config(server.address, max_bytes=2_000), *urls)
            assert found == [*[Reason.TOO_MANY_BYTES] * 4, b"x" * 2_000]

    @pytest.mark.parametrize(
        "answer",
        [
            b"not HTTP at all\r\n\r\n",
            b"HTTP/1.1 abc Huh\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200_000 + b"\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            ok(b"no gzip", "Content-Encoding: gzip"),
            b"HTTP/1.1 503 Busy\r\nRetry-After: \xc2\xb2\r\nContent-Length: 0\r\n\r\n",
            b"",
        ],
    )
    def test_hostile_responses_give_reasons(self, answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fetch, "_retry_after", lambda headers: fetch_retry_after(headers) and 0.0)
        with RawServer(lambda path, _: answer if path == "/x" else ok(b"")) as server:
            (found,) = outcomes(config(server.address), f"{A}/x")
            assert found in TRANSIENT


fetch_retry_after = fetch._retry_after


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("7", 7),
        ("86400", 86_400),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0),
        ("²", 10),
        ("-1", 10),
        ("1e9", 10),
        ("Mon, 1 Jan 99999999999999999999 00:00:00 GMT", 10),
        ("Mon, 1 Jan 0001 00:00:00 +2359", 0),
        ("100000000000000000000", 100_000_000),
    ],
)
def test_retry_after(value: str | None, seconds: float) -> None:
    assert fetch._retry_after({} if value is None else {"Retry-After": value}) == seconds


@given(st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{1,25} [\d:]{1,9} [+-]?\d{0,9}"))
def test_any_retry_after_is_a_number_of_seconds(value: str) -> None:
    assert 0 <= fetch._retry_after({"Retry-After": value}) < 10**12


def test_retry_after_with_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 28 < fetch._retry_after({"Retry-After": later}) <= 30


def test_slow_servers(tmp_path: Path) -> None:
    answers: dict[str, Answer] = {
        f"{A}/slow": Route(delay_seconds=20),
        f"{A}/late": (b"image", Route(delay_seconds=0.2)),
    }
    with web(tmp_path, answers) as site:
        start = time.monotonic()
        assert outcomes(config(site.address, read_timeout_seconds=0.6, attempts=1), *answers) == [
            Reason.TIMEOUT,
            b"image",
        ]
        assert outcomes(config(site.address, total_timeout_seconds=0.6, attempts=1), *answers) == [
            Reason.TIMEOUT,
            b"image",
        ]
        assert time.monotonic() - start < 10


class TestRules:
    """robots.txt and X-Robots-Tag."""

    def test_forbidden_urls_are_not_requested(self, tmp_path: Path) -> None:
        answers: dict[str, Answer] = {
            f"{A}/robots.txt": b"User-agent: *\nDisallow: /private/\n\nUser-agent: clip-on-ray\nDisallow: /art/",
            f"{A}/art/x.jpg": picture(),
            f"{A}/private/x.jpg": picture(1),
            "http://b.example/art/x.jpg": picture(2),
        }
        with web(tmp_path, answers) as site:
            found = outcomes(config(site.address), *list(answers)[1:])
            assert found == [Reason.ROBOTS_TXT, picture(1), picture(2)]
            assert site.paths("a.example") == ["/robots.txt", "/private/x.jpg"]

    @pytest.mark.parametrize("status", [401, 403, 404, 410, 500, 503])
    def test_client_errors_allow_and_server_errors_forbid(self, tmp_path: Path, status: int) -> None:
        with web(tmp_path, {f"{A}/robots.txt": Route(status=status), f"{A}/x.jpg": b"image"}) as site:
            found = outcomes(config(site.address), f"{A}/x.jpg")
            assert found == ([b"image"] if status < 500 else [Reason.ROBOTS_TXT])
            assert site.paths("a.example") == (["/robots.txt", "/x.jpg"] if status < 500 else ["/robots.txt"] * 2)

    def test_redirected_rules(self, tmp_path: Path) -> None:
        answers: dict[str, Answer] = {
            f"{A}/robots.txt": Route(status=301, headers={"Location": "http://b.example/rules"}),
            "http://b.example/rules": b"User-agent: *\nDisallow: /x",
            f"{A}/x.jpg": picture(),
            "http://b.example/x.jpg": b"image",
            "http://c.example/robots.txt": Route(status=301, headers={"Location": "/robots.txt"}),
            "http://c.example/x.jpg": picture(),
            "http://d.example/robots.txt": Route(status=301, headers={"Location": "http://10.0.0.1/"}),
            "http://d.example/x.jpg": picture(),
        }
        with web(tmp_path, answers) as site:
            found = outcomes(config(site.address), *(f"http://{host}.example/x.jpg" for host in "abcd"))
            assert found == [Reason.ROBOTS_TXT, b"image", Reason.ROBOTS_TXT, Reason.NOT_PUBLIC]

    def test_an_unreachable_host_is_tried_once_for_all_its_images(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        found = refusals(config(f"127.0.0.1:{port}"), *(f"{A}/{i}.jpg" for i in range(20)))
        assert {refusal.reason for refusal in found} == {Reason.CONNECTION}, "a transient reason, not a policy reason"
        assert {refusal.detail[:11] for refusal in found} == {"robots.txt:"}
        with RawServer(lambda *_: None) as server:
            assert set(outcomes(config(server.address), *(f"{A}/{i}.jpg" for i in range(20)))) == {Reason.CONNECTION}
            assert server.paths == ["/robots.txt"] * 2

    def test_a_long_robots_txt_is_truncated_and_applied(self, tmp_path: Path) -> None:
        rules = b"User-agent: *\nDisallow: /x\n" + b"# filler\n" * 100_000
        with web(tmp_path, {f"{A}/robots.txt": rules, f"{A}/x.jpg": picture(), f"{A}/y.jpg": b"image"}) as site:
            assert outcomes(config(site.address), f"{A}/x.jpg", f"{A}/y.jpg") == [Reason.ROBOTS_TXT, b"image"]

    def test_tags(self, tmp_path: Path) -> None:
        def tagged(tag: str) -> tuple[bytes, Route]:
            return b"image", Route(headers={"X-Robots-Tag": tag})

        answers: dict[str, Answer] = {
            f"{A}/1": tagged("noai"),
            f"{A}/2": tagged("otherbot: noindex"),
            f"{A}/3": tagged("clip-on-ray: none"),
        }
        with web(tmp_path, answers) as site:
            assert outcomes(config(site.address), *answers) == [Reason.X_ROBOTS_TAG, b"image", Reason.X_ROBOTS_TAG]
        with RawServer(lambda *_: ok(b"image", "X-Robots-Tag: all", "x-robots-tag: noimageai")) as server:
            assert outcomes(config(server.address), f"{A}/x") == [Reason.X_ROBOTS_TAG], "every header applies"

    def test_the_crawler_identifies_itself(self) -> None:
        with RawServer(lambda path, _: ok(b"image" if path == "/x" else b"")) as server:
            settings = config(server.address, user_agent="testbot", contact="crawl@test.example")
            assert outcomes(settings, f"{A}/x") == [b"image"]
            for head in server.requests:
                assert "\r\nUser-Agent: testbot (+crawl@test.example)\r\n" in head
                assert "\r\nHost: a.example\r\n" in head
                assert "\r\nAccept-Encoding: identity\r\n" in head
                assert "cookie" not in head.lower()

    def test_no_cookies_are_kept(self) -> None:
        with RawServer(lambda *_: ok(b"", "Set-Cookie: id=1; Path=/")) as server:
            outcomes(config(server.address), f"{A}/1", f"{A}/2")
            assert not [head for head in server.requests if "cookie" in head.lower()]


@pytest.fixture
def canary() -> Iterator[RawServer]:
    """A server on this machine, on an allowed port, that the crawler must not reach."""
    with RawServer(lambda *_: ok(b"secret")) as server:
        yield server


class TestForgery:
    """No spelling of a URL makes the crawler connect to this machine or its network."""

    FORMS = (
        *("127.0.0.1", "127.1", "127.0.1", "0", "0.0.0.0", "2130706433", "017700000001", "0177.0.0.1", "0x7f000001"),
        *("0x7f.1", "0X7F.0.0.1", "0177.0x0.1", "127.0.0.1.", "①②⑦.⓪.⓪.①", "１２７.0.0.1", "127。0。0。1", "𝟏𝟐𝟕.0.0.1"),
        *(
            "[::1]",
            "[::]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
        ),
        *("[::127.0.0.1]", "[::1%25lo]", "localhost", "LOCALHOST", "localhost.", "x@127.0.0.1", "a.example@127.0.0.1"),
        *(
            "a.test\\@127.0.0.1",
            "127.0.0.1\\@a.test",
            "@127.0.0.1",
            "127.0.0.1#@a.test",
            "127.0.0.1%00.a.test",
            "127.0.0.1%2f",
        ),
    )

    def test_urls_with_local_addresses(self, canary: RawServer) -> None:
        urls = [f"http://{form}:{canary.port}/x.jpg" for form in self.FORMS]
        urls += [f"http://127.0.0.1:{canary.port}\\@a.test/", f"http://a.test@127.0.0.1:{canary.port}/"]
        found = outcomes(FetchConfig(attempts=1, min_interval_seconds=0.0, allowed_ports=(canary.port,)), *urls)
        refused = POLICY | {Reason.NO_SUCH_HOST, Reason.CONNECTION}
        assert {url: outcome for url, outcome in zip(urls, found, strict=True) if outcome not in refused} == {}
        assert canary.num_connections == 0

    def test_the_canary_can_be_reached(self, canary: RawServer) -> None:
        assert outcomes(config(canary.address), f"http://a.example:{canary.port}/x.jpg") == [b"secret"]
        assert canary.num_connections == 2

    def test_redirects_to_local_addresses(self, canary: RawServer, tmp_path: Path) -> None:
        answers: dict[str, Answer] = {
            f"{A}/{i}": Route(status=302, headers={"Location": f"http://{form}:{canary.port}/"})
            for i, form in enumerate(form for form in self.FORMS if form.isascii())
        }
        answers |= {f"{A}/two": Route(status=302, headers={"Location": "/0"})}
        with web(tmp_path, answers) as site:
            found = outcomes(config(site.address, attempts=1, allowed_ports=(canary.port,)), *answers)
        assert not [outcome for outcome in found if isinstance(outcome, bytes)]
        assert canary.num_connections == 0

    @pytest.mark.parametrize("at", [("127.0.0.1",), ("8.8.8.8", "127.0.0.1"), ("::ffff:127.0.0.1",), ("::1",)])
    def test_names_that_resolve_to_local_addresses(
        self, canary: RawServer, monkeypatch: pytest.MonkeyPatch, at: tuple[str, ...]
    ) -> None:
        def getaddrinfo(_host: str, port: int, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
            families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in at]
            return [(f, socket.SOCK_STREAM, 6, "", (a, port)) for f, a in zip(families, at, strict=True)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        urls = [f"{scheme}://rebound.test:{canary.port}/x.jpg" for scheme in ("http", "https")]
        found = outcomes(FetchConfig(min_interval_seconds=0.0, allowed_ports=(canary.port,)), *urls)
        assert found == [Reason.NOT_PUBLIC] * 2
        assert canary.num_connections == 0

    def test_connect_to_does_not_apply_to_ip_addresses(self, canary: RawServer) -> None:
        """Even a pattern that matches every host does not apply to IP addresses."""
        with RawServer(lambda *_: ok(b"image")) as server:
            settings = FetchConfig(
                connect_to={"*": server.address}, min_interval_seconds=0.0, allowed_ports=(canary.port,)
            )
            found = outcomes(settings, f"http://127.0.0.1:{canary.port}/", f"http://a.test:{canary.port}/")
        assert found == [Reason.NOT_PUBLIC, b"image"]
        assert canary.num_connections == 0


@pytest.mark.parametrize(
    ("error", "reason", "lookups"),
    [(socket.EAI_NONAME, Reason.NO_SUCH_HOST, 1), (socket.EAI_AGAIN, Reason.CONNECTION, 2)],
)
def test_names_without_an_address(monkeypatch: pytest.MonkeyPatch, error: int, reason: Reason, lookups: int) -> None:
    looked_up = []

    def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
        looked_up.append(host)
        raise socket.gaierror(error, "no")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert (
        outcomes(FetchConfig(min_interval_seconds=0.0), *(f"http://a.test/{i}.jpg" for i in range(10))) == [reason] * 10
    )
    assert looked_up == ["a.test"] * lookups


def test_https_to_a_server_that_speaks_http() -> None:
    with RawServer(lambda *_: ok(b"image")) as server:
        assert outcomes(config(server.address), "https://a.example/x.jpg") == [Reason.CONNECTION]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attempts": 0}, r"fetch\.attempts = 0: must be at least 1"),
        ({"max_in_flight": 0}, r"fetch\.max_in_flight = 0"),
        (
            {"connect_to": {"*.example": "127.0.0.1"}},
            r"fetch\.connect_to: '127\.0\.0\.1' is not of the form ADDRESS:PORT \(for '\*\.example'\)",
        ),
    ],
)
def test_invalid_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FetchConfig(**options)


@pytest.mark.parametrize(
    "head",
    [
        b"Set-Cookie: a=" + b"x" * 20_000,  # aiohttp#2304
        b"Content-Security-Policy: " + b"img-src *; " * 4_000,  # realpython/materials#712
        b"\r\n".join(b"X-%d: y" % n for n in range(300)),
        b"X-Latin-1: b\xe4r\r\nX-Empty:\r\nX-Bytes: \x80\xff",
    ],
    ids=["a cookie", "a policy", "many", "not ASCII"],
)
def test_large_headers(head: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + head + b"\r\nContent-Length: 5\r\n\r\nimage"
    with RawServer(lambda path, _: answer if path == "/x" else ok(b"")) as server:
        assert outcomes(config(server.address), f"{A}/x") == [b"image"]


def test_status_203_is_an_answer() -> None:
    """RFC 9309, section 2.3.1.1: any successful answer is obeyed; RFC 9110, section 15.3.4: a proxy changed it."""
    robots = b"User-agent: *\nDisallow: /forbidden"
    ok_203 = [answer.replace(b"200 OK", b"203 Non-Authoritative") for answer in (ok(robots), ok(b"image"))]
    with RawServer(lambda path, _: ok_203[path != "/robots.txt"]) as server:
        assert outcomes(config(server.address), f"{A}/x", f"{A}/forbidden") == [b"image", Reason.ROBOTS_TXT]


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/smart/http%3A%2F%2Fo.example%2Fa.jpg", "/smart/http%3A%2F%2Fo.example%2Fa.jpg"),
        ("/foo%27bar%28c%29.jpg", "/foo%27bar%28c%29.jpg"),
        ("/?file=my photo.jpg", "/?file=my%20photo.jpg"),
        ("/50%.jpg", "/50%.jpg"),
        ("/a/../b%2e.jpg?x=../y", "/b%2e.jpg?x=../y"),
        ("/x?u=a%2Fb", None),
        ("/_next/image?url=%2Fhero.png", None),
    ],
)
def test_urls_are_sent_and_judged_as_written(path: str, sent: str | None) -> None:
    """aiohttp#2188, #4307, #11410: other spellings are other resources, and robots.txt forbids this spelling."""
    robots = b"User-agent: *\nDisallow: /x?u=a%2Fb\nDisallow: /_next/image?url=%2F"
    with RawServer(lambda path, _: ok(robots if path == "/robots.txt" else b"image")) as server:
        assert outcomes(config(server.address), f"{A}{path}") == [b"image" if sent else Reason.ROBOTS_TXT]
        assert server.paths[1:] == ([sent] if sent else [])
