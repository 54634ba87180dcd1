"""Compile the blocks of towers (torch.compile) with few recompilations.

The residual blocks are compiled, not whole towers: blocks of one kind share compiled code, so compiling 24 blocks takes
as long as compiling one. torch recompiles for every new shape. Therefore the number of samples is dynamic, and chunks
of captions are padded to a multiple of eight tokens (grad_cache.text_chunks), which does not change the features
because the tower is causal. A context of 77 tokens then has ten lengths. Each length is compiled twice: with an
autograd graph and without, for the two passes.

Blocks with batch norms are not compiled, because the mode of their statistics changes twice per step (batch_norm.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import InductorError

from pipeline.train.network.batch_norm import has_batch_norms
from pipeline.train.network.blocks import blocks

LENGTH_MULTIPLE = 8
"""The length in tokens of a chunk of captions is a multiple of this, which also suits a GPU's matrix units."""
_VARIANTS = 4
"""Maximum number of compilations per shape: with and without a graph, each for one sample and for several."""


def compile_blocks(network: nn.Module, max_length: int, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the blocks of all towers in place; compilation happens at the first call of each block.

    Args:
        network: the network, on the device on which it will run.
        max_length: length in tokens of the longest caption.
        backend: the backend of torch.compile.

    Raises:
        ValueError: torch.compile does not work on this machine.
    """
    chosen = [block for block in blocks(network) if not has_batch_norms(block)]
    limit = _VARIANTS * (-(-max_length // LENGTH_MULTIPLE) + len(chosen))
    _check_compiler(backend, next(network.parameters()).device)
    for block in chosen:
        block.forward = _with_dynamic_batch(
            torch.compile(  # type: ignore[call-overload]  # the overloads lack recompile_limit
                block.forward, fullgraph=True, dynamic=False, backend=backend, recompile_limit=limit
            )
        )


def _with_dynamic_batch(compiled: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(x, 0)
        return compiled(x)

    return forward


def _check_compiler(backend: str | Callable[..., Any], device: torch.device) -> None:
    """Compile a trivial function, which is the most reliable check for a compiler and headers.

    Raises:
        ValueError: the compilation fails.
    """
    try:
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2, device=device))
    except (BackendCompilerFailed, InductorError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(
            f"train.compile=true: torch.compile does not work on this machine ({cause}); install a C++ compiler (g++, "
            "or set CXX) and Python's headers on every worker, or omit the option"
        ) from error
