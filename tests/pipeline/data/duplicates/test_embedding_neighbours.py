import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.duplicates import embedding_neighbours
from pipeline.data.duplicates.embedding_neighbours import (
    CellsConfig,
    cell_members,
    embedding_edges,
    learn_centroids,
    nearest_cells,
    sample,
)
from pipeline.data.duplicates.embeddings import Matrix, cosines, to_column, to_matrix
from pipeline.reasons import Reason
from pipeline.schemas import CELL_MEMBERS, EMBEDDING_EDGES
from tests.pipeline.data.rows import ids

THRESHOLD = 0.9
Edge = tuple[int, int]


def pictures(num_groups: int = 60, copies: int = 4, noise: float = 0.2, seed: int = 0) -> pa.Table:
    """A table of embeddings in clusters, with the columns that `cell_members` reads."""
    rng = np.random.default_rng(seed)
    base = np.repeat(rng.standard_normal((num_groups, 16)), copies, axis=0)
    values = base + noise * rng.standard_normal(base.shape)
    embeddings = np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float32)
    ranks = rng.integers(0, 5, len(values)).astype(np.uint64)  # ties are broken by id
    hashes = rng.permutation(len(values)).astype(np.uint64)
    names, parts = ids(len(values)), pa.array(range(len(values)), pa.int32())
    columns = {"pair_id": names, "part": parts, "phash": hashes, "rank": ranks}
    return pa.table(columns | {"embedding": to_column(embeddings)})


def by_brute_force(table: pa.Table, threshold: float = THRESHOLD) -> dict[Edge, float]:
    """The cosine of every pair above the threshold, by (better hash, worse hash)."""
    order = np.lexsort((table["phash"].to_numpy(), table["rank"].to_numpy()))
    hashes, embeddings = table["phash"].to_numpy()[order].tolist(), to_matrix(table["embedding"])[order]
    found = {}
    for i, better in enumerate(hashes):
        similar = cosines(np.broadcast_to(embeddings[i], embeddings.shape), embeddings)
        for j in np.flatnonzero(similar[i + 1 :] >= np.float32(threshold)) + i + 1:
            found[better, hashes[j]] = float(similar[j])
    return found


def edges_of(table: pa.Table) -> dict[Edge, float]:
    columns = [table[name].to_pylist() for name in ("better_hash", "worse_hash", "similarity")]
    assert len(set(zip(*columns[:2], strict=True))) == table.num_rows, "each pair is reported once"
    return {(better, worse): similarity for better, worse, similarity in zip(*columns, strict=True)}


def one_cell(table: pa.Table) -> pa.Table:
    return cell_members(table, np.eye(1, 16, dtype=np.float32), 1)


@pytest.mark.parametrize("block", [1024, 7])
def test_in_one_cell_all_near_pairs_are_found_with_any_block_size(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_neighbours, "_BLOCK", block)
    table = pictures()
    found = embedding_edges(one_cell(table), THRESHOLD, 1_000)
    assert found.schema == EMBEDDING_EDGES
    assert edges_of(found) == by_brute_force(table)
    assert found.num_rows > 100
    row_of = {row["phash"]: row for row in table.to_pylist()}
    for edge in found.to_pylist():
        better = row_of[edge["better_hash"]]
        assert (edge["better_rank"], edge["better_id"], edge["better_part"]) == (
            *(better["rank"], better["pair_id"], better["part"]),
        )
        assert edge["why"] == Reason.DUPLICATE_EMBEDDING


@pytest.mark.parametrize("block", [1024, 7])
def test_a_picture_has_edges_to_its_best_neighbours_only(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_neighbours, "_BLOCK", block)
    table = pictures(num_groups=3, copies=30, noise=0.01)
    everything = by_brute_force(table)
    first: dict[int, list[int]] = {}
    for better, worse in everything:  # sorted by the better picture
        first.setdefault(worse, []).append(better)
    expected = {(better, worse) for worse, betters in first.items() for better in betters[:4]}
    assert set(edges_of(embedding_edges(one_cell(table), THRESHOLD, 4))) == expected
    assert len(expected) < len(everything) / 3


