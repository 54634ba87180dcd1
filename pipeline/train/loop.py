"""Pretraining on Ray Train: every worker reads its share of each step, and together they take the step.

A run is a folder: rerunning it goes on from its last checkpoint, and does nothing once result.json is there.
"""

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.data import ExecutionResources
from ray.exceptions import RayTaskError
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from cluster import storage
from cluster.runs import Run, identity
from cluster.session import configure_data
from pipeline.data.order import Purpose, ShardInfo, draw
from pipeline.data.reading import Shards
from pipeline.model import model_folder
from pipeline.model.clip import CLIP
from pipeline.model.config import ModelConfig
from pipeline.model.model_folder import Model
from pipeline.model.objectives import Network, empty_network, network_for
from pipeline.model.tokenizer import Tokenizer
from pipeline.train.activations import Budget
from pipeline.train.batch_norm import has_batch_norms
from pipeline.train.batches import Arrays, StepReader
from pipeline.train.checkpoint import Checkpoint, CheckpointFolder, Progress
from pipeline.train.config import TrainConfig
from pipeline.train.gradients import Batch, set_gradients
from pipeline.train.metrics import Recorder, draw_curves, read_metrics
from pipeline.train.optimizer import learning_rate, make_optimizer, optimizer_step
from pipeline.train.plan import Plan

logger = logging.getLogger("clip")

_USER_ERRORS = (ValueError, FileNotFoundError)
READS_AHEAD = 4
"""Reading tasks whose rows a worker may have waiting for it."""
READS_PER_PIPELINE = 4096
"""A pipeline holds the list of its reading tasks in memory, so a long run has several, one after the other."""


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A run, as its workers need it."""

    output: str
    """Folder of the run, local or s3://."""
    shards: tuple[ShardInfo, ...]
    snapshot_id: str
    model: ModelConfig
    train: TrainConfig

    def plan(self) -> Plan:
        """Which rows make which step."""
        config = self.train
        return Plan(
            self.shards,
            global_batch_size=config.global_batch_size,
            shuffle_row_groups=config.shuffle_row_groups,
            seed=config.seed,
        )

    def open_shards(self) -> Shards:
        """The snapshot's files."""
        filesystem, _ = storage.filesystem(self.shards[0].path)
        return Shards(filesystem, tuple(storage.filesystem(shard.path)[1] for shard in self.shards), self.shards)


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
        partial(_train_worker, run, _tokenizer(run).to_json()),
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


def _tokenizer(run: Pretraining) -> Tokenizer:
    """The run's vocabulary, learned once from the snapshot's captions."""
    text = run.model.text
    uri = storage.join(run.output, "tokenizer.json")
    if not storage.exists(uri):
        captions = run.open_shards().captions(run.train.tokenizer_captions)
        tokenizer = Tokenizer.train(captions, text.vocab_size, text.context_length)
        storage.write_bytes(uri, tokenizer.to_json().encode())
    return Tokenizer.from_json(storage.read_bytes(uri).decode(), text.context_length)


def _train_worker(run: Pretraining, tokenizer_json: str) -> None:
    """What each worker runs: from the last checkpoint to the end."""
    config, context, device = run.train, ray.train.get_context(), ray.train.torch.get_device()
    rank = context.get_world_rank()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))

    checkpoints = CheckpointFolder(storage.join(run.output, "checkpoints"), storage, config.keep_checkpoints)
    checkpoint = checkpoints.latest()
    model = checkpoint.model if checkpoint else _new_model(run, tokenizer_json)
    done = checkpoint.progress if checkpoint else Progress(num_steps=0, seconds=0.0)
    network = model.network.to(device).train()
    optimizer = make_optimizer(network, config)
    if checkpoint:
        optimizer.load_state_dict(checkpoint.optimizer)
        logger.info("going on at step %d", done.num_steps)
    _agree(network, done.num_steps)
    norm_group_size = config.norm_group_size if has_batch_norms(network) else None
    sizes = config.local_batch_sizes(context.get_world_size(), norm_group_size or 1)

    plan = run.plan()
    steps = range(done.num_steps, plan.steps_per_epoch * config.epochs)
    reader = StepReader(
        shards=run.open_shards(),
        plan=plan,
        local_batch_sizes=sizes,
        rank=rank,
        seed=config.seed,
        image_size=run.model.image.image_size,
        crop_share=config.crop_share,
        tokenizer_json=tokenizer_json,
        context_length=run.model.text.context_length,
    )
    stream = _stream(reader, steps, config)
    recorder = (
        Recorder(
            run.output, storage, config, done,
            num_steps=steps.stop, steps_per_epoch=plan.steps_per_epoch, device=device,
        )
        if rank == 0
        else None
    )  # fmt: skip
    budget = Budget(int(config.activation_budget_gib * 2**30))
    for step in steps:
        asked = time.monotonic()
        batch = _batch(next(stream), step, sizes[rank], device)
        waited = time.monotonic() - asked
        torch.manual_seed(int(draw(config.seed, Purpose.DROPOUT, step, np.array([rank]))[0]))
        result = set_gradients(
            network, batch, chunk_size=config.chunk_size, bf16=config.precision == "bf16",
            norm_group_size=norm_group_size, budget=budget,
        )  # fmt: skip
        if not math.isfinite(result.loss):
            raise FloatingPointError(f"the loss is {result.loss} at step {step + 1}; a lower learning rate may help")
        rate = learning_rate(config, step, steps.stop)
        scale = network.logit_scale.exp().item() if isinstance(network, CLIP) else None
        norm = optimizer_step(network, optimizer, rate)
        if recorder:
            recorder.step(result, logit_scale=scale, learning_rate=rate, gradient_norm=norm, waited_seconds=waited)
            if (step + 1) * config.global_batch_size in config.keep_models_at:
                _write_model(model, kept_model(run.output, (step + 1) * config.global_batch_size))
            if (step + 1) % config.checkpoint_every_steps == 0 or step + 1 == steps.stop:
                checkpoints.save(Checkpoint(model, optimizer.state_dict(), recorder.flush()))
    if recorder:
        recorder.close()
        _write_model(model, storage.join(run.output, "model"))


