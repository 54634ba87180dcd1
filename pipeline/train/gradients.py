"""The gradient of a training step, whatever the objective: one call for the loop."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.model.clip import CLIP
from pipeline.model.image import normalise
from pipeline.model.objectives import Network, Separable
from pipeline.train.grad_cache import Batch, accumulate_gradients, sum_gradients, text_chunks


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step tells of the global batch, alike on all workers."""

    loss: float
    """Mean over the batch."""
    accuracy_image_to_text: float | None = None
    """Share of images that are most similar to their own text; None where nothing is compared."""
    accuracy_text_to_image: float | None = None


def set_gradients(network: Network, batch: Batch, *, chunk_size: int, num_workers: int, bf16: bool) -> StepResult:
    """Set `.grad` of every weight to the gradient of the global batch's mean loss, alike on all workers.

    Arguments as `accumulate_gradients`.
    """
    if not isinstance(network, CLIP):
        return _sum_over_chunks(network, batch, chunk_size, num_workers, bf16)
    result = accumulate_gradients(network, batch, chunk_size=chunk_size, num_workers=num_workers, bf16=bf16)
    return StepResult(
        loss=result.loss.item(),
        accuracy_image_to_text=result.accuracy_image_to_text,
        accuracy_text_to_image=result.accuracy_text_to_image,
    )


def _sum_over_chunks(network: Separable, batch: Batch, chunk_size: int, num_workers: int, bf16: bool) -> StepResult:
    """The loss is a sum over samples divided by the number of targets in the global batch, which all workers know
    before they begin, so gradients of chunks and workers add up, however the batch is cut. Chunks are of captions of
    like length, as in gradient caching."""
    device = batch.tokens.device
    network.zero_grad(set_to_none=True)
    num_targets = torch.tensor(network.num_targets(batch.tokens), device=device)
    _sum_over_workers(num_targets, num_workers)
    order = torch.argsort(batch.lengths, stable=True)
    images = torch.split(batch.images[order.to(device)], chunk_size)
    texts = text_chunks(batch.tokens[order.to(device)], batch.lengths[order], chunk_size)
    total = torch.zeros((), device=device)
    for image_chunk, text_chunk in zip(images, texts, strict=True):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = network.summed_loss(normalise(image_chunk), text_chunk) / num_targets.clamp(min=1)
        loss.backward()  # type: ignore[no-untyped-call]
        total = total + loss.detach()
    _sum_over_workers(total, num_workers)
    if num_workers > 1:
        sum_gradients(network.parameters())
    return StepResult(loss=total.item())


def _sum_over_workers(value: Tensor, num_workers: int) -> None:
    if num_workers > 1:
        dist.all_reduce(value)
