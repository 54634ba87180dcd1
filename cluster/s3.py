"""Objects of an S3, through boto3: whole puts, uploads in parts, reads that go on where they were cut off.

boto3 itself repeats requests that fail or are answered 5xx. What it does not do is done here: a conditional put in a
race, a body that ends early or stalls (pyarrow's filesystem takes one that is cut short for whole), an upload whose
last answer got lost. Credentials come from the standard chain alone, the endpoint of an S3 other than Amazon's from
AWS_ENDPOINT_URL.
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
"""Attempts at one request; with 30% of answers faulty, one request in 170,000 fails all of them."""
SILENCE_SECONDS = 20.0
"""A server that sends nothing for so long is asked again."""
PART_BYTES = 32 * 2**20
"""An object larger than this is uploaded in parts of this size, of which S3 allows 10,000: 320 GB."""
CHUNK_BYTES = 8 * 2**20
"""Read at a time."""
_UPLOAD_THREADS = 4
_DELAY_SECONDS = 0.05
_DELAY_MAX_SECONDS = 5.0
_BROKEN_BODY = (BotoCoreError, OSError)


def bucket_and_key(uri: str) -> tuple[str, str]:
    """The two of a URI s3://bucket/key. Raises ValueError where there is no bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"'{uri}': no bucket; write s3://bucket/key")
    return bucket, key


def filesystem(bucket: str) -> pyarrow.fs.S3FileSystem:
    """pyarrow's, with retries."""
    return _filesystem(bucket, _endpoint())


def write(uri: str, data: bytes | memoryview) -> None:
    """Puts an object, in parts where it is large; the server checks what it gets by checksums.

    Raises OSError where the stored size is not the size of the data.
    """
    bucket, key = bucket_and_key(uri)
    client = _client(_endpoint())
    if len(data) > PART_BYTES:
        _write_in_parts(client, bucket, key, memoryview(data))
    else:
        client.put_object(Bucket=bucket, Key=key, Body=bytes(data))
    stored = client.head_object(Bucket=bucket, Key=key)["ContentLength"]
    if stored != len(data):
        raise OSError(f"{uri}: {stored} bytes stored of {len(data)} written")


