"""What a step of a contrastive run holds in the memory of a worker's device, worked out without that device.

What a chunk's graph holds is counted, not estimated: the tower runs on tensors that have shapes and types but no data
(torch's fake tensors), under the autocast of training, and autograd tells what it saves. They are CPU tensors, because
only these have fused attention without a device; it saves what CUDA's does.

Not in it: what a backward pass takes for a moment (a few activations of one chunk), workspaces of convolutions, the
CUDA context, and what the allocator cannot use. RESERVE is for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from pipeline.model.config import ModelConfig
from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.loss import TILE
from pipeline.model.objectives.networks import empty_network
from pipeline.train.reading.prefetch import AHEAD

RESERVE = 0.1
"""Share of a device's memory that is not planned with."""
_FLOAT = 4
"""Bytes of a float32."""


@dataclass(frozen=True)
class Graph:
    """Bytes that the graph of one chunk of a tower holds."""

    fixed: int
    """Whatever the chunk: the weights in half precision."""
    per_sample: int

    def num_bytes(self, num_samples: int) -> int:
        """Of a chunk of so many."""
        return self.fixed + num_samples * self.per_sample


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What one worker's device holds, in bytes."""

    num_parameters: int
    moments: int
    """Of Adam, both."""
    batch: int
    """Pixels and tokens of the worker's share, its features, those of all texts, and the tiles of the loss."""
    image: Graph
    text: Graph

    @property
    def state(self) -> int:
        """Weights, gradients and moments: there all the time."""
        return 2 * _FLOAT * self.num_parameters + self.moments

    def peak(self, num_images: int, num_texts: int) -> int:
        """The most at once, with the graph of one chunk of each tower, of so many samples."""
        return self.state + self.batch + self.image.num_bytes(num_images) + self.text.num_bytes(num_texts)

    def largest_chunk(self, device_bytes: int) -> int:
        """The largest power of two of samples, alike in both towers, that a device has room for; 0 where a single one
        is too much."""
        room, chunk_size = (1 - RESERVE) * device_bytes, 1
        while self.peak(chunk_size, chunk_size) <= room:
            chunk_size *= 2
        return chunk_size // 2


def footprint(
    config: ModelConfig,
    *,
    global_batch_size: int,
    num_workers: int,
    num_tokens: int | None = None,
    moment_bytes: int = _FLOAT,
) -> Footprint:
    """Of a contrastive run under bfloat16 autocast.

    Args:
        config: what is trained.
        global_batch_size: over all workers.
        num_workers: among whom it is shared.
        num_tokens: length of captions, start and end included; unset: the whole context.
        moment_bytes: of each of Adam's moments.
    """
    network = empty_network(config).train()
    assert isinstance(network, CLIP)
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    num_local = -(-global_batch_size // num_workers)
    size, length = config.image.image_size, config.text.context_length
    feature = _FLOAT * config.embed_dim
    tile = _FLOAT * TILE["cuda"][0] * TILE["cuda"][1]
    return Footprint(
        num_parameters=num_parameters,
        moments=2 * moment_bytes * num_parameters,
        # The share and those prefetched; its features and their gradients; texts of all and their gradient; two tiles
        batch=num_local * (1 + AHEAD) * (3 * size**2 + 4 * length)
        + (4 * num_local + 2 * global_batch_size) * feature
        + 2 * tile,
        image=_graph(network.image_tower, torch.float32, 3, size, size),
        text=_graph(network.text_tower, torch.int64, num_tokens or length),
    )


def _graph(tower: nn.Module, dtype: torch.dtype, *shape: int) -> Graph:
    """Of two sizes of a chunk, since the bytes are linear in it. (Of one, batch norms over 1 x 1 pixels refuse.)"""
    few, more = (_saved_bytes(tower, num_samples, dtype, shape) for num_samples in (2, 3))
    return Graph(fixed=few - 2 * (more - few), per_sample=more - few)


def _saved_bytes(tower: nn.Module, num_samples: int, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    storages: dict[int, Any] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # kept, so that no other takes its place
        return tensor

    with FakeTensorMode():
        weights = {name: torch.empty(t.shape).requires_grad_() for name, t in tower.named_parameters()}
        buffers = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in tower.named_buffers()}
        chunk = torch.empty(num_samples, *shape, dtype=dtype)
        with saved_tensors_hooks(count, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
            functional_call(tower, weights | buffers, (chunk,))
        own = {tensor.untyped_storage()._cdata for tensor in (weights | buffers).values()}
        return sum(int(storage.nbytes()) for key, storage in storages.items() if key not in own)
