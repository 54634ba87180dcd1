"""Try once, before work, what a store can do: about fifteen requests and two seconds.

What is missing and has a safe replacement is replaced (requests.py notes it and says so once). The rest is refused in
one line that names the answer of the store. docs/storage.md says why each is needed.
"""

from __future__ import annotations

import logging
import time
import uuid
from contextlib import suppress
from email.utils import parsedate_to_datetime

from cluster.stores.errors import AccessDeniedError, UnsupportedError
from cluster.stores.s3.client import client, few_attempts
from cluster.stores.s3.listing import delete_files, is_folder, objects
from cluster.stores.s3.reading import read, read_range, version
from cluster.stores.s3.requests import request, server, target
from cluster.stores.s3.writing import require_conditional_puts, write, write_in_parts

logger = logging.getLogger("clip")

MAX_CLOCK_SECONDS = 60.0
"""A larger difference of the clocks is worth a warning; S3 itself refuses requests at 15 minutes."""
_DATA = b"a probe of clip-on-ray, which may be deleted"
_probed: set[tuple[str, str]] = set()
"""Server and folder that this process has tried."""


def probe(uri: str) -> None:
    """Try in a folder all that runs and data sets need of a store: write, commit, read, list and delete.

    Raises:
        UnsupportedError: the store lacks something that has no replacement.
        StorageError: a request failed for another cause.
    """
    if (server(), uri) in _probed:
        return
    folder = f"{uri}/.probe.{uuid.uuid4().hex}"
    whole, parts = f"{folder}/.whole.tmp", f"{folder}/.parts.tmp"
    with few_attempts():
        write(whole, _DATA)
        try:
            _check_clock(whole)
            require_conditional_puts(whole)
            write_in_parts(parts, _DATA)
            for written in (whole, parts):
                if b"".join(read(written)) != _DATA or read_range(written, 2, 9, version(written)) != _DATA[2:9]:
                    raise UnsupportedError(f"{written}: what was written is not what is read back; check the storage")
            if missing := {whole, parts} - {listed for listed, _, _ in objects(folder)}:
                raise UnsupportedError(
                    f"{min(missing)}: the listing of {server()} does not show an object right after its write, so "
                    "versions would be missed; use a store with consistent listings (docs/storage.md)"
                )
        finally:
            for error in list(delete_files([whole, parts]).values())[:1]:
                logger.warning("nothing can be deleted here, so old checkpoints and lost attempts will stay: %s", error)
    _probed.add((server(), uri))


def check_reachable(uri: str) -> None:
    """Ask for one name below a prefix, in few attempts, to report within seconds what would stop every request.

    That access to the listing is denied is no error, because the objects may be readable.

    Raises:
        StorageError: the server cannot be reached or does not accept the credentials, or the bucket does not exist.
    """
    with few_attempts():
        try:
            is_folder(uri)
        except AccessDeniedError:
            return


def _check_clock(written: str) -> None:
    with request("looking at", written):
        headers = client().head_object(**target(written))["ResponseMetadata"]["HTTPHeaders"]
    if "date" in headers:
        with suppress(ValueError, TypeError):  # a date that is none is no reason not to work
            seconds = time.time() - parsedate_to_datetime(headers["date"]).timestamp()
            if abs(seconds) > MAX_CLOCK_SECONDS:
                logger.warning("this machine's clock is %+.0f s from that of %s; set it (NTP)", seconds, server())
