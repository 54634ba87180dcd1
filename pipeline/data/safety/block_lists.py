"""Block lists: addresses, domains, files and pictures that must not get in. Read once, looked up for every row.

Lists of millions are the rule and every actor needs them, so an entry is a fixed number of bytes in sorted arrays,
which Ray shares between the actors of a node: a file is its SHA-256 (32 bytes); an address or a domain a 128-bit hash
of its spelling (16 bytes; that any of 10^10 addresses meets the hash of one of 10^7 entries by chance has a probability
of 3 * 10^-22); a picture its 64-bit hash, once for each band (8 * (radius + 1) bytes). No message, log or manifest has
an entry in it: a list of what is forbidden is a list of where to find it.
"""

from __future__ import annotations

import hashlib
import io
import re
from binascii import unhexlify
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from yarl import URL

from pipeline.data.safety.screening import SafetyConfig
from pipeline.data.sources.byte_ranges import Opener, sha256
from pipeline.data.web.addresses import as_address
from pipeline.data.web.urls import request_url
from pipeline.hashing import UInt64
from pipeline.reasons import Reason
from pipeline.schemas import with_reasons

_LONG = 16_384
"""Hashes that one vectorised pass compares in the time of a banded lookup."""
_MAX_BANDED_RADIUS = 7
"""With bands of less than 8 bits, each lookup would compare a large part of the list anyway, one band after another."""
_DOMAIN = re.compile(r"(?!-)[\w-]{1,63}(\.(?!-)[\w-]{1,63})+")


class Keys:
    """A set of keys of W 64-bit words each, which are hashes: 8 W bytes a key, found by their first word."""

    def __init__(self, words: UInt64) -> None:
        assert words.ndim == 2, words.shape
        words = words[np.argsort(words[:, 0], kind="stable")]
        new = np.ones(len(words), bool)
        new[1:] = (words[1:] != words[:-1]).any(axis=1)
        self._first = np.ascontiguousarray(words[new, 0])
        self._rest = words[new, 1:]

    def __len__(self) -> int:
        return len(self._first)

    def __contains__(self, key: bytes) -> bool:
        first, *rest = np.frombuffer(key, ">u8").astype(np.uint64)
        place = int(self._first.searchsorted(first))
        while place < len(self._first) and self._first[place] == first:
            if (self._rest[place] == rest).all():
                return True
            place += 1
        return False


class Pictures:
    """Perceptual hashes, asked for one within a radius: in one pass over a short list, by bands in a long one.

    Two hashes within the radius agree on one of radius + 1 bands (Norouzi et al. 2012; dedupe.py). For each band the
    list is kept sorted by it, rotated so that the band's bits lead.
    """

    def __init__(self, hashes: UInt64, radius: int) -> None:
        assert 0 <= radius < 64, radius
        self._radius = radius
        hashes = np.unique(hashes)
        banded = len(hashes) > _LONG and radius <= _MAX_BANDED_RADIUS
        cuts = [int(cut) for cut in np.linspace(0, 64, radius + 2)] if banded else [0, 64]
        self._bands = [(64 - high, high - low) for low, high in pairwise(cuts)]
        """Of each band how far it is rotated to the left, and its bits."""
        self._sorted = [np.sort(_rotated(hashes, by)) for by, _ in self._bands]
        self._banded = banded

    def __len__(self) -> int:
        return len(self._sorted[0])

    def __contains__(self, phash: int) -> bool:
        return any(
            bool((np.bitwise_count(near ^ wanted) <= self._radius).any()) for near, wanted in self._candidates(phash)
        )

    def _candidates(self, phash: int) -> Iterator[tuple[UInt64, np.uint64]]:
        """For each band the hashes that share it, and the one that is asked for, rotated alike."""
        for hashes, (by, num_bits) in zip(self._sorted, self._bands, strict=True):
            wanted = _rotated(np.array([phash], np.uint64), by)[0]
            if not self._banded:
                yield hashes, wanted
                continue
            others = np.uint64((1 << (64 - num_bits)) - 1)
            first = hashes.searchsorted(wanted & ~others)
            yield hashes[first : hashes.searchsorted(wanted | others, side="right")], wanted


