from __future__ import annotations

import os
from pathlib import Path

import botocore.exceptions
import pytest

from tests.stores.certificates import PrivateAuthority
from tests.stores.imitated import Opener
from tests.stores.trials.clients import client_of

PART_BYTES = 5 * 2**20


def test_certificates_of_a_private_authority(open_store: Opener, bucket: str, key: str, tmp_path: Path) -> None:
    authority = PrivateAuthority(tmp_path)
    store = open_store(context=authority.context())
    for endpoint in (store.endpoint, store.endpoint_at("localhost")):
        client = client_of(endpoint, authority)
        client.put_object(Bucket=bucket, Key=key, Body=os.urandom(PART_BYTES))
        assert len(client.get_object(Bucket=bucket, Key=key)["Body"].read()) == PART_BYTES


@pytest.mark.parametrize("case", ["unknown", "expired", "of another name"])
def test_certificates_that_fail(open_store: Opener, bucket: str, tmp_path: Path, case: str) -> None:
    authority = PrivateAuthority(tmp_path)
    names_of_case = ("store.example",) if case == "of another name" else ("127.0.0.1",)
    store = open_store(context=authority.context(names_of_case, expired=case == "expired"))
    client = client_of(store.endpoint, None if case == "unknown" else authority)
    with pytest.raises(botocore.exceptions.SSLError):
        client.head_bucket(Bucket=bucket)
    assert store.seen == []
