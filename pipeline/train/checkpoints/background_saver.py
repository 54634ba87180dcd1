"""Write checkpoints while training continues: copy the state at once, then write the copy in a thread."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.train.checkpoints.checkpoint import Checkpoint, CheckpointFolder


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that is completely written."""

    num_steps: int
    files: dict[str, bytes]


class BackgroundSaver:
    """Writes the checkpoints of a run in a background thread, one at a time."""

    def __init__(self, folder: CheckpointFolder) -> None:
        self._folder = folder
        self._threads = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[SavedCheckpoint] | None = None

    def begin(self, checkpoint: Checkpoint) -> None:
        """Copy a checkpoint and begin to write the copy. `finished` or `wait` must have returned the previous one."""
        assert self._pending is None
        self._pending = self._threads.submit(self._save, checkpoint.copied())

    def finished(self) -> SavedCheckpoint | None:
        """Return the checkpoint if it was completed since the last call, else None. Raises the errors of `wait`."""
        return self.wait() if self._pending is not None and self._pending.done() else None

    def wait(self) -> SavedCheckpoint | None:
        """Wait for the checkpoint that is being written and return it; None if there is no such checkpoint.

        Raises:
            OSError: the checkpoint could not be written.
        """
        if self._pending is None:
            return None
        saved, self._pending = self._pending.result(), None
        return saved

    def _save(self, checkpoint: Checkpoint) -> SavedCheckpoint:
        return SavedCheckpoint(checkpoint.progress.num_steps, self._folder.save(checkpoint))
