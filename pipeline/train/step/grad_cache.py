"""The exact gradient of the global batch's loss in the memory of a few chunks (gradient caching, Gao et al. 2021).

Pass 1 embeds every chunk without a graph and remembers the state of the random number generators. The loss over all
features of all workers gives the gradient of each feature. Pass 2 embeds each chunk again, with the same random
numbers, and propagates its features' gradients to the weights. The last chunk of each tower keeps its graph from
pass 1, which costs no memory that pass 2 would not need and saves one forward pass; further chunks keep theirs as far
as a budget of bytes goes, which is what their graphs were measured to hold (graph_budget.py).

After each pass the ranks tell each other whether one has run out of memory; then all give the step up, and may take it
again (chunks.py).

The two towers are cut on their own: images in the plan's order, captions sorted by length, so that a chunk is padded
to its own longest caption only. Batch norms move their statistics once a step (batch_norm.py), and normalise over a
chunk, so for networks that have them the chunk is part of what is computed.
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
from pipeline.train.step.out_of_memory import by_all_or_none

Encode = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], LossGradients]
MESSAGE = 2**24
"""Elements of gradients that are summed over the ranks at once, or little more."""


@dataclass(frozen=True)
class Tower:
    """One side of a step: what embeds, and what is embedded."""

    encode: Encode
    """A chunk of c inputs -> features c x E of length one."""
    chunks: Sequence[Tensor]
    order: Tensor | None = None
    """int n: which row of the batch each row of the chunks is, in turn; unset: they are in the batch's order."""
    modes: Callable[[], AbstractContextManager[object]] = nullcontext
    """What `encode` runs under. Chunks that keep their graphs are embedded within one, so that they share autocast's
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
    """Set `.grad` of every weight to the gradient of the global batch's mean loss, alike on all workers.

    A weight that the loss itself uses, such as the logarithm of the scale, is the caller's: it gets no gradient here.

    Args:
        network: holds what both towers train; its gradients are replaced.
        images: of this worker's share.
        texts: of the same rows.
        loss: image and text features n x E, without a graph -> loss and gradients of the global batch.
        budget: what the graphs of chunks may hold that are kept beside the last of each tower; unset: none are.
        group: the ranks that share the global batch; those of torch.distributed, where it is initialised.

    Raises:
        torch.OutOfMemoryError: a chunk does not fit; the network's statistics are as before.
        OutOfMemoryElsewhereError: that has happened to another rank, and this one is to take the step again with it.
    """
    begin_step(network)
    budget = Budget(0) if budget is None else budget
    norms = BatchNorms(network)
    budget.begin(network.parameters)
    with norms.unmoved_by_errors():
        with norms.collected(), by_all_or_none(network, group):
            passes = [_Passes(tower, budget, name) for name, tower in (("texts", texts), ("images", images))]
            text_features, image_features = (one.embed() for one in passes)
            _check_room_for_loss(image_features, group)
        result = loss(image_features, text_features)
        with norms.held(), summed_gradients(network, group):
            for one, gradients in zip(passes, (result.text_features, result.image_features), strict=True):
                one.backward(gradients)
        norms.move(group)
    return result


def _check_room_for_loss(features: Tensor, group: Group | None) -> None:
    """Other ranks wait in the midst of the loss, where one could not tell them that it lacks memory."""
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
        """Pass 1: features of the batch's rows, n x E."""
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
        """Pass 2: adds what these gradients of the features, n x E, make of the weights'."""
        if self._tower.order is not None:
            gradients = gradients[self._tower.order]
        parts = torch.split(gradients, [len(chunk) for chunk in self._tower.chunks])
        # The last ones go first, and the memory of their graphs with them; what is kept makes no difference to the sum
        for number in reversed(range(len(parts))):
            features = self._kept.pop() if self._kept else self._embed_again(number)
            features.backward(parts[number])  # type: ignore[no-untyped-call]

    def _embed_again(self, number: int) -> Tensor:
        with _replayed(self._states[number], self._device), self._tower.modes():
            return self._tower.encode(self._tower.chunks[number])


def text_chunks(tokens: Tensor, lengths: Tensor, chunk_size: int, multiple: int = 1) -> list[Tensor]:
    """Chunks of captions, each cut to its own longest one.

    Args:
        tokens: int n x L, in the order of `lengths`.
        lengths: int n, on the CPU, ascending: tokens of each caption, start and end included.
        chunk_size: captions of a chunk, at most.
        multiple: lengths of chunks are rounded up to a multiple of it, as far as there are tokens.
    """
    cuts = zip(torch.split(tokens, chunk_size), torch.split(lengths, chunk_size), strict=True)
    return [chunk[:, : multiple * -(-int(chunk_lengths.max()) // multiple)] for chunk, chunk_lengths in cuts]


def random_state(device: torch.device) -> list[Tensor]:
    """States of the CPU's generator and of the device's own, where it is another."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


def set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    """Random numbers from here on are those that followed `random_state`."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@contextmanager
def _replayed(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Random numbers as they were in pass 1; afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        set_random_state(states, device)
        yield


@contextmanager
def summed_gradients(network: nn.Module, group: Group | None) -> Iterator[None]:
    """At the end the weights' gradients are the sums over the ranks of what each has made within.

    A sum, because each share already is one of the global mean.

    Raises:
        torch.OutOfMemoryError, OutOfMemoryElsewhereError: there are no gradients, as in `by_all_or_none`.
    """
    with by_all_or_none(network, group):
        yield
    if isinstance(network, FSDPModule):
        sum_into_shards(network)
    elif num_ranks(group) > 1:
        _sum_over_ranks([p for p in network.parameters() if p.requires_grad], group)


def _sum_over_ranks(weights: Sequence[Tensor], group: Group | None) -> None:
    ends = accumulate(weight.numel() for weight in weights)
    for _, part in groupby(zip(weights, ends, strict=True), key=lambda one: one[1] // MESSAGE):
        of_message = [weight for weight, _ in part]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in of_message]
        message = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(message, group=group)
        for weight, total in zip(of_message, torch.split(message, [p.numel() for p in of_message]), strict=True):
            if weight.grad is not None:
                weight.grad.copy_(total.view_as(weight))
