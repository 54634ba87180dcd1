"""Where the crawler may connect to: public unicast addresses, by http and https, on the ports that are allowed.

The check is made on the address that is connected to, after name resolution and again after every redirect, so that no
name, encoding or redirect leads into a private network (server-side request forgery).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from fnmatch import fnmatch
from urllib.parse import urlsplit

import tldextract
from aiohttp.abc import AbstractResolver, ResolveResult

ALLOWED_PORTS = frozenset({80, 443})
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))
_SUFFIXES = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)


class NotPublicError(OSError):
    """The address, or the one a name resolves to, is not a public one."""


class BadSchemeError(ValueError):
    """The scheme or the port is not one the crawler uses."""


def is_public(address: str) -> bool:
    """Whether an IP address in text form is a global unicast address; what embeds an IPv4 address is judged by that."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if any(ip in network for network in _NAT64):
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if embedded is not None:
            return is_public(str(embedded))
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def check_url(url: str, connect_to: Mapping[str, str]) -> str:
    """The host of an address that may be asked for.

    Raises:
        BadSchemeError: neither http nor https, or another port than 80 and 443, or no host.
        NotPublicError: the host is an IP address that is not public, in whatever notation.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    if parts.scheme not in {"http", "https"} or not host or "@" in parts.netloc:
        raise BadSchemeError(url)
    if pinned(host, connect_to) is not None:
        return host
    if (parts.port or (443 if parts.scheme == "https" else 80)) not in ALLOWED_PORTS:
        raise BadSchemeError(url)
    literal = _as_address(host)
    if literal is not None and not is_public(literal):
        raise NotPublicError(host)
    return host


def _as_address(host: str) -> str | None:
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
    for pattern, target in connect_to.items():
        if fnmatch(host, pattern):
            address, _, port = target.rpartition(":")
            return address, int(port)
    return None


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
        """
        target = pinned(host, self._connect_to)
        if target is not None:
            address, port = target
            return [self._result(host, address, port, socket.AF_INET6 if ":" in address else socket.AF_INET)]
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, family=family)
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
