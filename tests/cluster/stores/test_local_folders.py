"""Listing and deleting folders on local disks of any make: nothing is left out in silence, nothing else is touched."""

import errno
import logging
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster.stores import local
from cluster.stores.errors import AccessDeniedError, StorageError, UnreachableError
from cluster.stores.exclusive import LOCK_FILE
from tests.disks import mounted


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_RETRY_SECONDS", (0.05, 0.1, 0.2))


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path, _ in local.files(folder))


def test_listing_leaves_out_what_the_system_keeps(tmp_path: Path) -> None:
    for name in ("a", ".hidden.tmp", "sub/b", ".nfs0000000000000001", "sub/.fuse_hidden0001", f"sub/{LOCK_FILE}"):
        local.write(tmp_path / name, name.encode())
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        assert listed(tmp_path) == [".hidden.tmp", "a", "link", "sub/b"]
    assert listed(tmp_path / "missing") == []


def test_listing_names_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff\xfe.json")
    local.write(path, b"data")
    assert [found for found, _ in local.files(tmp_path)] == [path]
    assert b"".join(local.read(path)) == b"data"
    local.delete(path)
    assert listed(tmp_path) == []


def test_listing_while_files_vanish(tmp_path: Path) -> None:
    for number in range(200):
        local.write(tmp_path / "sub" / str(number % 10) / str(number), b"")
    local.write(tmp_path / "kept", b"")
    with ThreadPoolExecutor(2) as threads:
        deleting = [threads.submit(local.delete, tmp_path / "sub") for _ in range(2)]
        while not all(one.done() for one in deleting):
            assert "kept" in listed(tmp_path)
        for one in deleting:
            one.result()
    assert listed(tmp_path) == ["kept"]
    assert not (tmp_path / "sub").exists()


@pytest.mark.parametrize(
    ("operation", "number", "kind"),
    [
        ("OPENDIR", errno.EACCES, AccessDeniedError),
        ("READDIR", errno.EIO, UnreachableError),
        ("LOOKUP", errno.EACCES, AccessDeniedError),
    ],
)
def test_a_folder_that_cannot_be_listed_is_not_empty(
    tmp_path: Path, operation: str, number: int, kind: type[Exception]
) -> None:
    with mounted.fuse(tmp_path / "disk", tmp_path / "store") as disk:
        local.write(disk.path / "x", b"")
        disk.answer(refused={operation: number})
        with pytest.raises(kind, match=rf"'{disk.path}.*': cannot .*\({os.strerror(number)}\)"):
            list(local.files(disk.path))


def test_an_unreadable_folder_below_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local.write(tmp_path / "secret" / "x", b"")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("secret"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(AccessDeniedError, match=rf"^'{tmp_path}/secret': cannot list \(Permission denied\)"):
        list(local.files(tmp_path))


def test_deleting_follows_no_links(tmp_path: Path) -> None:
    local.write(tmp_path / "kept" / "x", b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "link").symlink_to(tmp_path / "kept")
    local.delete(tmp_path / "folder")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    local.delete(tmp_path / "link")
    local.delete(tmp_path / "missing")
    local.delete(tmp_path / "kept" / "missing" / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
    assert listed(tmp_path) == ["kept/x"]


def test_deleting_waits_for_readers_of_a_share(tmp_path: Path) -> None:
    with mounted.fuse(tmp_path / "disk", tmp_path / "store", open_files_stay=errno.EACCES) as disk:
        for name in ("folder/a", "folder/b", "c"):
            local.write(disk.path / name, b"")
        for path in (disk.path / "folder", disk.path / "c"):
            reader = (path / "a" if path.is_dir() else path).open("rb")
            timer = threading.Timer(0.1, reader.close)
            timer.start()
            local.delete(path)
            timer.join()
        assert list(disk.path.iterdir()) == []
        local.write(disk.path / "folder" / "a", b"")
        local.write(disk.path / "folder" / "b", b"")
        with (
            (disk.path / "folder" / "a").open("rb"),
            pytest.raises(AccessDeniedError, match=rf"'{disk.path}/folder/a': cannot delete"),
        ):
            local.delete(disk.path / "folder")
        assert listed(disk.path) == ["folder/a"]
        disk.answer(open_files_stay=errno.EBUSY)
        with (
            (disk.path / "folder" / "a").open("rb"),
            pytest.raises(StorageError, match="Another program has it open; close that program"),
        ):
            local.delete(disk.path / "folder")


def test_files_that_nfs_keeps_while_they_are_open_are_left_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mounted.fuse(tmp_path / "disk", tmp_path / "store", renames_open_files=True) as disk:
        for name in ("a", "b/c"):
            local.write(disk.path / "folder" / name, b"data")
        with (disk.path / "folder" / "b" / "c").open("rb") as reader:
            local.delete(disk.path / "folder")
            assert reader.read() == b"data"
            assert listed(disk.path) == []
        assert "files in it open" in caplog.text
        caplog.clear()
        local.write(disk.path / "folder" / "a", b"data")
        timer = threading.Timer(0.1, (disk.path / "folder" / "a").open("rb").close)
        timer.start()
        local.delete(disk.path / "folder")
        timer.join()
        assert list(disk.path.iterdir()) == []
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
