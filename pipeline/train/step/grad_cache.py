"""The exact gradient of the global batch's loss in the memory of a few chunks (gradient caching, Gao et al. 2021).

Pass 1 embeds every chunk without a graph and remembers the state of the random number generators. The loss over all
features of all workers gives the gradient of each feature. Pass 2 embeds each chunk again, with the same random
numbers, and propagates its features' gradients to the weights. The last chunk of each tower keeps its graph from
pass 1: pass 2 needs that memory anyway, and one forward pass is saved. Further chunks keep their graphs as far as the
budget allows, based on the measured size of a graph (graph_budget.py).

After each pass, the ranks exchange whether any of them ran out of memory. In that case all ranks abandon the step, and
may retry it (chunks.py).

Each tower has its own chunks: images in the plan's order, captions sorted by length, so that a chunk is padded only to
its own longest caption. Batch norms update their running statistics once per step (batch_norm.py). They normalise over
a chunk, so for networks with batch norms the chunk size changes the result.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pipeline.model.objectives.loss import TILE, Group, LossGradients, num_ranks
from pipeline.train.network.batch_norm import BatchNorms
from pipeline.train.network.sharding import begin_step, sum_into_shards
from pipeline.train.step.graph_budget import Budget
from pipeline.train.step.out_of_memory import raise_on_all_ranks

Encode = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], LossGradients]
_MESSAGE_ELEMENTS = 2**24
"""Approximate number of gradient elements in one all-reduce."""


@dataclass(frozen=True)
class Tower:
    """The encoder and the inputs of one side of a step: images or texts."""

    encode: Encode
    """Maps a chunk of c inputs to features c x E of unit length."""
    chunks: Sequence[Tensor]
    order: Tensor | None = None
    """int n: the batch row of each chunk row, over all chunks in turn. Unset: chunks are in the batch's order."""
    modes: Callable[[], AbstractContextManager[object]] = nullcontext
    """Makes the context in which `encode` runs. All chunks that keep their graphs share one context, and so autocast's
    copy of the weights."""


def cached_step(
    network: nn.Module,
    images: Tower,
    texts: Tower,
    loss: Loss,
    *,
    budget: Budget | None = None,
    group: Group | None = None,
) -> LossGradients:
    """Set `.grad` of every weight to the gradient of the global batch's mean loss, the same on all workers.

    Weights that only the loss uses, such as the logarithm of the logit scale, get no gradient here. The caller sets
    their gradients.

    Args:
        network: the module whose parameters both towers train; its gradients are replaced.
        images: the images of this worker's share.
        texts: the captions of the same rows.
        loss: maps image and text features n x E, without a graph, to the loss and its gradients for the global batch.
        budget: the memory for graphs kept in addition to the last of each tower. Unset: no further graphs are kept.
        group: the ranks that share the global batch. Unset: all ranks of torch.distributed, if it is initialised.

    Raises:
        torch.OutOfMemoryError: a chunk does not fit; the running statistics of batch norms are restored.
        OutOfMemoryElsewhereError: another rank ran out of memory, and all ranks must retry the step.
    """
    begin_step(network)
    budget = Budget(0) if budget is None else budget
    norms = BatchNorms(network)
    budget.begin(network.parameters)
    with norms.unmoved_by_errors():
        with norms.collected(), raise_on_all_ranks(network, group):
            passes = [_Passes(tower, budget, name) for name, tower in (("texts", texts), ("images", images))]
            text_features, image_features = (tower_passes.embed() for tower_passes in passes)
            _check_memory_for_loss(image_features, group)
        result = loss(image_features, text_features)
        with norms.held(), summed_gradients(network, group):
            for tower_passes, gradients in zip(passes, (result.text_features, result.image_features), strict=True):
                tower_passes.backward(gradients)
        norms.move(group)
    return result


def _check_memory_for_loss(features: Tensor, group: Group | None) -> None:
    """Raise torch.OutOfMemoryError now if the loss will not fit.

    The loss communicates, so a rank that failed within the loss could not report its error to the waiting ranks.
    """
    gathered = 2 * num_ranks(group) * features.numel()
    torch.empty(gathered + 2 * math.prod(TILE[features.device.type]), device=features.device)


