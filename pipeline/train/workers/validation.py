"""Models are scored while they are trained: a task of its own for the newest checkpoint, on resources of its own."""

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
from pipeline.train.checkpoints.background_saver import Saved

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How a run's models are scored."""

    score: Callable[[Model], Mapping[str, float]]
    """Runs in a task. Scores by name, such as accuracies."""
    pool: Pool
    """What the task holds while it runs."""


@dataclass(frozen=True)
class Scores:
    """Of the model after so many steps."""

    num_steps: int
    values: Mapping[str, float]


class Validator:
    """Scores one model at a time. A failure is told of, and stops nothing."""

    def __init__(self, validation: Validation) -> None:
        self._score = validation.score
        pool = validation.pool
        self._task: Any = ray.remote(_score).options(num_cpus=pool.cpus, num_gpus=pool.gpus, max_retries=0)
        self._running: Any = None
        self._num_steps = 0

    def begin(self, saved: Saved) -> None:
        """Score the model of a checkpoint; the one before must have been taken by `finished` or `wait`, else this one
        is left out."""
        if self._running is not None:
            logger.info("no validation after step %d: that after step %d still runs", saved.num_steps, self._num_steps)
            return
        files = {name: saved.files[name] for name in MODEL_FILES}
        self._running, self._num_steps = self._task.remote(files, self._score), saved.num_steps

    def finished(self) -> Scores | None:
        """What has come out since it was last asked for, if anything."""
        if self._running is None or not ray.wait([self._running], timeout=0)[0]:
            return None
        return self.wait()

    def wait(self) -> Scores | None:
        """What comes out of the model that is being scored, if there is one."""
        if self._running is None:
            return None
        try:
            return Scores(self._num_steps, ray.get(self._running))
        except RayError as error:
            logger.warning("validation after step %d failed, which stops nothing: %s", self._num_steps, error)
            return None
        finally:
            self._running = None


def _score(files: Mapping[str, bytes], score: Callable[[Model], Mapping[str, float]]) -> dict[str, float]:
    return dict(score(model_folder.from_files(files, "the checkpoint")))
