"""A file system that answers as disks of other makes do: without links, locks or syncs, or with lost replies.

It keeps its files in a folder of another disk. Everything between it and the programs that use it is real: the kernel
sends the requests of the FUSE protocol (linux/fuse.h), and this process answers them, one after the other.

Run by tests/mounted.py as `python -m tests.disks.fuse MOUNTPOINT STORE`, in a mount namespace of its own. Each line
of its input replaces its `Answers`, as JSON; it confirms each by a line. It ends with its input.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import stat
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# fmt: off
_OPERATIONS = {
    1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 9: "MKDIR", 10: "UNLINK", 11: "RMDIR", 12: "RENAME",
    13: "LINK", 14: "OPEN", 15: "READ", 16: "WRITE", 17: "STATFS", 18: "RELEASE", 20: "FSYNC", 25: "FLUSH",
    26: "INIT", 27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 30: "FSYNCDIR", 32: "SETLK", 34: "ACCESS",
    35: "CREATE", 36: "INTERRUPT", 38: "DESTROY", 42: "BATCH_FORGET", 45: "RENAME2",
}
# fmt: on
_POSIX_LOCKS, _ATOMIC_TRUNCATION, _BIG_WRITES = 1 << 1, 1 << 3, 1 << 5  # flags of INIT
_SIZE = 1 << 3  # flag of SETATTR
_DIRECT_IO = 1  # flag of OPEN: the kernel caches nothing
_ROOT = 1
_BUFFER_BYTES = 2**20


@dataclass
class Answers:
    """How the file system differs from a Linux disk. Operations have the names of the FUSE protocol."""

    refused: dict[str, int] = field(default_factory=dict)
    """Operations that are answered with this errno, and not done."""
    lost: dict[str, int] = field(default_factory=dict)
    """Operations that are done, but answered with this errno, as a repeated request whose first reply was lost."""
    times: int | None = None
    """Number of operations that are refused or lost; None for all."""
    delay_seconds: float = 0
    """Time that each answer takes."""
    case_insensitive: bool = False
    remote_locks: bool = False
    """Whether SETLK comes here, where it can be refused. Otherwise the kernel keeps the locks of this machine."""
    open_files_stay: int | None = None
    """The errno for deleting an open file, as of a Windows share."""
    gone: bool = False
    """Whether nothing answers any more, as if the server had died."""
    renames_open_files: bool = False
    """Whether a file that is deleted while it is open stays as `.nfs...` until it is closed, as on NFS."""


class FuseDisk:
    """Answers requests of the kernel from a folder."""

    def __init__(self, device: int, store: Path) -> None:
        self.answers = Answers()
        self._device = device
        self._store = store
        self._paths: dict[int, Path] = {_ROOT: store}
        self._nodes: dict[Path, int] = {store: _ROOT}
        self._handles: dict[int, Path] = {}
        self._listed: dict[int, list[str]] = {}
        self._next = _ROOT + 1

    def answer_one(self) -> None:
        """Read a request from the kernel and answer it."""
        try:
            request = os.read(self._device, _BUFFER_BYTES)
        except FileNotFoundError:  # the request was interrupted
            return
        _, number, unique, node = struct.unpack_from("<IIQQ", request)
        operation = _OPERATIONS.get(number, "")
        if operation in ("FORGET", "BATCH_FORGET", "INTERRUPT"):  # the kernel expects no answer
            return
        time.sleep(self.answers.delay_seconds)
        try:
            refusal = self._next_error(self.answers.refused, operation)
            if refusal:
                raise OSError(refusal, "")
            handler: Callable[[int, bytes], bytes] | None = getattr(self, f"_{operation.lower()}", None)
            if handler is None:
                raise OSError(errno.ENOSYS, "")
            error, body = 0, handler(node, request[40:])
            lost = self._next_error(self.answers.lost, operation)
            if lost:
                raise OSError(lost, "")
        except OSError as failure:
            error, body = -(failure.errno or errno.EIO), b""
        os.write(self._device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)

    def _next_error(self, errors: dict[str, int], operation: str) -> int | None:
        number = errors.get(operation)
        if number is not None and self.answers.times is not None:
            if self.answers.times == 0:
                return None
            self.answers.times -= 1
        return number

    def _child(self, node: int, name: bytes) -> Path:
        path = self._paths[node] / os.fsdecode(name)
        if self.answers.case_insensitive:
            return next((same for same in path.parent.iterdir() if same.name.casefold() == path.name.casefold()), path)
        return path

    def _attributes(self, path: Path) -> bytes:
        found = path.lstat()
        times = [found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns]
        seconds, rest = [time // 10**9 for time in times], [time % 10**9 for time in times]
        return struct.pack(
            "<6Q10I",
            *(found.st_ino, found.st_size, found.st_blocks, *seconds, *rest),
            *(found.st_mode, found.st_nlink, found.st_uid, found.st_gid, 0, 4096, 0),
        )

    def _entry(self, path: Path) -> bytes:
        attributes = self._attributes(path)
        if path not in self._nodes:
            self._nodes[path], self._paths[self._next] = self._next, path
            self._next += 1
        return struct.pack("<QQQQII", self._nodes[path], 0, 0, 0, 0, 0) + attributes  # which the kernel may not cache

    def _opened(self, descriptor: int, path: Path) -> bytes:
        self._handles[descriptor] = path
        return struct.pack("<QII", descriptor, _DIRECT_IO, 0)

    def _move(self, old: Path, new: Path) -> None:
        """Let the kernel's numbers of the files at or below a path follow a rename."""
        self._nodes.pop(new, None)
        for path in [path for path in self._nodes if path == old or old in path.parents]:
            node = self._nodes.pop(path)
            self._paths[node] = new / path.relative_to(old)
            self._nodes[self._paths[node]] = node
        self._handles = {handle: new if path == old else path for handle, path in self._handles.items()}

    def _init(self, _node: int, _body: bytes) -> bytes:
        flags = _ATOMIC_TRUNCATION | _BIG_WRITES | (_POSIX_LOCKS if self.answers.remote_locks else 0)
        return struct.pack("<IIIIHHIIHHII", 7, 31, 0, flags, 0, 0, 2**17, 1, 0, 0, 0, 0) + bytes(24)

    def _lookup(self, node: int, body: bytes) -> bytes:
        return self._entry(self._child(node, body[:-1]))

    def _getattr(self, node: int, _body: bytes) -> bytes:
        return struct.pack("<QII", 0, 0, 0) + self._attributes(self._paths[node])

    def _setattr(self, node: int, body: bytes) -> bytes:
        valid, size = struct.unpack_from("<I12xQ", body)
        if valid & _SIZE:
            os.truncate(self._paths[node], size)
        return self._getattr(node, b"")

    def _mkdir(self, node: int, body: bytes) -> bytes:
        path = self._child(node, body[8:-1])
        path.mkdir()
        return self._entry(path)

    def _unlink(self, node: int, body: bytes) -> bytes:
        path = self._child(node, body[:-1])
        if path in self._handles.values():
            if self.answers.open_files_stay or (self.answers.renames_open_files and path.name.startswith(".nfs")):
                raise OSError(self.answers.open_files_stay or errno.EBUSY, "")
            if self.answers.renames_open_files:
                kept = path.with_name(f".nfs{self._next:024x}")
                path.rename(kept)
                self._move(path, kept)
                return b""
        path.unlink()
        self._nodes.pop(path, None)
        return b""

    def _rmdir(self, node: int, body: bytes) -> bytes:
        path = self._child(node, body[:-1])
        path.rmdir()
        self._nodes.pop(path, None)
        return b""

    def _rename(self, node: int, body: bytes, *, header_bytes: int = 8) -> bytes:
        target = struct.unpack_from("<Q", body)[0]
        old_name, new_name = body[header_bytes:-1].split(b"\0")
        old, new = self._child(node, old_name), self._child(target, new_name)
        old.rename(new)
        self._move(old, new)
        return b""

    def _rename2(self, node: int, body: bytes) -> bytes:
        return self._rename(node, body, header_bytes=16)  # the kernel has looked whether the name exists

    def _link(self, node: int, body: bytes) -> bytes:
        path = self._child(node, body[8:-1])
        path.hardlink_to(self._paths[struct.unpack_from("<Q", body)[0]])
        return self._entry(path)

    def _open(self, node: int, body: bytes) -> bytes:
        path, flags = self._paths[node], struct.unpack_from("<I", body)[0]
        return self._opened(os.open(path, flags & (os.O_ACCMODE | os.O_TRUNC)), path)

    def _create(self, node: int, body: bytes) -> bytes:
        flags, mode = struct.unpack_from("<II", body)
        path = self._child(node, body[16:-1])
        descriptor = os.open(path, flags & (os.O_ACCMODE | os.O_TRUNC | os.O_EXCL) | os.O_CREAT, stat.S_IMODE(mode))
        return self._entry(path) + self._opened(descriptor, path)

    def _read(self, _node: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(handle, size, offset)

    def _write(self, _node: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(handle, body[40 : 40 + size], offset), 0)

    def _release(self, _node: int, body: bytes) -> bytes:
        handle = struct.unpack_from("<Q", body)[0]
        os.close(handle)
        path = self._handles.pop(handle)
        if path.name.startswith(".nfs") and path not in self._handles.values():
            path.unlink()
        return b""

    def _flush(self, _node: int, _body: bytes) -> bytes:
        return b""

    _fsync = _fsyncdir = _access = _destroy = _flush

    def _opendir(self, node: int, _body: bytes) -> bytes:
        handle = self._next
        self._next += 1
        self._listed[handle] = [found.name for found in self._paths[node].iterdir()]
        return struct.pack("<QII", handle, 0, 0)

    def _readdir(self, _node: int, body: bytes) -> bytes:
        handle, offset, size = struct.unpack_from("<QQI", body)
        found = b""
        for number, text in enumerate(self._listed[handle][offset:], offset + 1):
            name = os.fsencode(text)
            entry = struct.pack("<QQII", number, number, len(name), 0) + name
            entry += bytes(-len(entry) % 8)
            if len(found) + len(entry) > size:
                break
            found += entry
        return found

    def _releasedir(self, _node: int, body: bytes) -> bytes:
        del self._listed[struct.unpack_from("<Q", body)[0]]
        return b""

    def _statfs(self, _node: int, _body: bytes) -> bytes:
        found = os.statvfs(self._store)
        sizes = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return struct.pack("<5Q4I", *sizes, found.f_bsize, found.f_namemax, found.f_frsize, 0) + bytes(24)


def main(mountpoint: str, store: str) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
    if ctypes.CDLL(None, use_errno=True).mount(b"tests", os.fsencode(mountpoint), b"fuse", 0, options):
        sys.exit(f"cannot mount a FUSE file system: {os.strerror(ctypes.get_errno())}")
    disk = FuseDisk(device, Path(store))
    ready = select.poll()
    ready.register(0, select.POLLIN | select.POLLHUP)
    for line in iter(sys.stdin.buffer.readline, b""):
        disk.answers = Answers(**json.loads(line))
        if disk.answers.gone:
            ready.unregister(device)
            os.close(device)
        else:
            ready.register(device, select.POLLIN)
        print("done", flush=True)
        while 0 not in dict(ready.poll()):
            disk.answer_one()


if __name__ == "__main__":
    main(*sys.argv[1:])
