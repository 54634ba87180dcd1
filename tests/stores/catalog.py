"""The stores that are imitated, by name. Each call makes new quirks, because some count or remember."""

from __future__ import annotations

from collections.abc import Callable

from tests.stores import checksums, conditions, gateways, listings, refusals, removals, transfers
from tests.stores.imitated import Quirk, first, only

Quirks = Callable[[], tuple[Quirk, ...]]


def _same(*quirks: Quirk) -> Quirks:
    return lambda: quirks


def _conditional_puts(quirk: Quirk) -> Quirks:
    """Of writes only, since readers may use the header as well."""
    return _same(only(quirk, "PutObject|CompleteMultipartUpload"))


CONDITIONS: dict[str, Quirks] = {
    "ignores If-None-Match": _same(conditions.ignores("If-None-Match")),
    "answers 501 to If-None-Match": _conditional_puts(conditions.refuses("If-None-Match", 501, "NotImplemented")),
    "answers 400 to If-None-Match": _conditional_puts(conditions.refuses("If-None-Match", 400, "NotImplemented")),
    "lets racing conditional puts win": _same(conditions.races(0.05)),
    "answers 304 to conditional puts": _same(conditions.not_modified),
    "inverts conditional puts": _same(conditions.inverted),
    "keeps deleted names": lambda: (conditions.deleted_names_stay_taken(),),
    "ignores If-Match": _same(conditions.ignores("If-Match")),
    "never matches If-Match": _same(conditions.never_matches),
    "matches nothing that is missing": _same(conditions.missing_does_not_match),
    "has weak tags": _same(conditions.weak_tags),
    "has no tags": _same(conditions.no_tags),
    "shows objects late": lambda: (conditions.absent_at_first(0.3),),
}

CHECKSUMS: dict[str, Quirks] = {
    "refuses checksums": _same(checksums.refuses_checksums),
    "refuses SHA256": _same(checksums.refuses_checksum("SHA256")),
    "refuses CRC32": _same(checksums.refuses_checksum("CRC32")),
    "names unsupported headers": _same(checksums.unsupported_header),
    "forgets checksums": _same(checksums.forgets_checksums),
    "needs a checksum": _same(checksums.needs_checksum),
    "gives ranges the whole checksum": _same(checksums.checksum_of_whole_in_range),
}

OVER_TLS: dict[str, Quirks] = {
    "has a private authority": _same(),
    "stores the framing": _same(checksums.stores_framing),
    **{f"refuses trailers as {name.partition(':')[0]}": _same(quirk) for name, quirk in checksums.TRAILERS.items()},
}

LISTINGS: dict[str, Quirks] = {
    "lists small pages": _same(listings.small_pages(3)),
    "has no ListObjectsV2": _same(listings.only_first_version, listings.small_pages(3)),
    "gives no token": _same(listings.no_token, listings.small_pages(3)),
    "adds an empty page": _same(listings.extra_page, listings.small_pages(3)),
    "lists without order": _same(listings.unordered, listings.small_pages(3)),
    "lists raw keys": _same(listings.raw_keys),
    "lists late": lambda: (listings.stale(30.0),),
}

REMOVALS: dict[str, Quirks] = {
    "needs Content-MD5 to delete": _same(removals.missing_content_md5),
    "says InvalidRequest without Content-MD5": _same(removals.invalid_without_md5),
    "has no DeleteObjects": _same(removals.no_delete_of_many),
    "says InvalidArgument to DeleteObjects": _same(removals.invalid_delete_of_many),
    "says 405 to DeleteObjects": _same(removals.delete_of_many_not_allowed),
    "denies each deletion": _same(removals.delete_of_many_denied, only(refusals.access_denied, "DeleteObject")),
    "locks the first object": _same(removals.first_key_locked),
}

