"""What the graphs of chunks hold in memory, measured, and which of them a budget can keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Budget:
    """Bytes for the graphs that are kept from pass 1 to pass 2, beside the last one of each tower.

    How much a graph holds is measured where one is made (the tensors that autograd saves, each storage once), as bytes
    for each element of the input, and known from the first step's last chunks on. Texts and images share the budget.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes_per_input: dict[str, float] = {}
        """By tower: bytes that a graph holds for each element of the input, of the first chunk that had one."""
        self._left = max_bytes
        self._weights: Callable[[], Iterable[Tensor]] = tuple

    def begin(self, weights: Callable[[], Iterable[Tensor]] = tuple) -> None:
        """A step begins: nothing is kept.

        Args:
            weights: gives the network's.
        """
        self._left = self.max_bytes
        self._weights = weights

    def first_kept(self, tower: str, chunks: Sequence[Tensor]) -> int:
        """From which chunk on graphs are kept: the last one's is, and before it as many as there is room for."""
        first = len(chunks) - 1
        while first > 0 and tower in self.bytes_per_input:
            num_bytes = int(self.bytes_per_input[tower] * chunks[first - 1].numel())
            if num_bytes > self._left:
                break
            self._left -= num_bytes
            first -= 1
        return first

    @contextmanager
    def measured(self, tower: str, chunk: Tensor) -> Iterator[None]:
        """A graph is made of this chunk; the first time, what it holds is counted, but for weights and copies of them
        in another precision, which are known by their shapes: graphs share them."""
        if tower in self.bytes_per_input:
            yield
            return
        storages: dict[int, int] = {}
        of_weights = {shape for weight in self._weights() for shape in (weight.shape, weight.shape[::-1])}

        def count(tensor: Tensor) -> Tensor:
            if tensor.shape not in of_weights:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            yield
        self.bytes_per_input[tower] = sum(storages.values()) / chunk.numel()
