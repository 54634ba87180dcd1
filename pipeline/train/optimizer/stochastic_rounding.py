"""Stochastic rounding of float32 to bfloat16, by random numbers that anyone can look up.

A value between two neighbours in bfloat16 becomes the upper one with the probability of its place between them, so that
the mean over the random numbers is the value itself: what is added in steps too small for bfloat16 adds up all the same
(Gupta et al. 2015). To the 16 bits that bfloat16 does not have, 16 random bits are added, and what does not carry into
the rest is cut off.

The random bits are read from one table, that has every 16-bit number equally often in an order of its own. A step opens
it at a place that is hashed from (seed, step, parameter) and reads on, element by element, as one does with printed
tables of random digits. So the bits of an element depend neither on the device, nor on how the elements are shared out
to workers, nor on what ran before; over the steps an element's bits are exactly uniform, and any two elements read
places as far apart as chance has them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from pipeline.data.snapshots.epoch_order import Purpose, draw
from pipeline.hashing import draws

BLOCK = 2**20
"""Entries of the table; a parameter's elements are read in blocks of as many."""
_BLOCK_STRIDE = 0x9E375
"""From where a block is read to where the next one is; odd, so that each block of a parameter reads another place."""
_STREAM_STRIDE = 0x55555
"""The same for a parameter's streams: what is rounded of it in one step."""


def round_(values: Tensor, bits: Tensor) -> None:
    """Round float32 values in place to such as bfloat16 has, up or down by random bits.

    What bfloat16 has already stays, as do the infinities and NaN as arithmetic makes it; above bfloat16's largest
    number comes infinity.

    Args:
        values: float32, contiguous.
        bits: int32 in 0..65535, of the same shape; of `random_bits`.
    """
    # A CUDA device's NaN is all ones, to which nothing could be added
    values.view(torch.int32).clamp_(max=0x7FFF0000).add_(bits).bitwise_and_(-0x10000)


def open_table(seed: int, step: int, num_parameters: int) -> list[int]:
    """Where a step reads the table, for each parameter by its number."""
    drawn = draw(seed, Purpose.ROUNDING, step, np.arange(num_parameters))
    return [int(place) for place in drawn % np.uint64(BLOCK)]


def random_bits(place: int, stream: int, first: int, num_elements: int, device: torch.device) -> Tensor:
    """Bits for elements of one parameter, int32 in 0..65535: a view of the table, not to be written to.

    Args:
        place: of `open_table`.
        stream: which of the things rounded in this step, 0, 1 or 2.
        first: number of the first of these elements in the whole parameter.
        num_elements: how many; all within one block, so first // BLOCK is that of the last one too.
        device: where they are wanted.
    """
    block, within = divmod(first, BLOCK)
    assert within + num_elements <= BLOCK
    start = (place + within + block * _BLOCK_STRIDE + stream * _STREAM_STRIDE) % BLOCK
    return _table(device)[start : start + num_elements]


@cache
def _table(device: torch.device) -> Tensor:
    """Every 16-bit number 16 times, in hashed order; twice over, so that one may read on beyond the end."""
    order = np.argsort(draws(0, np.arange(BLOCK, dtype=np.uint64)), kind="stable")
    entries = torch.from_numpy((order % 2**16).astype(np.int32))
    return torch.cat([entries, entries]).to(device)
