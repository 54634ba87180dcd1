"""The loop of a worker: with the others it takes step after step, from the last checkpoint to the end."""

from __future__ import annotations

import logging
import platform
import time
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from cluster import storage
from cluster.runs import RUN_FILE
from pipeline.data.snapshots.epoch_order import Purpose, draw
from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.networks import Network
from pipeline.train.checkpoints.checkpoint import Progress
from pipeline.train.network.batch_norm import has_batch_norms
from pipeline.train.network.bf16_text_weights import halve_text_weights
from pipeline.train.network.compiled_blocks import LENGTH_MULTIPLE
from pipeline.train.network.prepare import fit
from pipeline.train.network.sharding import load_optimizer, whole_model, whole_optimizer
from pipeline.train.optimizer.nonfinite_steps import StepGuard
from pipeline.train.optimizer.optimizer import gradient_norm, learning_rate, make_optimizer, optimizer_step
from pipeline.train.reading.batches import StepReader
from pipeline.train.reading.prefetch import to_device
from pipeline.train.step.chunks import Chunks
from pipeline.train.workers.rank_zero import Keeper
from pipeline.train.workers.run import Pretraining
from pipeline.train.workers.step_decisions import Notices
from pipeline.train.workers.stream import checked, stream
from pipeline.train.workers.validation import Validation

logger = logging.getLogger("clip")


def train(run: Pretraining, tokenizer_json: str, stop: Any, validation: Validation | None) -> int:
    """What each worker runs: from the last checkpoint to the end, or until it is to leave.

    Args:
        run: the run.
        tokenizer_json: its vocabulary.
        stop: actor of stop.Stop.
        validation: how models are scored; None: not at all.

    Returns:
        The steps that the run has taken so far, over all resumptions.

    Raises:
        FileNotFoundError: the output is a folder that this node does not share with the job's.
    """
    _refuse_unseen(run.output)
    config, context, device = run.train, ray.train.get_context(), ray.train.torch.get_device()
    rank = context.get_world_rank()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))

    checkpoint = run.checkpoints().latest()
    model = checkpoint.model if checkpoint else run.new_model(tokenizer_json)
    done = checkpoint.progress if checkpoint else Progress(num_steps=0, seconds=0.0)
    network = model.network.to(device).train()
    if config.text_weights == "bf16":
        halve_text_weights(network)
    _agree(network, done.num_steps)
    fit(network, config)
    optimizer = make_optimizer(network, config)
    if checkpoint:
        load_optimizer(optimizer, checkpoint.optimizer)
        logger.info("going on at step %d with %d workers", done.num_steps, context.get_world_size())
    del checkpoint  # the moments' copy in the host's memory

    norm_group_size = config.norm_group_size if has_batch_norms(network) else None
    sizes = config.local_batch_sizes(context.get_world_size(), norm_group_size or 1)
    steps = range(done.num_steps, run.num_steps())
    arrays = stream(_reader(run, sizes, rank, tokenizer_json), steps, config)
    batches = to_device(checked(arrays, steps, sizes[rank]), device)
    notices = Notices(config, num_steps=steps.stop, stop=stop, device=device)
    chunks = Chunks(
        config.chunk_size or done.chunk_size, config.activation_budget_bytes, norm_group_size=norm_group_size,
        bf16=config.precision == "bf16", workers_on_node=context.get_local_world_size(),
        length_multiple=LENGTH_MULTIPLE if config.compile else 1,
    )  # fmt: skip
    guard = StepGuard(network, config.max_skipped_steps)
    keeper = Keeper(run, network.config, done, device, chunks, validation) if rank == 0 else None
    for step in steps:
        asked = time.monotonic()
        batch = next(batches)
        waited = time.monotonic() - asked
        guard.remember()
        torch.manual_seed(int(draw(config.seed, Purpose.DROPOUT, step, np.array([rank]))[0]))
        result = chunks.set_gradients(network, batch)
        rate = learning_rate(config, step, steps.stop)
        scale = network.logit_scale.exp().item() if isinstance(network, CLIP) else None
        norm = gradient_norm(network)
        taken = guard.allows(step + 1, result.loss, norm)
        if taken:
            optimizer_step(network, optimizer, rate, norm=norm, max_norm=config.max_gradient_norm)
        decision = notices.after(step + 1)
        keeps = decision.save or (step + 1) * config.global_batch_size in config.keep_models_at
        # All workers take part, because of weights in shards each has its own
        kept = (whole_model(model), whole_optimizer(optimizer)) if keeps else None
        if keeper:
            keeper.after(
                step + 1, decision, kept, result, logit_scale=scale, learning_rate=rate, gradient_norm=norm,
                waited_seconds=waited, taken=taken,
            )  # fmt: skip
        if decision.leave and step + 1 < steps.stop:
            if keeper:
                keeper.leave()
                stop.saved.remote()
            return step + 1
    last = whole_model(model)
    if keeper:
        keeper.finish(last)
    return steps.stop


def _refuse_unseen(output: str) -> None:
    if not storage.exists(storage.join(output, RUN_FILE)):  # as the job has written it
        raise FileNotFoundError(
            f"output={output}: not visible from node {platform.node()}; use s3:// or a folder that all nodes share"
        )


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
