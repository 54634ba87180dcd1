from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.stores import listings
from tests.stores.imitated import Opener
from tests.stores.trials.clients import client_of, names, refusal


@pytest.fixture
def five_keys(bucket: str, tmp_path: Path) -> dict[str, str]:
    """Five objects, 1 to 5, below a prefix."""
    client = client_of(os.environ["AWS_ENDPOINT_URL"])
    for number in range(1, 6):
        client.put_object(Bucket=bucket, Key=f"{tmp_path.name}/ä b/{number}", Body=b"")
    return {"Bucket": bucket, "Prefix": f"{tmp_path.name}/"}


def test_small_pages(open_store: Opener, five_keys: dict[str, str]) -> None:
    store = open_store(listings.small_pages(3))
    client = client_of(store.endpoint)
    assert len(client.list_objects_v2(**five_keys)["Contents"]) == 3
    for version in ("list_objects_v2", "list_objects"):
        assert names(client, version, **five_keys) == ["1", "2", "3", "4", "5"]


def test_only_the_first_version_of_listings(open_store: Opener, five_keys: dict[str, str]) -> None:
    client = client_of(open_store(listings.only_first_version, listings.small_pages(3)).endpoint)
    page = client.list_objects_v2(**five_keys)
    assert (page["IsTruncated"], len(page["Contents"])) == (True, 3)
    assert "NextContinuationToken" not in page
    assert "KeyCount" not in page
    assert names(client, "list_objects", **five_keys) == ["1", "2", "3", "4", "5"]


def test_unordered_listings(open_store: Opener, five_keys: dict[str, str]) -> None:
    client = client_of(open_store(listings.unordered, listings.small_pages(3)).endpoint)
    assert names(client, "list_objects_v2", **five_keys) == ["3", "2", "1", "5", "4"]


def test_stale_listings(open_store: Opener, five_keys: dict[str, str]) -> None:
    client = client_of(open_store(listings.stale(0.5)).endpoint)
    prefix = five_keys["Prefix"]
    client.put_object(Bucket=five_keys["Bucket"], Key=f"{prefix}ä b/6", Body=b"content")
    assert client.head_object(Bucket=five_keys["Bucket"], Key=f"{prefix}ä b/6")["ContentLength"] == 7
    assert names(client, "list_objects_v2", **five_keys) == ["1", "2", "3", "4", "5"]
    time.sleep(0.6)
    assert names(client, "list_objects_v2", **five_keys) == ["1", "2", "3", "4", "5", "6"]


def test_no_token(open_store: Opener, five_keys: dict[str, str]) -> None:
    client = client_of(open_store(listings.no_token, listings.small_pages(3)).endpoint)
    page = client.list_objects_v2(**five_keys)
    assert page["IsTruncated"]
    assert "NextContinuationToken" not in page
    assert names(client, "list_objects_v2", **five_keys) == ["1", "2", "3"], "boto3 ends without a word"
    last = page["Contents"][-1]["Key"]
    assert names(client, "list_objects_v2", **five_keys, StartAfter=last) == ["4", "5"]


def test_an_extra_page(open_store: Opener, five_keys: dict[str, str]) -> None:
    store = open_store(listings.extra_page, listings.small_pages(3))
    assert names(client_of(store.endpoint), "list_objects_v2", **five_keys) == ["1", "2", "3", "4", "5"]
    assert len(store.seen) == 3


def test_a_listing_without_order_has_no_start(open_store: Opener, five_keys: dict[str, str]) -> None:
    client = client_of(open_store(listings.unordered).endpoint)
    assert refusal(client.list_objects_v2, **five_keys, StartAfter="a") == (501, "NotImplemented")


def test_raw_keys(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(listings.raw_keys).endpoint)
    client.put_object(Bucket=bucket, Key=key, Body=b"")
    page = client.list_objects_v2(Bucket=bucket, Prefix=key, EncodingType="url")
    assert (page["Contents"][0]["Key"], "EncodingType" in page) == (key, False)