REFUSALS: dict[str, Quirks] = {
    "denies everything": _same(refusals.access_denied),
    "denies reads": _same(only(refusals.access_denied, "GetObject|HeadObject")),
    "denies contents": _same(only(refusals.access_denied, "GetObject")),
    "denies writes": _same(only(refusals.access_denied, "PutObject|CreateMultipartUpload")),
    "denies listings": _same(only(refusals.access_denied, "List.*")),
    "denies deletions": _same(only(refusals.access_denied, "DeleteObjects?")),
    "denies the key of contents": _same(only(refusals.kms_denied, "GetObject")),
    "has a disabled key": _same(only(refusals.kms_disabled, "GetObject|PutObject|CreateMultipartUpload")),
    "is read-only": _same(only(refusals.read_only, "PUT|POST|DELETE")),
    "has archived the contents": _same(only(refusals.archived, "GetObject")),
    "finds the token expired": _same(refusals.expired_token),
    "finds the request expired": _same(refusals.expired_request),
    "does not know the key id": _same(refusals.unknown_key_id),
    "finds the signature wrong": _same(refusals.wrong_secret),
    "says 401": _same(refusals.not_authorized),
    "finds the clock wrong": _same(refusals.time_too_skewed),
    "has another clock": _same(refusals.clock_ahead(3600.0)),
    "has no such bucket": _same(refusals.no_such_bucket),
    "has moved the bucket": _same(refusals.moved("eu-west-1", "bucket.s3.eu-west-1.amazonaws.com")),
    "is in another region": _same(refusals.wrong_region("eu-west-1")),
    "has an unnamed region": _same(refusals.unexpected_scope),
    "is full": _same(only(refusals.storage_full, "PutObject|UploadPart")),
    "has a quota": _same(only(refusals.quota_exceeded, "PutObject|UploadPart")),
    "has a quota of objects": _same(only(refusals.object_quota_exceeded, "PutObject|CreateMultipartUpload")),
    "slows down for ever": _same(refusals.slow_down),
    "wants virtual hosts": _same(
        refusals.refusing(403, "SecondLevelDomainForbidden", "Please use virtual host style.")
    ),
    "wants virtual hosts as COS": _same(
        refusals.refusing(403, "PathStyleDomainForbidden", "Use virtual-styled domain.")
    ),
}

NETWORKS: dict[str, Quirks] = {
    "is a page": _same(gateways.page_for_everything()),
    "is a well-formed page": _same(gateways.page_for_everything(gateways.WELL_FORMED_PAGE)),
    "answers with nothing": _same(gateways.page_for_everything(b"")),
    "redirects to TLS": _same(gateways.redirects("https://127.0.0.1/")),
    "redirects to a portal": _same(gateways.redirects("http://portal.example/", 302)),
    "takes small bodies": _same(gateways.small_bodies(1_000)),
    "is unknown to Cloudflare": _same(gateways.unknown_error),
    "compresses": _same(gateways.compressed, checksums.forgets_checksums),
    "gives no length": _same(gateways.no_length),
    "loses the answer to complete": _same(gateways.other_body_after_complete),
    "fails to complete": _same(transfers.error_after_complete),
    "cuts contents": _same(transfers.truncated, checksums.forgets_checksums),
    "cuts contents and checks them": _same(transfers.truncated),
    "breaks off": _same(transfers.cut_off),
    "hangs up": _same(transfers.hangs_up),
    "is slow": _same(transfers.slow(0.01)),
}

AT_FIRST: dict[str, Quirks] = {
    "answers 409 twice": lambda: (only(first(2, conditions.conflict), "PutObject"),),
    "takes one write a second": lambda: (conditions.one_write_a_second(0.1),),
    "slows down": lambda: (first(1, refusals.slow_down),),
    "starts": lambda: (first(1, refusals.busy),),
    "fails to complete": lambda: (only(first(1, transfers.error_after_complete), "CompleteMultipartUpload"),),
    "hangs up": lambda: (first(1, transfers.hangs_up),),
}
"""What passes when the request is repeated."""
