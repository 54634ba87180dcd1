"""The exact gradient of the global batch's loss in the memory of one chunk (gradient caching, Gao et al. 2021).

Pass 1 embeds every chunk without a graph and remembers the state of the random number generators. The loss over all
features of all workers gives the gradient of each feature. Pass 2 embeds each chunk again, with the same random
numbers, and propagates its features' gradients to the weights. The last chunk of each tower keeps its graph from
pass 1, which costs no memory that pass 2 would not need and saves one forward pass.

The two towers need not be cut alike: captions are sorted by length, so that a chunk is padded to its own longest
caption only. Exact for towers in which no sample depends on another of its chunk (no batch normalisation).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.model.clip import CLIP
from pipeline.model.image import normalise
from pipeline.model.loss import LossGradients, loss_gradients

Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch."""

    images: Tensor
    """uint8 n x 3 x S x S."""
    tokens: Tensor
    """int n x L."""
    lengths: Tensor
    """int n, on the CPU: tokens of each caption, start and end included."""


def accumulate_gradients(model: CLIP, batch: Batch, *, chunk_size: int, num_workers: int, bf16: bool) -> LossGradients:
    """Set `.grad` of every weight to the gradient of the global batch's mean loss, alike on all workers.

    Args:
        model: its gradients are replaced.
        batch: this worker's share, on the model's device.
        chunk_size: samples of one forward pass.
        num_workers: of torch.distributed, which share the global batch.
        bf16: whether the towers run under bfloat16 autocast; features and loss are float32 always.
    """
    device = model.logit_scale.device

    def encoder(encode: Callable[..., Tensor]) -> Encode:
        def embed(inputs: Tensor) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                features: Tensor = encode(inputs, normalize=True)
            return features

        return embed

    model.zero_grad(set_to_none=True)
    order = torch.argsort(batch.lengths, stable=True)
    chunks = text_chunks(batch.tokens[order.to(device)], batch.lengths[order], chunk_size)
    images = _CachedTower(encoder(lambda x, normalize: model.encode_image(normalise(x), normalize=normalize)), device)
    texts = _CachedTower(encoder(model.encode_text), device)
    image_features = images.embed(torch.split(batch.images, chunk_size))
    sorted_features = texts.embed(chunks)
    text_features = torch.empty_like(sorted_features)
    text_features[order] = sorted_features

    result = loss_gradients(image_features, text_features, model.logit_scale)
    images.backward(result.image_features)
    texts.backward(result.text_features[order])
    if num_workers > 1:
        sum_gradients(p for p in model.parameters() if p is not model.logit_scale)
    model.logit_scale.grad = result.log_scale.clone()
    return result


class _CachedTower:
    """Both passes over the chunks of one tower."""

    def __init__(self, encode: Encode, device: torch.device) -> None:
        self._encode = encode
        self._device = device
        self._again: list[tuple[Tensor, Sequence[Tensor]]] = []
        self._kept = torch.empty(0)

    def embed(self, chunks: Sequence[Tensor]) -> Tensor:
        """Pass 1: features of all chunks, without a graph."""
        features = []
        with torch.no_grad():
            for chunk in chunks[:-1]:
                self._again.append((chunk, _random_state(self._device)))
                features.append(self._encode(chunk))
        self._kept = self._encode(chunks[-1])
        return torch.cat([*features, self._kept.detach()])

    def backward(self, gradients: Tensor) -> None:
        """Pass 2: adds what these gradients of the features make of the weights'."""
        start = len(gradients) - len(self._kept)
        self._kept.backward(gradients[start:])  # type: ignore[no-untyped-call]
        start = 0
        for chunk, state in self._again:
            with _replayed(state, self._device):
                features = self._encode(chunk)
            features.backward(gradients[start : start + len(chunk)])  # type: ignore[no-untyped-call]
            start += len(chunk)


def text_chunks(tokens: Tensor, lengths: Tensor, chunk_size: int) -> list[Tensor]:
    """Chunks of captions, each cut to its own longest one."""
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


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Adds up the workers' gradients in one message. A sum, because each share already is one of the global mean."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    message = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(message)
    for gradient, total in zip(gradients, torch.split(message, [g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))
