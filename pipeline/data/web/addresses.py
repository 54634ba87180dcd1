"""Restrict the crawler to public unicast addresses, to http and https, and to the allowed ports.

Each URL is checked as the connector parses it, after name resolution and after every redirect. The IP address is
checked again when its socket is opened, so no name, notation or redirect leads into a private network (server-side
request forgery).
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from functools import partial
from typing import Any

import tldextract
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from pipeline.data.web.urls import host_of, parse_url
from pipeline.printable import printable

ALLOWED_PORTS = frozenset({80, 443})
SPECIAL_IPV4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network (RFC 791)
            "10.0.0.0/8",  # private (RFC 1918)
            "100.64.0.0/10",  # behind a provider's NAT (RFC 6598)
            "127.0.0.0/8",  # loopback (RFC 1122)
            "169.254.0.0/16",  # link-local, including cloud metadata services (RFC 3927)
            "172.16.0.0/12",  # private (RFC 1918)
            "192.0.0.0/24",  # protocol assignments (RFC 6890)
            "192.0.2.0/24",  # documentation (RFC 5737)
            "192.88.99.0/24",  # 6to4 relays (RFC 7526)
            "192.168.0.0/16",  # private (RFC 1918)
            "198.18.0.0/15",  # benchmarking (RFC 2544)
            "198.51.100.0/24",  # documentation (RFC 5737)
            "203.0.113.0/24",  # documentation (RFC 5737)
            "224.0.0.0/4",  # multicast (RFC 5771)
            "240.0.0.0/4",  # reserved, and broadcast (RFC 1112, RFC 919)
        ),
    )
)
"""Networks without public web servers (IANA's special-purpose registry). Python's own lists vary by version."""
UNICAST_IPV6 = ipaddress.IPv6Network("2000::/3")
"""The range assigned as global unicast (RFC 4291, section 2.4)."""
SPECIAL_IPV6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID (RFC 2928)
            "2001:db8::/32",  # documentation (RFC 3849)
            "3fff::/20",  # documentation (RFC 9637)
        ),
    )
)
"""Special-purpose networks inside `UNICAST_IPV6`."""
IPV4_EMBEDDING_NETWORKS = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped (RFC 4291)
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64 (RFC 6052)
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4 (RFC 3056)
)
"""IPv6 networks that embed IPv4 addresses, and the number of bits after the embedded address."""
LOCAL_NAMES = (
    "localhost",  # RFC 6761
    "local",  # RFC 6762: multicast DNS
    "home.arpa",  # RFC 8375
    "internal",  # reserved by ICANN in 2024; clouds serve metadata there
    "onion",  # RFC 7686: must not be looked up
    "alt",  # RFC 9476: not part of the DNS
)
"""Names of this machine and its network. They and their subdomains are not looked up."""
_MAX_SHOWN = 200
"""Maximum characters of a URL in an error message; a data: URL may have millions."""
_NAME = re.compile(r"[a-z0-9_.-]+")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_SUFFIXES = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)


class NotPublicError(OSError):
    """The address, or an address that the name resolves to, is not public."""


class BadSchemeError(ValueError):
    """The crawler does not use this scheme or port."""


def is_public(address: str) -> bool:
    """Whether an IP address in text form is a global unicast address.

    An IPv6 address that embeds an IPv4 address is judged by the embedded address. An address with a zone (RFC 4007) is
    link-local and therefore not public. NAT64 prefixes that a network chose for itself (RFC 6052) cannot be recognised.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in SPECIAL_IPV4)
    if ip.scope_id is not None:
        return False
    for network, num_bits in IPV4_EMBEDDING_NETWORKS:
        if ip in network:
            return is_public(_ipv4(int(ip) >> num_bits))
    if (int(ip) >> 32) & 0xFDFFFFFF == 0x5EFE and not is_public(_ipv4(int(ip))):  # ISATAP (RFC 5214, section 6.1)
        return False
    return ip in UNICAST_IPV6 and not any(ip in network for network in SPECIAL_IPV6)


def _ipv4(bits: int) -> str:
    return str(ipaddress.IPv4Address(bits & 0xFFFFFFFF))


