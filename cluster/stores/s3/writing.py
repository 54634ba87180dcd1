"""Write objects: whole or in parts, and only if absent, which is the commit of every record."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from botocore.exceptions import ClientError

from cluster.stores.errors import StorageError, UnsupportedError
from cluster.stores.s3.causes import FAILURES, status_of, storage_error
from cluster.stores.s3.client import RETRY_ATTEMPTS, client
from cluster.stores.s3.listing import delete_files
from cluster.stores.s3.reading import read, version
from cluster.stores.s3.requests import (
    REFUSED,
    Extra,
    WrongSizeError,
    bucket_and_key,
    pause,
    request,
    send,
    server,
    target,
)

PART_BYTES = 32 * 2**20
"""Larger objects are uploaded in parts of this size. S3 allows 10,000 parts, so objects can have 320 GB."""
_THREADS = 4
_TRIAL = b"a trial of clip-on-ray, which may be deleted"
_VISIBLE_ATTEMPTS = 5
"""Looks at an object that was written, until the store shows it."""
_RACING = 4
"""Conditional puts at once that try a store. Some stores keep the condition only from one put to the next."""
_conditional: set[tuple[str, str]] = set()
"""Server and bucket in which this process has seen a conditional put refused, as it must be."""


def write(uri: str, data: bytes | memoryview) -> None:
    """Write an object, in parts if it is large. Raises StorageError if the stored size is not that of the data."""

    if len(data) > PART_BYTES:
        write_in_parts(uri, data)
        return

    def put(s3: Any, extra: Extra) -> None:
        body = bytes(data)
        s3.put_object(**target(uri), Body=body, **extra(body))
        _check_size(uri, len(data))

    with request(f"writing {len(data):,} bytes to", uri):
        send(put)


def write_in_parts(uri: str, data: bytes | memoryview) -> None:
    """Write an object in parts of PART_BYTES, however small it is. Raises as `write`."""

    def put(s3: Any, extra: Extra) -> None:
        _upload_parts(s3, uri, memoryview(data), extra)
        _check_size(uri, len(data))

    with request(f"writing {len(data):,} bytes to", uri):
        send(put)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write an object unless it exists; whether it was written.

    False can also mean that this call wrote the object but the response was lost.

    Raises:
        UnsupportedError: the store does not keep the condition.
    """
    require_conditional_puts(uri)
    return _put_if_absent(uri, data)


def require_conditional_puts(uri: str) -> None:
    """Put one object several times at once beside `uri`, once per process and bucket: exactly one put may win.

    Raises:
        UnsupportedError: the store does not keep the condition. Records would overwrite each other in silence.
    """
    bucket = bucket_and_key(uri)[0]
    if (server(), bucket) in _conditional:
        return
    folder = uri.rpartition("/")[0]
    plain, probe = (f"{folder}/.probe.{uuid.uuid4().hex}.tmp" for _ in range(2))
    together = threading.Barrier(_RACING)

    def put_with_others(_: int) -> bool:
        together.wait()
        return _put_if_absent(probe, _TRIAL)

    advice = "versions and records would overwrite each other, so use a store that has them (docs/storage.md)"
    try:
        write(plain, _TRIAL)  # finds out whether the store takes checksums, and whether it stores what it is sent
        with ThreadPoolExecutor(_RACING) as threads:
            wins = sum(threads.map(put_with_others, range(_RACING)))
        if wins > 1 or _put_if_absent(probe, _TRIAL):  # no win: the response of the put that won was lost
            raise UnsupportedError(
                f"s3://{bucket}: the store does not keep conditional puts (If-None-Match: * was accepted for an object "
                f"that exists); {advice}"
            )
        if wins == 0:
            version(probe)
    except FileNotFoundError as error:
        raise UnsupportedError(
            f"s3://{bucket}: the store refuses conditional puts of objects that do not exist; {advice}"
        ) from error
    except StorageError as error:
        is_cause_known = type(error) not in (StorageError, UnsupportedError)
        if isinstance(error.__cause__, ClientError) and status_of(error.__cause__) in REFUSED and not is_cause_known:
            raise UnsupportedError(f"s3://{bucket}: the store refuses conditional puts ({error}); {advice}") from error
        raise
    finally:
        delete_files([plain, probe])  # one that stays is hidden and small
    _conditional.add((server(), bucket))


def abort_upload(uri: str, upload_id: str) -> None:
    """Abort a multipart upload and delete its parts. An upload that is gone is not an error."""
    with suppress(FileNotFoundError), request("aborting an upload of", uri):
        client().abort_multipart_upload(**target(uri), UploadId=upload_id)


def _put_if_absent(uri: str, data: bytes) -> bool:
    for attempt in range(RETRY_ATTEMPTS):
        with request("writing", uri):
            try:
                send(lambda s3, extra: s3.put_object(**target(uri), Body=data, IfNoneMatch="*", **extra(data)))
                return True
            except ClientError as error:
                if status_of(error) in (304, 412):
                    return False
                if status_of(error) != 409:
                    raise
                conflict = error
        # Another conditional put of this key is in flight, with an unknown outcome. Some stores answer 409 for good.
        with suppress(FileNotFoundError):
            version(uri)
            return False
        pause(attempt)
    raise storage_error(conflict, uri) from conflict


def _check_size(uri: str, num_bytes: int) -> None:
    for attempt in range(_VISIBLE_ATTEMPTS):
        try:
            stored = version(uri).num_bytes
        except FileNotFoundError:
            pause(attempt)
            continue
        if stored != num_bytes:
            raise WrongSizeError(f"{uri}: the server stored {stored} of {num_bytes} bytes; check the storage")
        return
    raise UnsupportedError(
        f"{uri}: the store does not show an object after it has written it; use one with consistent reads "
        "(docs/storage.md)"
    )


def _upload_parts(s3: Any, uri: str, data: memoryview, extra: Extra) -> None:
    upload = {**target(uri), "UploadId": s3.create_multipart_upload(**target(uri))["UploadId"]}

    def send_part(number: int) -> dict[str, Any]:
        part = bytes(data[(number - 1) * PART_BYTES : number * PART_BYTES])
        answer = s3.upload_part(**upload, PartNumber=number, Body=part, **extra(part))
        checksums = {name: answer[name] for name in answer if name.startswith("Checksum") and name != "ChecksumType"}
        return {"PartNumber": number, "ETag": answer["ETag"]} | checksums

    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            parts = list(threads.map(send_part, range(1, -(-len(data) // PART_BYTES) + 1)))
        s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    except s3.exceptions.NoSuchUpload:
        # If the response to the completing request was lost, its retry no longer finds the upload
        if not _has_content(uri, data):
            raise
    except BaseException:
        with suppress(*FAILURES):
            s3.abort_multipart_upload(**upload)
        raise


def _has_content(uri: str, data: memoryview) -> bool:
    """Whether an object exists and has this content."""
    position = 0
    try:
        for chunk in read(uri):
            if data[position : position + len(chunk)] != chunk:
                return False
            position += len(chunk)
    except FileNotFoundError:
        return False
    return position == len(data)
