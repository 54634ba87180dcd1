from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.stores import conditions
from tests.stores.imitated import Opener, Quirk, only
from tests.stores.trials.clients import client_of, refusal


def test_conditions_are_ignored(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(conditions.ignores("If-None-Match"), conditions.ignores("If-Match")).endpoint)
    place = {"Bucket": bucket, "Key": key}
    for data in (b"first", b"second"):
        client.put_object(**place, Body=data, IfNoneMatch="*")
    assert client.get_object(**place, IfMatch='"another"')["Body"].read() == b"second"


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument")])
def test_conditions_are_refused(open_store: Opener, bucket: str, key: str, status: int, code: str) -> None:
    client = client_of(open_store(conditions.refuses("If-None-Match", status, code)).endpoint)
    assert refusal(client.put_object, Bucket=bucket, Key=key, Body=b"", IfNoneMatch="*") == (status, code)
    client.put_object(Bucket=bucket, Key=key, Body=b"")


def test_weak_tags(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(conditions.weak_tags).endpoint)
    place = {"Bucket": bucket, "Key": key}
    tag = client.put_object(**place, Body=b"content")["ETag"]
    assert tag.startswith('W/"')
    assert client.head_object(**place)["ETag"] == tag
    assert client.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"][0]["ETag"] == tag
    assert refusal(client.get_object, **place, IfMatch=tag) == (412, "PreconditionFailed")
    assert client.get_object(**place, IfMatch=tag.removeprefix("W/"))["Body"].read() == b"content"
    assert refusal(client.get_object, **place, IfNoneMatch=tag)[0] == 304
    upload = place | {"UploadId": client.create_multipart_upload(**place)["UploadId"]}
    part = client.upload_part(**upload, PartNumber=1, Body=b"part")["ETag"]
    assert part.startswith('W/"')
    done = client.complete_multipart_upload(**upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part}]})
    assert done["ETag"].startswith('W/"')


def put(client: Any, bucket: str, key: str) -> int:
    """The status of a conditional put."""
    try:
        answer = client.put_object(Bucket=bucket, Key=key, Body=b"new", IfNoneMatch="*")
    except ClientError as error:
        answer = error.response
    status: int = answer["ResponseMetadata"]["HTTPStatusCode"]
    return status


@pytest.mark.parametrize(
    ("quirk", "statuses"),
    [
        (None, (200, 412)),
        (conditions.races(0.0), (200, 412)),
        (conditions.not_modified, (200, 304)),
        (conditions.inverted, (412, 200)),
        (conditions.conflict, (409, 409)),
    ],
)
def test_conditional_puts_of_a_new_and_an_old_object(
    open_store: Opener, bucket: str, key: str, quirk: Quirk | None, statuses: tuple[int, int]
) -> None:
    client = client_of(open_store(*([] if quirk is None else [quirk])).endpoint)
    new = put(client, bucket, key)
    client.put_object(Bucket=bucket, Key=key, Body=b"old")
    assert (new, put(client, bucket, key)) == statuses


def test_conditional_puts_at_once(open_store: Opener, bucket: str, key: str) -> None:
    def statuses(*quirks: Quirk) -> list[int]:
        client, barrier = client_of(open_store(*quirks).endpoint), threading.Barrier(3)

        def put_at_once(_: int) -> int:
            barrier.wait()
            return put(client, bucket, f"{key}/{len(quirks)}")

        with ThreadPoolExecutor(3) as threads:
            return sorted(threads.map(put_at_once, range(3)))

    assert statuses() == [200, 412, 412]
    assert statuses(conditions.races(0.3)) == [200, 200, 200]


def test_deleted_names_stay_taken(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(conditions.deleted_names_stay_taken()).endpoint)
    assert put(client, bucket, key) == 200
    client.delete_object(Bucket=bucket, Key=key)
    assert put(client, bucket, key) == 412
    assert refusal(client.get_object, Bucket=bucket, Key=key) == (404, "NoSuchKey")


def test_conditional_reads(open_store: Opener, bucket: str, key: str) -> None:
    store = open_store(conditions.missing_does_not_match, only(conditions.never_matches, "GET", "/never$"))
    client = client_of(store.endpoint)
    tag = client.put_object(Bucket=bucket, Key=f"{key}/never", Body=b"content")["ETag"]
    assert refusal(client.get_object, Bucket=bucket, Key=f"{key}/never", IfMatch=tag) == (412, "PreconditionFailed")
    assert refusal(client.get_object, Bucket=bucket, Key=key, IfMatch=tag) == (412, "PreconditionFailed")
    assert refusal(client.get_object, Bucket=bucket, Key=key) == (404, "NoSuchKey")


def test_no_tags(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(conditions.no_tags).endpoint)
    place = {"Bucket": bucket, "Key": key}
    assert "ETag" in client.put_object(**place, Body=b"content")
    assert not any("ETag" in answer for answer in (client.head_object(**place), client.get_object(**place)))


def test_objects_that_are_absent_at_first(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(conditions.absent_at_first(0.4)).endpoint)
    client.put_object(Bucket=bucket, Key=key, Body=b"content")
    assert refusal(client.get_object, Bucket=bucket, Key=key) == (404, "NoSuchKey")
    time.sleep(0.5)
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"content"


def test_one_write_a_second(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(conditions.one_write_a_second(0.4)).endpoint)
    assert put(client, bucket, key) == 200
    assert put(client, bucket, key) == 429
    assert put(client, bucket, f"{key}/other") == 200
    time.sleep(0.5)
    assert put(client, bucket, key) == 412
