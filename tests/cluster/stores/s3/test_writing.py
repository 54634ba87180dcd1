"""Writing objects: whole, in parts, only if absent, through faults and on stores that lack conditional puts."""

import os
from pathlib import Path

import pytest

from cluster import storage
from cluster.stores.errors import ThrottledError
from cluster.stores.s3 import requests, writing
from cluster.stores.s3.client import RETRY_ATTEMPTS
from cluster.stores.s3.listing import unfinished_uploads
from tests.s3_faults import Fault, FaultyS3


@pytest.fixture
def known_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first conditional put of a process is not preceded by the trial of the store."""
    monkeypatch.setattr(writing, "require_conditional_puts", lambda _uri: None)


@pytest.mark.parametrize(
    "faults",
    [
        [Fault.LOST_ANSWER],
        [Fault.CONFLICT, Fault.CONFLICT],
        [Fault.UNAVAILABLE, Fault.LOST_ANSWER],
        [Fault.RESET, Fault.CONFLICT, Fault.LOST_ANSWER],
    ],
)
@pytest.mark.usefixtures("known_store")
def test_put_if_absent_survives_a_lost_response(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: list[Fault]
) -> None:
    uri = f"{s3}/{tmp_path.name}/v1.json"
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], "PUT", faults) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        assert storage.put_if_absent(uri, b"commit 1")
        assert faulty.num_requests == len(faults) + 1
        assert not storage.put_if_absent(uri, b"commit 2")
    monkeypatch.undo()
    assert storage.read_bytes(uri) == b"commit 1"


@pytest.mark.usefixtures("known_store")
def test_endless_conflicts_are_an_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_DELAY_SECONDS", 0.001)
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], "PUT", [Fault.CONFLICT] * 100) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        with pytest.raises(ThrottledError, match="ConditionalRequestConflict"):
            storage.put_if_absent(f"{s3}/conflict.json", b"")
        assert faulty.num_requests == RETRY_ATTEMPTS


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [Fault.ERROR, Fault.NONE, Fault.LOST_ANSWER, Fault.RESET, Fault.UNAVAILABLE],
        [Fault.NONE] * 4 + [Fault.LOST_ANSWER],
    ],
)
def test_large_objects_are_uploaded_in_parts(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: list[Fault]
) -> None:
    uri, data = f"{s3}/{tmp_path.name}/large.bin", os.urandom(11 * 2**20)
    monkeypatch.setattr(writing, "PART_BYTES", 5 * 2**20)  # the minimum of S3
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], None, faults) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        storage.write_bytes(uri, memoryview(data))
        assert faulty.num_requests >= 6, "create, three parts, complete, head"
    monkeypatch.undo()
    assert storage.read_bytes(uri) == data
    assert unfinished_uploads(s3) == []


def test_a_failed_upload_leaves_nothing(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "PART_BYTES", 5 * 2**20)
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], "PUT", [Fault.CONFLICT] * 9) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        with pytest.raises(ThrottledError, match="ConditionalRequestConflict"):
            storage.write_bytes(f"{s3}/{tmp_path.name}/large.bin", bytes(11 * 2**20))
    monkeypatch.undo()
    assert not storage.exists(f"{s3}/{tmp_path.name}")
    assert unfinished_uploads(s3) == []
