"""Where the crawler may connect to: public unicast addresses, by http and https, on the ports that are allowed.

The check is made on the address as the connector reads it, after name resolution, after every redirect, and once more
on the very address a socket is opened for, so that no name, notation or redirect leads into a private network
(server-side request forgery).
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
from urllib.parse import urlsplit

import tldextract
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

ALLOWED_PORTS = frozenset({80, 443})
SPECIAL_IPV4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network (RFC 791)
            "10.0.0.0/8",  # private (RFC 1918)
            "100.64.0.0/10",  # behind a provider's NAT (RFC 6598)
            "127.0.0.0/8",  # loopback (RFC 1122)
            "169.254.0.0/16",  # link-local, and the metadata of clouds (RFC 3927)
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
"""Where no public web server is, by IANA's registry for special purposes. Python's own lists vary by version."""
UNICAST_IPV6 = ipaddress.IPv6Network("2000::/3")
"""All that is assigned as global unicast (RFC 4291, section 2.4)."""
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
"""What is special in it."""
EMBEDDING = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped (RFC 4291)
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64 (RFC 6052)
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4 (RFC 3056)
)
"""IPv6 networks that stand for IPv4 addresses, and the bits after the embedded address."""
LOCAL_NAMES = (
    "localhost",  # RFC 6761
    "local",  # RFC 6762: multicast DNS
    "home.arpa",  # RFC 8375
    "internal",  # reserved by ICANN in 2024; clouds have their metadata there
    "onion",  # RFC 7686: not to be looked up
    "alt",  # RFC 9476: not in the DNS
)
"""Names of this machine and of its network, and all below them: they are not looked up."""
_MAX_SHOWN = 200
"""Characters of an address in an error's message; a data: address may have millions."""
_NAME = re.compile(r"[a-z0-9_.-]+")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_SUFFIXES = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)


class NotPublicError(OSError):
    """The address, or the one a name resolves to, is not a public one."""


class BadSchemeError(ValueError):
    """The scheme or the port is not one the crawler uses."""


def is_public(address: str) -> bool:
    """Whether an IP address in text form is a global unicast address; what embeds an IPv4 address is judged by that.

    An address with a zone (RFC 4007) is not: it is one of a link. NAT64 prefixes that a network chose for itself
    (RFC 6052) look like any other address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in SPECIAL_IPV4)
    if ip.scope_id is not None:
        return False
    for embedding, num_bits in EMBEDDING:
        if ip in embedding:
            return is_public(_ipv4(int(ip) >> num_bits))
    if (int(ip) >> 32) & 0xFDFFFFFF == 0x5EFE and not is_public(_ipv4(int(ip))):  # ISATAP (RFC 5214, section 6.1)
        return False
    return ip in UNICAST_IPV6 and not any(ip in network for network in SPECIAL_IPV6)


def _ipv4(bits: int) -> str:
    return str(ipaddress.IPv4Address(bits & 0xFFFFFFFF))


def check_url(url: str, connect_to: Mapping[str, str], allowed_ports: Collection[int] = ALLOWED_PORTS) -> URL:
    """The address as aiohttp reads it, if it may be asked for. Two readers of one text could see two hosts in it.

    Args:
        url: absolute.
        connect_to: hosts of the operator's own (`pinned`), for which host and port are not judged.
        allowed_ports: those that may be asked for.

    Raises:
        BadSchemeError: neither http nor https, or a port that is not allowed, or no host, or it names a user.
        NotPublicError: the host is an IP address that is not public, in whatever notation, or a name of this machine or
            of its network.
    """
    try:
        parsed = URL(url)
    except (ValueError, IndexError) as error:  # yarl 1.25 raises IndexError for http://[]@
        raise BadSchemeError(str(error)[:_MAX_SHOWN]) from error
    host = (parsed.raw_host or "").rstrip(".")
    if parsed.scheme not in {"http", "https"} or not host or "@" in parsed.raw_authority:
        raise BadSchemeError(url[:_MAX_SHOWN])
    if pinned(host, connect_to) is None:
        if parsed.port not in allowed_ports:
            raise BadSchemeError(url[:_MAX_SHOWN])
        _check_host(host)
    return parsed


def _check_host(host: str) -> None:
    literal = as_address(host)
    if literal is not None:
        if not is_public(literal):
            raise NotPublicError(host[:_MAX_SHOWN])
        return
    labels = host.split(".")
    if not _NAME.fullmatch(host) or _NUMBER.fullmatch(labels[-1]):  # no domain is a number: it is a broken address
        raise BadSchemeError(host[:_MAX_SHOWN])
    if len(labels) == 1 or f".{host}".endswith(tuple(f".{name}" for name in LOCAL_NAMES)):
        raise NotPublicError(host[:_MAX_SHOWN])


def as_address(host: str) -> str | None:
    """The IP address that a host is, in any notation inet_aton knows (decimal, octal, hexadecimal, short), or None."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        try:
            return socket.inet_ntoa(socket.inet_aton(host))
        except (OSError, ValueError):  # ValueError: a null character
            return None


