from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cluster.resources import Pool
from cluster.runs import Run
from cluster.stages import Stages
from pipeline.data.duplicates.embedding_neighbours import (
    CellsConfig,
    cell_members,
    embedding_edges,
    learn_centroids,
    sample,
)
from pipeline.data.duplicates.embeddings import Matrix, to_matrix
from pipeline.data.duplicates.overlap import OverlapConfig, OverlapIndex, drop_overlaps
from pipeline.data.flows import embedding_flow as flow
from pipeline.reasons import Reason
from pipeline.schemas import EMBEDDING_EDGES, OVERLAPS
from tests.pipeline.data.duplicates.test_embedding_neighbours import by_brute_force, edges_of, pictures
from tests.pipeline.data.duplicates.test_overlap import BALANCED, index_rows
from tests.pipeline.data.rows import fetched, ids

pytestmark = pytest.mark.cluster

NUM_PICTURES = 200
CONFIG = CellsConfig(num_cells=6, num_cells_each=2, min_similarity=0.85, sample_per_cell=20)


def encoder() -> "StandIn":
    return StandIn()


class StandIn:
    """An encoder for images that are numbers; the embedding of a number is that row of a table."""

    def __init__(self) -> None:
        self.embeddings = to_matrix(pictures(num_groups=50)["embedding"])

    def __call__(self, images: object) -> Matrix:
        assert isinstance(images, list)
        return self.embeddings[[int(image) for image in images]]


def test_edges_over_parts_equal_edges_over_all_pictures(ray_local: None, tmp_path: Path) -> None:  # noqa: ARG001
    everything = pictures(num_groups=50)
    sampled = sample(everything, CONFIG.num_cells * CONFIG.sample_per_cell, NUM_PICTURES, CONFIG.seed)
    members = cell_members(everything, learn_centroids(sampled, CONFIG), CONFIG.num_cells_each)
    expected = edges_of(embedding_edges(members, CONFIG.min_similarity, CONFIG.max_edges_each))

    # Each picture has two rows, and the worse row is not embedded
    twice = pa.concat_tables([everything, everything.set_column(0, "pair_id", [ids(NUM_PICTURES, "worse")])])
    worse = np.repeat([0, 9], NUM_PICTURES).astype(np.uint64)
    ranks, numbers = twice["rank"].to_numpy() + worse, np.arange(2 * NUM_PICTURES) % NUM_PICTURES
    jpg = pa.array([str(number).encode() if rank < 9 else b"not to be seen"
                    for number, rank in zip(numbers, ranks, strict=True)], pa.large_binary())  # fmt: skip
    rows = twice.drop_columns(["embedding", "part", "rank"]).append_column("rank", [ranks]).append_column("jpg", jpg)
    rows = rows.take(pa.array(np.random.default_rng(1).permutation(rows.num_rows)))
    parts = [rows.slice(start, 90) for start in range(0, rows.num_rows, 90)]
    numbered = [
        table.append_column("part", pa.array(np.full(table.num_rows, part, np.int32)))
        for part, table in enumerate(parts)
    ]
    stages = Stages(Run.open(str(tmp_path), {}))
    pictures_of_hash = stages(
        "pictures",
        len(parts),
        lambda part: numbered[part].select(["pair_id", "phash", "rank", "part"]),
        bucketing=lambda table: (table["phash"].to_numpy() % 4).astype(np.int32),
        num_buckets=4,
    )
    leading, embeddings = flow.embed(
        stages, len(parts), lambda part, columns: parts[part].select(columns), pictures_of_hash, encoder, Pool()
    )
    edges = flow.near_embeddings(stages, leading, embeddings, CONFIG, 3)
    assert embeddings.num_kept == NUM_PICTURES
    assert stages.outputs["cells"].num_kept == 2 * NUM_PICTURES
    assert edges_of(edges.table(EMBEDDING_EDGES)) == expected
    assert len(expected) > 0.8 * len(by_brute_force(everything, CONFIG.min_similarity)) > 50


def test_overlaps_are_recorded_only_for_kept_and_overlapping_pairs(ray_local: None, tmp_path: Path) -> None:  # noqa: ARG001
    index = OverlapIndex(index_rows([BALANCED, BALANCED ^ 0b111], ["a", "b"]), OverlapConfig(radius=2))
    hashes = pa.array([BALANCED, 5, BALANCED ^ 0b1, BALANCED ^ 0b110, 6, 7], pa.uint64())
    rows = pa.table({"pair_id": ids(6), "phash": hashes})
    reasons = [None, None, Reason.BALANCED_OUT, None, None, None]
    stages = Stages(Run.open(str(tmp_path), {}))
    found = flow.overlaps(stages, 3, lambda part: rows.slice(2 * part, 2), index)
    pairs = [(row["pair_id"], row["benchmark"], row["distance"]) for row in found.table(OVERLAPS).to_pylist()]
    names = ids(6)
    assert sorted(pairs) == sorted(
        [(names[0], "a", 0), (names[2], "a", 1), (names[2], "b", 2), (names[3], "a", 2), (names[3], "b", 1)]
    )

    def outcome(part: int) -> pa.Table:
        table = fetched(pair_id=names[2 * part : 2 * part + 2], reason=reasons[2 * part : 2 * part + 2])
        overlaps = found.part(part)
        return table if overlaps is None else drop_overlaps(table, overlaps)

    placed = stages("placed", 3, outcome)
    assert placed.reasons() == {Reason.OVERLAP: 2, Reason.BALANCED_OUT: 1}
    recorded = flow.settled_overlaps(stages, found, placed).table(OVERLAPS)
    assert sorted(set(recorded["pair_id"].to_pylist())) == sorted([names[0], names[3]])
