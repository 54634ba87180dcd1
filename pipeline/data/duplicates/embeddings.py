"""Store embeddings as a column of half-precision unit vectors, so that a dot product is a cosine.

The encoder is passed in (jobs/options/encoders.py: one of our models or a duplicate detector), so this module does not
depend on networks. Half precision takes 2 bytes per dimension, which is 400 GB for 400 million pictures with 512
dimensions, and changes a cosine by less than 0.001.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.schemas import EMBEDDINGS

Matrix = npt.NDArray[np.float32]
"""Embeddings, one per row: float32 [N, E]."""
Encode = Callable[[Sequence[bytes]], Matrix]
"""A function from N encoded images to their N embeddings, which are unit vectors."""

EMBEDDING = EMBEDDINGS.field("embedding").type


class Embedder:
    """Embed the pictures of a table, with an encoder that the actor keeps in memory."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode

    def __call__(self, table: pa.Table) -> pa.Table:
        """EMBEDDINGS of a table with the columns pair_id and jpg; every image must be decodable."""
        embeddings = self._encode(table["jpg"].to_pylist())
        return pa.table([table["pair_id"], to_column(embeddings)], schema=EMBEDDINGS)


def to_column(embeddings: Matrix) -> pa.ListArray:
    """Convert embeddings to a column in half precision.

    Raises:
        ValueError: an embedding is not finite, or is not a unit vector.
    """
    lengths = np.linalg.norm(embeddings, axis=1)
    if not (np.abs(lengths - 1) < 0.01).all():  # also refuses NaN
        raise ValueError("the encoder's embeddings do not have length one; it may have diverged in training")
    offsets = np.arange(0, embeddings.size + 1, embeddings.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(embeddings.astype(np.float16).ravel())).cast(EMBEDDING)


def to_matrix(column: pa.ChunkedArray | pa.ListArray) -> Matrix:
    """The embeddings of a column without nulls: float32 [N, E], or [0, 0] for an empty column.

    Raises:
        ValueError: the embeddings differ in their number of dimensions.
    """
    rows = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    lengths = np.unique(rows.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise ValueError(
            f"embeddings of {lengths.tolist()} dimensions in one column: they come from different encoders"
        )
    values = rows.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return np.asarray(values.reshape(len(rows), lengths[0] if len(lengths) else 0), np.float32)


def cosines(first: Matrix, second: Matrix) -> Matrix:
    """The cosine of each row of `first` with the same row of `second`, which depends on these two rows only.

    The rounding of a matrix product depends on its shape and on the number of threads. A value that is compared with a
    threshold must not depend on the other rows of a block. Products of half-precision values are exact in double
    precision.
    """
    return np.asarray((first.astype(np.float64) * second).sum(axis=1), np.float32)
