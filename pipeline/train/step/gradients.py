"""Compute the gradient of one training step, for every objective."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.loss import Group, loss_gradients, num_ranks
from pipeline.model.objectives.networks import Network, PerPairNetwork
from pipeline.model.towers.image_tower import normalise
from pipeline.train.network.batch_norm import BatchNorms
from pipeline.train.network.cpu_attention import PlainAttention
from pipeline.train.network.sharding import begin_step
from pipeline.train.step.grad_cache import Tower, cached_step, summed_gradients, text_chunks
from pipeline.train.step.graph_budget import Budget


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch."""

    images: Tensor
    """uint8 n x 3 x S x S."""
    tokens: Tensor
    """int n x L, padded token ids."""
    lengths: Tensor
    """int n, on the CPU: the number of tokens of each caption, start and end included."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Loss and accuracies of a global batch, the same on all workers."""

    loss: float
    """The mean loss over the global batch."""
    accuracy_image_to_text: float | None = None
    """Share of images that are most similar to their own text; None unless the objective is contrastive."""
    accuracy_text_to_image: float | None = None
    """Share of texts that are most similar to their own image; None unless the objective is contrastive."""


def set_gradients(
    network: Network,
    batch: Batch,
    *,
    chunk_size: int,
    bf16: bool,
    norm_group_size: int | None = None,
    length_multiple: int = 1,
    budget: Budget | None = None,
    group: Group | None = None,
) -> StepResult:
    """Set `.grad` of every weight to the gradient of the global batch's mean loss, the same on all workers.

    Args:
        network: the network to train; its gradients are replaced.
        batch: this worker's share, on the network's device.
        chunk_size: the number of samples in one forward pass.
        bf16: whether the towers run under bfloat16 autocast; features and loss are always float32.
        norm_group_size: the number of images over which batch norms normalise. It is the chunk size of networks with
            batch norms, and must divide the worker's share.
        length_multiple: captions of a chunk are padded to a multiple of this number of tokens, for compiled towers.
        budget: the memory for graphs kept from pass 1 to pass 2 (grad_cache.py).
        group: the workers that share the global batch. Unset: all ranks of torch.distributed, if it is initialised.

    Raises:
        torch.OutOfMemoryError, OutOfMemoryElsewhereError: the step failed on all workers. Batch-norm statistics are
            restored, so the step can be retried (chunks.py).
    """
    if not isinstance(network, CLIP):
        return _sum_over_chunks(network, batch, chunk_size, bf16, norm_group_size, length_multiple, group)
    device = network.logit_scale.device
    order = torch.argsort(batch.lengths, stable=True)
    modes = partial(_precision, device, bf16)
    images = Tower(
        lambda chunk: network.encode_image(normalise(chunk), normalize=True),
        torch.split(batch.images, norm_group_size or chunk_size),
        modes=modes,
    )
    texts = Tower(
        lambda chunk: network.encode_text(chunk, normalize=True),
        text_chunks(batch.tokens[order.to(device)], batch.lengths[order], chunk_size, length_multiple),
        order.to(device),
        modes,
    )
    result = cached_step(
        network,
        images,
        texts,
        lambda image_features, text_features: loss_gradients(
            image_features, text_features, network.logit_scale, group=group
        ),
        budget=budget,
        group=group,
    )
    network.logit_scale.grad = result.log_scale.clone()
    return StepResult(
        loss=result.loss.item(),
        accuracy_image_to_text=result.accuracy_image_to_text,
        accuracy_text_to_image=result.accuracy_text_to_image,
    )


def run_one_chunk(network: Network, batch: Batch, *, bf16: bool) -> None:
    """Run a forward and backward pass over one chunk, to measure time and memory.

    Does not communicate with other workers; the resulting gradients are meaningless.
    """
    device = batch.images.device
    longest = batch.tokens[:, : int(batch.lengths.max())]

    with _precision(device, bf16):
        if isinstance(network, CLIP):
            result = network.encode_image(normalise(batch.images)).sum() + network.encode_text(longest).sum()
        else:
            result = network.summed_loss(normalise(batch.images), longest)
    result.backward()  # type: ignore[no-untyped-call]


@contextmanager
def _precision(device: torch.device, bf16: bool) -> Iterator[None]:
    plain = PlainAttention() if bf16 and device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16), plain:
        yield


def _sum_over_chunks(
    network: PerPairNetwork,
    batch: Batch,
    chunk_size: int,
    bf16: bool,
    norm_group_size: int | None,
    length_multiple: int,
    group: Group | None,
) -> StepResult:
    """Sum the gradients of chunks and workers, for objectives whose loss is a sum over pairs.

    Each term is divided by the number of targets in the global batch, which workers exchange first, so the result
    does not depend on the chunks. Chunks hold captions of similar length, as in gradient caching; with batch norms,
    chunks are in the plan's order.
    """
    device = batch.tokens.device
    begin_step(network)
    num_targets = torch.tensor(network.num_targets(batch.tokens), device=device)
    _sum_over_workers(num_targets, group)
    order = torch.argsort(batch.lengths, stable=True) if norm_group_size is None else torch.arange(len(batch.lengths))
    size = norm_group_size or chunk_size
    images = torch.split(batch.images[order.to(device)], size)
    texts = text_chunks(batch.tokens[order.to(device)], batch.lengths[order], size, length_multiple)
    total = torch.zeros((), device=device)
    norms = BatchNorms(network)
    with norms.unmoved_by_errors():
        with norms.collected(), summed_gradients(network, group):
            for image_chunk, text_chunk in zip(images, texts, strict=True):
                with _precision(device, bf16):
                    summed = network.summed_loss(normalise(image_chunk), text_chunk)
                loss = summed / num_targets.clamp(min=1)
                loss.backward()  # type: ignore[no-untyped-call]
                total = total + loss.detach()
        norms.move(group)
    _sum_over_workers(total, group)
    return StepResult(loss=total.item())


def _sum_over_workers(value: Tensor, group: Group | None) -> None:
    if num_ranks(group) > 1:
        dist.all_reduce(value, group=group)
