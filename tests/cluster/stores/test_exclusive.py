"""Racing processes and each kind of file system: exactly one writer gets a name, whatever the file system lacks."""

import ctypes
import errno
import fcntl
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.stores import exclusive, local
from cluster.stores.errors import AccessDeniedError, StorageError, UnsupportedError
from tests.disks import mounted

NO_LINKS = [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EMLINK, errno.EACCES, errno.EXDEV, 524]
NO_RENAMES = [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, 524]
NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM]
RECORD_BYTES = 100_000

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


@contextmanager
def without(link: int = 0, rename: int = 0, lock: int = 0) -> Iterator[None]:
    """Let calls of the system fail with these errnos, which happens on every system."""

    def refuse(number: int) -> Callable[..., Any]:
        def call(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        return call

    def refuse_rename(*_: object) -> int:
        ctypes.set_errno(rename)
        return -1

    with pytest.MonkeyPatch.context() as patch:
        if link:
            patch.setattr(os, "link", refuse(link))
        if rename:
            patch.setattr(exclusive, "_renameat2", refuse_rename)
        if lock:
            patch.setattr(fcntl, "lockf", refuse(lock))
        yield


@contextmanager
def slow_between_look_and_rename() -> Iterator[None]:
    """Widen the gap in which only the lock keeps other writers away."""
    look = Path.lstat

    def look_and_wait(path: Path) -> os.stat_result:
        try:
            return look(path)
        finally:
            time.sleep(0.01)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "lstat", look_and_wait)
        yield


def content(writer: int) -> bytes:
    return writer.to_bytes(2, "big") * (RECORD_BYTES // 2)


def _write_records(folder: str, writer: int, barrier: Any, num_rounds: int, refused: dict[str, int]) -> list[bool]:
    won = []
    with without(**refused), slow_between_look_and_rename():
        for number in range(num_rounds):
            barrier.wait()
            won.append(local.put_if_absent(Path(folder, f"{number}.json"), content(writer)))
    return won


def _race(arguments: tuple[Any, ...], results: Any) -> None:
    results.put((arguments[1], _write_records(*arguments)))


def race(folder: Path, num_writers: int, num_rounds: int, **refused: int) -> None:
    """Let processes write the same records at the same time while a reader watches, and check what happened."""
    barrier, results = PROCESSES.Barrier(num_writers), PROCESSES.Queue()
    arguments = [(str(folder), writer, barrier, num_rounds, refused) for writer in range(num_writers)]
    writers = [PROCESSES.Process(target=_race, args=(some, results)) for some in arguments]
    for writer in writers:
        writer.start()
    done = threading.Event()

    def read_meanwhile() -> set[int]:
        sizes = set()
        while not done.is_set():
            for path, _ in local.files(folder):
                if not path.name.startswith("."):
                    sizes.add(len(b"".join(local.read(path))))
        return sizes

    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read_meanwhile)
        try:
            won = dict(results.get(timeout=60) for _ in writers)
        finally:
            done.set()
        assert reading.result() == {RECORD_BYTES}, "a reader saw a part of a record"
    for writer in writers:
        writer.join()
    for number in range(num_rounds):
        winners = [writer for writer in won if won[writer][number]]
        assert len(winners) == 1, f"record {number}: {winners}"
        assert b"".join(local.read(folder / f"{number}.json")) == content(winners[0])
    assert len(list(local.files(folder))) == num_rounds, "the losers leave no files"


WAYS = [
    pytest.param({}, id="links"),
    pytest.param({"link": errno.EPERM}, id="renames"),
    pytest.param({"link": errno.EPERM, "rename": errno.EINVAL}, id="locks"),
]


@pytest.mark.parametrize("refused", WAYS)
def test_one_of_sixteen_processes_wins(tmp_path: Path, refused: dict[str, int]) -> None:
    race(tmp_path, 16, 10, **refused)


