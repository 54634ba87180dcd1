"""Block lists: URLs, domains, files and pictures that must not enter the corpus. Read once, looked up for every row.

Lists usually have millions of entries, and every actor needs them. So an entry takes a fixed number of bytes in sorted
arrays, which Ray shares between the actors of a node. A file is its SHA-256 (32 bytes). A URL or a domain is a 128-bit
hash of its key (16 bytes); the probability that any of 10^10 URLs collides with one of 10^7 entries is 3 * 10^-22.
A picture is its 64-bit hash, stored once for each band (8 * (radius + 1) bytes). Messages, logs and manifests never
contain an entry, because a list of forbidden content also shows where to find it.
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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data.safety.screening import SafetyConfig
from pipeline.data.sources.byte_ranges import Opener, sha256
from pipeline.data.sources.parquet_rows import is_text, values_of
from pipeline.data.sources.rows import shown
from pipeline.data.web.addresses import parse_ip_address
from pipeline.data.web.urls import host_of, normalize_url, url_key
from pipeline.hashing import UInt64
from pipeline.reasons import Reason
from pipeline.schemas import with_reasons

_LONG = 16_384
"""Lists with more hashes are looked up by bands; comparing this many in one vectorised pass takes the same time."""
_MAX_BANDED_RADIUS = 7
"""Above this radius, bands have fewer than 8 bits, so a banded lookup would compare a large part of the list anyway."""
_NOT_A_HOST = re.compile(r"[\0-\x20/?#@\\]|\]:")
_DOMAIN = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.(?!-)[a-z0-9_-]{1,63})+")


_MAX_LABELS = 127
"""Maximum labels of a name (RFC 1035, section 2.3.4: 255 octets). Without a bound, all the parents of a host of 10,000
characters would have 25 million."""


class HashKeys:
    """A set of hashes of W 64-bit words each: 8 W bytes per hash, searched by the first word."""

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
        index = int(self._first.searchsorted(first))
        while index < len(self._first) and self._first[index] == first:
            if (self._rest[index] == rest).all():
                return True
            index += 1
        return False


class PictureHashes:
    """A set of perceptual hashes, searched within a radius: a short list in one pass, a long list by bands.

    Two hashes within the radius agree on at least one of radius + 1 bands (Norouzi et al. 2012; duplicates/hamming.py).
    Each band has its own copy of the list, rotated so that the band's bits come first, and sorted.
    """

    def __init__(self, hashes: UInt64, radius: int) -> None:
        assert 0 <= radius < 64, radius
        self._radius = radius
        hashes = np.unique(hashes)
        banded = len(hashes) > _LONG and radius <= _MAX_BANDED_RADIUS
        cuts = [int(cut) for cut in np.linspace(0, 64, radius + 2)] if banded else [0, 64]
        self._bands = [(64 - high, high - low) for low, high in pairwise(cuts)]
        """Left rotation and number of bits of each band."""
        self._sorted = [np.sort(_rotated(hashes, by)) for by, _ in self._bands]
        self._banded = banded

    def __len__(self) -> int:
        return len(self._sorted[0])

    def __contains__(self, phash: int) -> bool:
        return any(
            bool((np.bitwise_count(hashes ^ target) <= self._radius).any())
            for hashes, target in self._candidates(phash)
        )

    def _candidates(self, phash: int) -> Iterator[tuple[UInt64, np.uint64]]:
        """For each band, the listed hashes that agree with `phash` on it, and `phash`, all rotated alike."""
        for hashes, (by, num_bits) in zip(self._sorted, self._bands, strict=True):
            target = _rotated(np.array([phash], np.uint64), by)[0]
            if not self._banded:
                yield hashes, target
                continue
            other_bits = np.uint64((1 << (64 - num_bits)) - 1)
            first = hashes.searchsorted(target & ~other_bits)
            yield hashes[first : hashes.searchsorted(target | other_bits, side="right")], target


@dataclass(frozen=True, eq=False, repr=False)
class BlockLists:
    """All block lists of a configuration, as plain arrays that the actors of a node share."""

    urls: HashKeys
    domains: HashKeys
    files: HashKeys
    pictures: PictureHashes
    digests: Mapping[str, Sequence[str]]
    """Sorted SHA-256 of each option's files. A run records them, so that it cannot be resumed with other lists."""

    def __repr__(self) -> str:
        counts = (f"{len(getattr(self, name)):,} {name}" for name in ("urls", "domains", "files", "pictures"))
        return f"BlockLists({', '.join(counts)})"

    def url_block_reason(self, url: str | None) -> Reason | None:
        """The reason why the URL of an image, a page or a redirect is blocked, or None.

        URLs are compared by `url_key`, so one entry blocks all spellings. A domain is blocked with all its subdomains.
        Texts that are not http or https URLs are not blocked.
        """
        if url is None or not (self.urls or self.domains):
            return None
        if self.urls and _hash(url_key(url)) in self.urls:
            return Reason.BLOCKED_URL
        if self.domains and any(_hash(name) in self.domains for name in _domains(host_of(url))):
            return Reason.BLOCKED_DOMAIN
        return None

    def file_block_reason(self, sha256: str) -> Reason | None:
        """The reason why a file is blocked, or None; `sha256` is the hash of its bytes in hexadecimal digits."""
        return Reason.BLOCKED_FILE if self.files and unhexlify(sha256) in self.files else None

    def picture_block_reason(self, phash: int) -> Reason | None:
        """The reason why a picture is blocked, or None; `phash` is its 64-bit perceptual hash."""
        return Reason.BLOCKED_PICTURE if phash in self.pictures else None


