"""Mount real file systems where only the test sees them.

Each is mounted by a process in a mount namespace of its own, and reached through that process's folder of /proc. So
nothing stays mounted when the test ends, even if it is killed. Where the system does not allow this, tests are skipped.
"""

from __future__ import annotations

import json
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 20.0
_NAMESPACES = (["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"])
"""Commands that start another in its own mount namespace: as any user, and as root where users may not."""


@contextmanager
def tmpfs(folder: Path, options: str) -> Iterator[Path]:
    """A disk in memory, with options of `mount`, such as size=1m."""
    with _mounted(folder, f"mount -t tmpfs -o {options} tmpfs {folder}") as (path, _):
        yield path


@contextmanager
def overlay(folder: Path, store: Path) -> Iterator[Path]:
    """An overlay, as the disks of containers are."""
    for name in ("lower", "upper", "work"):
        (store / name).mkdir(parents=True)
    layers = f"lowerdir={store}/lower,upperdir={store}/upper,workdir={store}/work"
    with _mounted(folder, f"mount -t overlay -o {layers} overlay {folder}") as (path, _):
        yield path


@contextmanager
def image(folder: Path, make: str, kind: str) -> Iterator[Path]:
    """The file system in an image file, by loop. Needs root, the command `make`, and a kernel or driver for `kind`."""
    if shutil.which(make) is None:
        pytest.skip(f"this system has no {make}")
    file = folder.with_name(f"{folder.name}.image")
    with file.open("wb") as stream:
        stream.truncate(16 * 2**20)
    subprocess.run([make, str(file)], check=True, capture_output=True)
    with _mounted(folder, f"mount -t {kind} -o loop {file} {folder}", end=f"umount {folder}") as (path, _):
        yield path


class Fuse:
    """A mounted tests/disks/fuse.py."""

    def __init__(self, path: Path, process: subprocess.Popen[str]) -> None:
        self.path = path
        self._process = process

    def answer(self, **answers: Any) -> None:
        """Let it answer from now on as these fields of `tests.disks.fuse.Answers` say. Others have their defaults."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(answers) + "\n")
        self._process.stdin.flush()
        _wait_for_line(self._process)


@contextmanager
def fuse(folder: Path, store: Path, **answers: Any) -> Iterator[Fuse]:
    """A disk that answers as these fields of `tests.disks.fuse.Answers` say. Its files are in the folder `store`."""
    store.mkdir()
    command = f"{sys.executable} -m tests.disks.fuse {folder} {store}"
    with _mounted(folder, command, first=json.dumps(answers)) as (path, process):
        yield Fuse(path, process)


@contextmanager
def _mounted(folder: Path, mount: str, *, first: str = "", end: str = "true") -> Iterator[tuple[Path, Any]]:
    """Run a command that mounts something at a folder, until its input ends.

    Args:
        folder: created, and empty outside of the namespace.
        mount: a shell command. One that reads no input ends when the folder is mounted.
        first: the first line of its input; empty for a command that reads none.
        end: a shell command that undoes what survives the namespace.
    """
    folder.mkdir()
    script = f"exec {mount}" if first else f"{mount} >&2 && mountpoint -q {folder} || exit; echo mounted; cat; {end}"
    refusals = []
    for namespace in _NAMESPACES:
        process = subprocess.Popen(
            [*namespace, "sh", "-c", script],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError):
                process.stdin.write(f"{first}\n" if first else "")
                process.stdin.flush()
            if _wait_for_line(process):
                yield Path(f"/proc/{process.pid}/root{folder}"), process
                return
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
            assert process.stderr is not None
            refusals.append(" ".join(process.stderr.read().split()))
            process.wait(_SECONDS)
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                stream.close()
    pytest.skip(f"this system does not allow mounting: {'; '.join(refusals)}")


def _wait_for_line(process: subprocess.Popen[str]) -> str:
    """The next line of a process's output, empty if it ended."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _SECONDS)
    assert ready, "no answer from the file system"
    return process.stdout.readline()
