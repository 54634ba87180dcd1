import asyncio
import ipaddress
import socket
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.web import addresses as module
from pipeline.data.web.addresses import (
    IPV4_EMBEDDING_NETWORKS,
    LOCAL_NAMES,
    SPECIAL_IPV4,
    SPECIAL_IPV6,
    UNICAST_IPV6,
    BadSchemeError,
    NotPublicError,
    PublicResolver,
    check_url,
    is_public,
    parse_target,
    pinned_target,
    public_socket_factory,
    registered_domain,
)

PUBLIC = (
    *("8.8.8.8", "1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001:82a::200e"),
    *(
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
        "2002:808:808::1",
        "2606:4700::5efe:808:808",
        "2606:4700::200:5efe:808:808",
    ),
    *("2606:4700::100:5efe:7f00:1", "2606:4700:5efe:7f00:1::", "2606:4700::7f00:1"),  # these embed no IPv4 address
)
PRIVATE = (
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.0.9", "192.0.2.1", "192.88.99.1"),
    *("198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "2001:db8::1", "100::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
    *("64:ff9b:1::808:808", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:808:808::f7f7:f7f7", "2001:2::1", "3fff::1"),
    *("2606:4700::5efe:7f00:1", "2606:4700::200:5efe:a00:1", "2606:4700::5efe:169.254.169.254"),  # ISATAP
    *("2606:4700::1111%eth0", "::ffff:8.8.8.8%1", "FE80::A", "FD00::A", "64:FF9B::A9FE:A9FE", "2002:A9FE:A9FE::"),
    *("5f00::1", "100:0:0:1::1", "4000::1", "1fff::1", "fec0::1", "ff0e::1", "::8.8.8.8", "64:ff9b:2::1"),
)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)
    host = f"[{address}]" if ":" in address else address
    assert check_url(f"http://{host}/x.jpg", {}).path == "/x.jpg"


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@settings(max_examples=300)
@given(st.ip_addresses(v=4))
def test_an_embedding_address_is_judged_by_the_embedded_address(address: ipaddress.IPv4Address) -> None:
    embedded = [f"::ffff:{address}", str(ipaddress.IPv6Address((0x64FF9B << 96) | int(address)))]
    embedded.append(str(ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80))))
    assert {is_public(form) for form in embedded} == {is_public(str(address))}


@pytest.mark.parametrize("network", [*SPECIAL_IPV4, *SPECIAL_IPV6], ids=str)
def test_every_network_is_needed(
    monkeypatch: pytest.MonkeyPatch, network: ipaddress.IPv4Network | ipaddress.IPv6Network
) -> None:
    """Its first and last addresses are not public, but would be without this entry of the table."""
    ends = [str(network[0]), str(network[-1])]
    assert [is_public(address) for address in ends] == [False, False]
    for name in ("SPECIAL_IPV4", "SPECIAL_IPV6"):
        monkeypatch.setattr(module, name, [other for other in getattr(module, name) if other != network])
    assert [is_public(address) for address in ends] == [True, True]


@pytest.mark.parametrize(("network", "num_bits"), IPV4_EMBEDDING_NETWORKS, ids=str)
def test_every_embedding_is_needed(
    monkeypatch: pytest.MonkeyPatch, network: ipaddress.IPv6Network, num_bits: int
) -> None:
    def embedded(address: str) -> str:
        return str(network[int(ipaddress.IPv4Address(address)) << num_bits])

    before = [is_public(embedded("8.8.8.8")), is_public(embedded("10.0.0.1"))]
    assert before == [True, False]
    monkeypatch.setattr(
        module, "IPV4_EMBEDDING_NETWORKS", [other for other in IPV4_EMBEDDING_NETWORKS if other[0] != network]
    )
    assert [is_public(embedded("8.8.8.8")), is_public(embedded("10.0.0.1"))] != before


@settings(max_examples=300)
@given(
    st.ip_addresses(v=4) | st.builds(lambda n, i: n[i % n.num_addresses], st.sampled_from(SPECIAL_IPV4), st.integers())
)
def test_ipv4_agrees_with_python_except_for_two_networks(address: ipaddress.IPv4Address) -> None:
    theirs = address.is_global and not address.is_multicast and not address.is_reserved
    stricter = any(address in ipaddress.IPv4Network(network) for network in ("192.0.0.0/24", "192.88.99.0/24"))
    assert is_public(str(address)) == (theirs and not stricter)


@settings(max_examples=300)
@given(st.ip_addresses(v=6) | st.integers(0, 2**125 - 1).map(lambda i: UNICAST_IPV6[i]))
def test_ipv6_is_public_only_where_python_agrees(address: ipaddress.IPv6Address) -> None:
    if is_public(str(address)) and not any(address in network for network, _ in IPV4_EMBEDDING_NETWORKS):
        assert address.is_global
        assert not any((address.is_multicast, address.is_reserved, address.is_site_local))


