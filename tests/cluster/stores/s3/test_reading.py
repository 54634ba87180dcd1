"""Reading objects: whole and by range, resumed where a response ends early, and never mixed of two objects."""

import os
from pathlib import Path

import pytest

from cluster import storage
from cluster.stores.s3 import client, requests
from tests.s3_faults import Fault, FaultyS3


@pytest.mark.parametrize("fault", [Fault.DROPPED_BYTES, Fault.STALLED])
def test_a_truncated_body_is_resumed(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault) -> None:
    uri, data = f"{s3}/{tmp_path.name}.bin", os.urandom(10_000)
    storage.write_bytes(uri, data)
    monkeypatch.setattr(client, "READ_TIMEOUT_SECONDS", 0.5)
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], "GET", [fault, Fault.NONE] * 2) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        assert storage.read_bytes(uri) == data
        assert b"".join(storage.read_chunks(uri)) == data


def test_a_body_that_never_completes_is_an_error(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{s3}/short.bin"
    storage.write_bytes(uri, b"0123456789" * 1000)
    monkeypatch.setattr(requests, "_DELAY_SECONDS", 0.001)
    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], "GET", [Fault.DROPPED_BYTES] * 100) as faulty:
        monkeypatch.setenv("AWS_ENDPOINT_URL", faulty.endpoint)
        with pytest.raises(OSError, match="read 9999 of 10000 bytes"):
            storage.read_bytes(uri)
