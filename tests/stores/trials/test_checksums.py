from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import botocore.exceptions
import pytest

from tests.stores import checksums
from tests.stores.certificates import PrivateAuthority
from tests.stores.imitated import Opener, Quirk
from tests.stores.trials.clients import client_of, refusal


@pytest.mark.parametrize(
    ("quirk", "algorithm", "expected"),
    [
        (checksums.refuses_checksums, "CRC32", (501, "NotImplemented")),
        (checksums.refuses_checksum("SHA256"), "SHA256", (501, "NotImplemented")),
        (checksums.refuses_checksum("SHA256"), "CRC32", None),
        (checksums.unsupported_header, "CRC32", (400, "InvalidArgument")),
    ],
)
def test_checksums_are_refused(
    open_store: Opener,
    bucket: str,
    key: str,
    quirk: Quirk,
    algorithm: str,
    expected: tuple[int, str] | None,
) -> None:
    endpoint = open_store(quirk).endpoint
    client = client_of(
        endpoint, request_checksum_calculation="when_required", response_checksum_validation="when_required"
    )
    place = {"Bucket": bucket, "Key": key}
    client.put_object(**place, Body=b"content")
    assert client.get_object(**place)["Body"].read() == b"content"
    for call, arguments in ((client.put_object, {"Body": b"content"}), (client.create_multipart_upload, {})):
        if expected is None:
            call(**place, **arguments, ChecksumAlgorithm=algorithm)
        else:
            assert refusal(call, **place, **arguments, ChecksumAlgorithm=algorithm) == expected


def test_checksums_are_forgotten(open_store: Opener, bucket: str, key: str) -> None:
    for quirks, found in (([], True), ([checksums.forgets_checksums], False)):
        client = client_of(open_store(*quirks).endpoint)
        client.put_object(Bucket=bucket, Key=key, Body=b"content", ChecksumAlgorithm="SHA256")
        assert ("ChecksumSHA256" in client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")) == found


def test_framing_is_stored_as_content(open_store: Opener, bucket: str, key: str, tmp_path: Path) -> None:
    authority = PrivateAuthority(tmp_path)
    for quirks, expected in (([], b"content"), ([checksums.stores_framing], b"7\r\ncontent\r\n0\r\n")):
        store = open_store(*quirks, context=authority.context())
        client_of(store.endpoint, authority).put_object(Bucket=bucket, Key=key, Body=b"content")
        plain = client_of(os.environ["AWS_ENDPOINT_URL"])
        stored = plain.get_object(Bucket=bucket, Key=key)["Body"].read()
        assert stored.startswith(expected)
        assert (stored == b"content") == (not quirks)


@pytest.mark.parametrize("store_name", checksums.TRAILERS)
def test_trailers_are_refused_over_tls(
    open_store: Opener, bucket: str, key: str, tmp_path: Path, store_name: str
) -> None:
    authority = PrivateAuthority(tmp_path)
    store = open_store(checksums.TRAILERS[store_name], context=authority.context())
    client = client_of(store.endpoint, authority)
    assert refusal(client.put_object, Bucket=bucket, Key=key, Body=b"content")[0] in (400, 401)
    client = client_of(store.endpoint, authority, request_checksum_calculation="when_required")
    client.put_object(Bucket=bucket, Key=key, Body=b"content")
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"content"


def test_the_checksum_of_the_whole_object_comes_with_a_range(open_store: Opener, bucket: str, key: str) -> None:
    endpoint = open_store(checksums.checksum_of_whole_in_range).endpoint
    client = client_of(endpoint)
    client.put_object(Bucket=bucket, Key=key, Body=b"content")
    with pytest.raises(botocore.exceptions.FlexibleChecksumError):
        client.get_object(Bucket=bucket, Key=key, Range="bytes=1-3")["Body"].read()
    client = client_of(endpoint, response_checksum_validation="when_required")
    assert client.get_object(Bucket=bucket, Key=key, Range="bytes=1-3")["Body"].read() == b"ont"


def test_a_checksum_is_needed(open_store: Opener, bucket: str, key: str) -> None:
    endpoint = open_store(checksums.needs_checksum).endpoint
    client_of(endpoint).put_object(Bucket=bucket, Key=key, Body=b"content")
    client = client_of(endpoint, request_checksum_calculation="when_required")
    assert refusal(client.put_object, Bucket=bucket, Key=key, Body=b"content") == (400, "InvalidRequest")
    md5 = base64.b64encode(hashlib.md5(b"content").digest()).decode()
    client.put_object(Bucket=bucket, Key=key, Body=b"content", ContentMD5=md5)
