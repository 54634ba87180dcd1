"""The one S3 client: boto3's, configured by botocore's chain alone.

Endpoint, region, profile, certificates, proxies, addressing style, credentials and attempts come from where the AWS
command line takes them: environment variables and ~/.aws/config. So whatever `aws s3 ls` reaches, this project reaches.
Nothing here opens S3 with another client; pyarrow's own would need all of this again, and cannot have all of it
(credentials that expire, a proxy's exceptions).
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from cluster.stores.errors import StorageError
from cluster.stores.s3.answers import watch_answers
from cluster.stores.s3.causes import configuration_error

RETRY_ATTEMPTS = 10
"""Maximum attempts per request, unless AWS_MAX_ATTEMPTS or the profile sets another number. If 30% of responses are
faulty, one request in 170,000 fails all attempts."""
FEW_ATTEMPTS = 4
"""Maximum attempts before any work depends on the server: about five seconds where nothing listens."""
READ_TIMEOUT_SECONDS = 20.0
"""A request is retried after the server has sent nothing for this long."""
CONNECT_TIMEOUT_SECONDS = 10.0
MAX_CONNECTIONS = 32
"""Connections per process; more threads than this wait for each other."""

logging.getLogger("botocore").setLevel(logging.WARNING)  # it tells where it found the credentials

Checksums = Literal["sent", "not sent"]
Environment = frozenset[tuple[str, str]]
_attempts: ContextVar[int] = ContextVar("_attempts", default=RETRY_ATTEMPTS)


def client(checksums: Checksums = "sent") -> Any:
    """The boto3 client of this process for its present environment. Threads may share it.

    Args:
        checksums: whether requests carry the checksums that S3 added in 2022, which not every store knows.

    Raises:
        StorageError: the configuration cannot be used, such as a profile that does not exist.
    """
    return _client(_environment(), checksums, _attempts.get())


@contextmanager
def few_attempts() -> Iterator[None]:
    """Make requests of this thread in the `with` block give up after FEW_ATTEMPTS, for a first look at a server."""
    token = _attempts.set(FEW_ATTEMPTS)
    try:
        yield
    finally:
        _attempts.reset(token)


def location() -> dict[str, str]:
    """Environment variables that make another machine use the same server and region, without credentials.

    They come from the resolved configuration, and so from a profile, too. Empty if it cannot be used: a job that needs
    S3 reports that, and others do not need it.
    """
    try:
        meta = client().meta
    except StorageError:
        return {}
    variables = {} if meta.region_name in (None, "aws-global") else {"AWS_DEFAULT_REGION": meta.region_name}
    if not meta.endpoint_url.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        variables["AWS_ENDPOINT_URL_S3"] = meta.endpoint_url
    return variables


def _environment() -> Environment:
    """The environment variables that configure a client."""
    return frozenset(
        (name, value)
        for name, value in os.environ.items()
        if name.startswith("AWS_") or name.lower().endswith("_proxy")
    )


@functools.lru_cache(maxsize=8)
def _client(environment: Environment, checksums: Checksums, attempts: int) -> Any:
    # botocore creates the methods of its clients at run time, so a client has no type
    try:
        session = boto3.session.Session(region_name=dict(environment).get("AWS_REGION") or None)
        own_attempts = session._session.get_config_variable("max_attempts")
        # The mode "standard" stops to retry after some dozen failures of all threads together, as in a short outage
        retries: Any = {"mode": "legacy", "total_max_attempts": min(own_attempts or attempts, attempts)}
        config = Config(
            retries=retries,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=READ_TIMEOUT_SECONDS,
            max_pool_connections=MAX_CONNECTIONS,
            response_checksum_validation="when_required",  # some stores refuse to be asked for checksums
        )
        if checksums == "not sent":
            config = config.merge(Config(request_checksum_calculation="when_required"))
        made = session.client("s3", config=config)
    except (BotoCoreError, ValueError, OSError) as error:
        raise configuration_error(error, "s3://") from error
    watch_answers(made.meta.events)
    return made