class _Passes:
    """Both passes over the chunks of one tower."""

    def __init__(self, tower: Tower, budget: Budget, name: str) -> None:
        self._tower, self._budget, self._name = tower, budget, name
        self._device = tower.chunks[0].device
        self._kept: list[Tensor] = []
        self._states: list[Sequence[Tensor]] = []

    def embed(self) -> Tensor:
        """Pass 1: return the features n x E, in the batch's order."""
        tower, chunks = self._tower, self._tower.chunks
        first_kept = self._budget.first_kept(self._name, chunks)
        features = []
        with torch.no_grad(), tower.modes():
            for chunk in chunks[:first_kept]:
                self._states.append(random_state(self._device))
                features.append(tower.encode(chunk))
        with tower.modes():
            for chunk in chunks[first_kept:]:
                with self._budget.measured(self._name, chunk):
                    self._kept.append(tower.encode(chunk))
        features += [kept.detach() for kept in self._kept]
        embedded = torch.cat(features)
        if self._tower.order is None:
            return embedded
        in_order = torch.empty_like(embedded)
        in_order[self._tower.order] = embedded
        return in_order

    def backward(self, gradients: Tensor) -> None:
        """Pass 2: propagate gradients of the features, n x E, and add the results to the gradients of the weights."""
        if self._tower.order is not None:
            gradients = gradients[self._tower.order]
        parts = torch.split(gradients, [len(chunk) for chunk in self._tower.chunks])
        # Backwards, so that kept graphs are freed first. The order of the sum does not depend on which graphs are kept
        for index in reversed(range(len(parts))):
            features = self._kept.pop() if self._kept else self._embed_again(index)
            features.backward(parts[index])  # type: ignore[no-untyped-call]

    def _embed_again(self, index: int) -> Tensor:
        with _replayed(self._states[index], self._device), self._tower.modes():
            return self._tower.encode(self._tower.chunks[index])


def text_chunks(tokens: Tensor, lengths: Tensor, chunk_size: int, multiple: int = 1) -> list[Tensor]:
    """Split captions into chunks, each cut to the length of its own longest caption.

    Args:
        tokens: int n x L, in the order of `lengths`.
        lengths: int n, on the CPU, ascending: the number of tokens of each caption, start and end included.
        chunk_size: the maximum number of captions in a chunk.
        multiple: the length of a chunk is rounded up to a multiple of this, but to L at most.
    """
    cuts = zip(torch.split(tokens, chunk_size), torch.split(lengths, chunk_size), strict=True)
    return [chunk[:, : multiple * -(-int(chunk_lengths.max()) // multiple)] for chunk, chunk_lengths in cuts]


def random_state(device: torch.device) -> list[Tensor]:
    """The states of the CPU's random number generator and, for a GPU, of the device's generator."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    """Restore the generators to the states that `random_state` returned."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@contextmanager
def _replayed(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Replay the random numbers of pass 1 in this block; restore the generators afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        set_random_state(states, device)
        yield


@contextmanager
def summed_gradients(network: nn.Module, group: Group | None) -> Iterator[None]:
    """Sum over the ranks the gradients that each rank computes in this block.

    The sum is the gradient of the global mean, because each rank's loss is already divided by the global count.

    Raises:
        torch.OutOfMemoryError, OutOfMemoryElsewhereError: as in `raise_on_all_ranks`; gradients are not summed.
    """
    with raise_on_all_ranks(network, group):
        yield
    if isinstance(network, FSDPModule):
        sum_into_shards(network)
    elif num_ranks(group) > 1:
        _sum_over_ranks([p for p in network.parameters() if p.requires_grad], group)


def _sum_over_ranks(weights: Sequence[Tensor], group: Group | None) -> None:
    ends = accumulate(weight.numel() for weight in weights)
    for _, part in groupby(
        zip(weights, ends, strict=True), key=lambda weight_and_end: weight_and_end[1] // _MESSAGE_ELEMENTS
    ):
        message_weights = [weight for weight, _ in part]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in message_weights]
        message = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(message, group=group)
        totals = torch.split(message, [p.numel() for p in message_weights])
        for weight, total in zip(message_weights, totals, strict=True):
            if weight.grad is not None:
                weight.grad.copy_(total.view_as(weight))
