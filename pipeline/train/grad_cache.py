"""The exact gradient of the global batch's loss in the memory of a few chunks (gradient caching, Gao et al. 2021).

Pass 1 embeds every chunk without a graph and remembers the state of the random number generators. The loss over all
features of all workers gives the gradient of each feature. Pass 2 embeds each chunk again, with the same random
numbers, and propagates its features' gradients to the weights. The last chunk of each tower keeps its graph from
pass 1, which costs no memory that pass 2 would not need and saves one forward pass; further chunks keep theirs as far
as a budget of bytes goes, which is what their graphs were measured to hold (activations.py).

A worker that runs out of memory in pass 2 says so in the message of the sum, and all of them give the step up; in pass
1 it can try again by itself, because nothing has been said yet (chunks.py), unless weights are in shards, which are
gathered at the beginning of a step by all or by none.

The two towers are cut on their own: images in the plan's order, captions sorted by length, so that a chunk is padded
to its own longest caption only. Batch norms move their statistics once a step (batch_norm.py), and normalise over a
chunk, so for networks that have them the chunk is part of what is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from pipeline.model.loss import Group, LossGradients, num_ranks
from pipeline.train.activations import Budget
from pipeline.train.batch_norm import BatchNorms
from pipeline.train.sharding import begin_step, ranks_lacking, sum_into_shards

Encode = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor, Tensor], LossGradients]


@dataclass(frozen=True)
class Tower:
    """One side of a step: what embeds, and what is embedded."""

    encode: Encode
    """A chunk of c inputs -> features c x E of length one."""
    chunks: Sequence[Tensor]
    order: Tensor | None = None
    """int n: which row of the batch each row of the chunks is, in turn; unset: they are in the batch's order."""


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
        with norms.collected(), _begun(network, group):
            passes = [_Passes(tower, budget, name) for name, tower in (("texts", texts), ("images", images))]
            text_features, image_features = (one.embed() for one in passes)
        result = loss(image_features, text_features)
        with norms.held(), summed_gradients(network, group):
            for one, gradients in zip(passes, (result.text_features, result.image_features), strict=True):
                one.backward(gradients)
        norms.move(group)
    return result


class _Passes:
    """Both passes over the chunks of one tower."""

    def __init__(self, tower: Tower, budget: Budget, name: str) -> None:
        self._tower, self._budget, self._name = tower, budget, name
        self._device = tower.chunks[0].device
        self._kept: dict[int, Tensor] = {}
        self._states: dict[int, Sequence[Tensor]] = {}

    def embed(self) -> Tensor:
        """Pass 1: features of the batch's rows, n x E."""
        chunks = self._tower.chunks
        keeps = self._budget.choose(self._name, chunks)
        features = []
        for number, chunk in enumerate(chunks):
            if number in keeps:
                with self._budget.measured(self._name, chunk):
                    self._kept[number] = self._tower.encode(chunk)
                features.append(self._kept[number].detach())
            else:
                self._states[number] = random_state(self._device)
                with torch.no_grad():
                    features.append(self._tower.encode(chunk))
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
        parts = dict(enumerate(torch.split(gradients, [len(chunk) for chunk in self._tower.chunks])))
        # The last ones go first, and the memory of their graphs with them; what is kept makes no difference to the sum
        for number in reversed(range(len(parts))):
            features = self._kept.pop(number) if number in self._kept else self._embed_again(number)
            features.backward(parts[number])  # type: ignore[no-untyped-call]

    def _embed_again(self, number: int) -> Tensor:
        with _replayed(self._states[number], self._device):
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


class OutOfMemoryElsewhereError(RuntimeError):
    """Another rank could not hold its part of the step, so nobody has taken it."""


def summed_gradients(network: nn.Module, group: Group | None) -> AbstractContextManager[None]:
    """At the end the weights' gradients are the sums over the ranks of what each has made within, in one message.

    A sum, because each share already is one of the global mean.

    Raises:
        torch.OutOfMemoryError: here.
        OutOfMemoryElsewhereError: on another rank.
    """
    return _by_all_or_none(partial(_sum_gradients, network, group))


def _begun(network: nn.Module, group: Group | None) -> AbstractContextManager[None]:
    """Pass 1, which a rank can try again by itself if it has all weights."""
    return _by_all_or_none(partial(ranks_lacking, network, group) if isinstance(network, FSDPModule) else int)


@contextmanager
def _by_all_or_none(ranks_lacking: Callable[[bool], int]) -> Iterator[None]:
    """At the end each rank tells whether it ran out of memory within, and hears how many did."""
    error = None
    try:
        yield
    except torch.OutOfMemoryError as found:
        error = found
    num_lacking = ranks_lacking(error is not None)
    if error:
        raise error
    if num_lacking:
        raise OutOfMemoryElsewhereError


def _sum_gradients(network: nn.Module, group: Group | None, lacks: bool) -> int:
    if isinstance(network, FSDPModule):
        num_lacking = ranks_lacking(network, group, lacks)
        if not num_lacking:
            sum_into_shards(network)
        return num_lacking
    if lacks:
        network.zero_grad(set_to_none=True)
    if num_ranks(group) == 1:
        return int(lacks)
    weights = [p for p in network.parameters() if p.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in weights]
    message = torch.cat([gradient.flatten() for gradient in gradients] + [gradients[0].new_tensor([float(lacks)])])
    dist.all_reduce(message, group=group)
    for weight, total in zip(weights, torch.split(message[:-1], [p.numel() for p in weights]), strict=True):
        if weight.grad is not None:
            weight.grad.copy_(total.view_as(weight))
    return int(message[-1])
