"""Candidates from what img2dataset has downloaded: its output folders of the formats Parquet and webdataset.

Parquet output (`00000.parquet` with the images in `jpg`) is a table like others: a row without an image, because its
download failed, is a candidate by its address and so is asked for again. Webdataset output is a shard `00000.tar` with
key.jpg, key.txt and key.json for each image, beside a `00000.parquet` without images that lists the failures too: of
that table the rows count that the shard does not hold. `00000_stats.json` is not read.

A shard comes from anybody: it is never unpacked to disk, and each member is read up to a limit.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from pipeline.data.sources.page import Candidate, as_table, candidate
from pipeline.data.sources.warc_records import Source
from pipeline.reasons import Reason

SHARD_SUFFIX = ".tar"
IMAGE_TYPES = ("jpg", "jpeg", "png", "webp")
MAX_IMAGE_BYTES = 32 * 2**20
MAX_TEXT_BYTES = 2**20
_LIMITS = dict.fromkeys(IMAGE_TYPES, MAX_IMAGE_BYTES) | {"txt": MAX_TEXT_BYTES, "json": MAX_TEXT_BYTES}


class Sample(NamedTuple):
    """The members of a shard that have one key."""

    key: str
    offset: int
    """First byte of its first member in the shard."""
    parts: dict[str, bytes | None]
    """Content by extension; None where it is longer than the limit."""

    @property
    def text(self) -> str:
        """Its .txt; empty where there is none."""
        return self._decoded("txt")

    def fields(self) -> dict[str, Any] | None:
        """What its .json says: nothing where there is none or it is no object, None where it cannot be read."""
        try:
            known = json.loads(self._decoded("json") or "{}")
        except (ValueError, RecursionError):
            return None
        return known if isinstance(known, dict) else {}

    @property
    def image(self) -> bytes | None:
        """Its image, of several the first by IMAGE_TYPES; None where there is none or it is too long."""
        return next((self.parts[name] for name in IMAGE_TYPES if name in self.parts), None)

    @property
    def image_is_too_long(self) -> bool:
        """Whether there is an image, longer than MAX_IMAGE_BYTES."""
        return self.image is None and not self.parts.keys().isdisjoint(IMAGE_TYPES)

    def _decoded(self, extension: str) -> str:
        return (self.parts.get(extension) or b"").decode("utf-8", "replace")


def table_beside(shard: str) -> str:
    """Where the table beside a shard is, if there is one."""
    return shard.removesuffix(SHARD_SUFFIX) + ".parquet"


def without_tables_beside(files: Sequence[str]) -> list[str]:
    """The files less the tables beside shards, which are read with their shards."""
    beside = {table_beside(file) for file in files if file.endswith(SHARD_SUFFIX)}
    return [file for file in files if file not in beside]


def read_shard(uri: str, stream: BinaryIO, listed: pa.Table | None) -> pa.Table:
    """Candidates of a webdataset shard, and of the rows of the table beside it that the shard does not hold.

    Args:
        uri: the shard's.
        stream: the shard, which can be sought.
        listed: the table (columns url, key, caption), where there is one.

    Returns:
        CANDIDATES. `record_offset` is that of a sample's first member; null for rows of the table. Damage to the shard
        is a row, and the samples behind it come from the table, to be fetched again.

    Raises:
        ReadError: the shard's bytes do not come.
    """
    candidates: list[Candidate] = []
    offsets: list[int | None] = []
    keys: set[str] = set()
    try:
        source: Any = Source(stream)
        with tarfile.open(fileobj=source, mode="r:") as shard:
            for sample in samples(shard, source):
                candidates.append(_candidate(sample))
                offsets.append(sample.offset)
                keys.add(sample.key)
    except (tarfile.TarError, OSError, EOFError) as error:
        candidates.append(Candidate(reason=Reason.BROKEN_ARCHIVE, caption=str(error)))
        offsets.append(None)
    if listed is not None:
        for row in listed.to_pylist():
            if row.get("key") not in keys:
                candidates.append(candidate(row.get("url") or "", row.get("caption") or "", "table"))
                offsets.append(None)
    return as_table(candidates, archive=[uri] * len(candidates), record_offset=offsets)


def samples(shard: tarfile.TarFile, stream: Source) -> Iterator[Sample]:
    """The samples of a shard, in its order.

    Raises:
        tarfile.TarError, EOFError: the shard is damaged; what came before is sound.
    """
    sample: Sample | None = None
    for member in shard:
        folder, _, name = member.name.rpartition("/")
        stem, _, extension = name.partition(".")
        key, extension = f"{folder}/{stem}".removeprefix("./").lstrip("/"), extension.lower()
        if not member.isreg() or extension not in _LIMITS:
            continue
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = Sample(key, member.offset, {})
        sample.parts[extension] = _content(shard, member, _LIMITS[extension])
    _check_end(stream, shard.offset)  # before the last sample, of which more may have been there
    if sample is not None:
        yield sample


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
    found = candidate(url, sample.text or caption, "table", sample.image)
    return found._replace(reason=Reason.TOO_MANY_BYTES) if sample.image_is_too_long else found


def _check_end(stream: Source, offset: int) -> None:
    """Make sure that no member follows: tarfile stops without a word where a header cannot be read."""
    stream.seek(offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise EOFError(f"the shard cannot be read from byte {offset} on")
