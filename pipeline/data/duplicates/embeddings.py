"""Embeddings as a column: half precision, of length one, so that a product of two is their cosine.

What makes them is given from outside (jobs/options/encoders.py: a model of ours or a duplicate detector), so nothing
here knows
of networks. Half precision takes 2 bytes a dimension, 400 GB for 400 million pictures of 512, and moves a cosine by
less than 0.001.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schemas import EMBEDDINGS

Matrix = npt.NDArray[np.float32]
"""Embeddings, a row each: float32 [N, E]."""
Encode = Callable[[Sequence[bytes]], Matrix]
"""Encoded images, N of them -> their embeddings, each of length one."""

EMBEDDING = EMBEDDINGS.field("embedding").type


class Embedder:
    """What an actor keeps: an encoder. Embeds the pictures of a table."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode

    def __call__(self, table: pa.Table) -> pa.Table:
        """EMBEDDINGS of a table with the columns pair_id and jpg, every image of which decodes."""
        embeddings = self._encode(table["jpg"].to_pylist())
        return pa.table([table["pair_id"], to_column(embeddings)], schema=EMBEDDINGS)


def to_column(embeddings: Matrix) -> pa.ListArray:
    """A column of embeddings in half precision.

    Raises:
        ValueError: one is not finite, or not of length one.
    """
    lengths = np.linalg.norm(embeddings, axis=1)
    if not (np.abs(lengths - 1) < 0.01).all():  # not so of NaN either
        raise ValueError("the encoder gives embeddings that are not of length one; it may have diverged in training")
    offsets = np.arange(0, embeddings.size + 1, embeddings.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(embeddings.astype(np.float16).ravel())).cast(EMBEDDING)


def to_matrix(column: pa.ChunkedArray | pa.ListArray) -> Matrix:
    """The embeddings of a column without nulls: float32 [N, E], [0, 0] where there are no rows.

    Raises:
        ValueError: they are not all of one number of dimensions.
    """
    rows = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = np.unique(rows.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise ValueError(f"embeddings of {lengths.tolist()} dimensions in one column: they are of different encoders")
    values = rows.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return np.asarray(values.reshape(len(rows), lengths[0] if len(lengths) else 0), np.float32)


def cosines(one: Matrix, other: Matrix) -> Matrix:
    """The cosine of each row of one matrix with the same row of the other, a function of these two rows alone.

    A matrix product rounds as its shape and the threads have it; what is compared with a threshold is not to depend on
    who shares a block. Half-precision values multiply exactly in double precision.
    """
    return np.asarray((one.astype(np.float64) * other).sum(axis=1), np.float32)
