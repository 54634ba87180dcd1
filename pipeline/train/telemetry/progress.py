"""Read the progress of a training run from the files that it writes, without contacting its job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.train.checkpoints.checkpoint import CheckpointFolder
from pipeline.train.checkpoints.storage_protocol import Storage
from pipeline.train.telemetry.metrics import Metrics, read_metrics, read_validation


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """A training run as its files describe it."""

    num_steps: int
    """Steps of the whole run."""
    last: Metrics
    """The newest row of metrics.jsonl."""
    checkpoints: tuple[int, ...]
    """The steps after which the complete checkpoints were taken, ascending."""
    scores: Mapping[str, float]
    """The newest validation scores by name, 0 to 1; empty without validation."""
    finished: bool
    """Whether the run has written its result."""

    @property
    def seconds_left(self) -> float:
        """Time until the last step, at the rate of the newest row."""
        pairs_per_step = self.last.images_seen / self.last.step
        return pairs_per_step * (self.num_steps - self.last.step) / self.last.samples_per_second


def training_progress(output: str, configuration: Mapping[str, Any], storage: Storage) -> TrainingProgress | None:
    """The progress of a run of jobs.pretrain; None for a run of another job, or before its first row of metrics.

    Args:
        output: folder of the run.
        configuration: what the run's run.json holds.
        storage: where the run is.
    """
    rows = read_metrics(output, storage)
    if not rows:
        return None
    last, validation = rows[-1], read_validation(output, storage)
    steps_per_epoch = round(last.step / last.epoch)  # `epoch` is the number of passes over the data so far
    return TrainingProgress(
        num_steps=steps_per_epoch * configuration["train"]["epochs"],
        last=last,
        checkpoints=tuple(CheckpointFolder(storage.join(output, "checkpoints"), storage).steps()),
        scores=validation[-1].scores if validation else {},
        finished=storage.exists(storage.join(output, "result.json")),
    )
