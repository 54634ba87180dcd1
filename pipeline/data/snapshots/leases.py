"""Leases: files which show that a commit or a garbage collection is under way, so that neither undoes the other.

    <dataset>/leases/commit-<id>.json    somebody commits a version, or gives a version a tag
    <dataset>/leases/sweep-<id>.json     somebody deletes garbage

A garbage collection must not delete a file that a version needs which is committed meanwhile. Both sides write first
and read afterwards, so that at least one of them sees the other:

    a commit (commit.py)                              a sweep (garbage.py)
    c1  put its lease                                 s1  put its lease
    c2  list the leases until none is of a sweep          for each request that deletes files:
    c3  check that its files exist                    s2    list the leases; stop if one is of a commit
    c4  put the record of the version                 s3    list versions and tags; stop if one is new
    c5  delete its lease                              s4    delete files
                                                      s5  delete its lease

No s4 deletes a file of a version that c4 makes. Take one s4, with the s2 and s3 just before it:

- s2 comes before c1. Then s1 comes before c2. So c2 sees the sweep's lease and waits for s5, which comes after s4. c3
  comes after that, finds the file missing, and the commit fails before c4.
- s2 comes after c1 and before c5. Then s2 sees the commit's lease, and the sweep stops.
- s2 comes after c5. Then c4 comes before s3, which sees the version, and the sweep stops.

The order of s2 and s3 matters: the other way round, c4 and c5 could both happen between them. A tag is put in the same
steps: c3 checks that the version exists, and c4 puts the tag. A commit waits and a sweep stops, so they cannot wait for
each other. The argument needs listings that show every write that has ended, which cluster.storage requires.

A killed process leaves its lease. So a lease counts only for STALE_SECONDS after its last write, by the clock of the
storage, and its holder writes it again every REFRESH_SECONDS. A holder that could not do so for MAX_AGE_SECONDS stops
before its next s4 or c4. A request of s4 or c4 therefore has STALE_SECONDS - MAX_AGE_SECONDS = 11 minutes to take
effect. Clients of storage give up sooner. (Where a store deletes files one by one, s4 is many requests; the lease is
written again meanwhile.) Only a process that is suspended for longer in the middle of such a request, and then
continues, escapes this: a commit notices it and checks its files again, a sweep cannot undo its deletion.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from types import TracebackType
from typing import Literal, Self

from cluster import storage
from cluster.stores.errors import StorageError, UnsupportedError

Kind = Literal["commit", "sweep", "clock"]

FOLDER = "leases"
"""The folder of the leases in a data set."""
REFRESH_SECONDS = 60.0
"""A lease is written again this often."""
MAX_AGE_SECONDS = 240.0
"""A holder whose lease is older than this changes nothing any more."""
STALE_SECONDS = 900.0
"""A lease that is older than this, by the clock of the storage, belongs to a killed process and is ignored."""
POLL_SECONDS = 1.0
"""Time between two looks at the leases of others."""
WAIT_LOG_SECONDS = 10.0
"""A commit that waits says so after this time."""
_END_SECONDS = 4.0
"""How long the end of a lease waits for a write of it that is under way."""

logger = logging.getLogger("clip")


class Lease:
    """A lease of a data set, which is held within a `with` block and written again by a thread.

    Args:
        uri: the data set.
        kind: what is under way.
    """

    def __init__(self, uri: str, kind: Kind) -> None:
        self._uri = storage.absolute(uri)
        self._folder = storage.join(self._uri, FOLDER)
        self._name = f"{kind}-{uuid.uuid4().hex}.json"
        self._begun = self._written = 0.0
        self._failure = "this process was suspended"
        self._has_lapsed = False
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name=f"lease of a {kind}", daemon=True)

    def __enter__(self) -> Self:
        self._begun = _now()
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._has_ended.set()
        self._thread.join(_END_SECONDS)
        # A write that is under way would put the lease back after the deletion
        writing: dict[str, OSError] = {self._file: StorageError("it is being written")}
        for failure in (writing if self._thread.is_alive() else storage.delete_files([self._file])).values():
            message = "%s is left (%s); it counts as under way for %.0f more minutes, and the next gc deletes it"
            logger.warning(message, self._file, failure, STALE_SECONDS / 60)

    def check(self) -> None:
        """Check that others respect this lease.

        Raises:
            StorageError: the lease was not written for MAX_AGE_SECONDS.
        """
        if not self.is_held():
            raise StorageError(
                f"{self._file}: it could not be written for more than {MAX_AGE_SECONDS:.0f} s ({self._failure}), so "
                "other processes no longer respect it; run the same command again"
            )

    def is_held(self) -> bool:
        """Whether the lease was never older than MAX_AGE_SECONDS."""
        if _now() - self._begun > MAX_AGE_SECONDS:
            self._has_lapsed = True
        return not self._has_lapsed

    def others(self, kind: Kind) -> list[str]:
        """The names of the leases of a kind that are not stale, at the cost of one listing.

        Raises:
            UnsupportedError: the listing does not show this lease.
        """
        return self._look(kind)[0]

    def storage_time(self) -> float:
        """The present time by the clock of the storage, in seconds since 1970, at the cost of one listing."""
        return self._look("clock")[1]

    def wait_for_sweeps(self) -> None:
        """Wait until no sweep is under way. A sweep stops before its next deletion when it sees the lease of a commit.

        Returns when the storage shows no lease of a sweep, or only leases that were not written for STALE_SECONDS.
        """
        began = told = _now()
        while sweeps := self.others("sweep"):
            now = _now()
            if now - told >= WAIT_LOG_SECONDS:
                told = now + 5 * WAIT_LOG_SECONDS
                logger.warning(
                    "waiting since %.0f s for the garbage collection of %s to stop (%s); if its process was killed, "
                    "this ends %.0f minutes after its last sign of life",
                    *(now - began, self._uri, ", ".join(sweeps), STALE_SECONDS / 60),
                )
            time.sleep(POLL_SECONDS)

    @property
    def _file(self) -> str:
        return storage.join(self._folder, self._name)

    def _look(self, kind: Kind) -> tuple[list[str], float]:
        """The names of the other leases of a kind that are not stale, and the time by the clock of the storage."""
        modified = {entry.uri.rsplit("/", 1)[-1]: entry.modified for entry in storage.entries(self._folder)}
        if self._name not in modified:
            raise UnsupportedError(
                f"{self._folder}: the listing does not show {self._name}, which was written before; a data set needs a "
                "storage whose listings show every file at once (docs/storage.md)"
            )
        now = modified[self._name] + _now() - self._written
        # The distance, so that a lease from the future (a clock that was set back) is not waited for without end
        fresh = [name for name, at in modified.items() if abs(now - at) <= STALE_SECONDS]
        return sorted(name for name in fresh if name.startswith(f"{kind}-") and name != self._name), now

    def _refresh(self) -> None:
        while not self._has_ended.wait(REFRESH_SECONDS):
            try:
                self._write()
            except OSError as error:
                self._failure = str(error)

    def _write(self) -> None:
        begun = _now()
        storage.write_bytes(self._file, b"{}")
        self.is_held()  # remembers that the previous write was too long ago
        self._begun, self._written = begun, _now()


def storage_time(uri: str) -> float:
    """The present time by the clock of a data set's storage, in seconds since 1970. Writes a file and deletes it."""
    with Lease(uri, "clock") as lease:
        return lease.storage_time()


def _now() -> float:
    """Seconds of a clock that never goes back, and includes the time in which this machine was suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
