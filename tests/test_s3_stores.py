"""The imitations of S3 stores behave as they say, seen with plain boto3 and urllib3."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import boto3
import botocore.exceptions
import pytest
import urllib3
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.stores import addressing, checksums, conditions, listings, refusals, removals, transfers
from tests.stores.certificates import PrivateAuthority
from tests.stores.forward_proxy import ForwardProxy
from tests.stores.imitated import ImitatedStore, Quirk, after, first, only
from tests.stores.messages import PAGE, WELL_FORMED_PAGE

PART_BYTES = 5 * 2**20


@pytest.fixture
def open_store() -> Iterator[Callable[..., ImitatedStore]]:
    """Open an imitated store with quirks, until the test ends."""
    with ExitStack() as stack:

        def open_it(*quirks: Quirk, **options: Any) -> ImitatedStore:
            return stack.enter_context(ImitatedStore(os.environ["AWS_ENDPOINT_URL"], *quirks, **options))

        yield open_it


@pytest.fixture
def bucket(s3: str) -> str:
    return s3.removeprefix("s3://")


@pytest.fixture
def key(tmp_path: Path) -> str:
    return f"{tmp_path.name}/a key/1%25+#&ä"


@functools.cache
def session() -> boto3.session.Session:
    """One session for all clients: each new one reads the description of S3 again."""
    return boto3.session.Session()


def client_of(endpoint: str, authority: PrivateAuthority | None = None, **config: Any) -> Any:
    """A client of boto3 that tries once, with path style unless the configuration says otherwise."""
    config.setdefault("s3", {"addressing_style": "path"})
    options = Config(retries={"total_max_attempts": 1}, read_timeout=5, connect_timeout=5, **config)
    verify = None if authority is None else str(authority.certificate)
    return session().client("s3", endpoint_url=endpoint, verify=verify, config=options)


def refusal(call: Callable[..., object], **arguments: Any) -> tuple[int, str]:
    """The status and the code with which a call is refused."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    response = caught.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


def names(bucket_client: Any, version: str, **arguments: Any) -> list[str]:
    pages = bucket_client.get_paginator(version).paginate(**arguments)
    return [entry["Key"].rpartition("/")[2] for page in pages for entry in page.get("Contents", [])]


def test_a_store_without_quirks_is_the_server(open_store: Callable[..., ImitatedStore], bucket: str, key: str) -> None:
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


def test_many_small_requests_are_fast(open_store: Callable[..., ImitatedStore], bucket: str, key: str) -> None:
    client = client_of(open_store().endpoint)
    client.put_object(Bucket=bucket, Key=key, Body=b"content")
    start = time.monotonic()
    for _ in range(50):
        client.get_object(Bucket=bucket, Key=key)["Body"].read()
    assert time.monotonic() - start < 2.0, "no request waits for a delayed acknowledgement of TCP"


def test_conditions_are_ignored(open_store: Callable[..., ImitatedStore], bucket: str, key: str) -> None:
    client = client_of(open_store(conditions.ignores("If-None-Match"), conditions.ignores("If-Match")).endpoint)
    place = {"Bucket": bucket, "Key": key}
    for data in (b"first", b"second"):
        client.put_object(**place, Body=data, IfNoneMatch="*")
    assert client.get_object(**place, IfMatch='"another"')["Body"].read() == b"second"


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument")])
def test_conditions_are_refused(
    open_store: Callable[..., ImitatedStore], bucket: str, key: str, status: int, code: str
) -> None:
    client = client_of(open_store(conditions.refuses("If-None-Match", status, code)).endpoint)
    assert refusal(client.put_object, Bucket=bucket, Key=key, Body=b"", IfNoneMatch="*") == (status, code)
    client.put_object(Bucket=bucket, Key=key, Body=b"")


def test_weak_tags(open_store: Callable[..., ImitatedStore], bucket: str, key: str) -> None:
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


@pytest.mark.parametrize(
    ("quirk", "expected"),
    [(removals.missing_content_md5, (400, "MissingContentMD5")), (removals.no_delete_of_many, (501, "NotImplemented"))],
)
def test_delete_of_many_is_refused(
    open_store: Callable[..., ImitatedStore], bucket: str, key: str, quirk: Quirk, expected: tuple[int, str]
) -> None:
    client = client_of(open_store(quirk).endpoint)
    client.put_object(Bucket=bucket, Key=key, Body=b"content")
    assert refusal(client.delete_objects, Bucket=bucket, Delete={"Objects": [{"Key": key}]}) == expected
    client.delete_object(Bucket=bucket, Key=key)
    assert refusal(client.head_object, Bucket=bucket, Key=key)[0] == 404


