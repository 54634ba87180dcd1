"""What a run tells of itself while it goes on: metrics.jsonl, validation.jsonl, TensorBoard, lines for people."""

import json
import logging
import math
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

import torch

from pipeline.train.checkpoints.checkpoint import Progress
from pipeline.train.checkpoints.storage_protocol import Storage
from pipeline.train.config import TrainConfig
from pipeline.train.step.gradients import StepResult
from pipeline.train.telemetry.tensorboard_events import Board

logger = logging.getLogger("clip")

METRICS_FILE, VALIDATION_FILE = "metrics.jsonl", "validation.jsonl"
INTERVAL_SECONDS = 5.0
"""Between two lines for people, and at least between two writes of the rows between checkpoints."""
WRITE_SHARE = 0.01
"""Of the time, at most, goes into these writes, which all workers wait for. The file is written anew each time, because
S3 cannot append, and so it never ends in half a line; the longer it is the longer that takes."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step, as the first worker sees it."""

    num_steps: int
    """Steps of the run so far, this one included."""
    result: StepResult
    logit_scale: float | None
    """The factor itself, before the step; None where the objective has none."""
    learning_rate: float
    gradient_norm: float
    """Of the whole gradient, before it is scaled down."""
    waited_seconds: float
    """How long the first worker waited for its batch."""
    taken: bool
    """False where the step was skipped, because loss or gradient is not finite."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """A row of metrics.jsonl, which leaves out what is None or not finite."""

    step: int
    """Steps taken, this one included."""
    epoch: float
    """Passes over the data so far."""
    loss: float = math.nan
    """Of this step's global batch, before its update; so are the accuracies. Not finite where the step was skipped for
    it, nor is then the gradient's norm."""
    accuracy_image_to_text: float | None = None
    """None, as the next two, where the objective has no such thing."""
    accuracy_text_to_image: float | None = None
    logit_scale: float | None = None
    """The factor itself, not its logarithm."""
    learning_rate: float
    gradient_norm: float = math.nan
    skipped_steps: int = 0
    """Steps so far that were not taken (nonfinite_steps.py)."""
    samples_per_second: float
    """Of all workers, since the row before."""
    data_wait_share: float
    """Share of that time that the first worker waited for data."""
    images_seen: int
    peak_memory_gib: float
    """Of the first worker's device; on the CPU, of its process."""
    seconds: float
    """Training time so far, over all resumptions."""
    mfu: float | None = None
    """Model FLOPs utilisation: the share of the devices' peak that the samples are worth; None where no peak is known,
    as on a CPU."""


@dataclass(frozen=True, kw_only=True)
class ValidationRow:
    """A row of validation.jsonl."""

    step: int
    """Steps that the model has taken."""
    images_seen: int
    scores: Mapping[str, float]


