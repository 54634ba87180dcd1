"""A run of pretraining from the outside: what it refuses, its workers on Ray Train, and what it leaves at its end.

A run is a folder: rerunning it goes on from its last checkpoint, and does nothing once result.json is there.
"""

import json
import logging
from dataclasses import replace
from functools import partial

from ray.exceptions import RayTaskError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from cluster import storage
from cluster.runs import Run, identity
from pipeline.model.objectives import empty_network
from pipeline.train.batch_norm import has_batch_norms
from pipeline.train.loop import train
from pipeline.train.metrics import draw_curves, read_metrics
from pipeline.train.run import Pretraining

logger = logging.getLogger("clip")

_USER_ERRORS = (ValueError, FileNotFoundError)


def pretrain(run: Pretraining) -> None:
    """Train, or finish training, and write model/, curves.png and, last, result.json. Needs a connection to Ray.

    Raises:
        ValueError: the output is another configuration's, or the batch larger than the snapshot.
    """
    run = replace(run, output=storage.absolute(run.output))  # workers have another working directory
    config = run.train
    # Refuses, before anything is written, a batch that is too large or cannot be shared out
    run.plan()
    unit = config.norm_group_size if has_batch_norms(empty_network(run.model)) else 1
    config.local_batch_sizes(config.num_workers, unit)
    Run.open(
        run.output,
        {"snapshot_id": run.snapshot_id, "model": run.model.to_dict(), "train": identity(config)},
    )
    result_uri = storage.join(run.output, "result.json")
    if storage.exists(result_uri):
        logger.info("%s is there: this run is finished, nothing to do", result_uri)
        return
    _note_take_downs(run)
    filesystem, path = storage.filesystem(run.output)
    trainer = _Trainer(
        partial(train, run, run.tokenizer().to_json()),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
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
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        cause = _user_error(error)
        if cause is None:
            raise
        raise cause from error
    rows = read_metrics(run.output, storage)
    storage.write_bytes(storage.join(run.output, "curves.png"), draw_curves(rows))
    result = {
        "samples_per_second": rows[-1].images_seen / rows[-1].seconds,
        "num_steps": rows[-1].step,
        "images_seen": rows[-1].images_seen,
        "final_loss": rows[-1].loss,
        "model": storage.join(run.output, "model"),
        "snapshot_id": run.snapshot_id,
    }
    storage.write_bytes(result_uri, json.dumps(result, indent=1).encode())


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


def _user_error(error: BaseException | None) -> ValueError | FileNotFoundError | None:
    """What is wrong with the input, where that is what a worker or its reading task has stumbled over."""
    if isinstance(error, WorkerGroupError):
        return _user_error(next(iter(error.worker_failures.values()), None))
    if isinstance(error, UserExceptionWithTraceback):
        return _user_error(error._base_exc)
    if isinstance(error, RayTaskError):
        return _user_error(error.cause)
    # Those two and not their children: a library's own ValueError does not speak to the user
    return error if isinstance(error, ValueError | FileNotFoundError) and type(error) in _USER_ERRORS else None


class _Trainer(TorchTrainer):
    """Without the actor that outlives a controller to return its CPUs: a job's end returns them as well, and on a Ray
    without a dashboard it fails, loudly, at its first question."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]