def check_url(url: str, connect_to: Mapping[str, str], allowed_ports: Collection[int] = ALLOWED_PORTS) -> URL:
    """The URL as it is requested, after checking that it may be requested.

    Request the returned URL rather than the text: another parser could read a different host from the same text.
    aiohttp sends it as it is.

    Args:
        url: an absolute URL.
        connect_to: the operator's own hosts (`pinned_target`); their addresses and ports are not checked.
        allowed_ports: ports that may be requested.

    Raises:
        BadSchemeError: the scheme is neither http nor https, the port is not allowed, the host is missing or malformed,
            or the URL contains a user name.
        NotPublicError: the host is an IP address, in any notation, that is not public, or a name of this machine or
            its network.
    """
    try:
        parsed = URL(parse_url(url), encoded=True)
    except ValueError as error:
        raise BadSchemeError(printable(url, _MAX_SHOWN)) from error
    host = (parsed.raw_host or "").rstrip(".")
    if parsed.scheme not in {"http", "https"} or not host or "@" in parsed.raw_authority:
        raise BadSchemeError(printable(url, _MAX_SHOWN))
    if pinned_target(host, connect_to) is None:
        if parsed.port not in allowed_ports:
            raise BadSchemeError(printable(url, _MAX_SHOWN))
        _check_host(host)
    return parsed


def _check_host(host: str) -> None:
    literal = parse_ip_address(host)
    if literal is not None:
        if not is_public(literal):
            raise NotPublicError(host[:_MAX_SHOWN])
        return
    labels = host.split(".")
    if not _NAME.fullmatch(host) or _NUMBER.fullmatch(labels[-1]):  # a malformed IP address
        raise BadSchemeError(host[:_MAX_SHOWN])
    if len(labels) == 1 or f".{host}".endswith(tuple(f".{name}" for name in LOCAL_NAMES)):
        raise NotPublicError(host[:_MAX_SHOWN])


def parse_ip_address(host: str) -> str | None:
    """The IP address that a host spells, in any notation of inet_aton (decimal, octal, hexadecimal, short), or None."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        try:
            return socket.inet_ntoa(socket.inet_aton(host))
        except (OSError, ValueError):  # ValueError: a null character
            return None


def pinned_target(host: str, connect_to: Mapping[str, str]) -> tuple[str, int] | None:
    """The address and port that the operator set for a host, like curl's --connect-to; None for other hosts."""
    return next((parse_target(target) for pattern, target in connect_to.items() if fnmatch(host, pattern)), None)


def parse_target(target: str) -> tuple[str, int]:
    """Parse an address and port such as 127.0.0.1:8080 or [::1]:8080.

    Raises:
        ValueError: the text is not of the form ADDRESS:PORT.
    """
    address, _, port = target.rpartition(":")
    if not address or not port.isdecimal():
        raise ValueError(f"{target!r} is not of the form ADDRESS:PORT")
    return address.strip("[]"), int(port)


def public_socket_factory(connect_to: Mapping[str, str]) -> Callable[[tuple[Any, ...]], socket.socket]:
    """Make aiohttp's socket factory, which opens sockets only to public addresses and to those in `connect_to`.

    This is the last check before a connection.
    """
    pinned_targets = {parse_target(target) for target in connect_to.values()}

    def open_socket(address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, (host, port, *_) = address
        if (host, port) not in pinned_targets and not is_public(host):
            raise NotPublicError(f"{host} is not a public address")
        return socket.socket(family, kind, protocol)

    return open_socket


def registered_domain(url: str) -> str:
    """The registered domain of a URL by the public suffix list, else the last two labels of its host.

    Returns an empty string if the URL cannot be parsed or has no host.
    """
    host = host_of(url)
    domain: str = _SUFFIXES(host).top_domain_under_public_suffix
    return domain or ".".join(host.split(".")[-2:])


class PublicResolver(AbstractResolver):
    """Resolve names for aiohttp, and refuse every name with a non-public address.

    A lookup may take many seconds if the name's servers do not answer. Lookups therefore have their own thread pool:
    asyncio's default pool has only a few more threads than cores, so six dead names could block all others.

    Args:
        connect_to: the operator's own hosts (`pinned_target`).
        max_lookups: maximum number of simultaneous lookups; threads are started on demand.
    """

    def __init__(self, connect_to: Mapping[str, str], max_lookups: int = 256) -> None:
        self._connect_to = connect_to
        self._threads = ThreadPoolExecutor(max_lookups, "lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Look up the addresses of a host.

        Raises:
            NotPublicError: at least one address is not public.
            OSError: the host has no address.
        """
        target = pinned_target(host, self._connect_to)
        if target is not None:
            address, port = target
            return [self._result(host, address, port, socket.AF_INET6 if ":" in address else socket.AF_INET)]
        lookup = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, family=family)
        try:
            address_infos = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        except UnicodeError as error:  # a label is empty or too long
            raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
        for *_, sockaddr in address_infos:
            if not is_public(str(sockaddr[0])):
                raise NotPublicError(f"{host} resolves to {sockaddr[0]}, which is not a public address")
        return [self._result(host, str(sockaddr[0]), port, kind) for kind, *_, sockaddr in address_infos]

    async def close(self) -> None:
        """Cancel pending lookups; each thread ends when its current lookup does."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _result(host: str, address: str, port: int, family: int) -> ResolveResult:
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=flags)