class Recorder:
    """Times the steps of a run and writes what becomes of them: metrics.jsonl, TensorBoard's events, lines for people.

    Rows beyond the resumption, left by a run that was killed after its last checkpoint, are dropped.

    Args:
        output: folder of the run.
        files: its storage.
        config: of the run.
        done: how far it was.
        num_steps: of the whole run.
        steps_per_epoch: of them.
        device: whose memory is told of.
        utilisation_per_rate: what samples a second are multiplied by for the MFU, where that is known.
    """

    def __init__(
        self, output: str, files: Storage, config: TrainConfig, done: Progress, *, num_steps: int, steps_per_epoch: int,
        device: torch.device, utilisation_per_rate: float | None = None,
    ) -> None:  # fmt: skip
        self._uri, self._files = files.join(output, METRICS_FILE), files
        self._validation_uri = files.join(output, VALIDATION_FILE)
        self._config, self._num_steps, self._steps_per_epoch, self._device = config, num_steps, steps_per_epoch, device
        self._utilisation_per_rate = utilisation_per_rate
        self._lines = [_line(_told(row)) for row in read_metrics(output, files) if row.step <= done.num_steps]
        scores = read_validation(output, files)
        self._scores = [row for row in scores if row.step <= done.num_steps]
        if len(self._scores) < len(scores):
            self._write_scores()
        self._board = Board(files.join(output, "tensorboard"), files, done.num_steps + 1)
        self._done = done
        self._step = self._row_step = done.num_steps
        self._started = self._row_started = self._written = self._said = time.monotonic()
        self._write_seconds = 0.0
        self._waited = 0.0
        self._skipped = done.skipped_steps

    def step(self, record: StepRecord) -> None:
        """Count one more step, and write a row of it if one is due."""
        self._step = record.num_steps
        self._skipped += not record.taken
        self._waited += record.waited_seconds
        if self._step % self._config.log_every_steps and self._step != self._num_steps:
            return
        now = time.monotonic()
        elapsed = now - self._row_started
        rate = (self._step - self._row_step) * self._config.global_batch_size / elapsed
        row = Metrics(
            step=self._step,
            epoch=self._step / self._steps_per_epoch,
            loss=record.result.loss,
            accuracy_image_to_text=record.result.accuracy_image_to_text,
            accuracy_text_to_image=record.result.accuracy_text_to_image,
            logit_scale=record.logit_scale,
            learning_rate=record.learning_rate,
            gradient_norm=record.gradient_norm,
            skipped_steps=self._skipped,
            samples_per_second=rate,
            data_wait_share=self._waited / elapsed,
            images_seen=self._step * self._config.global_batch_size,
            peak_memory_gib=peak_memory_gib(self._device),
            seconds=self._done.seconds + now - self._started,
            mfu=None if self._utilisation_per_rate is None else rate * self._utilisation_per_rate,
        )
        self._row_step, self._row_started, self._waited = self._step, now, 0.0
        told = _told(row)
        self._lines.append(_line(told))
        self._board.add({name: value for name, value in told.items() if name != "step"}, row.step)
        last = self._step == self._num_steps
        if last or now - self._written >= max(INTERVAL_SECONDS, self._write_seconds / WRITE_SHARE):
            self.flush()
        if last or now - self._said >= INTERVAL_SECONDS:
            self._said = now
            logger.info("%s", self._for_people(row))

    def validated(self, num_steps: int, scores: Mapping[str, float]) -> None:
        """Write the scores of the model after so many steps."""
        row = ValidationRow(step=num_steps, images_seen=num_steps * self._config.global_batch_size, scores=scores)
        self._scores.append(row)
        self._board.add({f"validation/{name}": value for name, value in scores.items()}, num_steps)
        self._write_scores()
        told = ", ".join(f"{name} {value:.1%}" for name, value in scores.items())
        logger.info("validation after step %d: %s", num_steps, told)

    def flush(self) -> Progress:
        """Write all rows; returns how far the run is. Before each checkpoint, so that none of its rows is missing."""
        begun = time.monotonic()
        self._files.write_bytes(self._uri, b"".join(self._lines))
        self._board.flush()
        self._written = time.monotonic()
        self._write_seconds = self._written - begun
        return Progress(self._step, self._done.seconds + self._written - self._started, skipped_steps=self._skipped)

    def close(self) -> None:
        """Write what TensorBoard has not got yet."""
        self._board.flush()

    def _write_scores(self) -> None:
        self._files.write_bytes(self._validation_uri, b"".join(_line(asdict(row)) for row in self._scores))

    def _for_people(self, row: Metrics) -> str:
        rate = (row.step - self._done.num_steps) / (row.seconds - self._done.seconds)
        left = timedelta(seconds=round((self._num_steps - row.step) / rate))
        accuracies = (row.accuracy_image_to_text, row.accuracy_text_to_image)
        told = " and ".join(f"{accuracy:.0%}" for accuracy in accuracies if accuracy is not None)
        return (
            f"step {row.step:,}/{self._num_steps:,}: loss {row.loss:.3f}, {f'accuracy {told}, ' if told else ''}"
            f"{row.samples_per_second:,.0f} samples/s, {left} left"
        )


def _told(row: Metrics) -> dict[str, float]:
    return {name: value for name, value in asdict(row).items() if value is not None and math.isfinite(value)}


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def read_metrics(output: str, files: Storage) -> list[Metrics]:
    """The rows of a run; none where it has not logged any."""
    return [Metrics(**row) for row in _read(files.join(output, METRICS_FILE), files)]


def read_validation(output: str, files: Storage) -> list[ValidationRow]:
    """The scores of a run's models; none where there are none."""
    return [ValidationRow(**row) for row in _read(files.join(output, VALIDATION_FILE), files)]


def _read(uri: str, files: Storage) -> list[Any]:
    return [json.loads(line) for line in files.read_bytes(uri).decode().splitlines()] if files.exists(uri) else []


def peak_memory_gib(device: torch.device) -> float:
    """The most memory so far: of the device's tensors, or on the CPU of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