@dataclass(frozen=True, eq=False, repr=False)
class BlockLists:
    """All lists of a configuration. Plain arrays, which actors of a machine share."""

    urls: Keys
    domains: Keys
    files: Keys
    pictures: Pictures
    digests: Mapping[str, Sequence[str]]
    """For each option the SHA-256 of its files, sorted: what a run remembers, so that it is not resumed with others."""

    def __repr__(self) -> str:
        counts = (f"{len(getattr(self, name)):,} {name}" for name in ("urls", "domains", "files", "pictures"))
        return f"BlockLists({', '.join(counts)})"

    def why_not_url(self, url: str | None) -> Reason | None:
        """Why nothing may come from an address, be it that of an image, of a page or of a redirect; None if it may.

        An address is blocked as the server would be asked for it (`request_url`), a
        domain with all its subdomains. What is no address of the web is not blocked here.
        """
        if url is None or not (self.urls or self.domains):
            return None
        try:
            spelling = request_url(url)
        except ValueError:
            return None
        if self.urls and _hash(spelling) in self.urls:
            return Reason.BLOCKED_URL
        if self.domains and any(_hash(name) in self.domains for name in _domains(spelling)):
            return Reason.BLOCKED_DOMAIN
        return None

    def why_not_file(self, sha256: str) -> Reason | None:
        """Why a file may not come in, by the SHA-256 of its bytes in hexadecimal digits; None if it may."""
        return Reason.BLOCKED_FILE if self.files and unhexlify(sha256) in self.files else None

    def why_not_picture(self, phash: int) -> Reason | None:
        """Why a picture may not come in, by its 64-bit perceptual hash; None if it may."""
        return Reason.BLOCKED_PICTURE if phash in self.pictures else None


def read_block_lists(config: SafetyConfig, open_file: Opener) -> BlockLists:
    """The lists of a configuration.

    Raises:
        ValueError: a list cannot be read, has no entry, or has a line that is not of its kind; the message names the
            option, the file and the line, but not what stands there.
    """
    keys, digests = {}, {}
    for option, kind in _KINDS.items():
        uris = getattr(config, option)
        data = bytearray()
        found = []
        for uri in uris:
            data += _read_list(f"safety.{option}: {uri}", uri, kind, open_file)
            with open_file(uri) as stream:
                found.append(sha256(stream))
        keys[option] = np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, kind.num_bytes // 8)
        digests[option] = sorted(found)
    return BlockLists(
        urls=Keys(keys["block_urls"]),
        domains=Keys(keys["block_domains"]),
        files=Keys(keys["block_sha256"]),
        pictures=Pictures(keys["block_phash"][:, 0], config.phash_radius),
        digests=digests,
    )


def apply_lists(table: pa.Table, lists: BlockLists) -> pa.Table:
    """CANDIDATES with a reason for what the lists know already: its address, its page's, or the file that it holds.

    An image that a row holds goes with it. Rows that are out already keep their reason.
    """
    pages = {page: lists.why_not_url(page) for page in table["page_url"].unique().to_pylist()}
    reasons: list[str | None] = []
    blocked = []
    columns = (table[name].to_pylist() for name in ("url", "page_url", "reason"))
    for url, page, reason, image in zip(*columns, table["image"], strict=True):
        why_not = lists.why_not_url(url) or pages[page]
        if why_not is None and image.is_valid and lists.files:
            why_not = lists.why_not_file(hashlib.sha256(image.as_py()).hexdigest())
        blocked.append(why_not is not None)
        reasons.append(reason or why_not)
    if not any(blocked):
        return table
    place = table.schema.get_field_index("image")
    image = pc.if_else(pa.array(blocked, pa.bool_()), pa.scalar(None, pa.large_binary()), table["image"])
    return with_reasons(table.set_column(place, "image", image), reasons)