def read_block_lists(config: SafetyConfig, open_file: Opener) -> BlockLists:
    """Read the block lists of a configuration.

    Raises:
        ValueError: a list cannot be read, has no entry, or has a line of the wrong kind. The message names the option,
            the file and the line's number, but does not show the line.
    """
    keys, digests = {}, {}
    for option, kind in _KINDS.items():
        uris = getattr(config, option)
        data = bytearray()
        file_digests = []
        for uri in uris:
            data += _read_list(f"safety.{option}: {uri}", uri, kind, open_file)
            with open_file(uri) as stream:
                file_digests.append(sha256(stream))
        keys[option] = np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, kind.num_bytes // 8)
        digests[option] = sorted(file_digests)
    return BlockLists(
        urls=HashKeys(keys["block_urls"]),
        domains=HashKeys(keys["block_domains"]),
        files=HashKeys(keys["block_sha256"]),
        pictures=PictureHashes(keys["block_phash"][:, 0], config.phash_radius),
        digests=digests,
    )


def apply_lists(table: pa.Table, lists: BlockLists) -> pa.Table:
    """Set a reason for each row of CANDIDATES whose URL, page URL or inline image is on a list.

    A blocked row loses its inline image. Rows that are already dropped keep their reason.
    """
    page_blocks = {page: lists.url_block_reason(page) for page in table["page_url"].unique().to_pylist()}
    reasons: list[str | None] = []
    blocked = []
    columns = (table[name].to_pylist() for name in ("url", "page_url", "reason"))
    for url, page, reason, image in zip(*columns, table["image"], strict=True):
        block = lists.url_block_reason(url) or page_blocks[page]
        if block is None and image.is_valid and lists.files:
            block = lists.file_block_reason(hashlib.sha256(image.as_py()).hexdigest())
        blocked.append(block is not None)
        reasons.append(reason or block)
    if not any(blocked):
        return table
    index = table.schema.get_field_index("image")
    image = pc.if_else(pa.array(blocked, pa.bool_()), pa.scalar(None, pa.large_binary()), table["image"])
    return with_reasons(table.set_column(index, "image", image), reasons)


def _rotated(hashes: UInt64, by: int) -> UInt64:
    """Each hash rotated to the left by 0 to 63 bits."""
    return hashes << np.uint64(by) | hashes >> np.uint64((64 - by) % 64)


def _domains(host: str) -> Iterator[str]:
    """The host and its parent domains of at least two labels; an IP address has no parents."""
    literal = parse_ip_address(host)
    if literal is not None:
        yield literal
        return
    labels = host.split(".")
    yield from (".".join(labels[first:]) for first in range(max(0, len(labels) - _MAX_LABELS), len(labels) - 1))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


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
    return _hash(url_key(normalize_url(entry)))


def _parse_domain(entry: str | int) -> bytes:
    if not isinstance(entry, str):
        raise ValueError
    name = entry.rstrip(".")
    host = host_of(f"http://{name}/") or host_of(f"http://[{name}]/")
    literal = parse_ip_address(host)
    if _NOT_A_HOST.search(name) or (literal is None and (":" in name or not _DOMAIN.fullmatch(host))):
        raise ValueError
    return _hash(literal or host)


@dataclass(frozen=True)
class _Kind:
    column: str
    parse: Callable[[str | int], bytes]
    """The key of an entry; raises ValueError if the entry is not of this kind."""
    num_bytes: int
    description: str


_KINDS = {
    "block_sha256": _Kind("sha256", _parse_sha256, 32, "a SHA-256 of 64 hexadecimal digits"),
    "block_phash": _Kind("phash", _parse_phash, 8, "a perceptual hash of 16 hexadecimal digits"),
    "block_urls": _Kind("url", _parse_url, 16, "a complete http or https URL"),
    "block_domains": _Kind("domain", _parse_domain, 16, "a domain like example.org, or an IP address"),
}
"""The kind of entries in the lists of each option."""


def _read_list(name: str, uri: str, kind: _Kind, open_file: Opener) -> bytearray:
    """The keys of one file, concatenated."""
    data = bytearray()
    unit = "row" if uri.endswith(".parquet") else "line"
    try:
        with open_file(uri) as stream:
            entries = _rows(stream, kind.column, name) if unit == "row" else _lines(stream)
            for number, entry in entries:
                try:
                    data += kind.parse(entry.decode() if isinstance(entry, bytes) else entry)
                except (ValueError, OverflowError):  # their messages would show the entry
                    raise ValueError(f"{name}, {unit} {number}: not {kind.description}") from None
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last one is of a column's name
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
    """The values of a column: strings as bytes, because nothing guarantees that they are valid UTF-8."""
    with pq.ParquetFile(stream, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        if column not in names:
            raise ValueError(f"{name} has no column {column!r}, only {shown(names)}")
        if names.count(column) > 1:
            raise ValueError(f"{name} has {names.count(column)} columns {column!r}")
        kind = file.schema_arrow.field(column).type
        if not (is_text(kind) or (column == "phash" and pa.types.is_integer(kind))):
            raise ValueError(f"{name}: column {column!r} holds {kind}, expected strings")
        batches = (values_of(batch[column]) for batch in file.iter_batches(columns=[column]))
        yield from enumerate(chain.from_iterable(batches), 1)


NO_LISTS = BlockLists(
    urls=HashKeys(np.zeros((0, 2), np.uint64)),
    domains=HashKeys(np.zeros((0, 2), np.uint64)),
    files=HashKeys(np.zeros((0, 4), np.uint64)),
    pictures=PictureHashes(np.zeros(0, np.uint64), 0),
    digests={},
)
"""Blocks nothing."""
