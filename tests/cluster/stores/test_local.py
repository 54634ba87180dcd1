"""Local disks of any make: what they refuse is an error by its cause, and what they lack is done without."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.stores import local, waiting
from cluster.stores.errors import (
    AccessDeniedError,
    StorageFullError,
    UnreachableError,
    UnsupportedError,
)
from tests.disks import mounted


def content(path: Path) -> bytes:
    return b"".join(local.read(path))


def publish(path: Path, data: bytes) -> None:
    file = local.NewLocalFile(path.parent)
    try:
        file.write(data)
        file.publish(path.name)
    finally:
        file.close()


def put(path: Path, data: bytes) -> None:
    assert local.put_if_absent(path, data)


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path, _ in local.files(folder))


WRITERS = pytest.mark.parametrize("writer", [local.write, put, publish])


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_RETRY_SECONDS", (0.05, 0.1, 0.2))


@WRITERS
def test_files_are_whole_and_alone(tmp_path: Path, writer: Callable[[Path, bytes], None]) -> None:
    path = tmp_path / "new" / "folders" / ("n" * 255)
    data = os.urandom(local.CHUNK_BYTES + 1)
    writer(path, data)
    assert content(path) == data
    assert [len(chunk) for chunk in local.read(path)] == [local.CHUNK_BYTES, 1]
    assert listed(tmp_path) == [f"new/folders/{'n' * 255}"]


@WRITERS
def test_data_is_on_disk_before_its_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Callable[[Path, bytes], None]
) -> None:
    synced, fsync = [], os.fsync

    def record(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append(("the folder" if path.is_dir() else "a file", path.is_dir() and (path / "x.json").exists(), path))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    writer(tmp_path / "a" / "b" / "x.json", b"data")
    assert [(kind, named) for kind, named, _ in synced] == [
        ("the folder", False),  # which got the new folder a
        ("the folder", False),  # which got the new folder b
        ("a file", False),
        ("the folder", True),
    ]
    assert [path for kind, _, path in synced if kind == "the folder"] == [
        tmp_path,
        tmp_path / "a",
        tmp_path / "a" / "b",
    ]


@WRITERS
@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_disks_that_cannot_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Callable[[Path, bytes], None], number: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    writer(tmp_path / "x", b"data")
    assert content(tmp_path / "x") == b"data"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EISDIR, errno.EACCES, errno.EOPNOTSUPP, errno.EBADF])
def test_folders_that_cannot_be_synced(tmp_path: Path, number: int) -> None:
    refused = {"FSYNCDIR": number, "FSYNC": errno.EINVAL}
    with mounted.fuse(tmp_path / "disk", tmp_path / "store", refused=refused) as disk:
        for writer in (local.write, put, publish):
            writer(disk.path / writer.__name__, b"data")
            assert content(disk.path / writer.__name__) == b"data"


@WRITERS
@pytest.mark.parametrize(
    ("operation", "number", "kind"),
    [
        ("CREATE", errno.EACCES, AccessDeniedError),
        ("MKDIR", errno.EACCES, AccessDeniedError),
        ("CREATE", errno.EROFS, AccessDeniedError),
        ("WRITE", errno.EDQUOT, StorageFullError),
        ("WRITE", errno.EFBIG, UnsupportedError),
        ("WRITE", errno.EIO, UnreachableError),
        ("FSYNC", errno.EIO, UnreachableError),
        ("FLUSH", errno.ENOSPC, StorageFullError),  # some network disks write a file when it is closed
        ("FLUSH", errno.EIO, UnreachableError),
        ("CREATE", errno.EINVAL, ValueError),  # such as a colon on exFAT
    ],
)
def test_a_refused_write_is_an_error_by_its_cause(
    tmp_path: Path, writer: Callable[[Path, bytes], None], operation: str, number: int, kind: type[Exception]
) -> None:
    with mounted.fuse(tmp_path / "disk", tmp_path / "store", refused={operation: number}) as disk:
        path = disk.path / "folder" / "x.json"
        with pytest.raises((OSError, ValueError)) as failed:
            writer(path, bytes(100_000))
        assert type(failed.value) is kind, failed.value
        assert str(disk.path / "folder") in str(failed.value)
        assert f"({os.strerror(number)}). " in str(failed.value)
        disk.answer()
        assert listed(disk.path) == [], "no part of the file is left"


@WRITERS
def test_a_full_and_a_read_only_disk(tmp_path: Path, writer: Callable[[Path, bytes], None]) -> None:
    with mounted.tmpfs(tmp_path / "small", "size=100k") as disk:
        with pytest.raises(StorageFullError, match=r"No space left on device\)\. Free disk space"):
            writer(disk / "x", bytes(200_000))
        assert listed(disk) == []
    with (
        mounted.tmpfs(tmp_path / "fixed", "ro") as disk,
        pytest.raises(AccessDeniedError, match=r"fixed.*': cannot write.*Read-only file system.*mounted read-only"),
    ):
        writer(disk / "x", b"")


def test_a_disk_that_is_gone(tmp_path: Path) -> None:
    with mounted.fuse(tmp_path / "disk", tmp_path / "store") as disk:
        local.write(disk.path / "x", b"data")
        disk.answer(gone=True)
        for operation in (
            lambda: local.write(disk.path / "x", b""),
            lambda: local.put_if_absent(disk.path / "x", b""),
            lambda: content(disk.path / "x"),
            lambda: local.delete(disk.path / "x"),
            lambda: list(local.files(disk.path)),
            lambda: local.probe(disk.path),
            lambda: local.status(disk.path / "x"),
        ):
            with pytest.raises(UnreachableError, match="look at the system's log"):
                operation()


def test_a_silent_disk_shows_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(waiting, "_POLL_SECONDS", 0.01)
    with waiting.waiting_for("the watcher, which may be in a longer pause"):
        while "the watcher" not in caplog.text:
            time.sleep(0.01)
    with mounted.fuse(tmp_path / "disk", tmp_path / "store") as disk:
        disk.answer(delay_seconds=0.08)
        for operation, silent in (
            (lambda: local.write(disk.path / "x", b"data"), "write 4 bytes '{}/x'"),
            (lambda: content(disk.path / "x"), "read '{}/x'"),
            (lambda: list(local.files(disk.path)), "list '{}'"),
            (lambda: local.delete(disk.path / "x"), "delete '{}/x'"),
        ):
            caplog.clear()
            operation()
            assert f"s: {silent.format(disk.path)}" in caplog.text


def test_a_file_that_nfs_forgets_is_opened_again_once(tmp_path: Path) -> None:
    with mounted.fuse(tmp_path / "disk", tmp_path / "store") as disk:
        local.write(disk.path / "x", b"data")
        for operation in ("OPEN", "READ"):
            disk.answer(refused={operation: errno.ESTALE}, times=1)
            assert content(disk.path / "x") == b"data"
        disk.answer(refused={"READ": errno.ESTALE})
        with pytest.raises(UnreachableError, match="Stale file handle"):
            content(disk.path / "x")


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EACCES, AccessDeniedError), (errno.EIO, UnreachableError), (errno.EISDIR, ValueError)]
)
def test_a_refused_read(tmp_path: Path, number: int, kind: type[Exception]) -> None:
    with mounted.fuse(tmp_path / "disk", tmp_path / "store") as disk:
        local.write(disk.path / "x", b"data")
        for operation in ("OPEN", "READ"):
            disk.answer(refused={operation: number})
            with pytest.raises((OSError, ValueError), match="x': cannot read") as failed:
                content(disk.path / "x")
            assert type(failed.value) is kind


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("x" * 256, "File name too long). Use a shorter name"),
        ("file/x", "Not a directory). A part of this path is a file"),
        ("file/folder/x", "Not a directory). A part of this path is a file"),
        ("folder", "Is a directory). This is a folder"),
        ("null\0", "embedded null byte"),
        ("surrogate\ud800", "surrogates not allowed"),
    ],
)
def test_paths_that_no_file_can_have(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for operation in (lambda: content(tmp_path / path), lambda: local.write(tmp_path / path, b"")):
        with pytest.raises(ValueError, match=r"cannot (read|write)") as failed:
            operation()
        assert str(failed.value).startswith(repr(str(tmp_path / path)))
        assert reason in str(failed.value)
    assert listed(tmp_path) == ["file"]


def test_a_link_that_leads_back_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "loop"
    path.symlink_to(path)
    with pytest.raises(ValueError, match=r"loop': cannot read.*leads back to itself"):
        content(path)
    local.write(path, b"data")  # replaces the link
    assert content(path) == b"data"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^'{tmp_path}/x': cannot read \(No such file or directory\)$"):
        content(tmp_path / "x")
    assert local.status(tmp_path / "x") is None
    (tmp_path / "y").touch()
    assert local.status(tmp_path / "y" / "x") is None
    found = local.status(tmp_path / "y")
    assert found is not None
    assert found.st_size == 0


def test_replacing_a_file_that_is_open_on_a_share(tmp_path: Path) -> None:
    with mounted.fuse(tmp_path / "disk", tmp_path / "store") as disk:
        for number in (errno.EACCES, errno.EBUSY, errno.ESTALE):
            disk.answer(refused={"RENAME": number, "RENAME2": number}, times=2)
            local.write(disk.path / "x", str(number).encode())
            assert content(disk.path / "x") == str(number).encode()
        disk.answer(lost={"RENAME": errno.ENOENT, "RENAME2": errno.ENOENT})
        local.write(disk.path / "x", b"renamed, but the reply was lost")
        assert content(disk.path / "x") == b"renamed, but the reply was lost"
        disk.answer(refused={"RENAME": errno.EACCES, "RENAME2": errno.EACCES})
        with pytest.raises(AccessDeniedError, match="x': cannot write 4 bytes"):
            local.write(disk.path / "x", b"more")
        assert listed(disk.path) == ["x"]


def test_a_disk_that_replaces_what_must_be_kept_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(os, "link", replace)
    with pytest.raises(UnsupportedError, match=rf"^'{tmp_path}': its file system replaces files that must be kept"):
        local.probe(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_probe_takes_no_time_and_leaves_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    assert local.probe(tmp_path / "new") == "links"
    assert time.monotonic() - began < 1
    assert list((tmp_path / "new").iterdir()) == []
