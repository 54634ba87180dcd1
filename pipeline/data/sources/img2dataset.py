"""Read candidates from img2dataset's output folders, in Parquet or webdataset format.

Parquet output (`00000.parquet` with the images in `jpg`) is read like any other table. A row whose download failed has
no image; it becomes a candidate with a URL, so its image is requested again. Webdataset output is a shard `00000.tar`
with key.jpg, key.txt and key.json for each image. The `00000.parquet` next to it has no images but also lists the
failures; only its rows that are missing from the shard are used. `00000_stats.json` is ignored.

Shards are untrusted: they are never unpacked to disk, and the size of each member is limited.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence, Set
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from pipeline.data.sources.byte_ranges import READ_BYTES
from pipeline.data.sources.page import Candidate, as_table, candidate
from pipeline.data.sources.rows import Row, reason_of_row
from pipeline.data.sources.tar_headers import open_tar
from pipeline.data.sources.warc_records import ReadError, Source
from pipeline.printable import message_of, storable
from pipeline.reasons import Reason

SHARD_SUFFIX = ".tar"
IMAGE_TYPES = ("jpg", "jpeg", "png", "webp")
MAX_IMAGE_BYTES = 32 * 2**20
MAX_TEXT_BYTES = 2**20
_DAMAGE = (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError)
"""Exceptions that tarfile raises for damaged or hostile shards."""
_LIMITS = dict.fromkeys(IMAGE_TYPES, MAX_IMAGE_BYTES) | {"txt": MAX_TEXT_BYTES, "json": MAX_TEXT_BYTES}


class Sample(NamedTuple):
    """All members of a shard that share one key."""

    key: str
    offset: int
    """Offset of the sample's first member in the shard."""
    parts: dict[str, bytes | None]
    """Content by extension; None if it exceeds the size limit."""

    @property
    def text(self) -> str:
        """The content of the .txt member, or an empty string."""
        return self._decoded("txt")

    def fields(self) -> dict[str, Any] | None:
        """The object in the .json member; empty if it is missing or not an object, None if it is not valid JSON."""
        try:
            value = json.loads(self._decoded("json") or "{}")
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else {}

    @property
    def image(self) -> bytes | None:
        """The image, the first in the order of IMAGE_TYPES; None if it is missing or too long."""
        return next((self.parts[name] for name in IMAGE_TYPES if name in self.parts), None)

    @property
    def kinds(self) -> Set[str]:
        """The kinds of its parts: image, txt, json."""
        return {"image" if extension in IMAGE_TYPES else extension for extension in self.parts}

    @property
    def image_is_too_long(self) -> bool:
        """Whether the sample has an image that exceeds MAX_IMAGE_BYTES."""
        return self.image is None and not self.parts.keys().isdisjoint(IMAGE_TYPES)

    def _decoded(self, extension: str) -> str:
        return (self.parts.get(extension) or b"").decode("utf-8", "replace")


def table_of_shard(shard: str) -> str:
    """The URI that a table next to this shard would have."""
    return shard.removesuffix(SHARD_SUFFIX) + ".parquet"


def without_shard_tables(files: Sequence[str]) -> list[str]:
    """The files without the tables next to shards, which are read together with their shards."""
    tables = {table_of_shard(file) for file in files if file.endswith(SHARD_SUFFIX)}
    return [file for file in files if file not in tables]


def read_shard(uri: str, stream: BinaryIO, listed: Iterable[Row] = ()) -> pa.Table:
    """Read the candidates of a webdataset shard, and of the table rows that are missing from the shard.

    Args:
        uri: URI of the shard.
        stream: the shard, as a seekable stream.
        listed: the rows of the table next to the shard (columns url, key, caption), if it exists.

    Returns:
        CANDIDATES. `record_offset` is the offset of the sample's first member, or null for rows of the table. Damage to
        the shard becomes a row; the samples after it are taken from the table, so their images are fetched again.

    Raises:
        ReadError: the storage failed to deliver the shard's bytes.
    """
    candidates: list[Candidate] = []
    offsets: list[int | None] = []
    keys: set[str] = set()
    try:
        source: Any = Source(stream)
        with open_tar(source) as shard:
            for sample in samples(shard, source):
                candidates.append(_guarded(partial(_candidate, sample)))
                offsets.append(sample.offset)
                keys.add(sample.key)
    except ReadError:
        raise
    except Exception as error:  # noqa: BLE001 (a row says what happened, and the job counts such rows)
        candidates.append(Candidate(reason=reason_of_damage(error), caption=message_of(error)))
        offsets.append(None)
    for row in missing_rows(listed, keys):
        candidates.append(_guarded(partial(_listed_candidate, row)))
        offsets.append(None)
    return as_table(candidates, archive=[uri] * len(candidates), record_offset=offsets)


