"""The operations of cluster.storage as a user of a store has them: each works, which the server is asked, or raises."""

from __future__ import annotations

import http.client
import os
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from cluster import storage
from cluster.stores.errors import StorageError

SMALL = b"some content, which is long enough to be cut into halves"
_SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"}
"""The server checks no signature, but wants one."""
NAMES = [f"{number} ä%25+#&.bin" for number in range(1, 6)]


@dataclass
class Trial:
    """One operation in a folder of its own, where five files lie."""

    bucket: str
    folder_key: str
    server: Any
    """A client of the real server, without quirks."""
    large_bytes: int
    """Size of an object that is written in parts."""

    @property
    def folder(self) -> str:
        return f"s3://{self.bucket}/{self.folder_key}"

    def uri(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def prepare(self) -> None:
        """Write the five files, by requests of our own, since boto3 takes as long for them as for all the rest."""
        server = urlsplit(self.server.meta.endpoint_url)
        connection = http.client.HTTPConnection(server.hostname or "", server.port)
        with closing(connection):
            for name in NAMES:
                connection.request("PUT", quote(f"/{self.bucket}/{self.folder_key}/{name}"), SMALL, _SIGNED)
                response = connection.getresponse()
                assert (response.status, response.read()) == (200, b"")

    def content(self, name: str) -> bytes:
        content: bytes = self.server.get_object(Bucket=self.bucket, Key=f"{self.folder_key}/{name}")["Body"].read()
        return content

    def left(self) -> list[str]:
        """The names of the visible files in the folder."""
        pages = self.server.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=f"{self.folder_key}/")
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        names = [key.removeprefix(f"{self.folder_key}/") for key in keys]
        return [name for name in names if not name.startswith(".")]


def write_small(trial: Trial) -> None:
    storage.write_bytes(trial.uri("new"), SMALL)
    assert trial.content("new") == SMALL


def write_large(trial: Trial) -> None:
    data = os.urandom(trial.large_bytes)
    storage.write_bytes(trial.uri("new"), data)
    assert trial.content("new") == data


def write_new_file(trial: Trial) -> None:
    file = storage.NewFile(trial.folder)
    try:
        file.write(SMALL[:10])
        file.write(SMALL[10:])
        file.publish("new")
    finally:
        file.close()
    assert trial.content("new") == SMALL


def put_twice(trial: Trial) -> None:
    uri = trial.uri("record")
    first, second = storage.put_if_absent(uri, b"1"), storage.put_if_absent(uri, b"2")
    assert (first, second, trial.content("record")) == (True, False, b"1")


def put_again(trial: Trial) -> None:
    """A name is free again once its file is deleted: runs delete their records, and write them anew."""
    uri = trial.uri("record")
    assert storage.put_if_absent(uri, b"1")
    storage.delete(uri)
    assert storage.put_if_absent(uri, b"2")
    assert trial.content("record") == b"2"


def read(trial: Trial) -> None:
    assert storage.read_bytes(trial.uri(NAMES[0])) == SMALL
    try:
        storage.read_bytes(trial.uri("missing"))
    except FileNotFoundError:
        return
    raise AssertionError("a missing file has content")


def read_range(trial: Trial) -> None:
    files, path = storage.filesystem(trial.uri(NAMES[0]))
    with files.open_input_file(path) as file:
        assert file.size() == len(SMALL)
        file.seek(4)
        assert file.read(7) == SMALL[4:11]


def exists(trial: Trial) -> None:
    found = [storage.exists(uri) for uri in (trial.uri(NAMES[0]), trial.folder, trial.uri("missing"))]
    assert found == [True, True, False]


def list_folder(trial: Trial) -> None:
    assert storage.list_files(trial.folder) == [trial.uri(name) for name in NAMES]


def delete_file(trial: Trial) -> None:
    storage.delete(trial.uri(NAMES[0]))
    assert trial.left() == NAMES[1:]


def delete_folder(trial: Trial) -> None:
    storage.delete(trial.folder)
    assert trial.left() == []


def delete_files(trial: Trial) -> None:
    errors = storage.delete_files([trial.uri(name) for name in NAMES])
    assert trial.left() == [name for name in NAMES if trial.uri(name) in errors]
    for error in errors.values():
        raise error


def check_reachable(trial: Trial) -> None:
    storage.check_reachable(trial.folder, "--input")


def ensure_writable(trial: Trial) -> None:
    storage.ensure_writable(trial.folder, "--output")
    assert set(trial.left()) <= set(NAMES)


OPERATIONS: dict[str, Callable[[Trial], None]] = {
    operation.__name__: operation
    for operation in (
        *(write_small, write_large, write_new_file, put_twice, put_again, read, read_range, exists, list_folder),
        *(delete_file, delete_folder, delete_files, check_reachable, ensure_writable),
    )
}

READING = ("read", "read_range", "exists", "list_folder", "check_reachable", "ensure_writable")
"""They leave the files of a folder as they are."""
WRITING = ("write_small", "write_large", "write_new_file", "put_twice", "put_again")
"""They need no file."""


def outcome(operation: Callable[[Trial], None], trial: Trial) -> str:
    """ "works", or the class of the error. What users must not see has a longer name."""
    try:
        operation(trial)
    except AssertionError as error:
        return f"wrong: {traceback.extract_tb(error.__traceback__)[-1].line}"
    except StorageError as error:
        kind, message = type(error).__name__, str(error)
        return kind if "\n" not in message and f"s3://{trial.bucket}" in message else f"{kind}: {message}"
    except Exception as error:  # noqa: BLE001 - what leaves cluster.storage is the subject
        return f"{type(error).__module__}.{type(error).__name__}: {str(error)[:300]}"
    return "works"
