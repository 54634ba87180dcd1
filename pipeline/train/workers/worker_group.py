"""The workers of a run on Ray Train: how many there are, what becomes of failures."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from cluster import storage
from cluster.ray_private.core import draining_nodes
from cluster.ray_private.train import (
    DefaultFailurePolicy,
    ElasticScalingPolicy,
    FailureDecision,
    NoopDecision,
    PlacementGroupCleanerCallback,
    ResizeDecision,
    ScalingDecision,
    UserExceptionWithTraceback,
    WorkerGroupPollStatus,
    WorkerGroupState,
)
from cluster.resources import Pool
from pipeline.train.config import TrainConfig
from pipeline.train.workers.run import Pretraining

logger = logging.getLogger("clip")

RESIZE_SECONDS = 60.0
"""How often it is asked whether there is room for more workers."""
LEAVE_SECONDS = 600.0
"""What a step and a checkpoint may take: workers that have not left by then hang, for want of what reads for them."""
WAITING_SECONDS, PAUSE_SECONDS = 30.0, 0.5
"""How often it is told that there is not yet room for the fewest workers, and how often it is asked."""

_USER_ERRORS = (ValueError, FileNotFoundError, FloatingPointError, PermissionError, storage.StorageFullError)


def run_workers(run: Pretraining, work: Callable[[], int], run_lock: Any, room: Pool | None) -> int:
    """Have as many workers as there can be do the work, again where some of them fail; returns what the first returns.

    Args:
        run: what they train.
        work: what each of them does.
        run_lock: the actor of run_lock.RunLock; it asks the workers to leave when there can be more or fewer of them.
        room: what they leave to others, beside what reads for them.

    Raises:
        ValueError: what is wrong with the input, as a worker or its reading task has found it; so FileNotFoundError.
        FloatingPointError: too many steps in a row were not finite (nonfinite_steps.py).
        PermissionError, StorageFullError: something may not be read or written, or there is no room for it.
        WorkerGroupError: workers have failed too often.
    """
    try:
        done: int = _Trainer(run, work, run_lock, room).fit().return_value  # type: ignore[attr-defined]
    except WorkerGroupError as error:
        cause = _user_error(error)
        if cause is None:
            raise
        raise cause from error
    return done


class _Trainer(TorchTrainer):
    """A TorchTrainer that minds what reads for the workers and what is wrong with the input, and leaves Ctrl-C to the
    job.

    It does without the actor that outlives a controller to return its CPUs: a job's end returns them as well, and on a
    Ray without a dashboard it fails, loudly, at its first question.
    """

    def __init__(self, run: Pretraining, work: Callable[[], int], run_lock: Any, room: Pool | None) -> None:
        config = run.train
        filesystem, path = storage.filesystem(run.output)
        fewest, most = config.workers
        self._scaling = ScalingConfig(
            num_workers=fewest if fewest == most else (fewest, most),
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker},
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        )
        self._failures = FailureConfig(max_failures=config.max_failures)
        self._policy = _LeavesRoom(self._scaling, config, run_lock, room or Pool(cpus=0))
        run_config = RunConfig(
            name="ray_train",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=self._failures,
            logging_config=LoggingConfig(log_level="WARNING"),
        )
        super().__init__(work, scaling_config=self._scaling, run_config=run_config)

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        arguments["failure_policy"] = _InputIsNotRetried(self._failures)
        if self._scaling.elasticity_enabled:
            arguments["scaling_policy"] = self._policy
        return super()._initialize_and_run_controller(**arguments)

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


class _InputIsNotRetried(DefaultFailurePolicy):
    """What is wrong with the input, the recipe or the storage is wrong with it the next time, too."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if _user_error(training_failed_error) is not None:
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class _LeavesRoom(ElasticScalingPolicy):
    """As many workers as the nodes that stay can hold, and can read for and validate beside: Ray's own policy hands out
    the last CPU and the last GPU, and counts nodes that are going away.

    What it asks to leave is a running group: it saves and leaves after the step that it is at, to be started again
    with the other number of workers. Ray's own policy ends it where it stands, and the steps since its checkpoint with
    it.
    """

    def __init__(self, scaling: ScalingConfig, config: TrainConfig, run_lock: Any, room: Pool) -> None:
        super().__init__(scaling)
        self._config, self._run_lock, self._room = config, run_lock, room
        self._told, self._asked = time.monotonic(), math.inf

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._asked = math.inf
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            config, now = self._config, time.monotonic()
            if now - self._told > WAITING_SECONDS:
                self._told = now
                logger.warning(
                    "waiting for nodes: there is no room for min_workers=%d workers with %g CPUs and %g GPUs each, and "
                    "for what reads for them",
                    config.workers[0], config.cpus_per_worker, config.gpus_per_worker,
                )  # fmt: skip
            time.sleep(PAUSE_SECONDS)  # Ray asks again at once
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        now = self._told = time.monotonic()
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision):
            self._run_lock.move.remote()
            self._asked = min(self._asked, now)
        return decision if now - self._asked > LEAVE_SECONDS else NoopDecision()

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        config, room = self._config, self._room
        leaving = draining_nodes()
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        staying = [node["Resources"] for node in nodes if node["Alive"] and node["NodeID"] not in leaving]
        cpus, gpus = (sum(resources.get(kind, 0) for resources in staying) for kind in ("CPU", "GPU"))
        most = (cpus - room.cpus) / (config.cpus_per_worker + config.read_cpus_per_worker)
        if config.gpus_per_worker:
            most = min(most, (gpus - room.gpus) / config.gpus_per_worker)
        # The fewest do with less, but for the last CPU, without which none reads (as cluster.session.preflight has it)
        fewest = min(config.workers[0], math.ceil(cpus / config.cpus_per_worker) - 1)
        stay = {node: resources for node, resources in reserved_resources.items() if node not in leaving}
        return int(min(super()._count_possible_workers(stay), max(fewest, int(most))))


def _user_error(error: BaseException | None) -> Exception | None:
    """What is wrong with input, recipe or storage, where a worker or its reading task has stumbled over it."""
    if isinstance(error, WorkerGroupError):
        # The others fail with what became of the connection to that worker
        causes = (_user_error(failure) for failure in error.worker_failures.values())
        return next((cause for cause in causes if cause is not None), None)
    if isinstance(error, UserExceptionWithTraceback):
        return _user_error(error._base_exc)
    if isinstance(error, RayTaskError):
        return _user_error(error.cause)
    # Those and not their children: a library's own ValueError does not speak to the user
    return error if isinstance(error, Exception) and type(error) in _USER_ERRORS else None
