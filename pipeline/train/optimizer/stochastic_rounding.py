"""Round float32 to bfloat16 stochastically, with reproducible random bits from a table.

A value between two neighbouring bfloat16 numbers is rounded to the upper one with a probability equal to its relative
distance from the lower one. The mean over the random numbers is therefore the value itself, and increments too small
for bfloat16 still accumulate (Gupta et al. 2015). Rounding adds 16 random bits to the 16 bits that bfloat16 lacks and
then clears the lower 16 bits; only a carry survives.

The random bits come from a table that contains every 16-bit number equally often, in hashed order. Each step starts at
a table offset hashed from (seed, step, parameter) and reads one entry per element. So the bits of an element depend
neither on the device, nor on how elements are distributed over workers, nor on earlier computations. Over the steps,
the bits of an element are exactly uniform, and the offsets of two parameters differ by a random distance.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from pipeline.data.snapshots.epoch_order import Purpose, draw
from pipeline.hashing import draws

BLOCK = 2**20
"""Number of table entries; a parameter is divided into blocks of this many elements."""
_BLOCK_STRIDE = 0x9E375
"""Distance between the table offsets of successive blocks; odd, so that each block of a parameter has its own."""
_STREAM_STRIDE = 0x55555
"""Distance between the table offsets of a parameter's streams, which are the tensors rounded in one step."""


def round_(values: Tensor, bits: Tensor) -> None:
    """Round float32 values in place to bfloat16 numbers, up or down depending on random bits.

    bfloat16 numbers, infinities and NaN (as arithmetic produces it) do not change. Values above the largest bfloat16
    number may become infinity.

    Args:
        values: float32, contiguous.
        bits: int32 in 0..65535 of the same shape, from `random_bits`.
    """
    # The significand of CUDA's NaN is all ones, so adding bits would overflow; clamp it first
    values.view(torch.int32).clamp_(max=0x7FFF0000).add_(bits).bitwise_and_(-0x10000)


def table_offsets(seed: int, step: int, num_parameters: int) -> list[int]:
    """The table offset at which each parameter, by number, reads in a step."""
    hashes = draw(seed, Purpose.ROUNDING, step, np.arange(num_parameters))
    return [int(offset) for offset in hashes % np.uint64(BLOCK)]


def random_bits(offset: int, stream: int, first: int, num_elements: int, device: torch.device) -> Tensor:
    """Random bits for elements of one parameter, int32 in 0..65535: a view of the table, which must not be modified.

    Args:
        offset: table offset of the parameter, from `table_offsets`.
        stream: which of the tensors rounded in this step, 0, 1 or 2.
        first: index of the first element in the whole parameter.
        num_elements: number of elements, which must all lie in one block (the same index // BLOCK).
        device: device of the result.
    """
    block, index = divmod(first, BLOCK)
    assert index + num_elements <= BLOCK
    start = (offset + index + block * _BLOCK_STRIDE + stream * _STREAM_STRIDE) % BLOCK
    return _table(device)[start : start + num_elements]


@cache
def _table(device: torch.device) -> Tensor:
    """Every 16-bit number 16 times in hashed order; the table is repeated so that reads may pass its end."""
    order = np.argsort(draws(0, np.arange(BLOCK, dtype=np.uint64)), kind="stable")
    entries = torch.from_numpy((order % 2**16).astype(np.int32))
    return torch.cat([entries, entries]).to(device)