def _rotated(hashes: UInt64, by: int) -> UInt64:
    """Each hash rotated to the left by 0 to 63 bits."""
    return hashes << np.uint64(by) | hashes >> np.uint64((64 - by) % 64)


def _domains(spelling: str) -> Iterator[str]:
    """The host of an address, and every domain above it that has two labels; an IP address is one name."""
    host = (urlsplit(spelling).hostname or "").rstrip(".")
    literal = as_address(host)
    if literal is not None:
        yield literal
        return
    labels = host.split(".")
    yield from (".".join(labels[first:]) for first in range(len(labels) - 1))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _parse_sha256(entry: str | int) -> bytes:
    return _parse_hexadecimal(entry, 64)


def _parse_phash(entry: str | int) -> bytes:
    return entry.to_bytes(8, "big") if isinstance(entry, int) else _parse_hexadecimal(entry, 16)


def _parse_hexadecimal(entry: str | int, num_digits: int) -> bytes:
    if not isinstance(entry, str) or len(entry) != num_digits:
        raise ValueError
    return unhexlify(entry)


def _parse_url(entry: str | int) -> bytes:
    if not isinstance(entry, str):
        raise ValueError
    return _hash(request_url(entry))


def _parse_domain(entry: str | int) -> bytes:
    if not isinstance(entry, str):
        raise ValueError
    name = entry.lower().rstrip(".")
    literal = as_address(name.strip("[]")) if ":" in name or name.replace(".", "").isdecimal() else None
    if literal is None and not _DOMAIN.fullmatch(name):
        raise ValueError
    return _hash(literal or URL.build(scheme="http", host=name).raw_host or "")


@dataclass(frozen=True)
class _Kind:
    column: str
    parse: Callable[[str | int], bytes]
    """The key of an entry; ValueError where it is not of this kind."""
    num_bytes: int
    what: str


_KINDS = {
    "block_sha256": _Kind("sha256", _parse_sha256, 32, "a SHA-256 of 64 hexadecimal digits"),
    "block_phash": _Kind("phash", _parse_phash, 8, "a perceptual hash of 16 hexadecimal digits"),
    "block_urls": _Kind("url", _parse_url, 16, "a complete address, http or https"),
    "block_domains": _Kind("domain", _parse_domain, 16, "a domain like example.org, or an IP address"),
}
"""What the lists of an option hold."""


def _read_list(name: str, uri: str, kind: _Kind, open_file: Opener) -> bytearray:
    """The keys of one file, one behind the other."""
    data = bytearray()
    unit = "row" if uri.endswith(".parquet") else "line"
    try:
        with open_file(uri) as stream:
            entries = _rows(stream, kind.column, name) if unit == "row" else _lines(stream)
            for number, entry in entries:
                try:
                    data += kind.parse(entry)
                except (ValueError, OverflowError):  # whose messages would show the entry
                    raise ValueError(f"{name}, {unit} {number}: not {kind.what}") from None
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{name} cannot be read ({error})") from error
    if not data:
        raise ValueError(f"{name} has no entry; remove it from the option, or give the right file")
    return data


def _lines(stream: Any) -> Iterator[tuple[int, str]]:
    with io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            entry = line.strip()
            if entry and not entry.startswith("#"):
                yield number, entry


def _rows(stream: Any, column: str, name: str) -> Iterator[tuple[int, Any]]:
    with pq.ParquetFile(stream, page_checksum_verification=True) as file:
        if column not in file.schema_arrow.names:
            raise ValueError(f"{name} has no column {column!r}, only {file.schema_arrow.names}")
        batches = (batch[column].to_pylist() for batch in file.iter_batches(columns=[column]))
        yield from enumerate(chain.from_iterable(batches), 1)


NO_LISTS = BlockLists(
    urls=Keys(np.zeros((0, 2), np.uint64)),
    domains=Keys(np.zeros((0, 2), np.uint64)),
    files=Keys(np.zeros((0, 4), np.uint64)),
    pictures=Pictures(np.zeros(0, np.uint64), 0),
    digests={},
)
"""Nothing is forbidden."""
