"""The reasons why a row can be dropped, and the classes of the reasons why a fetch or an image check failed."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal


class Reason(StrEnum):
    """Why a row was dropped. Ledgers, manifests and the report show the value."""

    UNFORESEEN = "unforeseen error"
    """The message is in the row: `error_message` of FETCHED, else the caption."""
    # Wikipedia
    NOT_AN_ARTICLE = "page is of another namespace"
    REDIRECT = "page is a redirect"
    BROKEN_PAGE = "page cannot be read"
    BROKEN_LINE = "line cannot be read"
    # Extraction: records without a candidate
    NOT_A_RESPONSE = "record is not a response"
    NOT_HTML = "record is not HTML"
    HTTP_REDIRECT = "response is a redirect (3xx)"
    HTTP_ERROR_PAGE = "response is an error"
    REVISIT = "revisit record"
    NO_IMAGE = "page has no image with a text"
    TOO_DEEP = "page is nested too deeply"
    PAGE_TIMEOUT = "page takes too long to read"
    PAGE_DIED = "process died of the page"
    BROKEN_RECORD = "record cannot be read"
    TRUNCATED_RECORD = "record ends early"
    BROKEN_ARCHIVE = "archive cannot be read from here on"
    BAD_URL = "image address cannot be used"
    # Caption rules
    CAPTION_EMPTY = "caption is empty"
    CAPTION_SHORT = "caption is too short"
    CAPTION_LONG = "caption is too long"
    CAPTION_FILE_NAME = "caption is a file name"
    CAPTION_BOILERPLATE = "caption is boilerplate"
    CAPTION_MARKUP = "caption is markup or an address"
    CAPTION_REPETITION = "caption repeats itself"
    CAPTION_PERSONAL_DATA = "caption has an e-mail address or a phone number"
    CAPTION_LANGUAGE = "caption is in another language"
    # Matching and balancing
    NO_QUERY = "no query occurs in the caption"
    BALANCED_OUT = "none of its queries draws it"
    # Duplicates
    DUPLICATE_URL = "same address as a better pair"
    DUPLICATE_SHA256 = "same file as a better pair"
    DUPLICATE_PERCEPTUAL = "same picture as a better pair"
    DUPLICATE_CAPTION = "like picture and same caption as a better pair"
    DUPLICATE_TURNED = "same picture as a better pair, mirrored or turned"
    DUPLICATE_EMBEDDING = "same picture as a better pair, by its embedding"
    DUPLICATE_PAIR = "same address and caption as an earlier pair"
    # Overlap
    OVERLAP = "shows a picture of an evaluation set"
    # Policy: the crawler must not fetch the address, or chooses not to
    ROBOTS_TXT = "forbidden by robots.txt"
    X_ROBOTS_TAG = "forbidden by X-Robots-Tag"
    NOT_PUBLIC = "address is not public"
    BAD_SCHEME = "scheme or port is not allowed"
    TOO_MANY_REDIRECTS = "too many redirects"
    BLOCKED_URL = "address is on a block list"
    BLOCKED_DOMAIN = "domain is on a block list"
    BLOCKED_FILE = "file is on a block list"
    BLOCKED_PICTURE = "picture is on a block list"
    UNSAFE = "image is judged unsafe"
    # Transient: a later attempt may succeed
    TIMEOUT = "timeout"
    CONNECTION = "connection failed"
    SERVER_ERROR = "server error (5xx)"
    TOO_MANY_REQUESTS = "server asks for fewer requests (429)"
    INCOMPLETE = "body ends early"
    HOST_DOWN = "host is down or asks to be left alone for now"
    MOVED = "moved to another domain"
    # Permanent
    NOT_FOUND = "not found (404, 410)"
    CLIENT_ERROR = "refused by the server (4xx)"
    NO_SUCH_HOST = "host has no address"
    TOO_MANY_BYTES = "file is too large"
    # Image checks
    NOT_AN_IMAGE = "content is not a known image type"
    TOO_MANY_PIXELS = "image has too many pixels"
    TOO_SMALL = "image is too small"
    TOO_ELONGATED = "image is too elongated"
    CORRUPT_IMAGE = "image is corrupt or truncated"
    RESIZE_FAILED = "image cannot be resized"
    DECODER_TIMEOUT = "image takes too long to decode"
    DECODER_DIED = "decoder died of the image"
    # Pairs made by other tools
    IMAGE_MISSING = "there is no image with the caption"


DECODER_FAULTS = frozenset({Reason.DECODER_TIMEOUT, Reason.DECODER_DIED})
"""Failures of a decoder process, most likely caused by the image; possibly by a machine that ran out of memory."""
TRANSIENT = DECODER_FAULTS | {
    Reason.TIMEOUT,
    Reason.CONNECTION,
    Reason.SERVER_ERROR,
    Reason.TOO_MANY_REQUESTS,
    Reason.INCOMPLETE,
    Reason.HOST_DOWN,
    Reason.MOVED,
    Reason.UNFORESEEN,  # another release may handle what this one did not foresee
}
SAFETY = frozenset(
    {Reason.BLOCKED_URL, Reason.BLOCKED_DOMAIN, Reason.BLOCKED_FILE, Reason.BLOCKED_PICTURE, Reason.UNSAFE}
)
"""Rows whose content must not be shown anywhere."""
POLICY = SAFETY | {
    Reason.ROBOTS_TXT,
    Reason.X_ROBOTS_TAG,
    Reason.NOT_PUBLIC,
    Reason.BAD_SCHEME,
    Reason.TOO_MANY_REDIRECTS,
}
IMAGE_CHECKS = frozenset(
    {
        Reason.NOT_AN_IMAGE,
        Reason.TOO_MANY_PIXELS,
        Reason.TOO_SMALL,
        Reason.TOO_ELONGATED,
        Reason.CORRUPT_IMAGE,
        Reason.RESIZE_FAILED,
    }
)
"""The address returned a file that cannot be used."""
PERMANENT = IMAGE_CHECKS | {Reason.NOT_FOUND, Reason.CLIENT_ERROR, Reason.NO_SUCH_HOST, Reason.TOO_MANY_BYTES}

ReasonClass = Literal["transient", "permanent", "policy"]
_CLASSES: tuple[tuple[ReasonClass, frozenset[Reason]], ...] = (
    ("transient", TRANSIENT),
    ("permanent", PERMANENT),
    ("policy", POLICY),
)


def img2dataset_status(reason: str | None) -> str:
    """The status that img2dataset gives a row with this reason."""
    if reason is None:
        return "success"
    return "failed_to_resize" if reason in IMAGE_CHECKS | DECODER_FAULTS else "failed_to_download"


def retry_class(reason: str) -> ReasonClass:
    """The class of a reason why a fetch or an image check failed: "transient" (retry), "permanent" or "policy".

    Raises:
        ValueError: the reason belongs to another stage.
    """
    for name, members in _CLASSES:
        if reason in members:
            return name
    raise ValueError(f"{reason!r} is not a reason of fetching, so it has no class")
