"""Stores that refuse requests: for want of permission, credentials, a bucket, space or time.

Sources are issues on GitHub.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime

from tests.stores.imitated import Forward, Quirk
from tests.stores.listings import LAST_MODIFIED
from tests.stores.messages import Answer, Request, error


def refusing(status: int, code: str, message: str = "", **elements: str) -> Quirk:
    """Answers every request with this error document of S3."""
    return lambda request, _: error(request, status, code, message, **elements)


access_denied = refusing(403, "AccessDenied", "Access Denied")

kms_denied = refusing(
    403,
    "AccessDenied",
    "User: arn:aws:iam::111122223333:user/reader is not authorized to perform: kms:Decrypt on the resource associated "
    "with this ciphertext because no identity-based policy allows the kms:Decrypt action",
)
"""Permission to read the object, and none to use its key."""

kms_disabled = refusing(
    400,
    "KMS.DisabledException",
    "arn:aws:kms:us-east-1:111122223333:key/0d990263-018e-4065-a703-ea3e4a5e9e5b is disabled.",
)

expired_token = refusing(400, "ExpiredToken", "The provided token has expired.")

unknown_key_id = refusing(
    403,
    "InvalidAccessKeyId",
    "The AWS Access Key Id you provided does not exist in our records.",
    AWSAccessKeyId="test",
)

wrong_secret = refusing(
    403,
    "SignatureDoesNotMatch",
    "The request signature we calculated does not match the signature you provided. Check your key and signing method.",
    AWSAccessKeyId="test",
)

no_such_bucket = refusing(404, "NoSuchBucket", "The specified bucket does not exist")

not_authorized = refusing(401, "Unauthorized", "Unauthorized")
"""R2 with a wrong key, where AWS says 403 (its documentation, error 10002)."""

expired_request = refusing(400, "ExpiredRequest", "Request has expired")
"""R2 with an expired signature (its documentation, error 10018)."""

unexpected_scope = refusing(
    400,
    "AuthorizationHeaderMalformed",
    "Authorization header malformed, unexpected scope: 20260519/us-east-1/s3/aws4_request",
)
"""Garage in another region, which it does not name. Source: PhantomPhoton/S3-Compatible#28."""

slow_down = refusing(503, "SlowDown", "Please reduce your request rate.")

storage_full = refusing(
    507,
    "XMinioStorageFull",
    "Storage backend has reached its minimum free drive threshold. Please delete a few objects to proceed.",
)
"""MinIO without free space. Sources: minio/minio#6795, #18639."""

quota_exceeded = refusing(403, "QuotaExceeded", "")
"""Ceph with a quota of the user or the bucket, without a message. Source: yandex-cloud/geesefs#110."""

object_quota_exceeded = refusing(403, "ObjectQuotaExceeded", "The object quota was exceeded.")
"""NooBaa. Source: noobaa/noobaa-core#8668."""

archived = refusing(
    403,
    "InvalidObjectState",
    "The operation is not valid for the object's storage class",
    StorageClass="GLACIER",
)
"""Glacier, for GET; HEAD works. Source: counsyl/stor#38."""

read_only = refusing(405, "MethodNotAllowed", "The specified method is not allowed against this resource.")


def busy(request: Request, _: Forward) -> Answer:
    """MinIO while it starts: 503 with the advice to come back in two minutes. Source: JuliaIO/Zarr.jl#144."""
    answer = error(request, 503, "SlowDown", "Resource requested is unreadable, please reduce your request rate")
    answer.headers["Retry-After"] = "120"
    return answer


def time_too_skewed(request: Request, _: Forward) -> Answer:
    """The clock of the client is an hour behind that of the store, which refuses that."""
    now = datetime.now(UTC)
    answer = error(
        request,
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the current time is too large.",
        RequestTime=request.headers.get("x-amz-date", ""),
        ServerTime=(now + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ"),
        MaxAllowedSkewMilliseconds="900000",
    )
    answer.headers["Date"] = format_datetime(now + timedelta(hours=1), usegmt=True)
    return answer


def clock_ahead(seconds: float) -> Quirk:
    """The clock of the store is ahead of that of the client by so much, which the store does not notice."""
    skew = timedelta(seconds=seconds)

    def later(match: bytes) -> bytes:
        written = datetime.fromisoformat(match.decode().replace("Z", "+00:00")) + skew
        return written.strftime("%Y-%m-%dT%H:%M:%S.000Z").encode()

    def quirk(request: Request, forward: Forward) -> Answer:
        answer = forward(request)
        answer.headers["Date"] = format_datetime(datetime.now(UTC) + skew, usegmt=True)
        if written := answer.headers.get("Last-Modified"):
            answer.headers["Last-Modified"] = format_datetime(parsedate_to_datetime(written) + skew, usegmt=True)
        if request.operation.startswith("ListObjects"):
            answer.body = LAST_MODIFIED.sub(lambda found: found[1] + later(found[2]) + found[3], answer.body)
        return answer

    return quirk


def moved(region: str, endpoint: str) -> Quirk:
    """The bucket is in another region, and this one answers 301 without a Location, as AWS does."""

    def quirk(request: Request, _: Forward) -> Answer:
        message = (
            "The bucket you are attempting to access must be addressed using the specified endpoint. "
            "Please send all future requests to this endpoint."
        )
        answer = error(request, 301, "PermanentRedirect", message, Endpoint=endpoint, Bucket=request.name.split("/")[1])
        answer.headers["x-amz-bucket-region"] = region
        return answer

    return quirk


def wrong_region(region: str) -> Quirk:
    """The store signs with the name of another region."""

    def quirk(request: Request, _: Forward) -> Answer:
        message = f"The authorization header is malformed; the region is wrong; expecting '{region}'"
        answer = error(request, 400, "AuthorizationHeaderMalformed", message, Region=region)
        answer.headers["x-amz-bucket-region"] = region
        return answer

    return quirk
