"""Copy batches to the device before they are needed."""

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
"""Number of batches prepared in advance. One is enough, because a step takes longer than a copy."""
Item = TypeVar("Item")


def to_device(arrays: Iterator[Arrays], device: torch.device) -> Iterator[Batch]:
    """The batches of a worker on the device, except that lengths stay on the CPU. Reading begins immediately.

    On CUDA, a thread copies each batch to pinned memory, and then to the device in a separate stream while the previous
    step runs.
    """
    if device.type == "cuda":
        return _copied_to_cuda(arrays, device)
    return ahead(map(_to_host, arrays), AHEAD)


def ahead(items: Iterator[Item], number: int) -> Iterator[Item]:
    """Iterate over `items`, fetching `number` of them in advance in a thread. Its errors are raised at their
    position."""
    thread = ThreadPoolExecutor(1)
    end = object()
    fetched = deque(thread.submit(next, items, end) for _ in range(number))

    def hand_out() -> Iterator[Item]:
        try:
            while (item := fetched.popleft().result()) is not end:
                fetched.append(thread.submit(next, items, end))
                yield item  # type: ignore[misc]
        finally:
            thread.shutdown(wait=False, cancel_futures=True)

    return hand_out()


def _to_host(arrays: Arrays, *, pinned: bool = False) -> Batch:
    return Batch(*(_tensor(arrays[name], pinned=pinned) for name in ("image", "tokens", "length")))


def _tensor(array: npt.NDArray[np.generic], *, pinned: bool) -> Tensor:
    """Copy an array out of Ray's shared memory, which is read-only and should be released early."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    tensor = torch.empty(array.shape, dtype=dtype, pin_memory=pinned)
    np.copyto(tensor.numpy(), array)
    return tensor


def _copied_to_cuda(arrays: Iterator[Arrays], device: torch.device) -> Iterator[Batch]:
    copying = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copied() -> Iterator[tuple[Batch, torch.cuda.Event]]:
        torch.cuda.set_device(device)  # per thread; otherwise every worker allocates memory on the first GPU
        for batch_arrays in arrays:
            host = _to_host(batch_arrays, pinned=True)
            with torch.cuda.stream(copying):
                images, tokens = (tensor.to(device, non_blocking=True) for tensor in (host.images, host.tokens))
            yield Batch(images, tokens, host.lengths), copying.record_event()

    batches = ahead(copied(), AHEAD)

    def hand_out() -> Iterator[Batch]:
        for batch, copy_done in batches:
            computing = torch.cuda.current_stream(device)
            computing.wait_event(copy_done)
            for tensor in (batch.images, batch.tokens):
                tensor.record_stream(computing)  # otherwise the next copy may reuse its memory too early
            yield batch

    return hand_out()
