"""Score models during training: a separate Ray task, with its own resources, validates the newest checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.resources import Pool
from pipeline.model.weights import model_folder
from pipeline.model.weights.model_folder import MODEL_FILES, Model
from pipeline.train.checkpoints.background_saver import SavedCheckpoint

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How a run's models are scored."""

    score: Callable[[Model], Mapping[str, float]]
    """Called in the task. Returns scores by name, such as accuracies."""
    pool: Pool
    """Resources that the task holds while it runs."""


@dataclass(frozen=True)
class Scores:
    """Scores of the model after `num_steps` steps."""

    num_steps: int
    values: Mapping[str, float]


class Validator:
    """Scores one model at a time. A failed validation is logged and does not stop training."""

    def __init__(self, validation: Validation) -> None:
        self._score = validation.score
        pool = validation.pool
        self._task: Any = ray.remote(_score).options(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=0)
        self._running: Any = None
        self._num_steps = 0

    def begin(self, saved: SavedCheckpoint) -> None:
        """Begin to score the model of a checkpoint. Skips it if `finished` or `wait` has not yet returned the previous
        scores."""
        if self._running is not None:
            logger.info("no validation after step %d: step %d is still being scored", saved.num_steps, self._num_steps)
            return
        files = {name: saved.files[name] for name in MODEL_FILES}
        self._running, self._num_steps = self._task.remote(files, self._score), saved.num_steps

    def finished(self) -> Scores | None:
        """Return the scores if the task has ended since the last call, else None."""
        if self._running is None or not ray.wait([self._running], timeout=0)[0]:
            return None
        return self.wait()

    def wait(self) -> Scores | None:
        """Wait for the running task and return its scores; None if no task runs or the task failed."""
        if self._running is None:
            return None
        try:
            return Scores(self._num_steps, ray.get(self._running))
        except RayError as error:
            logger.warning("validation after step %d failed, the run continues without it: %s", self._num_steps, error)
            return None
        finally:
            self._running = None


def _score(files: Mapping[str, bytes], score: Callable[[Model], Mapping[str, float]]) -> dict[str, float]:
    return dict(score(model_folder.from_files(files, "the checkpoint")))
