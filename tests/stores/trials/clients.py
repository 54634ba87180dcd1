"""Clients of boto3 that try once, so that tests see what a store answers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.stores.certificates import PrivateAuthority


@functools.cache
def session() -> boto3.session.Session:
    """One session for all clients: each new one reads the description of S3 again."""
    return boto3.session.Session()


def client_of(endpoint: str, authority: PrivateAuthority | None = None, **config: Any) -> Any:
    """A client of boto3 that tries once, with path style unless the configuration says otherwise."""
    config.setdefault("s3", {"addressing_style": "path"})
    options = Config(retries={"total_max_attempts": 1}, read_timeout=5, connect_timeout=5, **config)
    verify = None if authority is None else str(authority.certificate)
    return session().client("s3", endpoint_url=endpoint, verify=verify, config=options)


def refusal(call: Callable[..., object], **arguments: Any) -> tuple[int, str]:
    """The status and the code with which a call is refused."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def names(bucket_client: Any, version: str, **arguments: Any) -> list[str]:
    pages = bucket_client.get_paginator(version).paginate(**arguments)
    return [entry["Key"].rpartition("/")[2] for page in pages for entry in page.get("Contents", [])]
