"""Record a run's metrics during training: metrics.jsonl, validation.jsonl, TensorBoard events, log lines."""

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
from pipeline.train.telemetry.tensorboard_events import EventFile

logger = logging.getLogger("clip")

METRICS_FILE, VALIDATION_FILE = "metrics.jsonl", "validation.jsonl"
INTERVAL_SECONDS = 5.0
"""Time between two log lines, and the minimum time between two writes of metrics.jsonl outside checkpoints."""
WRITE_SHARE = 0.01
"""Maximum share of the training time for these writes, because all workers wait for them. Each one rewrites the whole
file, because S3 cannot append and the file must never end in half a line; so a longer file takes longer to write."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """The results of one step on the first worker."""

    num_steps: int
    """Steps of the run so far, this one included."""
    result: StepResult
    logit_scale: float | None
    """The factor itself, not its logarithm, before the step; None if the objective has no logit scale."""
    learning_rate: float
    gradient_norm: float
    """Norm of the whole gradient, before clipping."""
    waited_seconds: float
    """How long the first worker waited for its batch."""
    taken: bool
    """False if the step was skipped because its loss or gradient is not finite."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """A row of metrics.jsonl. The file leaves out values that are None or not finite."""

    step: int
    """Steps so far, this one included."""
    epoch: float
    """Passes over the data so far."""
    loss: float = math.nan
    """Loss of this step's global batch before the update, like the accuracies. In a skipped step the loss or the
    gradient norm is not finite."""
    accuracy_image_to_text: float | None = None
    """None, like the next two fields, if the objective does not define it."""
    accuracy_text_to_image: float | None = None
    logit_scale: float | None = None
    """The factor itself, not its logarithm."""
    learning_rate: float
    gradient_norm: float = math.nan
    skipped_steps: int = 0
    """Steps so far that did not update the weights (nonfinite_steps.py)."""
    samples_per_second: float
    """Rate of all workers together, since the previous row."""
    data_wait_share: float
    """Share of the time since the previous row that the first worker waited for data."""
    images_seen: int
    peak_memory_gib: float
    """Peak memory of the first worker's device, or of its process on the CPU."""
    seconds: float
    """Training time so far, over all resumptions."""
    mfu: float | None = None
    """Model FLOPs utilisation: the FLOP/s that the samples need, as a share of the devices' peak. None if the peak is
    unknown, as on a CPU."""


@dataclass(frozen=True, kw_only=True)
class ValidationRow:
    """A row of validation.jsonl."""

    step: int
    """Steps that the model was trained for."""
    images_seen: int
    scores: Mapping[str, float]


class Recorder:
    """Times the steps of a run and writes their metrics: metrics.jsonl, TensorBoard events, log lines.

    Rows of steps after `done`, left by a job that was killed after its last checkpoint, are dropped.

    Args:
        output: folder of the run.
        storage: where the run is.
        config: recipe of the run.
        done: progress of the checkpoint that the run resumes from.
        num_steps: steps of the whole run.
        steps_per_epoch: steps of one epoch.
        device: device whose peak memory is recorded.
        utilisation_per_rate: factor from samples per second to MFU (flops.py); None if unknown.
    """

    def __init__(
        self, output: str, storage: Storage, config: TrainConfig, done: Progress, *, num_steps: int,
        steps_per_epoch: int, device: torch.device, utilisation_per_rate: float | None = None,
    ) -> None:  # fmt: skip
        self._uri, self._storage = storage.join(output, METRICS_FILE), storage
        self._validation_uri = storage.join(output, VALIDATION_FILE)
        self._config, self._num_steps, self._steps_per_epoch, self._device = config, num_steps, steps_per_epoch, device
        self._utilisation_per_rate = utilisation_per_rate
        rows = [row for row in read_metrics(output, storage) if row.step <= done.num_steps]
        self._lines = [_line(_finite_values(row)) for row in rows]
        scores = read_validation(output, storage)
        self._scores = [row for row in scores if row.step <= done.num_steps]
        if len(self._scores) < len(scores):
            self._write_scores()
        self._event_file = EventFile(storage.join(output, "tensorboard"), storage, done.num_steps + 1)
        self._done = done
        self._step = self._row_step = done.num_steps
        self._started = self._row_started = self._written = self._logged = time.monotonic()
        self._write_seconds = 0.0
        self._waited = 0.0
        self._skipped = done.skipped_steps

    def step(self, record: StepRecord) -> None:
        """Count one more step, and record a row of metrics if one is due."""
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
        values = _finite_values(row)
        self._lines.append(_line(values))
        self._event_file.add({name: value for name, value in values.items() if name != "step"}, row.step)
        last = self._step == self._num_steps
        if last or now - self._written >= max(INTERVAL_SECONDS, self._write_seconds / WRITE_SHARE):
            self.flush()
        if last or now - self._logged >= INTERVAL_SECONDS:
            self._logged = now
            logger.info("%s", self._log_line(row))

    def validated(self, num_steps: int, scores: Mapping[str, float]) -> None:
        """Write the validation scores of the model after `num_steps` steps."""
        row = ValidationRow(step=num_steps, images_seen=num_steps * self._config.global_batch_size, scores=scores)
        self._scores.append(row)
        self._event_file.add({f"validation/{name}": value for name, value in scores.items()}, num_steps)
        self._write_scores()
        percentages = ", ".join(f"{name} {value:.1%}" for name, value in scores.items())
        logger.info("validation after step %d: %s", num_steps, percentages)

    def flush(self) -> Progress:
        """Write all rows and return the progress so far. Call it before each checkpoint, so that no row is lost."""
        started = time.monotonic()
        self._storage.write_bytes(self._uri, b"".join(self._lines))
        self._event_file.flush()
        self._written = time.monotonic()
        self._write_seconds = self._written - started
        return Progress(self._step, self._done.seconds + self._written - self._started, skipped_steps=self._skipped)

    def close(self) -> None:
        """Write the TensorBoard events that are not written yet."""
        self._event_file.flush()

    def _write_scores(self) -> None:
        self._storage.write_bytes(self._validation_uri, b"".join(_line(asdict(row)) for row in self._scores))

    def _log_line(self, row: Metrics) -> str:
        rate = (row.step - self._done.num_steps) / (row.seconds - self._done.seconds)
        remaining = timedelta(seconds=round((self._num_steps - row.step) / rate))
        accuracies = (row.accuracy_image_to_text, row.accuracy_text_to_image)
        shares = " and ".join(f"{accuracy:.0%}" for accuracy in accuracies if accuracy is not None)
        return (
            f"step {row.step:,}/{self._num_steps:,}: loss {row.loss:.3f}, {f'accuracy {shares}, ' if shares else ''}"
            f"{row.samples_per_second:,.0f} samples/s, {remaining} left"
        )


def _finite_values(row: Metrics) -> dict[str, float]:
    return {name: value for name, value in asdict(row).items() if value is not None and math.isfinite(value)}


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def read_metrics(output: str, storage: Storage) -> list[Metrics]:
    """Read a run's rows of metrics.jsonl; empty if it has not written any."""
    return [Metrics(**row) for row in _read(storage.join(output, METRICS_FILE), storage)]


def read_validation(output: str, storage: Storage) -> list[ValidationRow]:
    """Read a run's rows of validation.jsonl; empty if it has not written any."""
    return [ValidationRow(**row) for row in _read(storage.join(output, VALIDATION_FILE), storage)]


def _read(uri: str, storage: Storage) -> list[Any]:
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()] if storage.exists(uri) else []


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far in GiB: of the tensors on a CUDA device, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