def kept_model(output: str, images_seen: int) -> str:
    """The folder of the model that a run has kept after so many images (TrainConfig.keep_models_at)."""
    return storage.join(output, "models", f"images-{images_seen:012d}")


def _write_model(model: Model, folder: str) -> None:
    for name, data in model_folder.to_files(model).items():
        storage.write_bytes(storage.join(folder, name), data)


def _stream(reader: StepReader, steps: range, config: TrainConfig) -> Iterator[Arrays]:
    """The worker's share of each step, in order, from a Ray Data pipeline of its own that reads ahead."""
    configure_data()
    local_batch_size = reader.local_batch_sizes[reader.rank]
    stride = max(1, config.rows_per_read // local_batch_size)
    bytes_per_read = stride * local_batch_size * (3 * reader.image_size**2 + 4 * reader.context_length + 12)

    def read(item: dict[str, np.ndarray[Any, Any]]) -> Iterator[Arrays]:
        first = int(item["item"][0])
        yield from reader.read(range(first, min(first + stride, steps.stop)))

    firsts = steps[::stride]
    for start in range(0, len(firsts), READS_PER_PIPELINE):
        items = list(firsts[start : start + READS_PER_PIPELINE])
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(read, batch_size=None)
        options = dataset.context.execution_options
        options.preserve_order = True
        # Each worker's pipeline takes the whole cluster for its own, so both are told their share
        options.resource_limits = ExecutionResources(
            cpu=config.read_cpus_per_worker, object_store_memory=READS_AHEAD * bytes_per_read
        )
        yield from dataset.iter_batches(batch_size=local_batch_size, batch_format="numpy", prefetch_batches=1)


def _batch(arrays: Arrays, step: int, local_batch_size: int, device: torch.device) -> Batch:
    """The arrays on the device, if they are the right ones: Ray Data itself does not notice when rows are missing."""
    if arrays["step"].tolist() != [step] * local_batch_size:
        raise RuntimeError(f"{local_batch_size} samples of step {step} expected, those of {set(arrays['step'])} found")
    images, tokens, lengths = (torch.tensor(arrays[name]) for name in ("image", "tokens", "length"))
    return Batch(images.to(device), tokens.to(device), lengths)


def _agree(network: Network, num_steps: int) -> None:
    """All workers start from the first one's weights; they must have found the same checkpoint."""
    if ray.train.get_context().get_world_size() == 1:
        return
    found = torch.tensor([num_steps, -num_steps], device=next(network.parameters()).device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    if found[0] != -found[1]:
        raise RuntimeError(f"workers disagree about the checkpoint: steps {-int(found[1])} and {int(found[0])}")
    for tensor in network.state_dict().values():
        dist.broadcast(tensor, src=0)


def _new_model(run: Pretraining, tokenizer_json: str) -> Model:
    """Freshly initialised from the run's seed, with as many token embeddings as the tokenizer has entries."""
    tokenizer = Tokenizer.from_json(tokenizer_json, run.model.text.context_length)
    torch.manual_seed(run.train.seed)
    config = replace(run.model, text=replace(run.model.text, vocab_size=tokenizer.vocab_size))
    return Model(network_for(config), tokenizer)
