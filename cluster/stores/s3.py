"""Read, write, list and delete S3 objects through boto3, with multipart uploads and reads that resume.

boto3 retries requests that fail or receive a 5xx response. This module handles the remaining cases: racing conditional
puts, bodies that end early or stall (pyarrow's filesystem accepts a truncated body as complete), and uploads whose last
response was lost. Credentials come only from boto3's standard chain. AWS_ENDPOINT_URL sets the endpoint of an S3 server
that is not Amazon's.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Literal

import boto3
import pyarrow.fs
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

RETRY_ATTEMPTS = 10
"""Maximum attempts per request. If 30% of responses are faulty, one request in 170,000 fails all attempts."""
READ_TIMEOUT_SECONDS = 20.0
"""A request is retried after the server has sent nothing for this long."""
PART_BYTES = 32 * 2**20
"""Larger objects are uploaded in parts of this size. S3 allows 10,000 parts, so objects can have 320 GB."""
CHUNK_BYTES = 8 * 2**20
"""Number of bytes read at a time."""
_UPLOAD_THREADS = 4
_DELAY_SECONDS = 0.05
_DELAY_MAX_SECONDS = 5.0
_BODY_ERRORS = (BotoCoreError, OSError)


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Split a URI s3://bucket/key. Raises ValueError if the bucket is missing."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"'{uri}': no bucket; write s3://bucket/key")
    return bucket, key


def filesystem(bucket: str) -> pyarrow.fs.S3FileSystem:
    """The pyarrow filesystem for a bucket, with retries."""
    return _filesystem(bucket, _endpoint())


def write(uri: str, data: bytes | memoryview) -> None:
    """Write an object, in parts if it is large. The server verifies the checksums of the data.

    Raises OSError if the stored size differs from the size of the data.
    """
    bucket, key = bucket_and_key(uri)
    client = _client(_endpoint())
    if len(data) > PART_BYTES:
        _write_in_parts(client, bucket, key, memoryview(data))
    else:
        client.put_object(Bucket=bucket, Key=key, Body=bytes(data))
    stored = client.head_object(Bucket=bucket, Key=key)["ContentLength"]
    if stored != len(data):
        raise OSError(f"{uri}: the server stored {stored} of {len(data)} bytes")


def read(uri: str) -> Iterator[bytes]:
    """Yield the content of an object in chunks.

    Raises:
        FileNotFoundError: the object does not exist.
        OSError: RETRY_ATTEMPTS requests in a row for the remaining bytes returned none.
    """
    bucket, key = bucket_and_key(uri)
    client = _client(_endpoint())
    try:
        head = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        raise (_not_found(uri) if _status(error) == 404 else error) from error
    size, num_read, attempt = head["ContentLength"], 0, 0
    while num_read < size:
        num_read_before, cause = num_read, "the response ended early"
        # IfMatch: fail if the object was replaced, instead of mixing two objects
        response = client.get_object(Bucket=bucket, Key=key, IfMatch=head["ETag"], Range=f"bytes={num_read}-")
        try:
            for chunk in response["Body"].iter_chunks(CHUNK_BYTES):
                num_read += len(chunk)
                yield chunk
        except _BODY_ERRORS as error:
            cause = str(error)
        if num_read < size:
            attempt = 0 if num_read > num_read_before else attempt + 1
            if attempt == RETRY_ATTEMPTS:
                raise OSError(f"{uri}: read {num_read} of {size} bytes ({cause})")
            _pause(attempt)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write an object unless it exists; whether it was written.

    False can also mean that this call wrote the object but the response was lost.
    """
    bucket, key = bucket_and_key(uri)
    client = _client(_endpoint())
    for attempt in range(RETRY_ATTEMPTS):
        try:
            client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            return True
        except ClientError as error:
            if _status(error) == 412:
                return False
            # 409: another conditional put of this key is in flight, with an unknown outcome
            if _status(error) != 409 or attempt + 1 == RETRY_ATTEMPTS:
                raise
        _pause(attempt)
    raise AssertionError("the loop returns or raises")