def read(uri: str) -> Iterator[bytes]:
    """The content of an object, a piece at a time.

    Raises:
        FileNotFoundError: there is none.
        OSError: fewer bytes arrive than it has, however often it is asked for the rest.
    """
    bucket, key = bucket_and_key(uri)
    client = _client(_endpoint())
    try:
        head = client.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        raise (_not_found(uri) if _status(error) == 404 else error) from error
    size, done, attempt = head["ContentLength"], 0, 0
    while done < size:
        before, cause = done, "the answer ended early"
        # IfMatch: the rest of another object would be worse than an error
        answer = client.get_object(Bucket=bucket, Key=key, IfMatch=head["ETag"], Range=f"bytes={done}-")
        try:
            for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
                done += len(chunk)
                yield chunk
        except _BROKEN_BODY as error:
            cause = str(error)
        if done < size:
            attempt = 0 if done > before else attempt + 1
            if attempt == RETRY_ATTEMPTS:
                raise OSError(f"{uri}: read {done} of {size} bytes ({cause})")
            _rest(attempt)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Puts an object unless there is one; False where there is, which may be ours if an answer got lost."""
    bucket, key = bucket_and_key(uri)
    client = _client(_endpoint())
    for attempt in range(RETRY_ATTEMPTS):
        try:
            client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            return True
        except ClientError as error:
            if _status(error) == 412:
                return False
            # 409: another conditional put of this key is in flight, and S3 will not say how it ends
            if _status(error) != 409 or attempt + 1 == RETRY_ATTEMPTS:
                raise
        _rest(attempt)
    raise AssertionError("the loop returns or raises")


def delete(uri: str) -> None:
    """Removes an object and all below it. Not through pyarrow, which leaves an object behind for the parent folder."""
    bucket, key = bucket_and_key(uri)
    client = _client(_endpoint())
    if key.rstrip("/"):
        client.delete_object(Bucket=bucket, Key=key.rstrip("/"))
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=_folder(key)):
        below = [{"Key": entry["Key"]} for entry in page.get("Contents", [])]
        if below:
            errors = client.delete_objects(Bucket=bucket, Delete={"Objects": below, "Quiet": True}).get("Errors", [])
            if errors:
                raise OSError(f"{uri}: {len(errors)} objects not deleted, the first: {errors[0]}")


def objects(uri: str) -> list[tuple[str, int, datetime]]:
    """The objects below a prefix: URI, bytes, when each was written."""
    bucket, key = bucket_and_key(uri)
    pages = _client(_endpoint()).get_paginator("list_objects_v2")
    return [
        (f"s3://{bucket}/{entry['Key']}", entry["Size"], entry["LastModified"])
        for page in pages.paginate(Bucket=bucket, Prefix=_folder(key))
        for entry in page.get("Contents", [])
    ]


def unfinished_uploads(uri: str) -> list[tuple[str, str, datetime]]:
    """Uploads in parts below a prefix that have not ended: the object's URI, the upload's id, and its beginning."""
    bucket, key = bucket_and_key(uri)
    pages = _client(_endpoint()).get_paginator("list_multipart_uploads")
    return [
        (f"s3://{bucket}/{upload['Key']}", upload["UploadId"], upload["Initiated"])
        for page in pages.paginate(Bucket=bucket, Prefix=_folder(key))
        for upload in page.get("Uploads", [])
    ]


def abort_upload(uri: str, upload_id: str) -> None:
    """Removes the parts of an upload that never ended."""
    bucket, key = bucket_and_key(uri)
    _client(_endpoint()).abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)


def _write_in_parts(client: Any, bucket: str, key: str, data: memoryview) -> None:
    place = {"Bucket": bucket, "Key": key}
    upload = {**place, "UploadId": client.create_multipart_upload(**place, ChecksumAlgorithm="SHA256")["UploadId"]}

    def send(number: int) -> dict[str, Any]:
        part = bytes(data[(number - 1) * PART_BYTES : number * PART_BYTES])
        sent = {"PartNumber": number, "ChecksumSHA256": base64.b64encode(hashlib.sha256(part).digest()).decode()}
        return sent | {"ETag": client.upload_part(**upload, **sent, Body=part)["ETag"]}

    try:
        with ThreadPoolExecutor(_UPLOAD_THREADS) as threads:
            parts = list(threads.map(send, range(1, -(-len(data) // PART_BYTES) + 1)))
        client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    except client.exceptions.NoSuchUpload:
        # Where the answer to the last request was lost, its repetition finds no upload any more
        if not _holds(f"s3://{bucket}/{key}", data):
            raise
    except BaseException:
        client.abort_multipart_upload(**upload)
        raise


def _folder(key: str) -> str:
    return key.rstrip("/") + "/" if key else ""


def _holds(uri: str, data: memoryview) -> bool:
    """Whether an object has this content."""
    position = 0
    try:
        for chunk in read(uri):
            if data[position : position + len(chunk)] != chunk:
                return False
            position += len(chunk)
    except FileNotFoundError:
        return False
    return position == len(data)


def _rest(attempt: int) -> None:
    time.sleep(min(_DELAY_SECONDS * 2**attempt, _DELAY_MAX_SECONDS) * random.uniform(0.5, 1.0))


def _status(error: ClientError) -> int:
    return error.response["ResponseMetadata"]["HTTPStatusCode"]


def _not_found(uri: str) -> FileNotFoundError:
    return FileNotFoundError(f"nothing at '{uri}'")


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


@functools.lru_cache
def _client(endpoint: str | None) -> Any:  # botocore makes the methods of its clients at run time
    # Servers other than Amazon's seldom resolve bucket names as hosts
    addressing: Literal["auto", "path"] = "auto" if endpoint is None else "path"
    retries: Any = {"mode": "standard", "total_max_attempts": RETRY_ATTEMPTS}
    config = Config(retries=retries, read_timeout=SILENCE_SECONDS, s3={"addressing_style": addressing})
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


@functools.lru_cache
def _filesystem(bucket: str, endpoint: str | None) -> pyarrow.fs.S3FileSystem:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        region = pyarrow.fs.resolve_s3_region(bucket)
    return pyarrow.fs.S3FileSystem(
        region=region,
        endpoint_override=endpoint,
        request_timeout=SILENCE_SECONDS,
        retry_strategy=pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=RETRY_ATTEMPTS),
    )
