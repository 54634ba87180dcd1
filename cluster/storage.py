"""Bytes at a URI: local paths, `file://` and `s3://` alike, with the one conditional write that commits need.

Inputs may also be files of a web server (cluster/http.py), which nothing is written to.

Whole objects only, because every file of ours is written once and never changed: a write becomes visible complete or
not at all (locally a temporary file and a rename, on S3 one put). `put_if_absent` is the primitive under every record
and snapshot: of any number of racing writers one wins. pyarrow's filesystem has no conditional write and
takes a body cut short for whole, so S3 objects are written and read with boto3; what reads a Parquet file through
`filesystem` checks its checksums. The endpoint of an S3 other than Amazon's comes from AWS_ENDPOINT_URL.
"""

import functools
import os
import random
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import boto3
import pyarrow.fs
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cluster import http

RETRY_ATTEMPTS = 10
"""Attempts at one S3 request; with 30% of answers faulty, one request in 170,000 fails all of them."""

_CONFLICT_DELAY_SECONDS = 0.05
_CONFLICT_DELAY_MAX_SECONDS = 5.0


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of a URI and the path on it (absolute locally, `bucket/key` on S3, all of a web address).

    Raises ValueError for a scheme that is none of file, s3, http and https.
    """
    if is_web(uri):
        return _web_filesystem(), uri
    if is_s3(uri):
        bucket, key = _bucket_and_key(uri)
        return _s3_filesystem(bucket, _endpoint()), f"{bucket}/{key}".rstrip("/")
    return pyarrow.fs.LocalFileSystem(), str(_local_path(uri))


def is_s3(uri: str) -> bool:
    """Whether the URI names an S3 object or prefix."""
    return uri.startswith("s3://")


def is_web(uri: str) -> bool:
    """Whether the URI names a file of a web server, which can only be read."""
    return uri.startswith(("http://", "https://"))


def join(uri: str, *parts: str) -> str:
    """The URI of something below a folder."""
    return "/".join([(uri or ".").rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """The same place for a process with another working directory: local paths become absolute and plain."""
    return uri.rstrip("/") if is_s3(uri) or is_web(uri) else str(_local_path(uri))


def exists(uri: str) -> bool:
    """Whether a file, or a folder (on S3: any object under the prefix), is there."""
    files, path = filesystem(uri)
    return bool(files.get_file_info(path).type != pyarrow.fs.FileType.NotFound)


def read_bytes(uri: str) -> bytes:
    """The whole content. Raises FileNotFoundError, and OSError where fewer bytes arrive than the file has."""
    if is_web(uri):
        with http.HttpFileSystem().open(uri) as file:
            data: bytes = file.read()
            return data
    return _read_s3(uri) if is_s3(uri) else _local_path(uri).read_bytes()


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Writes a file, replacing what was there; readers see the old content or the new, never a part of it.

    Raises OSError where the stored size is not the size of the data.
    """
    if is_s3(uri):
        bucket, key = _bucket_and_key(uri)
        client = _s3_client(_endpoint())
        client.put_object(Bucket=bucket, Key=key, Body=bytes(data))
        stored = client.head_object(Bucket=bucket, Key=key)["ContentLength"]
        if stored != len(data):
            raise OSError(f"{uri}: {stored} bytes stored of {len(data)} written")
    else:
        path = _local_path(uri)
        temporary = _write_temporary(path, data)
        try:
            temporary.replace(path)
        except OSError:
            temporary.unlink()
            raise


def put_if_absent(uri: str, data: bytes) -> bool:
    """Writes a file unless one is there; True where the file now holds exactly this data.

    Of racing writers with different data one gets True. A retried put whose first answer was lost finds its own data
    and gets True as well, so data that must have one author carries the author's id.
    """
    if is_s3(uri):
        written = _put_if_absent_s3(uri, data)
    else:
        path = _local_path(uri)
        temporary = _write_temporary(path, data)
        try:
            os.link(temporary, path)  # fails if the name exists, and the name appears with all of its content
            written = True
        except FileExistsError:
            written = False
        finally:
            temporary.unlink()
    return written or read_bytes(uri) == data


def list_files(uri: str, suffixes: Sequence[str] = ()) -> list[str]:
    """All files under a folder, recursively and sorted, hidden ones (a name or folder that starts with a dot) left out.

    A URI of a file lists itself, whatever its suffix. Local files come as absolute plain paths.
    Raises FileNotFoundError if nothing is there or nothing has one of the suffixes.
    """
    files, root = filesystem(uri)
    prefix = "s3://" if is_s3(uri) else ""
    kind = files.get_file_info(root).type
    if kind == pyarrow.fs.FileType.File:
        return [prefix + root]
    if kind == pyarrow.fs.FileType.NotFound:
        raise FileNotFoundError(f"nothing at '{uri}'")
    entries = files.get_file_info(pyarrow.fs.FileSelector(root, recursive=True))
    paths = [entry.path for entry in entries if entry.type == pyarrow.fs.FileType.File]
    visible = [path for path in paths if "/." not in path[len(root) :]]
    found = sorted(prefix + path for path in visible if not suffixes or path.endswith(tuple(suffixes)))
    if not found:
        wanted = " or ".join(f"*{suffix}" for suffix in suffixes) or "any file"
        raise FileNotFoundError(f"no {wanted} under '{uri}' ({len(visible)} other files there)")
    return found


