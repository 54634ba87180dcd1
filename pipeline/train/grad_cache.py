"""The exact gradient of the global batch's loss in the memory of a few chunks (gradient caching, Gao et al. 2021).

Pass 1 embeds every chunk without a graph and remembers the state of the random number generators. The loss over all
features of all workers gives the gradient of each feature. Pass 2 embeds each chunk again, with the same random
numbers, and propagates its features' gradients to the weights. The last chunk of each tower keeps its graph from
pass 1, which costs no memory that pass 2 would not need and saves one forward pass; further chunks keep theirs as far
as a budget of bytes goes, which is what their graphs were measured to hold (activations.py).

The two towers are cut on their own: images in the plan's order, captions sorted by length, so that a chunk is padded
to its own longest caption only. Batch norms move their statistics once a step (batch_norm.py), and normalise over a
chunk, so for networks that have them the chunk is part of what is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.model.loss import Group, LossGradients, num_ranks
from pipeline.train.activations import Budget
from pipeline.train.batch_norm import BatchNorms

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
    """
    network.zero_grad(set_to_none=True)
    budget = Budget(0) if budget is None else budget
    norms = BatchNorms(network)
    budget.begin()
    with norms.collected():
        passes = [_Passes(tower, budget, name) for name, tower in (("texts", texts), ("images", images))]
        text_features, image_features = (one.embed() for one in passes)
    result = loss(image_features, text_features)
    with norms.held():
        for one, gradients in zip(passes, (result.text_features, result.image_features), strict=True):
            one.backward(gradients)
    norms.move(group)
    sum_gradients(network, group)
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
                self._states[number] = _random_state(self._device)
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
        for number in sorted(self._kept, reverse=True):  # they go first, and their memory with them
            self._kept.pop(number).backward(parts[number])  # type: ignore[no-untyped-call]
        for number, state in self._states.items():
            with _replayed(state, self._device):
                features = self._tower.encode(self._tower.chunks[number])
            features.backward(parts[number])  # type: ignore[no-untyped-call]


def text_chunks(tokens: Tensor, lengths: Tensor, chunk_size: int) -> list[Tensor]:
    """Chunks of captions, each cut to its own longest one.

    Args:
        tokens: int n x L, in the order of `lengths`.
        lengths: int n, on the CPU, ascending: tokens of each caption, start and end included.
        chunk_size: captions of a chunk, at most.
    """
    cuts = zip(torch.split(tokens, chunk_size), torch.split(lengths, chunk_size), strict=True)
    return [chunk[:, : int(chunk_lengths.max())] for chunk, chunk_lengths in cuts]


def _random_state(device: torch.device) -> list[Tensor]:
    """States of the CPU's generator and of the device's own, where it is another."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


@contextmanager
def _replayed(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Random numbers as they were in pass 1; afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(states[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states[1], device)
        yield


def sum_gradients(network: nn.Module, group: Group | None) -> None:
    """Adds up the ranks' gradients in one message. A sum, because each share already is one of the global mean."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    if num_ranks(group) == 1 or not gradients:
        return
    message = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(message, group=group)
    for gradient, total in zip(gradients, torch.split(message, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))