FORGERIES = (
    # Plain, and common short forms
    *("http://127.0.0.1/", "http://127.0.0.1./", "http://127.1/", "http://127.0.1/", "http://0/", "http://0.0.0.0/"),
    # Decimal, octal, hexadecimal, mixed, too long
    *("http://2130706433/", "http://017700000001/", "http://0177.0.0.1/", "http://0x7f000001/", "http://0x7f.0.0.1/"),
    *("http://0x7f.1/", "http://0177.0x0.1/", "http://00000177.0.0.1/", "http://0X7F.0.0.1/", "http://2852039166/"),
    # Letters that normalisation turns into digits and dots
    *("http://①②⑦.⓪.⓪.①/", "http://１２７.0.0.1/", "http://127。0。0。1/", "http://127．0．0．1/", "http://𝟏𝟐𝟕.0.0.1/"),
    # IPv6, and IPv4 in it
    *("http://[::1]/", "http://[::]/", "http://[0:0:0:0:0:0:0:1]/", "http://[::ffff:127.0.0.1]/"),
    *(
        "http://[::ffff:7f00:1]/",
        "http://[0:0:0:0:0:FFFF:7F00:0001]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
    ),
    *("http://[fe80::1%25lo]/", "http://[fd00::1]/", "http://[::127.0.0.1]/", "http://[2606:4700::1111%25lo]/"),
    *("http://[FD00::A]/", "http://[2606:4700::5efe:7f00:1]/", "http://[2001:0:7f00:1::]/", "http://[v1.fe80::a]/"),
    # Names of this machine and its network, and numbers that are not addresses
    *("http://localhost/", "http://LOCALHOST./", "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/", "http://a.localhost/", "http://printer.local/"),
    *(
        "http://metadata.google.internal/",
        "http://router.home.arpa/",
        "http://a.onion/",
        "http://a.alt/",
        "http://metadata/",
    ),
    *("http://256.1.1.1/", "http://1.2.3.4.5/", "http://127.0.0.08/", "http://a.example.0x/", "http://a.example.1/"),
    *(
        "http://0300.0250.0.1/",
        "http://0xC0.0xA8.1/",
        "http://3232235521/",
        "http://127.0.0.1../",
        "http://１２７。１/",
    ),
    # Characters that are not allowed in names
    *("http://%31%32%37.0.0.1/", "http://a.example%00.b.example/", "http://a example/"),
    *(
        "http://127.0.0.1%20/",
        "http://a,b.example/",
        "http://a.example;b/",
        "http://$(id).example/",
    ),
    # Networks of clouds and homes
    *("http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://192.168.0.1/", "http://100.100.100.200/"),
    # Users, passwords, and URLs that parsers read differently
    *("http://user@127.0.0.1/", "http://a.example@127.0.0.1/", "http://127.0.0.1@a.example/", "http://u:p@a.example/"),
    *("http://127.0.0.1\\@a.example/", "http://a.example:80@127.0.0.1/"),
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
        "http://[]@",
        "http://a\0.example/",
    ),
)


@pytest.mark.parametrize("url", FORGERIES)
def test_forged_urls_are_refused(url: str) -> None:
    with pytest.raises((NotPublicError, BadSchemeError)):
        check_url(url, {})


pieces = st.sampled_from(
    [
        *(
            "http://",
            "https://",
            "//",
            "/",
            "\\",
            "@",
            ":",
            ".",
            "#",
            "?",
            "%",
            "[",
            "]",
            "%25",
            "%2e",
            "::",
            " ",
            "\t",
            "。",
        ),
        *(
            "127.0.0.1",
            "127",
            "0",
            "1",
            "0x7f",
            "0177",
            "2130706433",
            "::1",
            "::ffff:",
            "10.0.0.1",
            "8.8.8.8",
            "a.example",
        ),
        *("localhost", "80", "443", "22", "１２７", "①", "user", "fe80::1", "2606:4700::1111", "xn--", "a"),
    ]
)


@settings(max_examples=500)
@given(st.lists(pieces, max_size=8).map(lambda parts: "http://" + "".join(parts)) | st.text(max_size=20))
def test_accepted_urls_never_lead_to_a_private_address(url: str) -> None:
    assert isinstance(registered_domain(url), str)
    try:
        checked = check_url(url, {})
    except (BadSchemeError, NotPublicError):
        return
    assert checked.scheme in {"http", "https"}
    assert checked.port in {80, 443}
    host = checked.raw_host or ""
    assert urlsplit(str(checked)).hostname == host, "another parser sees the same host"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        with suppress(OSError):
            assert ipaddress.IPv4Address(socket.inet_aton(host.rstrip("."))).is_global
    else:
        assert address.is_global


