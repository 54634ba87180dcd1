"""Run a group of workers on Ray Train: choose its size, resize it, and decide which failures are retried."""

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
from cluster.stores.errors import DamagedError, StorageError
from pipeline.train.config import TrainConfig
from pipeline.train.workers.run import Pretraining

logger = logging.getLogger("clip")

RESIZE_SECONDS = 60.0
"""Time between two checks whether the number of workers can change."""
LEAVE_SECONDS = 600.0
"""Time limit for a step and a checkpoint after a request to leave. Workers that exceed it hang, because no CPUs are
free for their reading tasks, and are ended."""
WARN_SECONDS, PAUSE_SECONDS = 30.0, 0.5
"""While the cluster cannot hold `min_workers` workers: time between two warnings, and between two checks."""

_USER_ERRORS = (ValueError, DamagedError, FileNotFoundError, FloatingPointError, PermissionError)


def run_workers(run: Pretraining, work: Callable[[], int], run_lock: Any, reserved: Pool | None) -> int:
    """Run `work` on as many workers as fit, restarting them after failures. Returns the first worker's result.

    Args:
        run: the run that they train.
        work: what each worker executes.
        run_lock: the actor of run_lock.RunLock; it asks the workers to leave when their number can change.
        reserved: resources to keep free beside those for reading, such as for validation.

    Raises:
        ValueError, FileNotFoundError: a worker or its reading task found an error in the input.
        FloatingPointError: too many steps in a row were not finite (nonfinite_steps.py).
        PermissionError, StorageError: a read or write is not permitted, or the storage fails.
        WorkerGroupError: workers have failed too often.
    """
    try:
        num_steps: int = _Trainer(run, work, run_lock, reserved).fit().return_value  # type: ignore[attr-defined]
    except WorkerGroupError as error:
        cause = _user_error(error)
        if cause is None:
            raise
        raise cause from error
    return num_steps


class _Trainer(TorchTrainer):
    """A TorchTrainer that keeps CPUs free for reading, does not retry user errors, and leaves Ctrl-C to the job.

    It does not use Ray's actor that frees the CPUs of a dead controller: the end of the job frees them as well, and on
    a Ray without a dashboard this actor fails at its first request and logs the error.
    """

    def __init__(self, run: Pretraining, work: Callable[[], int], run_lock: Any, reserved: Pool | None) -> None:
        config = run.train
        filesystem, path = storage.filesystem(run.output)
        min_workers, max_workers = config.workers
        self._scaling = ScalingConfig(
            num_workers=min_workers if min_workers == max_workers else (min_workers, max_workers),
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker},
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        )
        self._failures = FailureConfig(max_failures=config.max_failures)
        self._policy = _ReservingPolicy(self._scaling, config, run_lock, reserved or Pool(cpus=0))
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
        arguments["failure_policy"] = _NoRetryOfUserErrors(self._failures)
        if self._scaling.elasticity_enabled:
            arguments["scaling_policy"] = self._policy
        return super()._initialize_and_run_controller(**arguments)

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


class _NoRetryOfUserErrors(DefaultFailurePolicy):
    """Does not retry errors in the input, the recipe or the storage that would occur again."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        error = _user_error(training_failed_error)
        if error is not None and not (isinstance(error, StorageError) and error.transient):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class _ReservingPolicy(ElasticScalingPolicy):
    """Runs as many workers as fit on the nodes, with resources kept free for reading and validation.

    Ray's own policy assigns every CPU and GPU, and counts nodes that are being drained. To resize, this policy asks the
    running group to save a checkpoint and exit after its current step; the job then starts a group of the new size.
    Ray's own policy ends the group immediately, which loses the steps since its last checkpoint.
    """

    def __init__(self, scaling: ScalingConfig, config: TrainConfig, run_lock: Any, reserved: Pool) -> None:
        super().__init__(scaling)
        self._config, self._run_lock, self._reserved = config, run_lock, reserved
        self._warned_at, self._leave_requested_at = time.monotonic(), math.inf

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        self._leave_requested_at = math.inf
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, NoopDecision):
            config, now = self._config, time.monotonic()
            if now - self._warned_at > WARN_SECONDS:
                self._warned_at = now
                logger.warning(
                    "waiting for nodes: the cluster cannot hold min_workers=%d workers with %g CPUs and %g GPUs each, "
                    "and their reading tasks",
                    config.workers[0], config.cpus_per_worker, config.gpus_per_worker,
                )  # fmt: skip
            time.sleep(PAUSE_SECONDS)  # Ray calls this again immediately
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> ScalingDecision:
        now = self._warned_at = time.monotonic()
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        if isinstance(decision, ResizeDecision):
            self._run_lock.leave_for_resize.remote()
            self._leave_requested_at = min(self._leave_requested_at, now)
        return decision if now - self._leave_requested_at > LEAVE_SECONDS else NoopDecision()

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        config, reserved = self._config, self._reserved
        draining = draining_nodes()
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        usable = [node["Resources"] for node in nodes if node["Alive"] and node["NodeID"] not in draining]
        cpus, gpus = (sum(resources.get(kind, 0) for resources in usable) for kind in ("CPU", "GPU"))
        most = (cpus - reserved.cpus) / (config.cpus_per_worker + config.read_cpus_per_worker)
        if config.gpus_per_worker:
            most = min(most, (gpus - reserved.gpus) / config.gpus_per_worker)
        # min_workers may run with fewer CPUs for reading, but one must remain free (as in cluster.session.preflight)
        fewest = min(config.workers[0], math.ceil(cpus / config.cpus_per_worker) - 1)
        usable_resources = {node: resources for node, resources in reserved_resources.items() if node not in draining}
        return int(min(super()._count_possible_workers(usable_resources), max(fewest, int(most))))


def _user_error(error: BaseException | None) -> Exception | None:
    """Find the error in input, recipe or storage that made a worker or its reading task fail; None if it is another."""
    if isinstance(error, WorkerGroupError):
        # The other workers fail because they lost the connection to that worker
        causes = (_user_error(failure) for failure in error.worker_failures.values())
        return next((cause for cause in causes if cause is not None), None)
    if isinstance(error, UserExceptionWithTraceback):
        return _user_error(error._base_exc)
    if isinstance(error, RayTaskError):
        return _user_error(error.cause)
    # Exact types, no subclasses: a library's own kind of ValueError is not addressed to the user
    is_ours = isinstance(error, StorageError) or type(error) in _USER_ERRORS
    return error if is_ours and isinstance(error, Exception) else None