def delete(uri: str) -> None:
    """Delete an object and all objects below it. pyarrow would create an object for the parent folder."""
    bucket, key = bucket_and_key(uri)
    client = _client(_endpoint())
    if key.rstrip("/"):
        client.delete_object(Bucket=bucket, Key=key.rstrip("/"))
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=_folder(key)):
        below = [{"Key": entry["Key"]} for entry in page.get("Contents", [])]
        if below:
            errors = client.delete_objects(Bucket=bucket, Delete={"Objects": below, "Quiet": True}).get("Errors", [])
            if errors:
                raise OSError(f"{uri}: {len(errors)} objects were not deleted; the first error: {errors[0]}")


def objects(uri: str) -> list[tuple[str, int, datetime]]:
    """The objects below a prefix: URI, size in bytes, time of last modification."""
    bucket, key = bucket_and_key(uri)
    pages = _client(_endpoint()).get_paginator("list_objects_v2")
    return [
        (f"s3://{bucket}/{entry['Key']}", entry["Size"], entry["LastModified"])
        for page in pages.paginate(Bucket=bucket, Prefix=_folder(key))
        for entry in page.get("Contents", [])
    ]


def unfinished_uploads(uri: str) -> list[tuple[str, str, datetime]]:
    """The unfinished multipart uploads below a prefix: URI of the object, id of the upload, start time."""
    bucket, key = bucket_and_key(uri)
    pages = _client(_endpoint()).get_paginator("list_multipart_uploads")
    return [
        (f"s3://{bucket}/{upload['Key']}", upload["UploadId"], upload["Initiated"])
        for page in pages.paginate(Bucket=bucket, Prefix=_folder(key))
        for upload in page.get("Uploads", [])
    ]


def abort_upload(uri: str, upload_id: str) -> None:
    """Abort a multipart upload and delete its parts."""
    bucket, key = bucket_and_key(uri)
    _client(_endpoint()).abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)


def _write_in_parts(client: Any, bucket: str, key: str, data: memoryview) -> None:
    target = {"Bucket": bucket, "Key": key}
    upload = {**target, "UploadId": client.create_multipart_upload(**target, ChecksumAlgorithm="SHA256")["UploadId"]}

    def send(number: int) -> dict[str, Any]:
        part = bytes(data[(number - 1) * PART_BYTES : number * PART_BYTES])
        sent = {"PartNumber": number, "ChecksumSHA256": base64.b64encode(hashlib.sha256(part).digest()).decode()}
        return sent | {"ETag": client.upload_part(**upload, **sent, Body=part)["ETag"]}

    try:
        with ThreadPoolExecutor(_UPLOAD_THREADS) as threads:
            parts = list(threads.map(send, range(1, -(-len(data) // PART_BYTES) + 1)))
        client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    except client.exceptions.NoSuchUpload:
        # If the response to the completing request was lost, its retry no longer finds the upload
        if not _has_content(f"s3://{bucket}/{key}", data):
            raise
    except BaseException:
        client.abort_multipart_upload(**upload)
        raise


def _folder(key: str) -> str:
    return key.rstrip("/") + "/" if key else ""


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


def _pause(attempt: int) -> None:
    time.sleep(min(_DELAY_SECONDS * 2**attempt, _DELAY_MAX_SECONDS) * random.uniform(0.5, 1.0))


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def _not_found(uri: str) -> FileNotFoundError:
    return FileNotFoundError(f"nothing at '{uri}'")


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


@functools.lru_cache
def _client(endpoint: str | None) -> Any:  # botocore creates the methods of its clients at run time
    # Other servers than Amazon's rarely resolve bucket names as host names
    addressing: Literal["auto", "path"] = "auto" if endpoint is None else "path"
    retries: Any = {"mode": "standard", "total_max_attempts": RETRY_ATTEMPTS}
    config = Config(retries=retries, read_timeout=READ_TIMEOUT_SECONDS, s3={"addressing_style": addressing})
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


@functools.lru_cache
def _filesystem(bucket: str, endpoint: str | None) -> pyarrow.fs.S3FileSystem:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        region = pyarrow.fs.resolve_s3_region(bucket)
    return pyarrow.fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        request_timeout=READ_TIMEOUT_SECONDS,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=RETRY_ATTEMPTS),
    )