@pytest.mark.parametrize(
    "url", ["data:,", "http://[", "ftp://a.example/", "http://a.example:22/", "http://", "http://a.1%"]
)
def test_errors_truncate_long_urls(url: str) -> None:
    with pytest.raises((BadSchemeError, NotPublicError)) as caught:
        check_url(url.ljust(10**6, "x"), {})
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://0x7f.1/", "http://①②⑦.⓪.⓪.①/", "http://[::ffff:7f00:1]/"])
def test_a_private_address_is_distinguished_from_a_malformed_one(url: str) -> None:
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
        ("http://a_b-c.example./", "a_b-c.example.", 80),
        ("http://local.example/", "local.example", 80),
        ("http://notlocal.xlocal/", "notlocal.xlocal", 80),
        ("http://8.8.8.8:80/", "8.8.8.8", 80),
        ("http://0x08080808/", "8.8.8.8", 80),
        # As browsers read them; the returned URL is the one that is requested
        ("http://a.example%2e/", "a.example.", 80),
        ("http://a\u200b.example/", "a.example", 80),
        ("http://a.example\\@127.0.0.1/", "a.example", 80),
        ("http:///a.example/x.jpg", "a.example", 80),
    ],
)
def test_urls_with_public_names_are_accepted(url: str, host: str, port: int) -> None:
    checked = check_url(url, {})
    assert (checked.raw_host, checked.port) == (host, port)


@pytest.mark.parametrize("name", LOCAL_NAMES)
def test_every_local_name_is_needed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(module, "LOCAL_NAMES", [other for other in LOCAL_NAMES if other != name])
    assert check_url(f"http://a.{name}/", {}).raw_host == f"a.{name}"


@pytest.mark.parametrize(
    ("ports", "allowed"), [(module.ALLOWED_PORTS, {80, 443}), ({80}, {80}), ({8080, 443}, {8080, 443}), ((), set())]
)
def test_only_allowed_ports_are_accepted(ports: Collection[int], allowed: set[int]) -> None:
    for port in (0, 22, 80, 443, 8080):
        try:
            assert check_url(f"http://a.example:{port}/", {}, ports).port == port
            assert port in allowed
        except BadSchemeError:
            assert port not in allowed


def test_hosts_in_connect_to_use_their_target() -> None:
    connect_to = {"*.example": "127.0.0.1:8080", "b.test": "[::1]:81"}
    assert pinned_target("a.example", connect_to) == ("127.0.0.1", 8080)
    assert pinned_target("b.test", connect_to) == ("::1", 81)
    assert pinned_target("example", connect_to) is None
    assert check_url("http://a.example:9999/x", connect_to).port == 9999
    with pytest.raises(BadSchemeError):
        check_url("http://user@a.example/", connect_to)


@pytest.mark.parametrize("target", ["", "127.0.0.1", "127.0.0.1:", ":80", "127.0.0.1:http", "127.0.0.1:-1"])
def test_malformed_targets(target: str) -> None:
    with pytest.raises(ValueError, match="is not of the form ADDRESS:PORT"):
        parse_target(target)


def answer_with(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Make every name resolve to these addresses."""

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
    with pytest.raises(NotPublicError, match=rf"a\.example resolves to {addresses[-1]}"):
        resolve("a.example")


def test_connect_to_overrides_name_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch)
    assert resolve("a.example", {"*.example": "[::1]:8080"}) == [("::1", 8080)]
    with pytest.raises(socket.gaierror):
        resolve("a.test", {"*.example": "[::1]:8080"})


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..example", "a" * 300])
def test_names_that_cannot_exist(host: str) -> None:
    with pytest.raises(socket.gaierror):
        resolve(host)


def test_slow_lookups_do_not_block_others(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        if host.startswith("dead"):
            done.wait(30)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", port))]

    async def resolve_all() -> None:
        resolver = PublicResolver({})
        dead = [asyncio.create_task(resolver.resolve(f"dead{i}.example", 80)) for i in range(100)]
        await asyncio.sleep(0)
        (found,) = await asyncio.wait_for(resolver.resolve("a.example", 80), timeout=10)
        assert found["host"] == "8.8.8.8"
        assert not any(task.done() for task in dead)
        done.set()
        assert len(await asyncio.gather(*dead)) == 100
        await resolver.close()

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    asyncio.run(resolve_all())


def test_the_number_of_simultaneous_lookups_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, most = 0, 0
    lock = threading.Lock()

    def getaddrinfo(_host: str, port: int, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        with lock:
            under_way -= 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", port))]

    async def resolve_all() -> None:
        resolver = PublicResolver({}, max_lookups=3)
        await asyncio.gather(*(resolver.resolve(f"a{i}.example", 80) for i in range(12)))
        await resolver.close()

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    asyncio.run(resolve_all())
    assert most == 3


def test_no_socket_is_opened_for_a_private_address() -> None:
    open_socket = public_socket_factory({"*.example": "127.0.0.1:8080"})

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
        ("http://[", ""),
        ("http://[bad]/", ""),
        ("http://a℀b.example/", ""),  # a character that normalisation turns into a slash
        ("x.jpg", ""),
    ],
)
def test_registered_domains(url: str, domain: str) -> None:
    assert registered_domain(url) == domain
