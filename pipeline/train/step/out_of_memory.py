"""Make an out-of-memory error on one rank end the step on all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipeline.model.objectives.loss import Group
from pipeline.train.network.sharding import ranks_lacking

_MESSAGES = (
    "can't allocate memory",  # torch on a CPU
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # cuDNN: its workspace does not fit
)
"""Parts of the messages of out-of-memory errors that are raised as plain RuntimeErrors."""


class OutOfMemoryElsewhereError(RuntimeError):
    """Another rank ran out of memory, so no rank completed the step."""


@contextmanager
def raise_on_all_ranks(network: nn.Module, group: Group | None) -> Iterator[None]:
    """If any rank runs out of memory in this block, every rank raises. The block must not communicate.

    Raises:
        torch.OutOfMemoryError: this rank ran out of memory.
        OutOfMemoryElsewhereError: another rank ran out of memory.
    """
    error = None
    try:
        with unify_out_of_memory_errors():
            yield
    except torch.OutOfMemoryError as caught:
        error = caught
    num_lacking = ranks_lacking(network, error is not None, group)
    if error:
        raise error
    if num_lacking:
        raise OutOfMemoryElsewhereError


@contextmanager
def unify_out_of_memory_errors() -> Iterator[None]:
    """Convert every kind of out-of-memory error to torch.OutOfMemoryError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if any(message in str(error) for message in _MESSAGES):
            raise torch.OutOfMemoryError(str(error)) from error
        raise
