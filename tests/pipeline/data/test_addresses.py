import asyncio
import ipaddress
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.addresses import (
    BadSchemeError,
    NotPublicError,
    PublicResolver,
    check_url,
    is_public,
    parse_target,
    pinned,
    public_sockets,
    registered_domain,
)

PUBLIC = (
    *("8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001:82a::200e"),
    *("::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"),
)
PRIVATE = (
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.0.9", "192.0.2.1", "192.88.99.1"),
    *("198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "2001:db8::1", "100::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
    *("64:ff9b:1::808:808", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:808:808::f7f7:f7f7", "2001:2::1", "3fff::1"),
)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)
    host = f"[{address}]" if ":" in address else address
    assert check_url(f"http://{host}/x.jpg", {}).path == "/x.jpg"


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not(address: str) -> None:
    assert not is_public(address)


@settings(max_examples=300)
@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_judged_as_itself(address: ipaddress.IPv4Address) -> None:
    embedded = [f"::ffff:{address}", str(ipaddress.IPv6Address((0x64FF9B << 96) | int(address)))]
    embedded.append(str(ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80))))
    assert {is_public(form) for form in embedded} == {is_public(str(address))}


FORGERIES = (
    # Plain, and as people write it
    *("http://127.0.0.1/", "http://127.0.0.1./", "http://127.1/", "http://127.0.1/", "http://0/", "http://0.0.0.0/"),
    # Decimal, octal, hexadecimal, mixed, too long
    *("http://2130706433/", "http://017700000001/", "http://0177.0.0.1/", "http://0x7f000001/", "http://0x7f.0.0.1/"),
    *("http://0x7f.1/", "http://0177.0x0.1/", "http://00000177.0.0.1/", "http://0X7F.0.0.1/", "http://2852039166/"),
    # Letters that a name's normalisation turns into digits and dots
    *("http://①②⑦.⓪.⓪.①/", "http://１２７.0.0.1/", "http://127。0。0。1/", "http://127．0．0．1/", "http://𝟏𝟐𝟕.0.0.1/"),
    # IPv6, and IPv4 in it
    *("http://[::1]/", "http://[::]/", "http://[0:0:0:0:0:0:0:1]/", "http://[::ffff:127.0.0.1]/"),
    *(
        "http://[::ffff:7f00:1]/",
        "http://[0:0:0:0:0:FFFF:7F00:0001]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
    ),
    *("http://[fe80::1%25lo]/", "http://[fd00::1]/", "http://[::127.0.0.1]/"),
    # Networks of clouds and homes
    *("http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://192.168.0.1/", "http://100.100.100.200/"),
    # Users, passwords, and what readers disagree on
    *("http://user@127.0.0.1/", "http://a.example@127.0.0.1/", "http://127.0.0.1@a.example/", "http://u:p@a.example/"),
    *("http://a.example\\@127.0.0.1/", "http://127.0.0.1\\@a.example/", "http://a.example:80@127.0.0.1/"),
    *("http://127.0.0.1:80\\@a.example:80/", "http://[::1]@a.example/", "http://@127.0.0.1/"),
    # Other schemes and ports, and no host
    *(
        "file:///etc/passwd",
        "ftp://a.example/x.jpg",
        "gopher://a.example/",
        "data:,x",
        "javascript:alert(1)",
        "//a.example/",
    ),
    *(
        "http://a.example:22/",
        "http://a.example:8080/",
        "https://a.example:6379/",
        "http://a.example:0/",
        "http:///x.jpg",
    ),
    *(
        "http://",
        "http:127.0.0.1",
        "http:/127.0.0.1/",
        "",
        "x.jpg",
        "http://[::1",
        "http://a.example:80:80/",
        "http://./",
    ),
)


