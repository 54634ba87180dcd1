"""Checkpoints are written while training goes on: a copy is taken at once, a thread does the rest, one at a time."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.train.checkpoints.checkpoint import Checkpoint, CheckpointFolder


@dataclass(frozen=True)
class Saved:
    """A checkpoint that has been written."""

    num_steps: int
    files: dict[str, bytes]


class Saver:
    """Writes the checkpoints of a run."""

    def __init__(self, folder: CheckpointFolder) -> None:
        self._folder = folder
        self._threads = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Saved] | None = None

    def begin(self, checkpoint: Checkpoint) -> None:
        """Copy it, and begin to write the copy; the one before must have been taken by `finished` or `wait`."""
        assert self._pending is None
        self._pending = self._threads.submit(self._save, checkpoint.copied())

    def finished(self) -> Saved | None:
        """The checkpoint that has been written since it was last asked for, if any. Raises as `wait`."""
        return self.wait() if self._pending is not None and self._pending.done() else None

    def wait(self) -> Saved | None:
        """The checkpoint that is being written, when it has been; None where none is.

        Raises:
            OSError: it could not be written.
        """
        if self._pending is None:
            return None
        saved, self._pending = self._pending.result(), None
        return saved

    def _save(self, checkpoint: Checkpoint) -> Saved:
        return Saved(checkpoint.progress.num_steps, self._folder.save(checkpoint))
