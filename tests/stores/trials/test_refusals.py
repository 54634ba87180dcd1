from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import pytest

from tests.stores import refusals
from tests.stores.imitated import Opener, Quirk
from tests.stores.trials.clients import client_of, refusal


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
        (refusals.object_quota_exceeded, 403, "ObjectQuotaExceeded"),
        (refusals.not_authorized, 401, "Unauthorized"),
        (refusals.expired_request, 400, "ExpiredRequest"),
        (refusals.unexpected_scope, 400, "AuthorizationHeaderMalformed"),
        (refusals.busy, 503, "SlowDown"),
        (refusals.archived, 403, "InvalidObjectState"),
        (refusals.read_only, 405, "MethodNotAllowed"),
    ],
)
def test_refusals(open_store: Opener, bucket: str, key: str, quirk: Quirk, status: int, code: str) -> None:
    client = client_of(open_store(quirk).endpoint)
    place = {"Bucket": bucket, "Key": key}
    assert refusal(client.get_object, **place) == (status, code)
    assert refusal(client.list_objects_v2, Bucket=bucket) == (status, code)
    assert refusal(client.put_object, **place, Body=b"content") == (status, code)
    assert refusal(client.head_object, **place) == (status, str(status)), "HEAD has no body"


def test_a_clock_that_is_ahead(open_store: Opener, bucket: str, key: str) -> None:
    client = client_of(open_store(refusals.clock_ahead(3600.0)).endpoint)
    put = client.put_object(Bucket=bucket, Key=key, Body=b"content")
    date = parsedate_to_datetime(put["ResponseMetadata"]["HTTPHeaders"]["date"])
    moments = [
        date,
        client.head_object(Bucket=bucket, Key=key)["LastModified"],
        client.list_objects_v2(Bucket=bucket, Prefix=key)["Contents"][0]["LastModified"],
    ]
    assert all(3500 < moment.timestamp() - time.time() <= 3600 for moment in moments)
