"""Measure the memory of autograd graphs, and choose how many graphs a budget can keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Budget:
    """Memory budget, in bytes, for graphs kept from pass 1 to pass 2 in addition to the last graph of each tower.

    The size of a graph is measured once per tower, on the last chunk of the first step. It counts the storages of the
    tensors that autograd saves, each once, in bytes per element of the input. Texts and images share the budget.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes_per_input: dict[str, float] = {}
        """Bytes of a graph per element of the input, for each tower measured so far."""
        self._remaining_bytes = max_bytes
        self._weights: Callable[[], Iterable[Tensor]] = tuple

    def begin(self, weights: Callable[[], Iterable[Tensor]] = tuple) -> None:
        """Begin a step with no kept graphs.

        Args:
            weights: a callable that returns the network's parameters.
        """
        self._remaining_bytes = self.max_bytes
        self._weights = weights

    def first_kept(self, tower: str, chunks: Sequence[Tensor]) -> int:
        """Index of the first chunk whose graph is kept: the last chunk, or an earlier one if the budget allows."""
        first = len(chunks) - 1
        while first > 0 and tower in self.bytes_per_input:
            num_bytes = int(self.bytes_per_input[tower] * chunks[first - 1].numel())
            if num_bytes > self._remaining_bytes:
                break
            self._remaining_bytes -= num_bytes
            first -= 1
        return first

    @contextmanager
    def measured(self, tower: str, chunk: Tensor) -> Iterator[None]:
        """Measure the graph built from `chunk` in this block, unless the tower was measured before.

        Graphs share the weights and their copies in another precision, so tensors with the shape of a weight are not
        counted.
        """
        if tower in self.bytes_per_input:
            yield
            return
        storages: dict[int, int] = {}
        weight_shapes = {shape for weight in self._weights() for shape in (weight.shape, weight.shape[::-1])}

        def count(tensor: Tensor) -> Tensor:
            if tensor.shape not in weight_shapes:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            yield
        self.bytes_per_input[tower] = sum(storages.values()) / chunk.numel()
