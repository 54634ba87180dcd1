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
            weights: gives those that are there anyway, so that a graph that saves them holds nothing by it.
        """
        self._left = self.max_bytes
        self._weights = weights

    def choose(self, tower: str, chunks: Sequence[Tensor]) -> set[int]:
        """Which chunks keep their graphs: the last one, and before it as many as there is room for."""
        keeps = {len(chunks) - 1}
        if tower not in self.bytes_per_input:
            return keeps
        for number in reversed(range(len(chunks) - 1)):
            num_bytes = self.bytes_per_input[tower] * chunks[number].numel()
            if num_bytes > self._left:
                break
            self._left -= int(num_bytes)
            keeps.add(number)
        return keeps

    @contextmanager
    def measured(self, tower: str, chunk: Tensor) -> Iterator[None]:
        """A graph is made of this chunk; the first time, what it holds is counted."""
        if tower in self.bytes_per_input:
            yield
            return
        storages: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            yield
        for weight in self._weights():
            storages.pop(weight.untyped_storage().data_ptr(), None)
        self.bytes_per_input[tower] = sum(storages.values()) / chunk.numel()