@pytest.mark.parametrize(
    "refused",
    [{}, {"LINK": errno.EPERM}, {"LINK": errno.EPERM, "RENAME2": errno.EINVAL}],
    ids=["links", "renames", "locks"],
)
def test_one_of_ten_processes_wins_on_fuse(tmp_path: Path, refused: dict[str, int]) -> None:
    with mounted.fuse(tmp_path / "disk", tmp_path / "store", refused=refused) as disk:
        race(disk.path, 10, 5)


@pytest.mark.parametrize("refused", WAYS)
def test_one_of_many_threads_wins(tmp_path: Path, refused: dict[str, int]) -> None:
    num_writers = 16
    barrier = threading.Barrier(num_writers)

    def put(writer: int) -> bool:
        barrier.wait()
        return local.put_if_absent(tmp_path / "v1.json", content(writer))

    with without(**refused), slow_between_look_and_rename(), ThreadPoolExecutor(num_writers) as threads:
        won = list(threads.map(put, range(num_writers)))
    assert won.count(True) == 1
    assert (tmp_path / "v1.json").read_bytes() == content(won.index(True))


@pytest.mark.parametrize("link", NO_LINKS)
def test_without_links(tmp_path: Path, link: int) -> None:
    with without(link=link):
        assert local.probe(tmp_path) == "renames"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rename", NO_RENAMES)
def test_without_links_and_renames(tmp_path: Path, rename: int) -> None:
    with without(link=errno.EPERM, rename=rename):
        assert local.probe(tmp_path) == "locks"
    assert list(local.files(tmp_path)) == []
    with without(link=errno.EPERM), pytest.MonkeyPatch.context() as old_library:
        old_library.setattr(exclusive, "_renameat2", None)
        assert local.probe(tmp_path) == "locks"


@pytest.mark.parametrize("lock", NO_LOCKS)
def test_without_links_renames_and_locks(tmp_path: Path, lock: int) -> None:
    with without(link=errno.EPERM, rename=errno.EINVAL, lock=lock), pytest.raises(UnsupportedError) as refused:
        local.put_if_absent(tmp_path / "v1.json", b"")
    message = str(refused.value)
    assert message.startswith(f"'{tmp_path}/v1.json': two jobs could write this file at once"), message
    assert f"links: Operation not permitted; renames: Invalid argument; locks: {os.strerror(lock)}" in message
    assert message.endswith("Use a folder on another disk, or s3://")
    assert list(local.files(tmp_path)) == []


def test_a_missing_permission_is_not_a_missing_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    with (
        without(link=errno.EACCES, rename=errno.EACCES),
        pytest.raises(AccessDeniedError, match=r"v1.json': cannot write 0 bytes \(Permission denied\)"),
    ):
        local.put_if_absent(tmp_path / "v1.json", b"")


@pytest.mark.parametrize(("name", "way"), [("tmpfs", "links"), ("overlay", "links"), ("exfat-fuse", "locks")])
def test_file_systems_of_linux(tmp_path: Path, name: str, way: str) -> None:
    disks = {
        "tmpfs": lambda: mounted.tmpfs(tmp_path / "disk", "size=1m"),
        "overlay": lambda: mounted.overlay(tmp_path / "disk", tmp_path / "layers"),
        "exfat-fuse": lambda: mounted.image(tmp_path / "disk", "mkfs.exfat", "exfat-fuse"),
    }
    with disks[name]() as path:
        assert local.probe(path / "run") == way
        race(path / "run", 4, 3)


@pytest.mark.parametrize(("make", "kind"), [("mkfs.vfat", "vfat"), ("mkfs.exfat", "exfat")])
def test_file_systems_of_windows(tmp_path: Path, make: str, kind: str) -> None:
    with mounted.image(tmp_path / "disk", make, kind) as path:
        assert local.probe(path) == "renames"
        assert local.put_if_absent(path / "A.json", b"first")
        assert not local.put_if_absent(path / "a.json", b"second"), "names that differ in case are one file"
        race(path, 8, 5)