def test_delete_of_many_is_denied_by_key(open_store: Callable[..., ImitatedStore], bucket: str, key: str) -> None:
    client = client_of(open_store(removals.delete_of_many_denied).endpoint)
    client.put_object(Bucket=bucket, Key=key, Body=b"content")
    errors = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key}], "Quiet": True})["Errors"]
    assert [(entry["Key"], entry["Code"]) for entry in errors] == [(key, "AccessDenied")]
    assert client.head_object(Bucket=bucket, Key=key)["ContentLength"] == 7


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
    open_store: Callable[..., ImitatedStore],
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


def test_checksums_are_forgotten(open_store: Callable[..., ImitatedStore], bucket: str, key: str) -> None:
    for quirks, found in (([], True), ([checksums.forgets_checksums], False)):
        client = client_of(open_store(*quirks).endpoint)
        client.put_object(Bucket=bucket, Key=key, Body=b"content", ChecksumAlgorithm="SHA256")
        assert ("ChecksumSHA256" in client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")) == found


def test_framing_is_stored_as_content(
    open_store: Callable[..., ImitatedStore], bucket: str, key: str, tmp_path: Path
) -> None:
    authority = PrivateAuthority(tmp_path)
    for quirks, expected in (([], b"content"), ([checksums.stores_framing], b"7\r\ncontent\r\n0\r\n")):
        store = open_store(*quirks, context=authority.context())
        client_of(store.endpoint, authority).put_object(Bucket=bucket, Key=key, Body=b"content")
        plain = client_of(os.environ["AWS_ENDPOINT_URL"])
        stored = plain.get_object(Bucket=bucket, Key=key)["Body"].read()
        assert stored.startswith(expected)
        assert (stored == b"content") == (not quirks)


@pytest.fixture
def five_keys(bucket: str, tmp_path: Path) -> dict[str, str]:
    """Five objects, 1 to 5, below a prefix."""
    client = client_of(os.environ["AWS_ENDPOINT_URL"])
    for number in range(1, 6):
        client.put_object(Bucket=bucket, Key=f"{tmp_path.name}/ä b/{number}", Body=b"")
    return {"Bucket": bucket, "Prefix": f"{tmp_path.name}/"}


def test_small_pages(open_store: Callable[..., ImitatedStore], five_keys: dict[str, str]) -> None:
    store = open_store(listings.small_pages(3))
    client = client_of(store.endpoint)
    assert len(client.list_objects_v2(**five_keys)["Contents"]) == 3
    for version in ("list_objects_v2", "list_objects"):
        assert names(client, version, **five_keys) == ["1", "2", "3", "4", "5"]


def test_only_the_first_version_of_listings(
    open_store: Callable[..., ImitatedStore], five_keys: dict[str, str]
) -> None:
    client = client_of(open_store(listings.only_first_version, listings.small_pages(3)).endpoint)
    page = client.list_objects_v2(**five_keys)
    assert (page["IsTruncated"], len(page["Contents"])) == (True, 3)
    assert "NextContinuationToken" not in page
    assert "KeyCount" not in page
    assert names(client, "list_objects", **five_keys) == ["1", "2", "3", "4", "5"]


def test_unordered_listings(open_store: Callable[..., ImitatedStore], five_keys: dict[str, str]) -> None:
    client = client_of(open_store(listings.unordered, listings.small_pages(3)).endpoint)
    assert names(client, "list_objects_v2", **five_keys) == ["3", "2", "1", "5", "4"]


def test_stale_listings(open_store: Callable[..., ImitatedStore], five_keys: dict[str, str]) -> None:
    client = client_of(open_store(listings.stale(0.5)).endpoint)
    prefix = five_keys["Prefix"]
    client.put_object(Bucket=five_keys["Bucket"], Key=f"{prefix}ä b/6", Body=b"content")
    assert client.head_object(Bucket=five_keys["Bucket"], Key=f"{prefix}ä b/6")["ContentLength"] == 7
    assert names(client, "list_objects_v2", **five_keys) == ["1", "2", "3", "4", "5"]
    time.sleep(0.6)
    assert names(client, "list_objects_v2", **five_keys) == ["1", "2", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    ("quirk", "status", "code"),
    [
        (refusals.access_denied, 403, "AccessDenied"),
        (refusals.kms_denied, 403, "AccessDenied"),
        (refusals.kms_disabled, 400, "KMS.DisabledException"),
        (refusals.expired_token, 400, "ExpiredToken"),
        (refusals.unknown_key_id, 403, "InvalidAccessKeyId"),
        (refusals.wrong_secret, 403, "SignatureDoesNotMatch"),
        (refusals.time_too_skewed, 403, "RequestTimeTooSkewed"),
        (refusals.no_such_bucket, 404, "NoSuchBucket"),
        (refusals.moved("eu-west-1", "b.s3.eu-west-1.amazonaws.com"), 301, "PermanentRedirect"),
        (refusals.wrong_region("eu-west-1"), 400, "AuthorizationHeaderMalformed"),
        (refusals.slow_down, 503, "SlowDown"),
        (refusals.storage_full, 507, "XMinioStorageFull"),
        (refusals.quota_exceeded, 403, "QuotaExceeded"),
        (refusals.archived, 403, "InvalidObjectState"),
        (refusals.read_only, 405, "MethodNotAllowed"),
    ],
)
def test_refusals(
    open_store: Callable[..., ImitatedStore], bucket: str, key: str, quirk: Quirk, status: int, code: str
) -> None:
    client = client_of(open_store(quirk).endpoint)
    place = {"Bucket": bucket, "Key": key}
    assert refusal(client.get_object, **place) == (status, code)
    assert refusal(client.list_objects_v2, Bucket=bucket) == (status, code)
    assert refusal(client.put_object, **place, Body=b"content") == (status, code)
    assert refusal(client.head_object, **place) == (status, str(status)), "HEAD has no body"


def test_a_quirk_is_limited_to_some_requests(open_store: Callable[..., ImitatedStore], bucket: str) -> None:
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


def test_a_clock_that_is_ahead(open_store: Callable[..., ImitatedStore], bucket: str, key: str) -> None:
    client = client_of(open_store(refusals.clock_ahead(3600.0)).endpoint)
    put = client.put_object(Bucket=bucket, Key=key, Body=b"content")
    date = parsedate_to_datetime(put["ResponseMetadata"]["HTTPHeaders"]["date"])
    moments = [
        date,
        client.head_object(Bucket=bucket, Key=key)["LastModified"],
        client.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"][0]["LastModified"],
    ]
    assert all(3500 < moment.timestamp() - time.time() <= 3600 for moment in moments)


def test_a_page_for_everything(open_store: Callable[..., ImitatedStore], bucket: str, key: str) -> None:
    client = client_of(open_store(refusals.page_for_everything()).endpoint)
    assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == PAGE
    assert refusal(client.list_objects_v2, Bucket=bucket)[1] == "500", "boto3 makes an error of what it cannot parse"
    client = client_of(open_store(refusals.page_for_everything(WELL_FORMED_PAGE)).endpoint)
    assert "Contents" not in client.list_objects_v2(Bucket=bucket), "boto3 takes the page for an empty listing"


def test_bodies_are_changed(open_store: Callable[..., ImitatedStore], bucket: str, key: str) -> None:
    place = {"Bucket": bucket, "Key": key}
    client_of(os.environ["AWS_ENDPOINT_URL"]).put_object(**place, Body=b"0123456789")

    def read(*quirks: Quirk) -> list[bytes]:
        client = client_of(open_store(*quirks, checksums.forgets_checksums).endpoint)
        return [client.get_object(**place)["Body"].read() for _ in range(3)]

    assert read(transfers.truncated) == [b"01234"] * 3
    assert read(transfers.flipped_bit(times=1)) == [b"0123446789", b"0123456789", b"0123456789"]
    assert read(transfers.flipped_bit()) == [b"0123446789"] * 3
    assert read(only(transfers.flipped_bit(), "GET", "elsewhere")) == [b"0123456789"] * 3
    with pytest.raises(botocore.exceptions.ResponseStreamingError):
        read(transfers.cut_off)


def test_an_error_in_the_answer_to_complete(open_store: Callable[..., ImitatedStore], bucket: str, key: str) -> None:
    client = client_of(open_store(transfers.error_after_complete).endpoint)
    place = {"Bucket": bucket, "Key": key}
    upload = place | {"UploadId": client.create_multipart_upload(**place)["UploadId"]}
    part = client.upload_part(**upload, PartNumber=1, Body=b"part")["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": part}]}
    assert refusal(client.complete_multipart_upload, **upload, MultipartUpload=parts)[1] == "InternalError"
    assert refusal(client.head_object, **place)[0] == 404