def test_pairs_are_found_once_if_they_share_cells_and_never_otherwise() -> None:
    table = pictures()
    centroids = np.asarray(to_matrix(table["embedding"])[::24], np.float32)
    members = cell_members(table, centroids, 3)
    assert members.schema == CELL_MEMBERS
    assert members.num_rows == 3 * table.num_rows
    own = dict(zip(members["phash"].to_pylist(), members["cells"].to_pylist(), strict=True))
    expected = {pair for pair in by_brute_force(table) if set(own[pair[0]]) & set(own[pair[1]])}
    assert set(edges_of(embedding_edges(members, THRESHOLD, 1_000))) == expected
    assert len(expected) > 100


def test_more_cells_per_picture_find_more_pairs_across_borders() -> None:
    table = pictures(num_groups=300, copies=3, noise=0.25, seed=5)
    config = CellsConfig(num_cells=30)
    centroids, everything = learn_centroids(table, config), by_brute_force(table, 0.8)
    shares = []
    for each in (1, 2, 3):
        found = edges_of(embedding_edges(cell_members(table, centroids, each), 0.8, 1_000))
        assert set(found) <= set(everything)
        shares.append(len(found) / len(everything))
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.95


def test_edges_do_not_depend_on_partitions_and_order() -> None:
    table = pictures(num_groups=200)
    centroids = learn_centroids(table, CellsConfig(num_cells=12))
    members = cell_members(table, centroids, 2)
    expected = edges_of(embedding_edges(members, THRESHOLD, 3))
    shuffled = table.take(pa.array(np.random.default_rng(1).permutation(table.num_rows)))
    parts = [cell_members(shuffled.slice(start, 37), centroids, 2) for start in range(0, shuffled.num_rows, 37)]
    everything = pa.concat_tables(parts)
    found: dict[Edge, float] = {}
    for bucket in range(5):
        rows = everything.filter(pa.array(everything["cell"].to_numpy() % 5 == bucket))
        found |= edges_of(embedding_edges(rows, THRESHOLD, 3))
    assert found == expected


def test_the_sample_and_its_centroids_do_not_depend_on_parts() -> None:
    table = pictures(num_groups=250)
    config = CellsConfig(num_cells=8)
    whole = sample(table, 300, table.num_rows, config.seed)
    assert 200 < whole.num_rows < 400
    pieces = [
        sample(table.slice(start, 77), 300, table.num_rows, config.seed) for start in range(0, table.num_rows, 77)
    ]
    assert pa.concat_tables(pieces).sort_by("pair_id") == whole.sort_by("pair_id")
    centroids = learn_centroids(whole, config)
    assert np.array_equal(learn_centroids(whole.sort_by([("pair_id", "descending")]), config), centroids)
    assert np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)
    assert sample(table, table.num_rows, table.num_rows, config.seed) == table


def test_there_are_no_more_cells_than_pictures() -> None:
    table = pictures(num_groups=5, copies=1)
    centroids = learn_centroids(table, CellsConfig(num_cells=64))
    assert len(centroids) == 5
    assert nearest_cells(to_matrix(table["embedding"]), centroids, 9).shape == (5, 5)


def test_the_nearest_cells_have_the_highest_cosines() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((2000, 12)).astype(np.float32)
    embeddings: Matrix = np.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), np.float32)
    found = nearest_cells(embeddings, embeddings[:40], 3)
    exact = embeddings.astype(np.float64) @ embeddings[:40].T.astype(np.float64)
    assert found.tolist() == np.argsort(-exact, axis=1)[:, :3].tolist()


def test_without_rows_there_are_no_edges() -> None:
    assert embedding_edges(CELL_MEMBERS.empty_table(), THRESHOLD, 10) == EMBEDDING_EDGES.empty_table()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_similarity": 1.5}, "min_similarity = 1.5"),
        ({"num_cells": 0}, "num_cells = 0"),
        ({"num_cells": 2, "num_cells_each": 3}, "num_cells_each = 3: must be at most num_cells = 2"),
    ],
)
def test_options_are_checked(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CellsConfig(**options)  # type: ignore[arg-type]
