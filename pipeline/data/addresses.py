"""Where the crawler may connect to: public unicast addresses, by http and https, on the ports that are allowed.

The check is made on the address as the connector reads it, after name resolution, after every redirect, and once more
on the very address a socket is opened for, so that no name, notation or redirect leads into a private network
(server-side request forgery).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from typing import Any
from urllib.parse import urlsplit

import tldextract
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

ALLOWED_PORTS = frozenset({80, 443})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NOT_GLOBAL = (
    ipaddress.ip_network("64:ff9b:1::/48"),  # NAT64 of one network (RFC 8215)
    ipaddress.ip_network("3fff::/20"),  # documentation (RFC 9637)
    ipaddress.ip_network("192.0.0.0/24"),  # protocol assignments (RFC 6890)
    ipaddress.ip_network("192.88.99.0/24"),  # 6to4 relays (RFC 7526)
)
"""Special-purpose networks of which Python 3.11 thinks otherwise."""
_SUFFIXES = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)


class NotPublicError(OSError):
    """The address, or the one a name resolves to, is not a public one."""


class BadSchemeError(ValueError):
    """The scheme or the port is not one the crawler uses."""


def is_public(address: str) -> bool:
    """Whether an IP address in text form is a global unicast address; what embeds an IPv4 address is judged by that."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
        if ip.is_site_local or ip.teredo:
            return False
    special = ip.is_multicast or ip.is_reserved or any(ip in network for network in _NOT_GLOBAL)
    return ip.is_global and not special


def check_url(url: str, connect_to: Mapping[str, str]) -> URL:
    """The address as aiohttp reads it, if it may be asked for. Two readers of one text could see two hosts in it.

    Raises:
        BadSchemeError: neither http nor https, or another port than 80 and 443, or no host, or it names a user.
        NotPublicError: the host is an IP address that is not public, in whatever notation.
    """
    try:
        parsed = URL(url)
    except ValueError as error:
        raise BadSchemeError(f"{url!r}: {error}") from error
    host = (parsed.raw_host or "").rstrip(".")
    if parsed.scheme not in {"http", "https"} or not host or "@" in parsed.raw_authority:
        raise BadSchemeError(url)
    if pinned(host, connect_to) is None:
        if parsed.port not in ALLOWED_PORTS:
            raise BadSchemeError(url)
        literal = as_address(host)
        if literal is not None and not is_public(literal):
            raise NotPublicError(host)
    return parsed


def as_address(host: str) -> str | None:
    """The IP address that a host is, in any notation inet_aton knows (decimal, octal, hexadecimal, short), or None."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        try:
            return socket.inet_ntoa(socket.inet_aton(host))
        except OSError:
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
    """The registered domain of an address by the public suffix list, else the last two labels of its host."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    domain: str = _SUFFIXES(host).top_domain_under_public_suffix
    return domain or ".".join(host.split(".")[-2:])


class PublicResolver(AbstractResolver):
    """Resolves names for aiohttp, to public addresses only: one private address among them refuses the name."""

    def __init__(self, connect_to: Mapping[str, str]) -> None:
        self._connect_to = connect_to

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
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
        except UnicodeError as error:  # a label that is empty or too long
            raise socket.gaierror(socket.EAI_NONAME, str(error)) from error
        for *_, sockaddr in found:
            if not is_public(str(sockaddr[0])):
                raise NotPublicError(f"{host} is at {sockaddr[0]}")
        return [self._result(host, str(sockaddr[0]), port, kind) for kind, *_, sockaddr in found]

    async def close(self) -> None:
        """Nothing is held."""

    @staticmethod
    def _result(host: str, address: str, port: int, family: int) -> ResolveResult:
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=flags)
