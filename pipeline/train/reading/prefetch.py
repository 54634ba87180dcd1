"""Batches that are on the device before they are asked for."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.train.reading.batches import Arrays
from pipeline.train.step.gradients import Batch

AHEAD = 1
"""Batches beside the one that is being learned from: where a step takes longer than a copy, more would wait longer."""
Item = TypeVar("Item")


def to_device(arrays: Iterator[Arrays], device: torch.device) -> Iterator[Batch]:
    """The batches of a worker, lengths excepted on the device; reading begins at once.

    On CUDA a thread copies them to pinned memory, and from there, in a stream of its own, while the step before runs.
    """
    if device.type == "cuda":
        return _copied_to_cuda(arrays, device)
    return ahead(map(_to_host, arrays), AHEAD)


def ahead(items: Iterator[Item], number: int) -> Iterator[Item]:
    """The same items, so many of them taken in advance, by a thread. What that stumbles over is raised in its place."""
    thread = ThreadPoolExecutor(1)
    end = object()
    taken = deque(thread.submit(next, items, end) for _ in range(number))

    def hand_out() -> Iterator[Item]:
        try:
            while (item := taken.popleft().result()) is not end:
                taken.append(thread.submit(next, items, end))
                yield item  # type: ignore[misc]
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    return hand_out()


def _to_host(arrays: Arrays, *, pinned: bool = False) -> Batch:
    return Batch(*(_tensor(arrays[name], pinned=pinned) for name in ("image", "tokens", "length")))


def _tensor(array: npt.NDArray[np.generic], *, pinned: bool) -> Tensor:
    """A copy: the array lies in Ray's shared memory, which must not be written to and is wanted back."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    tensor = torch.empty(array.shape, dtype=dtype, pin_memory=pinned)
    np.copyto(tensor.numpy(), array)
    return tensor


def _copied_to_cuda(arrays: Iterator[Arrays], device: torch.device) -> Iterator[Batch]:
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copied() -> Iterator[tuple[Batch, torch.cuda.Event]]:
        torch.cuda.set_device(device)  # of this thread, or each worker takes memory of the first GPU
        for part in arrays:
            host = _to_host(part, pinned=True)
            with torch.cuda.stream(copying):
                images, tokens = (tensor.to(device, non_blocking=True) for tensor in (host.images, host.tokens))
            yield Batch(images, tokens, host.lengths), copying.record_event()

    parts = ahead(copied(), AHEAD)

    def hand_out() -> Iterator[Batch]:
        for batch, done in parts:
            computing = torch.cuda.current_stream(device)
            computing.wait_event(done)
            for tensor in (batch.images, batch.tokens):
                tensor.record_stream(computing)  # or its memory is given to the next copy too early
            yield batch

    return hand_out()
