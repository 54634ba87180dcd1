"""Compiled towers (torch.compile) that are not compiled again and again.

What is compiled are the residual blocks, not a tower: those of one kind share what was compiled for the first of them,
so that 24 cost what one does. torch compiles anew for each new shape; so the number of samples is left open, and
chunks of captions are padded to a multiple of eight tokens (grad_cache.text_chunks), which changes nothing because the
tower is causal: a context of 77 tokens has ten lengths. Each is compiled with a graph and without one, for the two
passes.

Blocks with batch norms stay as they are: how these move their statistics changes twice a step (batch_norm.py).
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
"""Tokens that the length of a chunk of captions is a multiple of; also what a GPU's matrix units like."""
_VARIANTS = 4
"""How often one shape is compiled, at most: with a graph and without; and a single sample is a case of its own."""


def compile_blocks(network: nn.Module, max_length: int, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the blocks of all towers in place, when they are first called.

    Args:
        network: on the device it will run on.
        max_length: the longest caption in tokens.
        backend: of torch.compile.

    Raises:
        ValueError: nothing can be compiled here.
    """
    chosen = [block for block in blocks(network) if not has_batch_norms(block)]
    limit = _VARIANTS * (-(-max_length // LENGTH_MULTIPLE) + len(chosen))
    _try(backend, next(network.parameters()).device)
    for block in chosen:
        block.forward = _any_number(
            torch.compile(  # type: ignore[call-overload]  # its overloads have no limit
                block.forward, fullgraph=True, dynamic=False, backend=backend, recompile_limit=limit
            )
        )


def _any_number(compiled: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        torch._dynamo.maybe_mark_dynamic(x, 0)
        return compiled(x)

    return forward


def _try(backend: str | Callable[..., Any], device: torch.device) -> None:
    """Compile a sum: the surest way to learn whether compilers and headers are there.

    Raises:
        ValueError: they are not.
    """
    try:
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2, device=device))
    except (BackendCompilerFailed, InductorError) as error:
        cause = str(error).splitlines()[0]
        raise ValueError(
            f"train.compile=true: torch.compile does not work here ({cause}); give every worker a C++ compiler "
            "(g++, or the one that CXX names) and Python's headers, or leave the option out"
        ) from error
