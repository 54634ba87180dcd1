"""Imitated S3 stores on which commits are promised, although each lacks or changes a part of S3."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.stores import checksums, conditions, listings, refusals, removals, transfers
from tests.stores.imitated import Forward, ImitatedStore, Quirk, only
from tests.stores.messages import Answer, NoAnswerError, Request


def every(number: int, quirk: Quirk) -> Quirk:
    """Apply a quirk to one in `number` requests."""
    count = itertools.count(1)
    return lambda request, forward: forward(request) if next(count) % number else quirk(request, forward)


def loses_the_answer(request: Request, forward: Forward) -> Answer:
    """The request arrives, and the connection is closed without a response."""
    forward(request)
    raise NoAnswerError


STORES: dict[str, Callable[[], tuple[Quirk, ...]]] = {
    "S3 over HTTP": lambda: (),
    "weak ETags": lambda: (conditions.weak_tags,),
    "no ETags": lambda: (conditions.no_tags,),
    "304 for 412": lambda: (conditions.not_modified,),
    "409 to one write in 7": lambda: (only(every(7, conditions.conflict), "PutObject"),),
    "no checksums": lambda: (checksums.refuses_checksums,),
    "no list type 2": lambda: (listings.only_first_version, listings.small_pages(30)),
    "no deletion of many": lambda: (removals.missing_content_md5,),
    "no deletion at all": lambda: (only(refusals.access_denied, "DeleteObjects?"),),
    "503 to one request in 9": lambda: (every(9, refusals.slow_down),),
    "one answer in 11 is lost": lambda: (every(11, loses_the_answer),),
    "one connection in 13 is closed": lambda: (every(13, transfers.hangs_up),),
}


@contextmanager
def opened(name: str) -> Iterator[ImitatedStore]:
    """Put a store of STORES in front of the S3 server of AWS_ENDPOINT_URL, for this process and those it starts."""
    lock = threading.Lock()

    def one_at_a_time(asked: Request, forward: Forward) -> Answer:
        with lock:  # moto fails to list keys while it deletes one
            return forward(asked)

    quirks = (*STORES[name](), one_at_a_time)
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"], *quirks) as store, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        yield store
