"""A run of pretraining from the outside: what it refuses, its workers on Ray Train, and what it leaves at its end.

A run is a folder: rerunning it goes on from its last checkpoint, and does nothing once result.json is there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import PREEMPTION_POLL_INTERVAL_S_ENV_VAR
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.api.result import Result
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import storage
from cluster.runs import Run, identity
from pipeline.train.curves import draw_curves
from pipeline.train.loop import train
from pipeline.train.metrics import read_metrics, read_validation
from pipeline.train.notices import ASK_SECONDS, Stop
from pipeline.train.run import Pretraining
from pipeline.train.start import read_start
from pipeline.train.validation import Validation

logger = logging.getLogger("clip")

_USER_ERRORS = (ValueError, FileNotFoundError, FloatingPointError)


STOP_SECONDS = 2.5
"""What a job that is being stopped gives its workers to save: Ray kills it 3 s after the signal."""


def pretrain(run: Pretraining, validation: Validation | None = None) -> None:
    """Train, or finish training, and write model/, curves.png and, last, result.json. Needs a connection to Ray.

    Args:
        run: what is trained on what.
        validation: how the models of its checkpoints are scored meanwhile; None: not at all.

    Raises:
        ValueError: the output is another configuration's, its checkpoint another model's, or the batch larger than the
            snapshot.
        FileNotFoundError: a shard is missing.
        FloatingPointError: too many steps in a row were not finite (guard.py).
    """
    run = replace(run, output=storage.absolute(run.output))  # workers have another working directory
    run.refuse_batches()
    run.refuse_missing_shards()
    start, start_sha256 = read_start(run.start_from, run.model, storage) if run.start_from else (None, None)
    Run.open(
        run.output,
        {
            "snapshot_id": run.snapshot_id, "model": run.model.to_dict(), "train": identity(run.train),
            "start_from": start_sha256,
        },
    )  # fmt: skip
    result_uri = storage.join(run.output, "result.json")
    if storage.exists(result_uri):
        logger.info("%s is there: this run is finished, nothing to do", result_uri)
        return
    _note_take_downs(run)
    if start:
        run.keep_start(start)
    tokenizer = run.tokenizer()
    run.refuse_other_checkpoints(tokenizer)
    _train(run, tokenizer.to_json(), validation)
    rows = read_metrics(run.output, storage)
    curves = draw_curves(rows, read_validation(run.output, storage))
    storage.write_bytes(storage.join(run.output, "curves.png"), curves)
    result = {
        "samples_per_second": rows[-1].images_seen / rows[-1].seconds,
        "num_steps": rows[-1].step,
        "images_seen": rows[-1].images_seen,
        "final_loss": next((row.loss for row in reversed(rows) if math.isfinite(row.loss)), None),
        "model": storage.join(run.output, "model"),
        "snapshot_id": run.snapshot_id,
    }
    storage.write_bytes(result_uri, json.dumps(result, indent=1).encode())


def _train(run: Pretraining, tokenizer_json: str, validation: Validation | None) -> None:
    """Have workers train to the end. Those that leave because a node goes away are started again at once, and where
    this process is being stopped, they have a moment to save."""
    os.environ.setdefault(PREEMPTION_POLL_INTERVAL_S_ENV_VAR, str(ASK_SECONDS))
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    stop = ray.remote(num_cpus=0, scheduling_strategy=node)(Stop).remote()
    try:
        while (num_steps := _trainer(run, partial(train, run, tokenizer_json, stop, validation)).fit().return_value) < (
            run.num_steps()
        ):
            logger.warning("a node is going away: saved at step %d, and going on without it", num_steps)
    except WorkerGroupError as error:
        cause = _user_error(error)
        if cause is None:
            raise
        raise cause from error
    except (SystemExit, KeyboardInterrupt):
        with contextlib.suppress(RayError):
            ray.get(stop.ask.remote(), timeout=STOP_SECONDS)
        raise


def _trainer(run: Pretraining, work: Callable[[], int]) -> _Trainer:
    config = run.train
    filesystem, path = storage.filesystem(run.output)
    fewest, most = config.workers
    return _Trainer(
        work,
        scaling_config=ScalingConfig(
            num_workers=fewest if fewest == most else (fewest, most),
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker={"CPU": config.cpus_per_worker, "GPU": config.gpus_per_worker},
        ),
        run_config=RunConfig(
            name="ray_train",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
        read_cpus_per_worker=config.read_cpus_per_worker,
    )


def _note_take_downs(run: Pretraining) -> None:
    """Remember how many pairs of the snapshot are taken down, and warn where there are more than at the last start."""
    uri = storage.join(run.output, "taken_down.json")
    num_pairs = sum(len(shard.taken_down) for shard in run.shards)
    before = json.loads(storage.read_bytes(uri))["num_pairs"] if storage.exists(uri) else num_pairs
    if before != num_pairs:
        logger.warning(
            "%d pairs of the snapshot are taken down, %d when this run was last started: they are in no step from here "
            "on, and the rest of the epoch is planned anew",
            num_pairs, before,
        )  # fmt: skip
    storage.write_bytes(uri, json.dumps({"num_pairs": num_pairs}).encode())


def _user_error(error: BaseException | None) -> Exception | None:
    """What is wrong with the input or the recipe, where that is what a worker or its reading task has stumbled over."""
    if isinstance(error, WorkerGroupError):
        # The others fail with what became of the connection to that worker
        return next(filter(None, map(_user_error, error.worker_failures.values())), None)
    if isinstance(error, UserExceptionWithTraceback):
        return _user_error(error._base_exc)
    if isinstance(error, RayTaskError):
        return _user_error(error.cause)
    # Those and not their children: a library's own ValueError does not speak to the user
    return error if isinstance(error, Exception) and type(error) in _USER_ERRORS else None


class _Trainer(TorchTrainer):
    """A TorchTrainer that minds what is read and what is wrong with the input, and leaves Ctrl-C to the job.

    It does without the actor that outlives a controller to return its CPUs: a job's end returns them as well, and on a
    Ray without a dashboard it fails, loudly, at its first question.
    """

    def __init__(self, work: Callable[[], int], *, read_cpus_per_worker: float, **arguments: Any) -> None:
        super().__init__(work, **arguments)
        self._read_cpus_per_worker = read_cpus_per_worker

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        arguments["failure_policy"] = _InputIsNotRetried(self.run_config.failure_config)
        if self.scaling_config.elasticity_enabled:
            arguments["scaling_policy"] = _LeavesRoom(self.scaling_config, self._read_cpus_per_worker)
        return super()._initialize_and_run_controller(**arguments)

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


class _InputIsNotRetried(DefaultFailurePolicy):
    """What is wrong with the input or the recipe is wrong with it the next time, too."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        if _user_error(training_failed_error) is not None:
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class _LeavesRoom(ElasticScalingPolicy):
    """As many workers as the nodes that stay can hold, and can read for: Ray's own policy hands out the last CPU, and
    counts nodes that are going away."""

    def __init__(self, scaling_config: ScalingConfig, read_cpus_per_worker: float) -> None:
        super().__init__(scaling_config)
        self._read_cpus_per_worker = read_cpus_per_worker

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        leaving = ray._private.state.state.get_draining_nodes()
        stay = {node: resources for node, resources in reserved_resources.items() if node not in leaving}
        cpus = sum(
            node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving
        )
        each = self.scaling_config.resources_per_worker["CPU"] + self._read_cpus_per_worker
        return min(super()._count_possible_workers(stay), int(cpus / each))
