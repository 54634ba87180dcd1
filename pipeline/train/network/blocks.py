"""Find the residual blocks of towers: the units of sharding, activation checkpointing and compilation."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

_SEQUENCE_NAME = re.compile(r"blocks|stages|layer\d")
"""Names, in timm's towers and ours, of a sequence of blocks, or of stages, which contain sequences of blocks."""


def blocks(network: nn.Module) -> list[nn.Module]:
    """The residual blocks of all towers, in order; a bag of words has no blocks.

    The stem, the head and the downsampling layers between stages do not belong to any block.
    """
    found: list[nn.Module] = []
    for name, child in network.named_children():
        nested = blocks(child)
        found += nested if nested or not _SEQUENCE_NAME.fullmatch(name) else _members(child)
    return found


def _members(sequence: nn.Module) -> Iterator[nn.Module]:
    for child in sequence.children():
        if isinstance(child, nn.Sequential):
            yield from _members(child)
        else:
            yield child


def checkpoint_activations(network: nn.Module) -> None:
    """Keep only the input of each block for the backward pass, which recomputes the rest (Chen et al. 2016).

    The recomputation uses the same random numbers and autocast state, so the gradients are the same. Each backward
    pass costs one more forward pass of the blocks. The recomputation must not update batch norms (batch_norm.py).
    """
    for block in blocks(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=_same_modes)


def _same_modes() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of the forward pass and of the recomputation, which enters the forward pass's function modes.

    torch restores random numbers and autocast, but not function modes such as cpu_attention.py's.
    """
    return nullcontext(), _entered(_get_current_function_mode_stack())  # type: ignore[no-untyped-call]


@contextmanager
def _entered(modes: list[TorchFunctionMode]) -> Iterator[None]:
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        yield
