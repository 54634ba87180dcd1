"""Update the running statistics of batch norms once per step under gradient caching.

A batch norm normalises over one chunk. At the end of a step its running statistics are updated with the mean of the
chunks' statistics over all ranks: running <- (1 - m) running + m mean, where m is the momentum of the layer. The result
does not depend on the order of the chunks or on which rank processes them, and the second pass over a chunk does not
change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.model.objectives.loss import Group, num_ranks

_STATISTICS = ("running_mean", "running_var")


def has_batch_norms(network: nn.Module) -> bool:
    """Whether a network has batch norms, whose output for a sample depends in training on the rest of its chunk."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


class BatchNorms:
    """The batch norms of a network that are in training mode, during one step."""

    def __init__(self, network: nn.Module) -> None:
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        self._norms = [norm for norm in norms if norm.training and norm.track_running_stats]
        self._before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in self._norms]
        self._momenta = [norm.momentum for norm in self._norms]

    @contextmanager
    def unmoved_by_errors(self) -> Iterator[None]:
        """Restore the statistics and momenta if the step raises an error."""
        try:
            yield
        except BaseException:
            for norm, before, momentum in zip(self._norms, self._before, self._momenta, strict=True):
                norm.momentum = momentum
                for name, value in before.items():
                    norm.get_buffer(name).copy_(value)
            raise

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Run pass 1: afterwards the buffers hold the mean over the chunks and the number of chunks."""
        for norm in self._norms:
            norm.reset_running_stats()
            norm.momentum = None  # None makes torch average all chunks equally
        yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Run pass 2, which does not change the statistics."""
        counts = [_count(norm).clone() for norm in self._norms]
        for norm in self._norms:
            norm.momentum = 0.0
        yield
        for norm, count in zip(self._norms, counts, strict=True):
            _count(norm).copy_(count)

    @torch.no_grad()
    def move(self, group: Group | None) -> None:
        """End the step: update the running statistics with the mean over the chunks of all ranks."""
        for norm, before, momentum in zip(self._norms, self._before, self._momenta, strict=True):
            norm.momentum = momentum
            count = _count(norm).to(torch.float64)
            sums = [norm.get_buffer(name).to(torch.float64) * count for name in _STATISTICS]
            message = torch.cat([*sums, count.view(1)])
            if num_ranks(group) > 1:
                dist.all_reduce(message, group=group)
            means = (message[:-1] / message[-1]).chunk(2)
            weight = 1 / (float(before["num_batches_tracked"]) + 1) if momentum is None else momentum
            for name, mean in zip(_STATISTICS, means, strict=True):
                norm.get_buffer(name).copy_(before[name].to(torch.float64).lerp(mean, weight))
            _count(norm).copy_(before["num_batches_tracked"] + 1)


def _count(norm: _BatchNorm) -> Tensor:
    return norm.get_buffer("num_batches_tracked")
