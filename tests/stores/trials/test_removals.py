from __future__ import annotations

from typing import Any

import pytest

from tests.stores import removals
from tests.stores.imitated import Opener, Quirk
from tests.stores.trials.clients import client_of, refusal


@pytest.mark.parametrize(
    ("quirk", "expected"),
    [
        (removals.missing_content_md5, (400, "MissingContentMD5")),
        (removals.invalid_without_md5, (400, "InvalidRequest")),
        (removals.no_delete_of_many, (501, "NotImplemented")),
        (removals.invalid_delete_of_many, (400, "InvalidArgument")),
        (removals.delete_of_many_not_allowed, (405, "MethodNotAllowed")),
    ],
)
def test_delete_of_many_is_refused(
    open_store: Opener, bucket: str, key: str, quirk: Quirk, expected: tuple[int, str]
) -> None:
    client = client_of(open_store(quirk).endpoint)
    client.put_object(Bucket=bucket, Key=key, Body=b"content")
    assert refusal(client.delete_objects, Bucket=bucket, Delete={"Objects": [{"Key": key}]}) == expected
    client.delete_object(Bucket=bucket, Key=key)
    assert refusal(client.head_object, Bucket=bucket, Key=key)[0] == 404


def test_delete_of_many_is_denied_by_key(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(removals.delete_of_many_denied).endpoint)
    client.put_object(Bucket=bucket, Key=key, Body=b"content")
    errors = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key}], "Quiet": True})["Errors"]
    assert [(entry["Key"], entry["Code"]) for entry in errors] == [(key, "AccessDenied")]
    assert client.head_object(Bucket=bucket, Key=key)["ContentLength"] == 7


def test_the_first_key_is_locked(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(removals.first_key_locked).endpoint)
    keys = [f"{key}/<{number}>" for number in range(3)]
    for name in keys:
        client.put_object(Bucket=bucket, Key=name, Body=b"")
    deleted = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": name} for name in keys]})
    assert [entry["Key"] for entry in deleted["Errors"]] == keys[:1]
    left = client.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]
    assert [entry["Key"] for entry in left] == keys[:1]


def test_content_md5_is_enough(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(removals.missing_content_md5, removals.invalid_without_md5).endpoint)
    client.meta.events.register("before-sign.s3.DeleteObjects", add_content_md5)
    client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key}]})


def add_content_md5(request: Any, **_: object) -> None:
    request.headers["Content-MD5"] = "d2hhdGV2ZXI="
