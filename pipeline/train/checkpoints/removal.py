"""Remove checkpoints that are no longer needed. A removal that fails never ends a training run.

Some stores refuse deletions: a policy that lets a job write but not delete, an object lock, an old server that does not
know the request. Old checkpoints then stay, which costs space and nothing else.
"""

import logging
from collections import Counter
from collections.abc import Iterable

from pipeline.train.checkpoints.storage_protocol import Storage

logger = logging.getLogger("clip")

MAX_FAILURES = 3
"""After this many failures, the other removals wait for the next checkpoint, because each may take minutes."""


class Remover:
    """Removes files and folders, and remembers what it could not remove."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._failed = set[tuple[str, ...]]()
        self._num_failures = Counter[type[OSError]]()

    def remove(self, *uris: str) -> bool:
        """Remove files or folders, one after the other until a removal fails; whether all are removed.

        The first, second, fourth, ... failure of each kind is logged, because the same one may come after every
        checkpoint.
        """
        try:
            for uri in uris:
                self._storage.delete(uri)
        except OSError as error:
            self.log(uri, error)
            return False
        return True

    def remove_each(self, groups: Iterable[tuple[str, ...]]) -> None:
        """Call `remove` with each group, first with those that did not fail before, until MAX_FAILURES have failed."""
        num_failed = 0
        for uris in sorted(groups, key=lambda uris: (uris in self._failed, uris)):
            if self.remove(*uris):
                self._failed.discard(uris)
            else:
                self._failed.add(uris)
                num_failed += 1
            if num_failed == MAX_FAILURES:
                return

    def log(self, uri: str, error: OSError) -> None:
        """Log that a removal failed, unless it fails all the time."""
        self._num_failures[type(error)] += 1
        number = self._num_failures[type(error)]
        if number & (number - 1) == 0:
            message = (
                "%s is no longer needed and cannot be removed (%s). Training goes on, and tries again after the next "
                "checkpoint; failures of this kind so far: %d"
            )
            logger.warning(message, uri, error, number)
