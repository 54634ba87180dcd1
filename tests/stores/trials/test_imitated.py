from __future__ import annotations

import os
import time

import pytest
import urllib3

from tests.stores import refusals
from tests.stores.imitated import ImitatedStore, Opener, after, first, only
from tests.stores.trials.clients import client_of, refusal

PART_BYTES = 5 * 2**20


def test_a_store_without_quirks_is_the_server(open_store: Opener, bucket: str, key: str) -> None:
    store = open_store()
    client = client_of(store.endpoint)
    place = {"Bucket": bucket, "Key": key}
    tag = client.put_object(**place, Body=b"content", Metadata={"k": "v"})["ETag"]
    head = client.head_object(**place)
    assert (head["ContentLength"], head["ETag"], head["Metadata"]) == (7, tag, {"k": "v"})
    assert client.get_object(**place, IfMatch=tag)["Body"].read() == b"content"
    part = client.get_object(**place, Range="bytes=2-3")
    assert (part["Body"].read(), part["ContentRange"]) == (b"nt", "bytes 2-3/7")
    assert refusal(client.put_object, **place, Body=b"other", IfNoneMatch="*") == (412, "PreconditionFailed")
    upload = place | {"UploadId": client.create_multipart_upload(**place, ChecksumAlgorithm="SHA256")["UploadId"]}
    sent = client.upload_part(**upload, PartNumber=1, Body=os.urandom(PART_BYTES), ChecksumAlgorithm="SHA256")
    parts = [{"PartNumber": 1, "ETag": sent["ETag"], "ChecksumSHA256": sent["ChecksumSHA256"]}]
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
    assert client.head_object(**place)["ContentLength"] == PART_BYTES
    assert [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]] == [key]
    client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key}]})
    assert refusal(client.head_object, **place) == (404, "404")
    assert store.operations == [
        *("PutObject", "HeadObject", "GetObject", "GetObject", "PutObject", "CreateMultipartUpload", "UploadPart"),
        *("CompleteMultipartUpload", "HeadObject", "ListObjectsV2", "DeleteObjects", "HeadObject"),
    ]
    assert [seen.status for seen in store.seen] == [200, 200, 200, 206, 412, *[200] * 6, 404]
    assert store.seen[0].method == "PUT"
    assert store.seen[0].path.startswith(f"/{bucket}/")


def test_many_small_requests_are_fast(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store().endpoint)
    client.put_object(Bucket=bucket, Key=key, Body=b"content")
    start = time.monotonic()
    for _ in range(50):
        client.get_object(Bucket=bucket, Key=key)["Body"].read()
    assert time.monotonic() - start < 2.0, "no request waits for a delayed acknowledgement of TCP"


def test_a_quirk_is_limited_to_some_requests(open_store: Opener, bucket: str) -> None:
    store = open_store(
        only(refusals.access_denied, "GET|HEAD", r"data/.*\.parquet$"),
        only(refusals.expired_token, "ListObjects.*"),
        only(first(1, refusals.slow_down), "PutObject", "/third$"),
        only(after(1, refusals.storage_full), "PutObject", "/fourth$"),
    )
    client = client_of(store.endpoint)
    for name in ("data/ä 1.parquet", "data/1.json", "first", "fourth"):
        client.put_object(Bucket=bucket, Key=name, Body=b"")
    assert refusal(client.get_object, Bucket=bucket, Key="data/ä 1.parquet") == (403, "AccessDenied")
    assert refusal(client.head_object, Bucket=bucket, Key="data/ä 1.parquet") == (403, "403")
    client.get_object(Bucket=bucket, Key="data/1.json")
    assert refusal(client.list_objects_v2, Bucket=bucket) == (400, "ExpiredToken")
    assert refusal(client.put_object, Bucket=bucket, Key="third", Body=b"") == (503, "SlowDown")
    client.put_object(Bucket=bucket, Key="third", Body=b"")
    assert refusal(client.put_object, Bucket=bucket, Key="fourth", Body=b"") == (507, "XMinioStorageFull")


def test_the_end_closes_idle_connections() -> None:
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"]) as store:
        pool = urllib3.PoolManager(retries=False)
        assert pool.request("GET", store.endpoint).status == 200
    with pytest.raises(urllib3.exceptions.HTTPError):
        pool.request("GET", store.endpoint)