def pinned(host: str, connect_to: Mapping[str, str]) -> tuple[str, int] | None:
    """Address and port that the operator gave for a host, as curl's --connect-to does; None for other hosts."""
    return next((parse_target(target) for pattern, target in connect_to.items() if fnmatch(host, pattern)), None)


def parse_target(target: str) -> tuple[str, int]:
    """Address and port of a text like 127.0.0.1:8080 or [::1]:8080.

    Raises:
        ValueError: it is none.
    """
    address, _, port = target.rpartition(":")
    if not address or not port.isdecimal():
        raise ValueError(f"{target!r} is no ADDRESS:PORT")
    return address.strip("[]"), int(port)


def public_sockets(connect_to: Mapping[str, str]) -> Callable[[tuple[Any, ...]], socket.socket]:
    """What opens aiohttp's sockets: to public addresses, and to those the operator gave. The last check of all."""
    given = {parse_target(target) for target in connect_to.values()}

    def open_socket(address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, (host, port, *_) = address
        if (host, port) not in given and not is_public(host):
            raise NotPublicError(f"{host} is not a public address")
        return socket.socket(family, kind, protocol)

    return open_socket


def registered_domain(url: str) -> str:
    """The registered domain of an address by the public suffix list, else the last two labels of its host.

    Empty where it has no host, or cannot be read.
    """
    try:
        host = (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""
    domain: str = _SUFFIXES(host).top_domain_under_public_suffix
    return domain or ".".join(host.split(".")[-2:])


class PublicResolver(AbstractResolver):
    """Resolves names for aiohttp, to public addresses only: one private address among them refuses the name.

    A name whose servers are gone takes the system's resolver many seconds. So lookups have threads of their own, of
    which asyncio alone would have a few more than there are cores: six dead names would hold up all others.

    Args:
        connect_to: hosts of the operator's own (`pinned`).
        max_lookups: at a time; a thread is made when all others wait for an answer.
    """

    def __init__(self, connect_to: Mapping[str, str], max_lookups: int = 256) -> None:
        self._connect_to = connect_to
        self._threads = ThreadPoolExecutor(max_lookups, "lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of a host.

        Raises:
            NotPublicError: one of them is not public.
            OSError: it has none.
        """
        target = pinned(host, self._connect_to)
        if target is not None:
            address, port = target
            return [self._result(host, address, port, socket.AF_INET6 if ":" in address else socket.AF_INET)]
        lookup = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, family=family)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, lookup)
        except UnicodeError as error:  # a label that is empty or too long
            raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
        for *_, sockaddr in found:
            if not is_public(str(sockaddr[0])):
                raise NotPublicError(f"{host} is at {sockaddr[0]}")
        return [self._result(host, str(sockaddr[0]), port, kind) for kind, *_, sockaddr in found]

    async def close(self) -> None:
        """Forget the lookups that have not begun; threads end with theirs."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _result(host: str, address: str, port: int, family: int) -> ResolveResult:
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=flags)
