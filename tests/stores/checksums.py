"""Stores without the checksums that AWS's clients send since January 2025, or without checksums at all.

Over TLS, boto3 sends the checksum of a put in a trailer after the body, in the framing `aws-chunked`; over HTTP, in a
header. Sources are issues on GitHub.
"""

from __future__ import annotations

import base64
import zlib

from tests.stores.imitated import Forward, Quirk
from tests.stores.messages import Answer, Request, error

_PREFIX = "x-amz-checksum-"
_ALGORITHM = "x-amz-sdk-checksum-algorithm"


def refuses_checksums(request: Request, forward: Forward) -> Answer:
    """Answers 501 to every request with a header about checksums, even one that only asks for them in the answer."""
    if not _headers(request):
        return forward(request)
    return error(request, 501, "NotImplemented", "A header you provided implies functionality that is not implemented.")


def refuses_checksum(algorithm: str) -> Quirk:
    """Answers 501 to every request with checksums of this algorithm, e.g. SHA256. Others are accepted.

    Sources: cloudflare/cloudflare-docs#4508, #13132 (R2).
    """

    def quirk(request: Request, forward: Forward) -> Answer:
        asked = [name.removeprefix(_PREFIX) for name in _headers(request)]
        asked += [request.headers[name].lower() for name in _headers(request) if name.endswith("-algorithm")]
        if algorithm.lower() not in asked:
            return forward(request)
        message = f"Checksum algorithm {algorithm} is not implemented."
        return error(request, 501, "NotImplemented", message)

    return quirk


def unsupported_header(request: Request, forward: Forward) -> Answer:
    """Answers 400 to a header about checksums and names it, as Backblaze B2 did in its older regions.

    Sources: iterate-ch/cyberduck#16107, vatesfr/xen-orchestra#8358 (x-amz-checksum-mode of a GET).
    """
    found = _headers(request)
    if not found:
        return forward(request)
    return error(request, 400, "InvalidArgument", f"Unsupported header '{found[0]}' received for this API call.")


def forgets_checksums(request: Request, forward: Forward) -> Answer:
    """Accepts checksums and returns none, as stores do that only keep an ETag."""
    answer = forward(request)
    for name in list(answer.headers):
        if name.lower().startswith(_PREFIX):
            answer.headers.discard(name)
    return answer


def _headers(request: Request) -> list[str]:
    """The headers about checksums, in lower case."""
    names = [name.lower() for name in request.headers]
    return [name for name in names if name.startswith(_PREFIX) or name in (_ALGORITHM, "x-amz-trailer")]


def stores_framing(request: Request, forward: Forward) -> Answer:
    """Stores the chunks and the trailer of aws-chunked bodies as content. boto3 sends such bodies only over TLS.

    The store is told nothing that it knows, takes the body for the content and answers 200.
    Sources: seaweedfs/seaweedfs#6847, #7623.
    """
    if request.headers.get("Content-Encoding", "").startswith("aws-chunked"):
        for name in (
            "Content-Encoding",
            "x-amz-decoded-content-length",
            "x-amz-trailer",
            "x-amz-content-sha256",
            _ALGORITHM,
        ):
            request.headers.discard(name)
    return forward(request)


def refuses_trailers(status: int, code: str, message: str = "") -> Quirk:
    """Refuses a body whose checksum comes in a trailer, which boto3 sends over TLS only."""

    def quirk(request: Request, forward: Forward) -> Answer:
        if request.headers.get("x-amz-content-sha256") != "STREAMING-UNSIGNED-PAYLOAD-TRAILER":
            return forward(request)
        return error(request, status, code, message)

    return quirk


TRAILERS = {
    "R2: amd/gaia#3029": refuses_trailers(401, "Unauthorized", "Unauthorized"),
    "Alibaba's OSS: apache/polaris#3346": refuses_trailers(
        400, "InvalidArgument", "aws-chunked encoding is not supported with the specified x-amz-content-sha256 value."
    ),
    "Oracle's OCI: hashicorp/terraform#36742": refuses_trailers(
        400, "InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD or a valid sha256 value"
    ),
    "s3s, rustfs: s3s-project/s3s#328": refuses_trailers(
        400, "XAmzContentSHA256Mismatch", "invalid header: x-amz-content-sha256"
    ),
    "Scality: scality/cloudserver#5553": refuses_trailers(400, "BadRequest", "trailing checksum is not supported"),
    "a store without a name: boto/boto3#4396": refuses_trailers(
        400, "InvalidTrailer", "Invalid trailing header names in x-amz-trailer."
    ),
}
"""What stores answer to trailers, by store and source."""


def checksum_of_whole_in_range(request: Request, forward: Forward) -> Answer:
    """Answers a read of a range with the checksum of the whole object, if a checksum is asked for.

    boto3 then finds that the range is damaged. Source: ceph/ceph#61901 (Ceph's RGW).
    """
    asked = request.headers.get("x-amz-checksum-mode") and "Range" in request.headers
    answer = forward(request)
    if asked and answer.status == 206:
        whole = forward(request.by_same_user("GET", request.path)).body
        answer.headers[f"{_PREFIX}crc32"] = base64.b64encode(zlib.crc32(whole).to_bytes(4, "big")).decode()
    return answer


def needs_checksum(request: Request, forward: Forward) -> Answer:
    """Answers 400 to a put without Content-MD5 and without a checksum: a bucket of AWS with object lock.

    Sources: s3tools/s3cmd#1436, akka/alpakka#2773.
    """
    names = {name.lower() for name in request.headers}
    given = any(name.startswith(_PREFIX) or name in ("content-md5", "x-amz-trailer") for name in names)
    if given or request.operation not in ("PutObject", "UploadPart"):
        return forward(request)
    message = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Part requests with Object Lock parameters"
    return error(request, 400, "InvalidRequest", message)
