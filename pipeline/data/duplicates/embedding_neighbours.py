"""Pairs of near embeddings among any number of pictures, as SemDeDup finds them (Abbas et al. 2023, section 3).

k-means cuts the space into cells, and pictures are compared within their cells only: N^2 / k comparisons instead of
N^2. SemDeDup misses the pairs that a border parts; here each picture is in the `num_cells_each` cells nearest to it,
and two of them meet wherever they share a cell. docs/results.md has how many are found so.

Which pairs are found depends on the centroids and on no partition or order: cosines and cells are decided by sums over
single rows (embeddings.cosines), and a pair that shares several cells is told in one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.duplicates.embeddings import Matrix, cosines, to_matrix
from pipeline.hashing import draws, words_of_ids
from pipeline.reasons import Reason
from pipeline.schemas import CELL_MEMBERS, CENTROIDS, EMBEDDING_EDGES

Ints = npt.NDArray[np.int64]

_BLOCK = 1024
"""Rows compared with as many others at once: 4 MB of products."""
_SLACK = 1e-3
"""How far a product of single precision may be from the cosine, and far more than it is."""
_NUM_ITERATIONS = 20


@dataclass(frozen=True, kw_only=True)
class CellsConfig:
    """How pictures with near embeddings are found."""

    min_similarity: float = 0.9
    """Cosine from which on two pictures are the same. It is the encoder's: see docs/overlap.md for how to choose it."""
    num_cells: int = 1024
    """Cells, k of k-means: about the square root of the number of pictures makes the least work."""
    num_cells_each: int = 2
    """Cells that a picture is in: 1 is SemDeDup, more find more of the pairs across borders and cost as many times."""
    sample_per_cell: int = 64
    """Pictures for each cell from which the centroids are learned."""
    max_edges_each: int = 100
    """Better pictures, the best ones first, that a picture is tied to within a cell. It bounds the edges of a picture
    that stands a million times in the web; at worst a duplicate stays, where all of these went."""
    seed: int = 0
    """Of the sample and of k-means."""
    kmeans_threads: int = 1
    """Threads that learn the centroids. Their last bits depend on it, and so do the pairs that a border parts."""

    def __post_init__(self) -> None:
        if not 0 < self.min_similarity <= 1:
            raise ValueError(f"min_similarity = {self.min_similarity}: a cosine above 0, at most 1")
        for name in ("num_cells", "num_cells_each", "sample_per_cell", "max_edges_each", "kmeans_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.num_cells_each > self.num_cells:
            raise ValueError(f"num_cells_each = {self.num_cells_each}: there are {self.num_cells} cells")


def sample(table: pa.Table, num_rows: int, total: int, seed: int) -> pa.Table:
    """About `num_rows` of `total` rows, of which the table is a part: those whose pair_id draws low enough.

    All parts' samples together are the sample of all rows, whatever the parts.
    """
    if num_rows >= total:
        return table
    drawn = draws(seed, words_of_ids(table["pair_id"]))
    return table.filter(pa.array(drawn < np.uint64(num_rows * 2**64 // total)))


def learn_centroids(table: pa.Table, config: CellsConfig) -> Matrix:
    """The centroids of k-means on the sphere (Dhillon and Modha 2001) over EMBEDDINGS: float32 [k, E], of length one.

    At most `num_cells`, and at most as many as there are rows.
    """
    import faiss  # loads libraries that the rest does without

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
        max_points_per_centroid=len(embeddings),  # the sample is drawn already
    )
    kmeans.train(embeddings)
    return np.asarray(kmeans.centroids, np.float32)


def centroid_table(centroids: Matrix) -> pa.Table:
    """CENTROIDS, which `embeddings.to_matrix` reads."""
    return pa.table([list(centroids)], schema=CENTROIDS)


def nearest_cells(embeddings: Matrix, centroids: Matrix, num_cells_each: int) -> npt.NDArray[np.int32]:
    """The cells nearest to each embedding, nearest first: int32 [N, num_cells_each], or as many as there are."""
    each = min(num_cells_each, len(centroids))
    candidates = min(each + 2, len(centroids))  # two more, so that rounding of the product decides nothing
    found = np.empty((len(embeddings), each), np.int32)
    for start in range(0, len(embeddings), _BLOCK):
        rows = embeddings[start : start + _BLOCK]
        products = rows @ centroids.T
        near = np.argpartition(-products, candidates - 1, axis=1)[:, :candidates]
        exact = cosines(np.repeat(rows, candidates, axis=0), centroids[near.ravel()]).reshape(near.shape)
        order = np.lexsort((near, -exact), axis=1)[:, :each]
        found[start : start + _BLOCK] = np.take_along_axis(near, order, axis=1)
    return found


def cell_members(table: pa.Table, centroids: Matrix, num_cells_each: int) -> pa.Table:
    """CELL_MEMBERS: for each picture a row in each of its cells.

    Args:
        table: columns phash, rank, pair_id, part and embedding.
        centroids: of `learn_centroids`.
        num_cells_each: cells that a picture is in.
    """
    cells = nearest_cells(to_matrix(table["embedding"]), centroids, num_cells_each)
    num_rows, each = cells.shape
    rows = pa.array(np.repeat(np.arange(num_rows), each))
    offsets = np.arange(0, cells.size + 1, each, dtype=np.int32)
    lists = pa.ListArray.from_arrays(offsets, pa.array(cells.ravel()))
    rest = (table[name].combine_chunks().take(rows) for name in CELL_MEMBERS.names[2:])
    return pa.table([pa.array(cells.ravel()), lists.take(rows), *rest], schema=CELL_MEMBERS)


def embedding_edges(table: pa.Table, min_similarity: float, max_edges_each: int) -> pa.Table:
    """EMBEDDING_EDGES among CELL_MEMBERS that hold all rows of their cells.

    All pairs of a cell whose cosine is at least `min_similarity`, but of a picture's better ones the best
    `max_edges_each` only. Memory: the table, its float32 embeddings, a few blocks and the edges.
    """
    table = table.combine_chunks()
    cells, hashes = table["cell"].to_numpy(), table["phash"].to_numpy()
    standing = np.lexsort((hashes, table["rank"].to_numpy()))
    order = standing[np.argsort(cells[standing], kind="stable")]  # by cell, and within a cell the best picture first
    embeddings = to_matrix(table["embedding"])
    all_cells = np.asarray(table["cells"].combine_chunks().flatten()).reshape(
        table.num_rows, -1 if table.num_rows else 1
    )
    found = [_NO_PAIRS]
    for members in np.split(order, np.flatnonzero(np.diff(cells[order])) + 1):
        if len(members) > 1:
            pairs = _near_in_cell(embeddings[members], min_similarity, max_edges_each)
            better, worse = members[pairs.better], members[pairs.worse]
            here = _first_shared(all_cells[better], all_cells[worse]) == cells[better]
            found.append(NeighbourPairs(better[here], worse[here], pairs.similarity[here]))
    better, worse, similarity = _joined(found)
    at = pa.array(better)
    columns = [table[name].combine_chunks().take(at) for name in ("phash", "rank", "pair_id", "part")]
    why = pa.repeat(Reason.DUPLICATE_EMBEDDING.value, len(better))
    return pa.table([*columns, hashes[worse], why, similarity], schema=EMBEDDING_EDGES)


class NeighbourPairs(NamedTuple):
    """Rows better and worse, int64 [M] each, and the cosine of each pair, float32 [M]."""

    better: Ints
    worse: Ints
    similarity: Matrix


_NO_PAIRS = NeighbourPairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


def _joined(found: Sequence[NeighbourPairs]) -> NeighbourPairs:
    better, worse = (np.concatenate([getattr(pairs, name) for pairs in found]) for name in ("better", "worse"))
    return NeighbourPairs(better, worse, np.concatenate([pairs.similarity for pairs in found]))


def _near_in_cell(embeddings: Matrix, min_similarity: float, max_edges_each: int) -> NeighbourPairs:
    """All pairs (i, j), i < j, of rows in the order of their standing, for each j the first `max_edges_each`."""
    count, found = len(embeddings), [_NO_PAIRS]
    for start in range(0, count, _BLOCK):
        rows = embeddings[start : start + _BLOCK]
        left = np.full(len(rows), max_edges_each)
        for first in range(0, start + len(rows), _BLOCK):
            others = embeddings[first : first + _BLOCK]
            likely = (rows @ others.T > min_similarity - _SLACK) & (left > 0)[:, None]
            worse, better = np.nonzero(likely)
            is_better = better + first < worse + start
            pairs = _verified(rows, others, worse[is_better], better[is_better], min_similarity)
            # pairs come row by row, and in a row the best first
            place = np.arange(len(pairs.worse)) - np.searchsorted(pairs.worse, pairs.worse)
            within = place < left[pairs.worse]
            columns = pairs.better[within] + first, pairs.worse[within] + start, pairs.similarity[within]
            found.append(NeighbourPairs(*columns))
            left -= np.minimum(left, np.bincount(pairs.worse, minlength=len(rows)))
            if not left.any():
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


def _first_shared(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The lowest cell that both rows of each pair are in: int32 [M]."""
    shared = (one[:, :, None] == other[:, None, :]).any(axis=2)
    none = np.iinfo(np.int32).max
    return np.asarray(np.where(shared, one, none).min(axis=1, initial=none), np.int32)
