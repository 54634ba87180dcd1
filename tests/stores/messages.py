"""Requests to an S3 store and their answers, as quirks see them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote
from xml.sax.saxutils import escape

from urllib3 import HTTPHeaderDict


class NoAnswerError(Exception):
    """A quirk closes the connection without a response."""


@dataclass
class Request:
    """A request in path style. Quirks may change it before it is forwarded."""

    method: str
    path: str
    """Percent-encoded: /bucket/key."""
    query: str
    """Percent-encoded, without the question mark."""
    headers: HTTPHeaderDict
    body: bytes
    closed: threading.Event
    """Set when the store closes."""

    @property
    def target(self) -> str:
        """Path and query, as the first line of the request has them."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def name(self) -> str:
        """The path without percent-encoding: /bucket/key."""
        return unquote(self.path)

    @property
    def parameters(self) -> dict[str, str]:
        """The query."""
        return {key: values[-1] for key, values in parse_qs(self.query, keep_blank_values=True).items()}

    @property
    def operation(self) -> str:
        """The name of the operation as the S3 API has it, e.g. PutObject or ListObjectsV2."""
        parameters = self.parameters
        if not self.path.strip("/").partition("/")[2]:
            return self._operation_of_bucket(parameters)
        if self.method == "POST":
            return "CreateMultipartUpload" if "uploads" in parameters else "CompleteMultipartUpload"
        if "uploadId" in parameters:
            return {"PUT": "UploadPart", "DELETE": "AbortMultipartUpload"}.get(self.method, "ListParts")
        return f"{self.method.capitalize()}Object"

    def by_same_user(self, method: str, path: str) -> Request:
        """Another request with these credentials, without query, conditions and body."""
        kept = {name: value for name, value in self.headers.items() if name.lower() in ("authorization", "x-amz-date")}
        return Request(method, path, "", HTTPHeaderDict(kept), b"", self.closed)

    def _operation_of_bucket(self, parameters: dict[str, str]) -> str:
        if self.method == "POST":
            return "DeleteObjects"
        if self.method != "GET":
            return {"PUT": "CreateBucket"}.get(self.method, f"{self.method.capitalize()}Bucket")
        for parameter, operation in _OPERATIONS_OF_BUCKET.items():
            if parameter in parameters:
                return operation
        return "ListObjects"


_OPERATIONS_OF_BUCKET = {
    "list-type": "ListObjectsV2",
    "uploads": "ListMultipartUploads",
    "location": "GetBucketLocation",
}


@dataclass
class Answer:
    """A response. Its Content-Length is that of the body, unless `length` says another."""

    status: int
    headers: HTTPHeaderDict = field(default_factory=HTTPHeaderDict)
    body: bytes = b""
    length: int | None = None
    """The Content-Length that the header states: that of the object for HEAD, or more than is sent. -1: no header."""


def error(request: Request, status: int, code: str, message: str, **elements: str) -> Answer:
    """An error document of S3 with further elements. The response to HEAD has no body, so it has only the status."""
    headers = HTTPHeaderDict({"x-amz-request-id": "4442587FB7D0A2F9"})
    if request.method == "HEAD":
        return Answer(status, headers)
    headers["Content-Type"] = "application/xml"
    all_elements = {"Code": code, "Message": message, **elements, "Resource": request.name}
    content = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in all_elements.items())
    return Answer(status, headers, f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{content}</Error>'.encode())