@pytest.mark.parametrize("rename", [0, errno.EINVAL], ids=["renames", "locks"])
def test_names_that_differ_in_case_are_one_file_of_some_disks(tmp_path: Path, rename: int) -> None:
    refused = {"LINK": errno.EPERM} | ({"RENAME2": rename} if rename else {})
    with mounted.fuse(tmp_path / "disk", tmp_path / "store", case_insensitive=True, refused=refused) as disk:
        for first, second in (("A.json", "a.json"), ("ä.json", "Ä.json")):
            assert local.put_if_absent(disk.path / first, b"first")
            assert not local.put_if_absent(disk.path / second, b"second")
            assert b"".join(local.read(disk.path / second)) == b"first"


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL, errno.EACCES, errno.ENOSYS])
def test_fuse_without_links(tmp_path: Path, number: int) -> None:
    with mounted.fuse(tmp_path / "disk", tmp_path / "store", refused={"LINK": number}) as disk:
        assert local.probe(disk.path) == "renames"
        disk.answer(refused={"LINK": number, "RENAME2": number})
        assert local.probe(disk.path) == "locks"


def test_fuse_without_locks(tmp_path: Path) -> None:
    refused = {"LINK": errno.EPERM, "RENAME2": errno.EINVAL, "SETLK": errno.ENOLCK}
    with (
        mounted.fuse(tmp_path / "disk", tmp_path / "store", refused=refused, remote_locks=True) as disk,
        pytest.raises(UnsupportedError, match="locks: No locks available"),
    ):
        local.probe(disk.path)


@pytest.mark.parametrize(
    ("refused", "lost"),
    [({}, {"LINK": errno.EEXIST}), ({"LINK": 1}, {"RENAME2": errno.EEXIST}), ({"LINK": 1}, {"RENAME2": errno.ENOENT})],
)
def test_the_writer_whose_reply_was_lost_wins(tmp_path: Path, refused: dict[str, int], lost: dict[str, int]) -> None:
    """As on NFS: the client repeats a request that was done, and hears that the name is taken or that no file is."""
    with mounted.fuse(tmp_path / "disk", tmp_path / "store", refused=refused, lost=lost) as disk:
        assert local.put_if_absent(disk.path / "v1.json", b"first")
        assert not local.put_if_absent(disk.path / "v1.json", b"second")
        assert [(path.name, path.read_bytes()) for path in disk.path.iterdir()] == [("v1.json", b"first")]


def test_one_warning_says_how_far_locks_reach(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exclusive._warned.clear()
    for folder in (tmp_path / "a", tmp_path / "b"):
        with without(link=errno.EPERM, rename=errno.EINVAL):
            assert local.put_if_absent(folder / "v1.json", b"")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert f"'{tmp_path}/a': its file system has no hard links" in warnings[0]
    assert "run all jobs that write to this folder on one machine" in warnings[0]


def _hold_lock(folder: str, locked: Any) -> None:
    def stay(*_: object) -> None:
        locked.set()
        time.sleep(60)

    with pytest.MonkeyPatch.context() as patch, without(link=errno.EPERM, rename=errno.EINVAL):
        patch.setattr(Path, "lstat", stay)  # the first call under the lock
        local.put_if_absent(Path(folder, "v1.json"), b"the holder's")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_writer_that_is_killed_under_the_lock_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    locked = PROCESSES.Event()
    holder = PROCESSES.Process(target=_hold_lock, args=(str(tmp_path), locked))
    holder.start()
    try:
        assert locked.wait(30)
        assert holder.pid is not None
        os.kill(holder.pid, number)
        monkeypatch.setattr(exclusive, "LOCK_SECONDS", 0.2)
        with without(link=errno.EPERM, rename=errno.EINVAL):
            if number == signal.SIGSTOP:
                with pytest.raises(StorageError, match=r"another process has locked.*End that process"):
                    local.put_if_absent(tmp_path / "v1.json", b"ours")
                holder.kill()
            holder.join()
            assert local.put_if_absent(tmp_path / "v1.json", b"ours")
    finally:
        holder.kill()
        holder.join()
    assert (tmp_path / "v1.json").read_bytes() == b"ours"
