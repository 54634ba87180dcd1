"""What all requests to S3 share: their URIs, their errors by cause, and what this process knows about each store."""

from __future__ import annotations

import base64
import hashlib
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from botocore.exceptions import ClientError

from cluster.stores.errors import StorageError, UnreachableError
from cluster.stores.s3.causes import FAILURES, configuration_error, status_of, storage_error
from cluster.stores.s3.client import client
from cluster.stores.waiting import waiting_for

logger = logging.getLogger("clip")

T = TypeVar("T")
Feature = Literal["the checksums of S3", "the deletion of many objects", "list type 2", "unfinished uploads"]
"""A part of S3 that some stores lack, and that has an older way."""
Extra = Callable[[bytes], dict[str, Any]]
"""Gives the further parameters of a request with a body."""

REFUSED = (400, 405, 411, 501)
"""Statuses by which stores refuse a header or an operation that they do not know."""
_DELAY_SECONDS = 0.05
_DELAY_MAX_SECONDS = 5.0
_lacking: dict[tuple[str, Feature], str] = {}
"""The answer by which a server refused a feature, as this process has found out."""


class WrongSizeError(StorageError):
    """The store has another number of bytes than were sent. Some keep the framing of a checksum as content."""


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Split a URI s3://bucket/key. Raises ValueError if the bucket is missing."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"'{uri}': no bucket; write s3://bucket/key")
    return bucket, key


def target(uri: str) -> dict[str, str]:
    """The parameters that name an object in a request."""
    bucket, key = bucket_and_key(uri)
    return {"Bucket": bucket, "Key": key}


def prefix(uri: str) -> dict[str, str]:
    """The parameters that name everything below a folder in a request."""
    bucket, key = bucket_and_key(uri)
    return {"Bucket": bucket, "Prefix": key.rstrip("/") + "/" if key else ""}


def server() -> str:
    """The endpoint of the client."""
    endpoint: str = client().meta.endpoint_url
    return endpoint


@contextmanager
def request(action: str, uri: str) -> Iterator[None]:
    """Show a request that takes long, and raise its error by its cause."""
    with waiting_for(f"{action} {uri}"):
        try:
            yield
        except FAILURES as error:
            raise storage_error(error, uri) from error
        except StorageError:
            raise
        except OSError as error:  # of a file of credentials or certificates
            raise configuration_error(error, uri) from error
        except ValueError as error:  # such as an answer whose dates are none
            raise UnreachableError(f"{uri}: the answer is not one of S3 ({error}); correct AWS_ENDPOINT_URL") from error


def lacks(feature: Feature) -> bool:
    """Whether this process has found that the server lacks a feature."""
    return (server(), feature) in _lacking


def note_lack(feature: Feature, answer: object) -> None:
    """Remember that the server lacks a feature, and log its answer once.

    Only a process that logs its progress does, which is the job's own: thousands of workers find out the same.
    """
    if not lacks(feature):
        _lacking[server(), feature] = str(answer)
        level = logging.WARNING if logger.isEnabledFor(logging.INFO) else logging.DEBUG
        logger.log(level, "%s lacks %s, and the older way is used: %s", server(), feature, answer)


def lacking() -> dict[Feature, str]:
    """The features that the server lacks, as far as this process has found out, and the answers that told it."""
    return {feature: answer for (endpoint, feature), answer in _lacking.items() if endpoint == server()}


def send(work: Callable[[Any, Extra], T]) -> T:
    """Call `work(client, extra)`, which sends bodies: with the checksums of S3, or where it refuses them, with MD5.

    Raises the errors of the last attempt.
    """
    if lacks("the checksums of S3"):
        return work(client("not sent"), _md5)
    try:
        return work(client(), lambda _: {})
    except (ClientError, WrongSizeError) as error:
        if isinstance(error, ClientError) and not _may_be_about_checksums(error):
            raise
        answer = error
    result = work(client("not sent"), _md5)
    note_lack("the checksums of S3", answer)
    return result


def pause(attempt: int) -> None:
    """Wait before another attempt, longer after each, and for a random share of it."""
    time.sleep(min(_DELAY_SECONDS * 2**attempt, _DELAY_MAX_SECONDS) * random.uniform(0.5, 1.0))


def _may_be_about_checksums(error: ClientError) -> bool:
    # Stores that do not know the framing of checksums may take it for a wrong signature, or for no login
    is_signature = error.response.get("Error", {}).get("Code") in ("SignatureDoesNotMatch", "XAmzContentSHA256Mismatch")
    return is_signature or status_of(error) in (401, *REFUSED)


def _md5(body: bytes) -> dict[str, Any]:
    return {"ContentMD5": base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()}