def test_silence_lasts_until_the_store_closes(bucket: str, key: str) -> None:
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"], only(after(1, transfers.silent), "PUT")) as store:
        client = client_of(store.endpoint)
        client.put_object(Bucket=bucket, Key=key, Body=b"content")
        raised: list[Exception] = []

        def put() -> None:
            try:
                client.put_object(Bucket=bucket, Key=key, Body=b"other")
            except botocore.exceptions.BotoCoreError as error:
                raised.append(error)

        waiting = threading.Thread(target=put)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"content", "others are answered"
    waiting.join(2.0)
    assert not waiting.is_alive()
    assert len(raised) == 1


def test_slow_answers_and_hanging_up(open_store: Callable[..., ImitatedStore], bucket: str, key: str) -> None:
    store = open_store(only(transfers.slow(0.2), "PUT"), only(transfers.hangs_up, "GET"))
    client = client_of(store.endpoint)
    start = time.monotonic()
    client.put_object(Bucket=bucket, Key=key, Body=b"content")
    assert time.monotonic() - start >= 0.2
    with pytest.raises(botocore.exceptions.ConnectionClosedError):
        client.get_object(Bucket=bucket, Key=key)
    assert [seen.status for seen in store.seen] == [200, 0]


def test_certificates_of_a_private_authority(
    open_store: Callable[..., ImitatedStore], bucket: str, key: str, tmp_path: Path
) -> None:
    authority = PrivateAuthority(tmp_path)
    store = open_store(context=authority.context())
    for endpoint in (store.endpoint, store.endpoint_at("localhost")):
        client = client_of(endpoint, authority)
        client.put_object(Bucket=bucket, Key=key, Body=os.urandom(PART_BYTES))
        assert len(client.get_object(Bucket=bucket, Key=key)["Body"].read()) == PART_BYTES


