"""Build everything that one worker needs for its steps, from a run and its last checkpoint."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from cluster import storage
from cluster.runs import RUN_FILE
from pipeline.model.objectives.networks import Network
from pipeline.model.weights.model_folder import Model
from pipeline.train.checkpoints.checkpoint import Progress
from pipeline.train.network.batch_norm import has_batch_norms
from pipeline.train.network.bf16_text_weights import halve_text_weights
from pipeline.train.network.compiled_blocks import LENGTH_MULTIPLE
from pipeline.train.network.prepare import prepare
from pipeline.train.network.sharding import load_optimizer, whole_model, whole_optimizer
from pipeline.train.optimizer.nonfinite_steps import NonFiniteGuard
from pipeline.train.optimizer.optimizer import make_optimizer
from pipeline.train.reading.batches import StepReader
from pipeline.train.reading.prefetch import to_device
from pipeline.train.step.chunks import Chunks
from pipeline.train.step.gradients import Batch
from pipeline.train.workers.rank_zero import RankZero
from pipeline.train.workers.run import Pretraining
from pipeline.train.workers.step_decisions import StepDecisions
from pipeline.train.workers.stream import checked, stream
from pipeline.train.workers.validation import Validation

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One rank of a run, ready for its next step."""

    rank: int
    steps: range
    """Numbers of the remaining steps; the first step of a run is 0."""
    model: Model
    """On the worker's device; `network` is its network."""
    optimizer: torch.optim.Optimizer
    batches: Iterator[Batch]
    """This rank's share of each step, on the device."""
    chunks: Chunks
    guard: NonFiniteGuard
    decisions: StepDecisions
    rank_zero: RankZero | None
    """Only on the first rank."""

    @property
    def network(self) -> Network:
        """The network that is trained."""
        return self.model.network

    def next_batch(self) -> tuple[Batch, float]:
        """The next batch, and the seconds that this rank waited for it."""
        started = time.monotonic()
        return next(self.batches), time.monotonic() - started

    def whole_state(self) -> tuple[Model, dict[str, Any]]:
        """Gather the model and the optimizer's state from all shards. All ranks must call this together."""
        return whole_model(self.model), whole_optimizer(self.optimizer)


def build(run: Pretraining, tokenizer_json: str, run_lock: Any, validation: Validation | None) -> Worker:
    """Build a worker: network, optimizer, batches from the last checkpoint on, decisions after steps.

    Args:
        run: the run.
        tokenizer_json: the run's tokenizer.
        run_lock: the actor of run_lock.RunLock.
        validation: how models are scored; None: they are not scored.

    Raises:
        FileNotFoundError: the output is a folder that this node does not share with the job's node.
        RuntimeError: the workers found different checkpoints.
    """
    _check_output_is_shared(run.output)
    config, context, device = run.train, ray.train.get_context(), ray.train.torch.get_device()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))

    model, optimizer, done = _restore(run, tokenizer_json, device)
    norm_group_size = config.norm_group_size if has_batch_norms(model.network) else None
    sizes = config.local_batch_sizes(num_workers, norm_group_size or 1)
    steps = range(done.num_steps, run.num_steps())
    arrays = stream(_reader(run, sizes, rank, tokenizer_json), steps, config)
    chunks = Chunks(
        config.chunk_size or done.chunk_size,
        config.activation_budget_bytes,
        norm_group_size=norm_group_size,
        bf16=config.precision == "bf16",
        workers_on_node=context.get_local_world_size(),
        length_multiple=LENGTH_MULTIPLE if config.compile else 1,
    )
    return Worker(
        rank=rank,
        steps=steps,
        model=model,
        optimizer=optimizer,
        batches=to_device(checked(arrays, steps, sizes[rank]), device),
        chunks=chunks,
        guard=NonFiniteGuard(model.network, config.max_skipped_steps),
        decisions=StepDecisions(config, num_steps=steps.stop, run_lock=run_lock, device=device),
        rank_zero=RankZero(run, model.network.config, done, device, chunks, validation) if rank == 0 else None,
    )


def _check_output_is_shared(output: str) -> None:
    if not storage.exists(storage.join(output, RUN_FILE)):  # the job wrote it before it started its workers
        raise FileNotFoundError(
            f"output={output}: not visible from node {platform.node()}; use s3:// or a folder that all nodes share"
        )


def _restore(
    run: Pretraining, tokenizer_json: str, device: torch.device
) -> tuple[Model, torch.optim.Optimizer, Progress]:
    """Load model and optimizer of the last checkpoint, or create initial ones, and prepare them for this device."""
    checkpoint = run.checkpoints().latest()
    model = checkpoint.model if checkpoint else run.new_model(tokenizer_json)
    done = checkpoint.progress if checkpoint else Progress(num_steps=0, seconds=0.0)
    network = model.network.to(device).train()
    if run.train.text_weights == "bf16":
        halve_text_weights(network)
    _broadcast_weights(network, done.num_steps)
    prepare(network, run.train)
    optimizer = make_optimizer(network, run.train)
    if checkpoint:
        load_optimizer(optimizer, checkpoint.optimizer)
        num_workers = ray.train.get_context().get_world_size()
        logger.info("resuming at step %d with %d workers", done.num_steps, num_workers)
    return model, optimizer, done


def _reader(run: Pretraining, local_batch_sizes: list[int], rank: int, tokenizer_json: str) -> StepReader:
    return StepReader(
        shards=run.open_shards(),
        plan=run.plan(),
        local_batch_sizes=local_batch_sizes,
        rank=rank,
        seed=run.train.seed,
        image_size=run.model.image.image_size,
        crop_share=run.train.crop_share,
        tokenizer_json=tokenizer_json,
        context_length=run.model.text.context_length,
    )


def _broadcast_weights(network: Network, num_steps: int) -> None:
    """Copy the first worker's weights to all workers, after checking that all found the same checkpoint."""
    if ray.train.get_context().get_world_size() == 1:
        return
    found = torch.tensor([num_steps, -num_steps], device=next(network.parameters()).device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    if found[0] != -found[1]:
        raise RuntimeError(f"workers found different checkpoints: steps {-int(found[1])} and {int(found[0])}")
    for tensor in network.state_dict().values():
        dist.broadcast(tensor, src=0)