@pytest.mark.parametrize("url", FORGERIES)
def test_forged_addresses_are_refused(url: str) -> None:
    with pytest.raises((NotPublicError, BadSchemeError)):
        check_url(url, {})


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://0x7f.1/", "http://①②⑦.⓪.⓪.①/", "http://[::ffff:7f00:1]/"])
def test_a_private_address_is_told_from_a_wrong_one(url: str) -> None:
    with pytest.raises(NotPublicError):
        check_url(url, {})


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://a.example", "a.example", 80),
        ("HTTPS://A.Example/x", "a.example", 443),
        ("http://a.example:443/x y?z=é", "a.example", 443),
        ("http://bücher.example/", "xn--bcher-kva.example", 80),
        ("http://1.2.3.example/", "1.2.3.example", 80),
        ("http://127.0.0.1.example/", "127.0.0.1.example", 80),
    ],
)
def test_names_may_be_asked_for(url: str, host: str, port: int) -> None:
    checked = check_url(url, {})
    assert (checked.raw_host, checked.port) == (host, port)


def test_hosts_of_the_operator() -> None:
    connect_to = {"*.example": "127.0.0.1:8080", "b.test": "[::1]:81"}
    assert pinned("a.example", connect_to) == ("127.0.0.1", 8080)
    assert pinned("b.test", connect_to) == ("::1", 81)
    assert pinned("example", connect_to) is None
    assert check_url("http://a.example:9999/x", connect_to).port == 9999
    with pytest.raises(BadSchemeError):
        check_url("http://user@a.example/", connect_to)


@pytest.mark.parametrize("target", ["", "127.0.0.1", "127.0.0.1:", ":80", "127.0.0.1:http", "127.0.0.1:-1"])
def test_targets_that_are_none(target: str) -> None:
    with pytest.raises(ValueError, match="is no ADDRESS:PORT"):
        parse_target(target)


def answer_with(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name be at these addresses."""

    def getaddrinfo(_host: str, port: int, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [(f, socket.SOCK_STREAM, 6, "", (a, port)) for f, a in zip(families, addresses, strict=True)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def resolve(host: str, connect_to: dict[str, str] | None = None) -> list[tuple[str, int]]:
    found = asyncio.run(PublicResolver(connect_to or {}).resolve(host, 80))
    return [(result["host"], result["port"]) for result in found]


def test_names_at_public_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "8.8.8.8", "2606:4700::1111")
    assert resolve("a.example") == [("8.8.8.8", 80), ("2606:4700::1111", 80)]


@pytest.mark.parametrize("addresses", [("127.0.0.1",), ("8.8.8.8", "10.0.0.1"), ("2606:4700::1111", "::1")])
def test_one_private_address_refuses_the_name(monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]) -> None:
    answer_with(monkeypatch, *addresses)
    with pytest.raises(NotPublicError, match=rf"a\.example is at {addresses[-1]}"):
        resolve("a.example")


def test_the_operator_rules_over_names(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch)
    assert resolve("a.example", {"*.example": "[::1]:8080"}) == [("::1", 8080)]
    with pytest.raises(socket.gaierror):
        resolve("a.test", {"*.example": "[::1]:8080"})


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example", "a" * 300])
def test_names_that_cannot_exist(host: str) -> None:
    with pytest.raises(socket.gaierror):
        resolve(host)


def test_no_socket_is_opened_for_a_private_address() -> None:
    open_socket = public_sockets({"*.example": "127.0.0.1:8080"})

    def info(host: str, port: int) -> tuple[Any, ...]:
        return (socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))

    for host, port in (("8.8.8.8", 80), ("2606:4700::1111", 443), ("127.0.0.1", 8080)):
        open_socket(info(host, port)).close()
    for host, port in (("127.0.0.1", 80), ("127.0.0.2", 8080), ("10.0.0.1", 443), ("::1", 8080)):
        with pytest.raises(NotPublicError, match="is not a public address"):
            open_socket(info(host, port))


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("http://cdn.img.shop.co.uk/x", "shop.co.uk"),
        ("https://a.example/x", "a.example"),
        ("http://b.a.example.", "a.example"),
        ("http://user.github.io/x", "github.io"),
        ("http://com/", "com"),
        ("http://127.0.0.1/", "0.1"),
        ("data:abc", ""),
        ("x.jpg", ""),
    ],
)
def test_registered_domains(url: str, domain: str) -> None:
    assert registered_domain(url) == domain