@pytest.mark.parametrize("case", ["unknown", "expired", "of another name"])
def test_certificates_that_fail(
    open_store: Callable[..., ImitatedStore], bucket: str, tmp_path: Path, case: str
) -> None:
    authority = PrivateAuthority(tmp_path)
    names_of_case = ("store.example",) if case == "of another name" else ("127.0.0.1",)
    store = open_store(context=authority.context(names_of_case, expired=case == "expired"))
    client = client_of(store.endpoint, None if case == "unknown" else authority)
    with pytest.raises(botocore.exceptions.SSLError):
        client.head_bucket(Bucket=bucket)
    assert store.seen == []


def test_a_forward_proxy(open_store: Callable[..., ImitatedStore], bucket: str, key: str, tmp_path: Path) -> None:
    authority = PrivateAuthority(tmp_path)
    plain, encrypted = open_store(), open_store(context=authority.context())
    for store in (plain, encrypted):
        with ForwardProxy({"store.internal": store.port}) as proxy:
            proxies = {"http": proxy.endpoint, "https": proxy.endpoint}
            client = client_of(store.endpoint_at("store.internal"), authority, proxies=proxies)
            client.put_object(Bucket=bucket, Key=key, Body=b"content")
            assert client.get_object(Bucket=bucket, Key=key)["Body"].read() == b"content"
            assert client.head_object(Bucket=bucket, Key=key)["ContentLength"] == 7
            assert proxy.num_requests == (3 if store is plain else 1), "one tunnel serves all"
            assert "store.internal" in proxy.targets[0]
        assert store.operations == ["PutObject", "GetObject", "HeadObject"]


@pytest.mark.parametrize("status", [403, 407])
def test_a_forward_proxy_that_refuses(open_store: Callable[..., ImitatedStore], tmp_path: Path, status: int) -> None:
    store = open_store()
    with (
        ForwardProxy({"store.internal": store.port}, refuses=status) as proxy,
        urllib3.ProxyManager(proxy.endpoint) as pool,
    ):
        assert pool.request("GET", store.endpoint_at("store.internal")).status == status
        context = PrivateAuthority(tmp_path).context()
        with pytest.raises(urllib3.exceptions.MaxRetryError, match=str(status)):
            pool.request("GET", open_store(context=context).endpoint_at("store.internal"), retries=0)
    assert store.seen == []


def test_a_forward_proxy_knows_only_its_hosts() -> None:
    with ForwardProxy({"store.internal": 1}) as proxy, urllib3.ProxyManager(proxy.endpoint) as pool:
        assert pool.request("GET", "http://elsewhere.internal/").status == 502


def test_a_store_with_buckets_in_host_names_only(
    open_store: Callable[..., ImitatedStore], bucket: str, key: str
) -> None:
    store = open_store(addressing.virtual_host_only("store.internal"), only(refusals.access_denied, "DeleteObject"))
    with ForwardProxy({"store.internal": store.port}) as proxy:
        endpoint, proxies = store.endpoint_at("store.internal"), {"http": proxy.endpoint}
        client = client_of(endpoint, proxies=proxies, s3={"addressing_style": "virtual"})
        client.put_object(Bucket=bucket, Key=key, Body=b"content")
        assert [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"]] == [key]
        assert refusal(client.delete_object, Bucket=bucket, Key=key) == (403, "AccessDenied")
        with_path = client_of(endpoint, proxies=proxies)
        assert refusal(with_path.get_object, Bucket=bucket, Key=key) == (403, "SecondLevelDomainForbidden")


def test_the_end_closes_idle_connections() -> None:
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"]) as store:
        pool = urllib3.PoolManager(retries=False)
        assert pool.request("GET", store.endpoint).status == 200
    with pytest.raises(urllib3.exceptions.HTTPError):
        pool.request("GET", store.endpoint)