def reason_of_damage(error: Exception) -> Reason:
    """The reason for an error while a shard was read."""
    return Reason.BROKEN_ARCHIVE if isinstance(error, _DAMAGE) else Reason.UNFORESEEN


def missing_rows(listed: Iterable[Row], keys: Collection[str]) -> Iterator[Row]:
    """The rows of img2dataset's table whose key is not among these, and those that cannot be read."""
    for row in listed:
        key = row.values.get("key")
        if not isinstance(key, bytes) or key.decode("utf-8", "replace") not in keys:
            yield row


def _listed_candidate(row: Row) -> Candidate:
    if row.reason is not None:
        return Candidate(reason=row.reason, caption=row.message)
    url, caption = (
        value.decode() if isinstance(value := row.values.get(name), bytes) else "" for name in ("url", "caption")
    )
    return candidate(url, caption, "table")


def _guarded(read: Callable[[], Candidate]) -> Candidate:
    """A candidate, or a row with the error that reading it raised."""
    try:
        return read()
    except Exception as error:  # noqa: BLE001 (a row says what happened, and the job counts such rows)
        return Candidate(reason=reason_of_row(error), caption=message_of(error))


def samples(shard: tarfile.TarFile, stream: Source) -> Iterator[Sample]:
    """Iterate over the samples of a shard, in the order of the shard.

    Raises:
        tarfile.TarError, EOFError: the shard is damaged, or has no sample. The samples before the damage are intact;
            the last one is left out if it lacks a kind of part that the one before it has.
    """
    sample: Sample | None = None
    kinds: Set[str] = frozenset({"image", "txt", "json"})
    num_members = 0
    try:
        for member in shard:
            if shard.offset <= member.offset:  # of a negative size: the same members would come again and again
                raise EOFError(f"the size of {member.name!r} is {member.size}")
            num_members += member.isreg()
            named = _key_and_extension(member.name, sample)
            if not member.isreg() or named is None:
                continue
            key, extension = named
            if sample is None or key != sample.key:
                if sample is not None:
                    kinds = sample.kinds
                    yield sample
                sample = Sample(key, member.offset, {})
            sample.parts[extension] = _content(shard, member, _LIMITS[extension])
        _check_end(stream, shard.offset)
    except _DAMAGE:
        if sample is not None and sample.kinds >= kinds:
            yield sample
        raise
    if sample is not None:
        yield sample
    elif num_members:
        raise EOFError("the shard has no member named KEY.jpg, KEY.png, KEY.webp, KEY.txt or KEY.json")


def _key_and_extension(path: str, sample: Sample | None) -> tuple[str, str] | None:
    """The key of a member and its extension, or None if it is not part of a sample.

    As in webdataset, the extension begins at the first dot of the name, so `1.seg.png` belongs to the sample 1. But a
    name such as `photo.v2.jpg`, which belongs to no sample in this way, is the image of the sample photo.v2.
    """
    folder, _, name = path.rpartition("/")
    stems_and_extensions = (name.partition(".")[::2], name.rpartition(".")[::2])
    for stem, extension in stems_and_extensions:
        key = storable(f"{folder}/{stem}".removeprefix("./").lstrip("/"))
        if extension.lower() in _LIMITS:
            return key, extension.lower()
        if sample is not None and key == sample.key:
            return None
    return None


def _content(shard: tarfile.TarFile, member: tarfile.TarInfo, max_bytes: int) -> bytes | None:
    file = shard.extractfile(member)
    if file is None or member.size > max_bytes:
        return None
    data = file.read()
    if len(data) != member.size:
        raise EOFError(f"the shard ends inside {member.name!r}")
    return data


def _candidate(sample: Sample) -> Candidate:
    fields = sample.fields()
    if fields is None:
        return Candidate(reason=Reason.BROKEN_RECORD, caption=sample.text)
    url, caption = (value if isinstance(value := fields.get(name), str) else "" for name in ("url", "caption"))
    row = candidate(url, sample.text or caption, "table", sample.image)
    return row._replace(reason=Reason.TOO_MANY_BYTES) if sample.image_is_too_long else row


def _check_end(stream: Source, offset: int) -> None:
    """Make sure that no member follows, because tarfile stops silently at an unreadable header and at the first end."""
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise EOFError(f"the shard is unreadable from byte {offset} on")
    while block := stream.read(READ_BYTES):
        if block.count(0) < len(block):
            raise EOFError("another tar follows the end of the shard; only its images are missing")
