"""The residual blocks that towers are made of: the units that are sharded, computed again and compiled."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

_RUN = re.compile(r"blocks|stages|layer\d")
"""What timm's towers and ours call a run of blocks, or of stages, which have runs of their own."""


def blocks(network: nn.Module) -> list[nn.Module]:
    """The residual blocks of all towers, in order; what is left of a tower is its stem, its stages' strides, its head.

    A bag of words has none.
    """
    found: list[nn.Module] = []
    for name, child in network.named_children():
        inside = blocks(child)
        found += inside if inside or not _RUN.fullmatch(name) else _members(child)
    return found


def _members(run: nn.Module) -> Iterator[nn.Module]:
    for child in run.children():
        if isinstance(child, nn.Sequential):
            yield from _members(child)
        else:
            yield child


def checkpoint_activations(network: nn.Module) -> None:
    """Let a block's graph hold the block's input alone: its backward pass computes the rest again (Chen et al. 2016).

    With the random numbers and the autocast of the first time, so gradients are the same. It costs a forward pass of
    the blocks for each backward pass. Batch norms must leave no trace of the second time (batch_norm.py sees to it).
    """
    for block in blocks(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=_same_modes)


def _same_modes() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the first time and of the second, which has the first one's function modes (cpu_attention.py); torch
    sees to random numbers and autocast, but not to these."""
    return nullcontext(), _within(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


@contextmanager
def _within(modes: list[TorchFunctionMode]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield
