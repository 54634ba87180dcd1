"""A step for which memory is short on any rank: all of them hear of it, and none has taken it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pipeline.model.objectives.loss import Group
from pipeline.train.network.sharding import ranks_lacking

_SIGNS = (
    "can't allocate memory",  # torch on a CPU
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # cuDNN, whose workspace had no room
)
"""Of errors that mean the same and are of no type of their own."""


class OutOfMemoryElsewhereError(RuntimeError):
    """Another rank could not hold its part of the step, so nobody has taken it."""


@contextmanager
def by_all_or_none(network: nn.Module, group: Group | None) -> Iterator[None]:
    """What is done within, without a word to other ranks, is done by all or, where memory is short on any, by none.

    Raises:
        torch.OutOfMemoryError: it is short here.
        OutOfMemoryElsewhereError: it is on another rank.
    """
    error = None
    try:
        with of_one_type():
            yield
    except torch.OutOfMemoryError as found:
        error = found
    num_lacking = ranks_lacking(network, error is not None, group)
    if error:
        raise error
    if num_lacking:
        raise OutOfMemoryElsewhereError


@contextmanager
def of_one_type() -> Iterator[None]:
    """Every error that says there is no memory is a torch.OutOfMemoryError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if any(sign in str(error) for sign in _SIGNS):
            raise torch.OutOfMemoryError(str(error)) from error
        raise
