"""Compute the device memory that a step of a contrastive run needs on one worker, without that device.

The size of a chunk's graph is counted, not estimated: the tower runs on tensors that have shapes and types but no data
(torch's fake tensors), under the autocast of training, and autograd's hooks report the saved tensors. These are CPU
tensors, because fused attention without a device exists only for them; it saves the same tensors as CUDA's.

Not included: temporary tensors of a backward pass (a few activations of one chunk), workspaces of convolutions, the
CUDA context, and fragmented memory. RESERVED_SHARE covers them.
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

RESERVED_SHARE = 0.1
"""Share of a device's memory that is kept free for everything this module does not count."""
_FLOAT = 4
"""Size of a float32 in bytes."""


@dataclass(frozen=True)
class Graph:
    """Memory of the autograd graph of one chunk in one tower, in bytes."""

    fixed: int
    """Independent of the chunk size: the weights in half precision."""
    per_sample: int

    def num_bytes(self, num_samples: int) -> int:
        """Size of the graph of a chunk of `num_samples`."""
        return self.fixed + num_samples * self.per_sample


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Memory that one worker needs on its device, in bytes."""

    num_parameters: int
    moments: int
    """Both of Adam's moments."""
    batch: int
    """Pixels, tokens and features of the worker's share, the text features of all workers, and the loss's tiles."""
    image: Graph
    text: Graph

    @property
    def state(self) -> int:
        """Weights, gradients and moments, which are always in memory."""
        return 2 * _FLOAT * self.num_parameters + self.moments

    def peak(self, num_images: int, num_texts: int) -> int:
        """Peak memory, with the graphs of one chunk of `num_images` and one of `num_texts` at the same time."""
        return self.state + self.batch + self.image.num_bytes(num_images) + self.text.num_bytes(num_texts)

    def largest_chunk(self, device_bytes: int) -> int:
        """The largest chunk size for both towers, a power of two, that fits in a device's memory; 0 if not even one
        sample fits."""
        usable_bytes, chunk_size = (1 - RESERVED_SHARE) * device_bytes, 1
        while self.peak(chunk_size, chunk_size) <= usable_bytes:
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
    """Compute the footprint of a contrastive run under bfloat16 autocast.

    Args:
        config: the model that is trained.
        global_batch_size: pairs per step, over all workers.
        num_workers: number of workers that share the batch.
        num_tokens: length of captions, including start and end token; None: the full context length.
        moment_bytes: bytes per parameter of each of Adam's two moments.
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
        # Share and prefetched shares; its features and their gradients; all text features and their gradients; 2 tiles
        batch=num_local * (1 + AHEAD) * (3 * size**2 + 4 * length)
        + (4 * num_local + 2 * global_batch_size) * feature
        + 2 * tile,
        image=_graph(network.image_tower, torch.float32, 3, size, size),
        text=_graph(network.text_tower, torch.int64, num_tokens or length),
    )


def _graph(tower: nn.Module, dtype: torch.dtype, *shape: int) -> Graph:
    """Measure two chunk sizes; the bytes are linear in the size. Size 1 fails in batch norms over 1 x 1 pixels."""
    of_two, of_three = (_saved_bytes(tower, num_samples, dtype, shape) for num_samples in (2, 3))
    per_sample = of_three - of_two
    return Graph(fixed=of_two - 2 * per_sample, per_sample=per_sample)


def _saved_bytes(tower: nn.Module, num_samples: int, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    storages: dict[int, Any] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage  # a reference, so that no other storage reuses its address
        return tensor

    with FakeTensorMode():
        weights = {name: torch.empty(t.shape).requires_grad_() for name, t in tower.named_parameters()}
        buffers = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in tower.named_buffers()}
        chunk = torch.empty(num_samples, *shape, dtype=dtype)
        with saved_tensors_hooks(count, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
            functional_call(tower, weights | buffers, (chunk,))
        not_in_graph = {tensor.untyped_storage()._cdata for tensor in (weights | buffers).values()}
        return sum(int(storage.nbytes()) for key, storage in storages.items() if key not in not_in_graph)
