from __future__ import annotations

import gzip

import botocore.exceptions
import pytest

from tests.stores import gateways
from tests.stores.imitated import Opener
from tests.stores.trials.clients import client_of, refusal


def test_a_page_for_everything(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(gateways.page_for_everything()).endpoint)
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == gateways.PAGE
    assert refusal(client.list_objects_v2, Bucket=bucket)[1] == "500", "boto3 makes an error of what it cannot parse"
    client = client_of(open_store(gateways.page_for_everything(gateways.WELL_FORMED_PAGE)).endpoint)
    assert "Contents" not in client.list_objects_v2(Bucket=bucket), "boto3 takes the page for an empty listing"


def test_redirects_without_a_region(open_store: Opener, bucket: str, key: str) -> None:
    store = open_store(gateways.redirects("https://portal.example/sign-in"))
    client = client_of(store.endpoint)
    with pytest.raises((botocore.exceptions.HTTPClientError, RecursionError), match="recursion"):
        client.get_object(Bucket=bucket, Key=key)
    assert {seen.status for seen in store.seen} == {301}
    assert len(store.seen) > 10, "boto3 asks again and again which region it should be"


def test_small_bodies(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(gateways.small_bodies(100)).endpoint)
    client.put_object(Bucket=bucket, Key=key, Body=b"x" * 100)
    assert refusal(client.put_object, Bucket=bucket, Key=key, Body=b"x" * 101)[0] == 413


def test_unknown_errors(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(gateways.unknown_error).endpoint)
    assert refusal(client.get_object, Bucket=bucket, Key=key)[0] == 520


def test_a_gateway_that_compresses(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(gateways.compressed, gateways.no_length).endpoint)
    client.put_object(Bucket=bucket, Key=key, Body=b"content")
    assert "ContentLength" not in client.head_object(Bucket=bucket, Key=key)
    part = client.get_object(Bucket=bucket, Key=key, Range="bytes=0-2")
    assert (gzip.decompress(part["Body"].read()), part["ContentRange"]) == (b"con", "bytes 0-2/7")


def test_another_body_after_complete(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(gateways.other_body_after_complete).endpoint)
    place = {"Bucket": bucket, "Key": key}
    upload = place | {"UploadId": client.create_multipart_upload(**place)["UploadId"]}
    part = client.upload_part(**upload, PartNumber=1, Body=b"part")["ETag"]
    done = client.complete_multipart_upload(**upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part}]})
    assert "ETag" not in done
    assert client.get_object(**place)["Body"].read() == b"part"
