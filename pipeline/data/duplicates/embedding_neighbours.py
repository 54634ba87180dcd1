"""Find pairs of near embeddings among any number of pictures, as in SemDeDup (Abbas et al. 2023, section 3).

k-means divides the space into cells, and pictures are compared only within their cells: N^2 / k comparisons instead of
N^2. SemDeDup misses pairs separated by a cell border. Here each picture is in its `num_cells_each` nearest cells, and
two pictures are compared if they share a cell. docs/results.md reports the share of pairs that is found.

The pairs found depend on the centroids only, not on partitions or row order: cosines and cells are computed from sums
over single rows (embeddings.cosines), and a pair that shares several cells is reported in one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.duplicates.embeddings import Matrix, cosines, to_matrix
from pipeline.hashing import draws, id_words
from pipeline.reasons import Reason
from pipeline.schemas import CELL_MEMBERS, CENTROIDS, EMBEDDING_EDGES

Ints = npt.NDArray[np.int64]

_BLOCK = 1024
"""Number of rows in a block; comparing two blocks makes 4 MB of products."""
_SLACK = 1e-3
"""Upper bound of the error of a single-precision dot product; the actual error is far smaller."""
_NUM_ITERATIONS = 20


@dataclass(frozen=True, kw_only=True)
class CellsConfig:
    """How pictures with near embeddings are found."""

    min_similarity: float = 0.9
    """Minimum cosine for two pictures to count as the same. It depends on the encoder: docs/overlap.md explains how to
    choose it."""
    num_cells: int = 1024
    """Number of cells, the k of k-means. The square root of the number of pictures takes about the least work."""
    num_cells_each: int = 2
    """Number of cells that contain each picture. 1 is SemDeDup; more cells find more of the pairs across borders, and
    cost increases in proportion."""
    sample_per_cell: int = 64
    """Number of sampled pictures per cell from which the centroids are learned."""
    max_edges_each: int = 100
    """Maximum number of edges from a picture to better pictures within a cell; the best ones are kept. Caps the edges
    of very common pictures; a duplicate may survive if all its recorded neighbours were removed."""
    seed: int = 0
    """Seed of the sample and of k-means."""
    kmeans_threads: int = 1
    """Number of threads of k-means. The last bits of the centroids depend on it, and so do the pairs near borders."""

    def __post_init__(self) -> None:
        if not 0 < self.min_similarity <= 1:
            raise ValueError(f"min_similarity = {self.min_similarity}: must be a cosine above 0 and at most 1")
        for name in ("num_cells", "num_cells_each", "sample_per_cell", "max_edges_each", "kmeans_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.num_cells_each > self.num_cells:
            raise ValueError(f"num_cells_each = {self.num_cells_each}: must be at most num_cells = {self.num_cells}")


def sample(table: pa.Table, num_rows: int, total: int, seed: int) -> pa.Table:
    """The table's share of a sample of about `num_rows` out of `total` rows: the rows with the lowest draws.

    The draws are hashes of pair_id, so the whole sample does not depend on how the rows are divided into parts.
    """
    if num_rows >= total:
        return table
    drawn = draws(seed, id_words(table["pair_id"]))
    return table.filter(pa.array(drawn < np.uint64(num_rows * 2**64 // total)))


def learn_centroids(table: pa.Table, config: CellsConfig) -> Matrix:
    """The centroids of spherical k-means (Dhillon and Modha 2001) over EMBEDDINGS: unit vectors, float32 [k, E].

    k is `num_cells`, or the number of rows if there are fewer.
    """
    import faiss  # imported here because it loads libraries that the rest of the module does not need

    embeddings = to_matrix(table.take(np.argsort(table["pair_id"].to_numpy(zero_copy_only=False)))["embedding"])
    count = min(config.num_cells, len(embeddings))
    faiss.omp_set_num_threads(config.kmeans_threads)
    kmeans = faiss.Kmeans(
        embeddings.shape[1],
        count,
        niter=_NUM_ITERATIONS,
        spherical=True,
        seed=config.seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(embeddings),  # the rows are already a sample
    )
    kmeans.train(embeddings)
    return np.asarray(kmeans.centroids, np.float32)


def centroid_table(centroids: Matrix) -> pa.Table:
    """CENTROIDS of a matrix; `embeddings.to_matrix` converts them back."""
    return pa.table([list(centroids)], schema=CENTROIDS)


def nearest_cells(embeddings: Matrix, centroids: Matrix, num_cells_each: int) -> npt.NDArray[np.int32]:
    """The nearest cells of each embedding, nearest first: int32 [N, min(num_cells_each, number of centroids)]."""
    each = min(num_cells_each, len(centroids))
    candidates = min(each + 2, len(centroids))  # two extra, so that rounding of the product does not affect the result
    cells = np.empty((len(embeddings), each), np.int32)
    for start in range(0, len(embeddings), _BLOCK):
        rows = embeddings[start : start + _BLOCK]
        products = rows @ centroids.T
        near = np.argpartition(-products, candidates - 1, axis=1)[:, :candidates]
        exact = cosines(np.repeat(rows, candidates, axis=0), centroids[near.ravel()]).reshape(near.shape)
        order = np.lexsort((near, -exact), axis=1)[:, :each]
        cells[start : start + _BLOCK] = np.take_along_axis(near, order, axis=1)
    return cells


def cell_members(table: pa.Table, centroids: Matrix, num_cells_each: int) -> pa.Table:
    """CELL_MEMBERS: one row for each picture and each of its cells.

    Args:
        table: columns phash, rank, pair_id, part and embedding.
        centroids: returned by `learn_centroids`.
        num_cells_each: number of cells that contain each picture.
    """
    cells = nearest_cells(to_matrix(table["embedding"]), centroids, num_cells_each)
    num_rows, each = cells.shape
    rows = pa.array(np.repeat(np.arange(num_rows), each))
    offsets = np.arange(0, cells.size + 1, each, dtype=np.int32)
    lists = pa.ListArray.from_arrays(offsets, pa.array(cells.ravel()))
    rest = (table[name].combine_chunks().take(rows) for name in CELL_MEMBERS.names[2:])
    return pa.table([pa.array(cells.ravel()), lists.take(rows), *rest], schema=CELL_MEMBERS)


def embedding_edges(table: pa.Table, min_similarity: float, max_edges_each: int) -> pa.Table:
    """EMBEDDING_EDGES among CELL_MEMBERS with all rows of each cell.

    The edges are all pairs in a cell whose cosine is at least `min_similarity`, but for each picture only those to its
    `max_edges_each` best neighbours. Memory: the table, its float32 embeddings, a few blocks and the edges.
    """
    table = table.combine_chunks()
    cells, hashes = table["cell"].to_numpy(), table["phash"].to_numpy()
    best_first = np.lexsort((hashes, table["rank"].to_numpy()))
    order = best_first[np.argsort(cells[best_first], kind="stable")]  # by cell; in a cell, the best picture first
    embeddings = to_matrix(table["embedding"])
    all_cells = np.asarray(table["cells"].combine_chunks().flatten()).reshape(
        table.num_rows, -1 if table.num_rows else 1
    )
    found = [_NO_PAIRS]
    for members in np.split(order, np.flatnonzero(np.diff(cells[order])) + 1):
        if len(members) > 1:
            pairs = _near_in_cell(embeddings[members], min_similarity, max_edges_each)
            better, worse = members[pairs.better], members[pairs.worse]
            in_first = _first_shared(all_cells[better], all_cells[worse]) == cells[better]
            found.append(NeighbourPairs(better[in_first], worse[in_first], pairs.similarity[in_first]))
    better, worse, similarity = _joined(found)
    better_rows = pa.array(better)
    columns = [table[name].combine_chunks().take(better_rows) for name in ("phash", "rank", "pair_id", "part")]
    why = pa.repeat(Reason.DUPLICATE_EMBEDDING.value, len(better))
    return pa.table([*columns, hashes[worse], why, similarity], schema=EMBEDDING_EDGES)


class NeighbourPairs(NamedTuple):
    """The rows of the better and of the worse pictures, int64 [M] each, and the cosine of each pair, float32 [M]."""

    better: Ints
    worse: Ints
    similarity: Matrix


_NO_PAIRS = NeighbourPairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


def _joined(found: Sequence[NeighbourPairs]) -> NeighbourPairs:
    better, worse = (np.concatenate([getattr(pairs, name) for pairs in found]) for name in ("better", "worse"))
    return NeighbourPairs(better, worse, np.concatenate([pairs.similarity for pairs in found]))


def _near_in_cell(embeddings: Matrix, min_similarity: float, max_edges_each: int) -> NeighbourPairs:
    """The near pairs (i, j) with i < j of rows sorted best first; for each j, the first `max_edges_each` pairs."""
    count, found = len(embeddings), [_NO_PAIRS]
    for start in range(0, count, _BLOCK):
        rows = embeddings[start : start + _BLOCK]
        remaining = np.full(len(rows), max_edges_each)
        for first in range(0, start + len(rows), _BLOCK):
            others = embeddings[first : first + _BLOCK]
            likely = (rows @ others.T > min_similarity - _SLACK) & (remaining > 0)[:, None]
            worse, better = np.nonzero(likely)
            is_better = better + first < worse + start
            pairs = _verified(rows, others, worse[is_better], better[is_better], min_similarity)
            # Pairs are sorted by the worse row, then by the better row, best first
            position = np.arange(len(pairs.worse)) - np.searchsorted(pairs.worse, pairs.worse)
            within = position < remaining[pairs.worse]
            columns = pairs.better[within] + first, pairs.worse[within] + start, pairs.similarity[within]
            found.append(NeighbourPairs(*columns))
            remaining -= np.minimum(remaining, np.bincount(pairs.worse, minlength=len(rows)))
            if not remaining.any():
                break
    return _joined(found)


def _verified(rows: Matrix, others: Matrix, worse: Ints, better: Ints, min_similarity: float) -> NeighbourPairs:
    found = [_NO_PAIRS]
    for start in range(0, len(worse), _BLOCK):
        i, j = better[start : start + _BLOCK], worse[start : start + _BLOCK]
        similarity = cosines(others[i], rows[j])
        near = similarity >= min_similarity
        found.append(NeighbourPairs(i[near], j[near], similarity[near]))
    return _joined(found)


def _first_shared(first: npt.NDArray[np.int32], second: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The lowest cell that contains both pictures of each pair: int32 [M]."""
    shared = (first[:, :, None] == second[:, None, :]).any(axis=2)
    none = np.iinfo(np.int32).max
    return np.asarray(np.where(shared, first, none).min(axis=1, initial=none), np.int32)
