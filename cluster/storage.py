"""Read and write files by URI: local paths, `file://` and `s3://`, with the conditional write that commits need.

Inputs can also be files on web servers (cluster/stores/web.py), which are read-only.

Files are written whole, because no file of a run ever changes. A write becomes visible completely or not at all:
locally through a temporary file and a rename, on S3 through one put. `put_if_absent` is the primitive under every
record and snapshot: exactly one of any number of racing writers wins. Code that reads a Parquet file through
`filesystem` must verify its checksums, because pyarrow accepts a truncated body as complete.
"""

import functools
import io
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow.fs
from botocore.exceptions import BotoCoreError, ClientError

from cluster.stores import local, s3, web
from cluster.stores.local import NewLocalFile, local_path


@dataclass(frozen=True)
class Entry:
    """A file in a listing."""

    uri: str
    num_bytes: int
    modified: float
    """Time of the last modification by the clock of the storage, in seconds since 1970."""


def filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The pyarrow filesystem of a URI, and the path on it (absolute path, `bucket/key`, or the whole web URL).

    Raises ValueError for a scheme other than file, s3, http and https.
    """
    if is_web(uri):
        return _web_filesystem(), uri
    if is_s3(uri):
        bucket, key = s3.bucket_and_key(uri)
        return s3.filesystem(bucket), f"{bucket}/{key}".rstrip("/")
    return pyarrow.fs.LocalFileSystem(), str(local_path(uri))


def is_s3(uri: str) -> bool:
    """Whether the URI names an S3 object or prefix."""
    return uri.startswith("s3://")


def is_web(uri: str) -> bool:
    """Whether the URI names a file on a web server, which is read-only."""
    return uri.startswith(("http://", "https://"))


def join(uri: str, *parts: str) -> str:
    """The URI of a file or folder below a folder."""
    return "/".join([(uri or ".").rstrip("/"), *(part.strip("/") for part in parts)])


def absolute(uri: str) -> str:
    """A URI that does not depend on the working directory. Local URIs become absolute plain paths."""
    return uri.rstrip("/") if is_s3(uri) or is_web(uri) else str(local_path(uri))


def exists(uri: str) -> bool:
    """Whether a file or a folder exists. On S3 a folder exists if any object has its prefix."""
    files, path = filesystem(uri)
    return bool(files.get_file_info(path).type != pyarrow.fs.FileType.NotFound)


def read_bytes(uri: str) -> bytes:
    """The whole content of a file. Raises FileNotFoundError, and OSError if fewer bytes arrive than the file has."""
    if is_web(uri):
        with web.HttpFileSystem().open(uri) as file:
            data: bytes = file.read()
            return data
    return b"".join(s3.read(uri)) if is_s3(uri) else local_path(uri).read_bytes()


def read_chunks(uri: str) -> Iterator[bytes]:
    """Yield the content of a local file or an S3 object, a few megabytes at a time. Raises as read_bytes does."""
    yield from s3.read(uri) if is_s3(uri) else local.read(local_path(uri))


def write_bytes(uri: str, data: bytes | memoryview) -> None:
    """Write or replace a file. Readers see the complete old content or the complete new content.

    Raises:
        StorageFullError: the disk has no space left.
        OSError: the stored size differs from the size of the data.
    """
    if is_s3(uri):
        s3.write(uri, data)
    else:
        local.write(local_path(uri), data)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Write a file unless it exists; whether the file now holds exactly this data.

    Of racing writers with different data, exactly one gets True. A retried put whose first response was lost finds its
    own data and also gets True. So data that must have a single author has to include the author's id.
    Raises StorageFullError if the disk has no space left.
    """
    written = s3.put_if_absent(uri, data) if is_s3(uri) else local.put_if_absent(local_path(uri), data)
    return written or read_bytes(uri) == data


class NewFile:
    """A file that is written in chunks, and becomes visible under its name only when it is complete.

    Until then the data is in a hidden local file. For S3 it is in memory, because objects are written with one call.
    """

    def __init__(self, folder: str) -> None:
        self.num_bytes = 0
        """Number of bytes written."""
        self._folder = folder
        self._stream = io.BytesIO() if is_s3(folder) else NewLocalFile(local_path(folder))

    def write(self, data: bytes) -> None:
        """Append data. Raises StorageFullError if the disk has no space left."""
        self._stream.write(data)
        self.num_bytes += len(data)

    def publish(self, name: str) -> None:
        """Make the data visible as a file of this name in the folder. Raises as `write_bytes` does."""
        if isinstance(self._stream, io.BytesIO):
            s3.write(join(self._folder, name), self._stream.getbuffer())
        else:
            self._stream.publish(name)

    def close(self) -> None:
        """Close the file, and delete it if it was not published."""
        self._stream.close()


def list_files(uri: str, suffixes: Sequence[str] = ()) -> list[str]:
    """List all files under a folder recursively, sorted, without hidden ones (a file or folder name starts with a dot).

    For the URI of a file, the list holds only that URI, regardless of `suffixes`. Local files are absolute plain paths.
    Raises FileNotFoundError if the folder does not exist or no file has one of the suffixes.
    """
    files, root = filesystem(uri)
    prefix = "s3://" if is_s3(uri) else ""
    kind = files.get_file_info(root).type
    if kind == pyarrow.fs.FileType.File:
        return [prefix + root]
    if kind == pyarrow.fs.FileType.NotFound:
        raise FileNotFoundError(f"nothing at '{uri}'")
    uris = [entry.uri for entry in entries(uri)]
    visible = [file_uri for file_uri in uris if "/." not in file_uri[len(prefix + root) :]]
    matching = [file_uri for file_uri in visible if not suffixes or file_uri.endswith(tuple(suffixes))]
    if not matching:
        patterns = " or ".join(f"*{suffix}" for suffix in suffixes) or "files"
        raise FileNotFoundError(f"no {patterns} under '{uri}' ({len(visible)} other files)")
    return matching


def entries(uri: str) -> list[Entry]:
    """Every file under a folder recursively, including hidden and temporary ones, sorted by URI. May be empty."""
    if is_s3(uri):
        listed = [Entry(key_uri, size, modified.timestamp()) for key_uri, size, modified in s3.objects(uri)]
    else:
        found = local.files(local_path(uri))
        listed = [Entry(str(path), status.st_size, status.st_mtime) for path, status in found]
    return sorted(listed, key=lambda entry: entry.uri)


def delete(uri: str) -> None:
    """Delete a file, or a folder with its content. A missing file is not an error."""
    if is_s3(uri):
        s3.delete(uri)
    else:
        local.delete(local_path(uri))


def ensure_writable(uri: str, option: str) -> None:
    """Check that a folder is writable, before hours of work depend on it.

    Raises ValueError, which names the option that sets the folder.
    """
    probe = join(uri, f".writable-{uuid.uuid4().hex}")
    try:
        write_bytes(probe, b"")
        delete(probe)
    except (OSError, ValueError, ClientError, BotoCoreError) as error:
        raise ValueError(f"{option}: cannot write to '{uri}' ({error}); choose a writable folder") from error


@functools.lru_cache
def _web_filesystem() -> pyarrow.fs.FileSystem:
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(web.HttpFileSystem()))
