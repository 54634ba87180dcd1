import concurrent.futures
import os
import resource
import threading
import time
from pathlib import Path

import pyarrow.fs
import pytest

from cluster import storage
from cluster.stores.errors import StorageError


@pytest.fixture(params=["local", "file", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that does not exist yet, on each kind of storage. Its name needs quoting."""
    if request.param == "s3":
        bucket: str = request.getfixturevalue("s3")
        return f"{bucket}/{tmp_path.name}/a folder"
    path = tmp_path / "a folder"
    return str(path) if request.param == "local" else path.as_uri()


def test_written_data_is_read_back(folder: str) -> None:
    uri = storage.join(folder, "deep", "data.bin")
    data = os.urandom(3_000_000)
    assert not storage.exists(uri)
    storage.write_bytes(uri, data)
    assert storage.exists(uri)
    assert storage.exists(folder)
    assert storage.read_bytes(uri) == data


@pytest.mark.parametrize("data", [b"", b"second"])
def test_a_write_replaces_a_file(folder: str, data: bytes) -> None:
    uri = storage.join(folder, "data.bin")
    storage.write_bytes(uri, b"the first")
    storage.write_bytes(uri, data)
    assert storage.read_bytes(uri) == data
    assert len(storage.list_files(folder)) == 1, "no temporary file is left"


def test_reading_a_missing_file(folder: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.bin"):
        storage.read_bytes(storage.join(folder, "missing.bin"))


def test_list_files_is_sorted_and_recursive(folder: str) -> None:
    for name in ("b/2.parquet", "a.parquet", "b/1.parquet", "c.json", ".hidden.parquet", ".trash/x.parquet"):
        storage.write_bytes(storage.join(folder, name), name.encode())
    found = storage.list_files(folder, suffixes=(".parquet",))
    assert [storage.read_bytes(uri) for uri in found] == [b"a.parquet", b"b/1.parquet", b"b/2.parquet"]
    assert found == sorted(found)
    assert len(storage.list_files(folder)) == 4
    assert storage.list_files(folder + "/") == storage.list_files(folder)
    assert storage.list_files(found[0]) == [found[0]], "a file lists itself"


def test_hidden_parent_folders_are_ignored(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / ".cache" / "runs" / "a.txt"), b"")
    assert storage.list_files(str(tmp_path / ".cache" / "runs")) == [str(tmp_path / ".cache" / "runs" / "a.txt")]


def test_listing_without_matching_files_is_an_error(folder: str) -> None:
    with pytest.raises(FileNotFoundError, match="nothing at"):
        storage.list_files(folder)
    storage.write_bytes(storage.join(folder, "readme.txt"), b"")
    with pytest.raises(FileNotFoundError, match=r"no \*\.parquet or \*\.csv under .*1 other files"):
        storage.list_files(folder, suffixes=(".parquet", ".csv"))


def test_delete_removes_a_file_or_a_folder(folder: str) -> None:
    for name in ("keep", "delete", "sub/1", "sub/2", "subtle"):
        storage.write_bytes(storage.join(folder, name), b"")
    storage.delete(storage.join(folder, "delete"))
    storage.delete(storage.join(folder, "sub"))
    storage.delete(storage.join(folder, "missing"))
    assert [uri.rsplit("/", 1)[1] for uri in storage.list_files(folder)] == ["keep", "subtle"]


def test_put_if_absent_keeps_the_first_write(folder: str) -> None:
    uri = storage.join(folder, "snapshots", "v1.json")
    assert storage.put_if_absent(uri, b"first")
    assert not storage.put_if_absent(uri, b"second")
    assert storage.read_bytes(uri) == b"first"
    assert storage.put_if_absent(uri, b"first"), "the same data counts as written"


def test_one_of_many_racing_writers_wins(folder: str) -> None:
    num_writers = 16
    for attempt in range(3):
        uri = storage.join(folder, f"race-{attempt}.json")
        barrier = threading.Barrier(num_writers)

        def put(writer: int, uri: str = uri, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return storage.put_if_absent(uri, f"writer {writer}".encode() * 1000)

        with concurrent.futures.ThreadPoolExecutor(num_writers) as threads:
            won = list(threads.map(put, range(num_writers)))
        assert won.count(True) == 1
        assert storage.read_bytes(uri) == f"writer {won.index(True)}".encode() * 1000
    assert len(storage.list_files(folder)) == 3, "the losers leave no files"


def test_local_readers_never_see_partial_content(tmp_path: Path) -> None:
    uri = str(tmp_path / "data.bin")
    contents = {bytes([value]) * 1_000_000 for value in range(2)}
    storage.write_bytes(uri, next(iter(contents)))
    done = threading.Event()

    def write() -> None:
        for data in [*contents] * 10:
            storage.write_bytes(uri, data)
        done.set()

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        writing = threads.submit(write)
        num_reads = 0
        while not done.is_set():
            assert storage.read_bytes(uri) in contents
            num_reads += 1
        writing.result()
    assert num_reads > 1


def test_entries_lists_every_file(folder: str) -> None:
    assert storage.entries(folder) == []
    for name in ("b/2.parquet", "a.parquet", ".hidden.tmp"):
        storage.write_bytes(storage.join(folder, name), name.encode())
    found = storage.entries(folder)
    assert [storage.read_bytes(entry.uri).decode() for entry in found] == [".hidden.tmp", "a.parquet", "b/2.parquet"]
    assert [entry.num_bytes for entry in found] == [11, 9, 11]
    assert all(abs(entry.modified - time.time()) < 60 for entry in found)


def test_ensure_writable_leaves_no_files(folder: str) -> None:
    storage.write_bytes(storage.join(folder, "data"), b"")
    before = storage.list_files(folder.rsplit("/", 1)[0])
    storage.ensure_writable(folder, "output")
    assert storage.list_files(folder.rsplit("/", 1)[0]) == before


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("/dev/null/runs", "Not a directory"),
        ("/proc/runs", "No such file"),
        ("s3://there-is-no-such-bucket/runs", "bucket does not exist"),
        ("s3a://bucket/runs", "unknown scheme 's3a'"),
        ("s3:/bucket/runs", "write s3://bucket/key"),
        ("https://server.example/runs", "read-only"),
        ("gs://bucket/runs", "unknown scheme 'gs'"),
        ("s3:///runs", "no bucket"),
    ],
)
def test_an_unwritable_folder_is_refused_naming_its_option(uri: str, reason: str) -> None:
    with pytest.raises((ValueError, StorageError), match=f"^output: .*{uri}.*{reason}"):
        storage.ensure_writable(uri, "output")


def test_filesystem_opens_written_files(folder: str) -> None:
    uri = storage.join(folder, "data.bin")
    storage.write_bytes(uri, b"content")
    files, path = storage.filesystem(uri)
    assert files.open_input_file(path).read() == b"content"
    assert isinstance(files, pyarrow.fs.PyFileSystem) == storage.is_s3(folder), "one client for all of S3"


def test_absolute_makes_local_paths_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs/demo") == str(tmp_path / "runs" / "demo")
    assert storage.absolute("file:///a%20b/c") == "/a b/c"
    assert storage.absolute("s3://bucket/runs/") == "s3://bucket/runs"
    assert storage.filesystem("runs")[1] == str(tmp_path / "runs")


@pytest.mark.parametrize(
    ("uri", "parts", "joined"),
    [
        ("runs", ("a", "b.txt"), "runs/a/b.txt"),
        ("/", ("a",), "/a"),
        ("s3://bucket", ("a/", "/b"), "s3://bucket/a/b"),
        ("s3://bucket/", ("a",), "s3://bucket/a"),
        ("", ("a",), "./a"),
    ],
)
def test_join(uri: str, parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(uri, *parts) == joined


@pytest.mark.parametrize("num_bytes", [3_000, 300_000])
def test_a_new_file_that_is_written_partially_leaves_nothing(tmp_path: Path, num_bytes: int) -> None:
    """The write succeeds up to the limit, and fails for the remaining bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = storage.NewFile(str(tmp_path))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_and_publish(file, bytes(num_bytes))
        file.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert storage.entries(str(tmp_path)) == []


def write_and_publish(file: storage.NewFile, data: bytes) -> None:
    file.write(data)
    file.publish("x")
