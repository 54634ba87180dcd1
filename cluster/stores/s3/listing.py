"""List and delete objects, also on stores without list type 2 or without the deletion of many objects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from typing import Any

from botocore.exceptions import ClientError

from cluster.stores.errors import StorageError, UnsupportedError
from cluster.stores.s3.causes import status_of, storage_error
from cluster.stores.s3.client import client
from cluster.stores.s3.reading import version
from cluster.stores.s3.requests import REFUSED, bucket_and_key, lacks, note_lack, prefix, request

DELETE_KEYS = 1000
"""Objects that one request may delete."""
_PAGE_KEYS = 1000
_THREADS = 8


def objects(uri: str) -> list[tuple[str, int, datetime]]:
    """The objects below a prefix, in no order: URI, size in bytes, time of last modification."""
    bucket = bucket_and_key(uri)[0]
    return [
        (f"s3://{bucket}/{entry['Key']}", entry["Size"], entry["LastModified"])
        for page in _pages(uri, _PAGE_KEYS)
        for entry in page
    ]


def exists(uri: str) -> bool:
    """Whether an object has this name, or any has the prefix `uri/`."""
    with suppress(FileNotFoundError):
        if bucket_and_key(uri)[1]:
            version(uri)
            return True
    return is_folder(uri)


def is_folder(uri: str) -> bool:
    """Whether any object has the prefix `uri/`. Raises NoSuchBucketError."""
    return bool(next(_pages(uri, 1)))


def delete(uri: str) -> None:
    """Delete an object and all objects below it. Raises the first StorageError."""
    bucket, key = bucket_and_key(uri)
    below = [found.removeprefix(f"s3://{bucket}/") for found, _, _ in objects(uri)]
    own = [key.rstrip("/")] if key.rstrip("/") else []
    for error in _delete_keys(bucket, own + below).values():
        raise error


def delete_files(uris: Sequence[str]) -> dict[str, OSError]:
    """Delete objects, up to DELETE_KEYS in one request. Returns the errors of those that were not deleted."""
    keys_by_bucket = defaultdict(list)
    for uri in uris:
        bucket, key = bucket_and_key(uri)
        keys_by_bucket[bucket].append(key)
    return {
        f"s3://{bucket}/{key}": error
        for bucket, keys in keys_by_bucket.items()
        for key, error in _delete_keys(bucket, keys).items()
    }


def unfinished_uploads(uri: str) -> list[tuple[str, str, datetime]]:
    """The unfinished multipart uploads below a prefix: URI of the object, id of the upload, start time.

    A store that cannot list them gives none.
    """
    bucket = bucket_and_key(uri)[0]
    with request("listing unfinished uploads of", uri):
        try:
            return [
                (f"s3://{bucket}/{upload['Key']}", upload["UploadId"], upload["Initiated"])
                for page in client().get_paginator("list_multipart_uploads").paginate(**prefix(uri))
                for upload in page.get("Uploads", [])
            ]
        except ClientError as error:
            if status_of(error) not in REFUSED:
                raise
            note_lack("unfinished uploads", error)
            return []


def _pages(uri: str, max_keys: int) -> Iterator[list[dict[str, Any]]]:
    """The pages of a listing below a prefix, at least one.

    Stores without list type 2 answer as the first type does: truncated, and without the token for more. Their listing
    goes on after the last key; otherwise it would end after 1,000 objects in silence.
    """
    asked: dict[str, Any] = {**prefix(uri), "MaxKeys": max_keys}
    following = dict[str, str]()
    while True:
        with request("listing", uri):
            try:
                list_page = client().list_objects if lacks("list type 2") else client().list_objects_v2
                page = list_page(**asked, **following)
            except ClientError as error:
                if status_of(error) not in REFUSED or lacks("list type 2"):
                    raise
                page = client().list_objects(**asked)
                note_lack("list type 2", error)
        entries: list[dict[str, Any]] = page.get("Contents", [])
        yield entries
        if not page.get("IsTruncated"):
            return
        if token := page.get("NextContinuationToken"):
            advanced = {"ContinuationToken": token}
        else:
            note_lack("list type 2", "a truncated listing has no NextContinuationToken")
            advanced = {"Marker": page.get("NextMarker") or (entries[-1]["Key"] if entries else "")}
        if advanced == following:
            raise UnsupportedError(f"{uri}: the listing of this store does not advance; see docs/storage.md")
        following = advanced


def _delete_keys(bucket: str, keys: Sequence[str]) -> dict[str, OSError]:
    """Delete objects, and return the errors by key."""
    errors: dict[str, OSError] = {}
    rest = list(keys)
    while len(rest) > 1 and not lacks("the deletion of many objects"):
        batch, rest = rest[:DELETE_KEYS], rest[DELETE_KEYS:]
        try:
            errors |= _delete_batch(bucket, batch)
        except StorageError as error:
            if not (isinstance(error.__cause__, ClientError) and status_of(error.__cause__) in REFUSED):
                return errors | dict.fromkeys([*batch, *rest], error)
            note_lack("the deletion of many objects", error.__cause__)
            rest = batch + rest
    with ThreadPoolExecutor(_THREADS) as threads:
        found = threads.map(lambda key: _delete_one(bucket, key), rest)
        return errors | {key: error for key, error in zip(rest, found, strict=True) if error is not None}


def _delete_batch(bucket: str, keys: Sequence[str]) -> dict[str, OSError]:
    with request(f"deleting {len(keys):,} objects from", f"s3://{bucket}/{keys[0]}"):
        named = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        failures = client().delete_objects(Bucket=bucket, Delete=named).get("Errors", [])
    errors: dict[str, OSError] = {}
    for failure in failures:
        error = storage_error(ClientError({"Error": failure}, "DeleteObjects"), f"s3://{bucket}/{failure['Key']}")
        if isinstance(error, StorageError):  # not one of an object that is gone
            errors[failure["Key"]] = error
    return errors


def _delete_one(bucket: str, key: str) -> StorageError | None:
    try:
        with suppress(FileNotFoundError), request("deleting", f"s3://{bucket}/{key}"):
            client().delete_object(Bucket=bucket, Key=key)
    except StorageError as error:
        return error
    return None