def delete(uri: str) -> None:
    """Removes a file, or a folder with all that is in it; nothing there is no error."""
    if is_s3(uri):
        _delete_s3(uri)
    elif (path := _local_path(uri)).is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def ensure_writable(uri: str, option: str) -> None:
    """Tries a write under a folder before hours of work depend on it.

    Raises ValueError that names the option whose value the folder is.
    """
    probe = join(uri, f".writable-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
        delete(probe)
    except (OSError, ValueError, ClientError, BotoCoreError) as error:
        raise ValueError(f"{option}: cannot write to '{uri}' ({error}); name a folder you may write") from error


def _read_s3(uri: str) -> bytes:
    # Not through pyarrow: where a body ends early, it fills the rest with whatever lies in memory
    bucket, key = _bucket_and_key(uri)
    client = _s3_client(_endpoint())
    try:
        head = client.head_object(Bucket=bucket, Key=key)
        data: bytes = client.get_object(Bucket=bucket, Key=key, IfMatch=head["ETag"])["Body"].read()
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
            raise FileNotFoundError(f"nothing at '{uri}'") from error
        raise
    if len(data) != head["ContentLength"]:
        raise OSError(f"{uri}: read {len(data)} of {head['ContentLength']} bytes")
    return data


def _put_if_absent_s3(uri: str, data: bytes) -> bool:
    bucket, key = _bucket_and_key(uri)
    client = _s3_client(_endpoint())
    for attempt in range(RETRY_ATTEMPTS):
        try:
            client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
            return True
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status == 412:
                return False
            if status != 409 or attempt + 1 == RETRY_ATTEMPTS:  # boto3 itself has retried 5xx and broken connections
                raise
        # 409: another conditional put of this key is in flight, and S3 will not say how it ends
        delay = min(_CONFLICT_DELAY_SECONDS * 2**attempt, _CONFLICT_DELAY_MAX_SECONDS)
        time.sleep(delay * random.uniform(0.5, 1.0))
    raise AssertionError("the loop returns or raises")


def _delete_s3(uri: str) -> None:
    # Not through pyarrow, which leaves an object behind for the parent folder
    bucket, key = _bucket_and_key(uri)
    client = _s3_client(_endpoint())
    if key.rstrip("/"):
        client.delete_object(Bucket=bucket, Key=key.rstrip("/"))
    prefix = key.rstrip("/") + "/" if key else ""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        below = [{"Key": entry["Key"]} for entry in page.get("Contents", [])]
        if below:
            errors = client.delete_objects(Bucket=bucket, Delete={"Objects": below, "Quiet": True}).get("Errors", [])
            if errors:
                raise OSError(f"{uri}: {len(errors)} objects not deleted, the first: {errors[0]}")


def _write_temporary(path: Path, data: bytes | memoryview) -> Path:
    """A hidden file of its own beside `path` with the data on disk, ready to be renamed or linked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut can leave the name without the content
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _local_path(uri: str) -> Path:
    if uri.startswith("file://"):
        return Path(unquote(urlsplit(uri).path))
    if "://" in uri:
        scheme = uri.split("://", 1)[0]
        raise ValueError(f"'{uri}': unknown scheme '{scheme}'; use a local path, file:// or s3://")
    return Path(uri).absolute()


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise ValueError(f"'{uri}': no bucket; write s3://bucket/key")
    return bucket, key


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


@functools.lru_cache
def _s3_client(endpoint: str | None) -> Any:  # botocore makes the methods of its clients at run time
    # Servers other than Amazon's seldom resolve bucket names as hosts
    addressing: Literal["auto", "path"] = "auto" if endpoint is None else "path"
    retries: Any = {"mode": "standard", "total_max_attempts": RETRY_ATTEMPTS}
    config = Config(retries=retries, s3={"addressing_style": addressing})
    return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)


@functools.lru_cache
def _web_filesystem() -> pyarrow.fs.FileSystem:
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(http.HttpFileSystem()))


@functools.lru_cache
def _s3_filesystem(bucket: str, endpoint: str | None) -> pyarrow.fs.S3FileSystem:
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None and endpoint is None:
        region = pyarrow.fs.resolve_s3_region(bucket)
    retries = pyarrow.fs.AwsStandardS3RetryStrategy(max_attempts=RETRY_ATTEMPTS)
    return pyarrow.fs.S3FileSystem(region=region, endpoint_override=endpoint, retry_strategy=retries)
