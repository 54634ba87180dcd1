"""Duplicates by embeddings: `python -m tests.perf.embeddings`; needs CLIP_DATA.

The small duplicate detector is trained on 480 photographs and tried on 2,000 others and 13 manipulated copies of each:
recall for each manipulation and precision among all pairs of the 28,000 pictures, at the lowest cosine whose precision
is 0.999. Beside it the same detector before it was trained, and perceptual hashes at their widest radius of that
precision. Then what k-means' cells find of the near pairs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.cells import CellsConfig, cell_members, embedding_edges, learn_centroids
from pipeline.data.embeddings import Matrix, to_column, to_matrix
from pipeline.data.phash import perceptual_hash
from pipeline.hashing import UInt64, hash128
from pipeline.model.duplicates import Detector, detector_config, to_files
from pipeline.model.encoders import encoder_from_files
from pipeline.train.duplicate_detector import DetectorTraining, new_detector, train_detector
from tests.perf.manipulations import MANIPULATIONS
from tests.perf.matching import DATA

NUM_PHOTOGRAPHS = 2_000
TRAINING = DetectorTraining(batch_size=96, num_images=96 * 450, learning_rate=3e-3, flips=True)
MIN_PRECISION = 0.999
NUM_CELLS = 200
_BLOCK = 2_000
_NUM_BINS = 4_096

Blocks = Callable[[slice, slice], npt.NDArray[np.float32]]
"""How near some of the pictures are to some others: the higher the nearer, -1 to 1."""


@dataclass(frozen=True)
class Found:
    """What one way of telling finds at the widest threshold that is precise enough."""

    threshold: float
    precision: float
    recall: dict[str, float]
    """By manipulation, of the photographs their copies."""
    recall_of_all: float
    """Of all pairs of versions of one photograph."""


def judge(nearness: Blocks, num_pictures: int) -> Found:
    """Counts pairs of one photograph and of two in bins of nearness, and cuts where precision is still high enough."""
    edges = np.linspace(-1, 1 + 1e-6, _NUM_BINS + 1)
    same, other = np.zeros(_NUM_BINS, np.int64), np.zeros(_NUM_BINS, np.int64)
    for rows, columns in _halves(num_pictures):
        values = nearness(rows, columns)
        i, j = np.arange(num_pictures)[rows, None], np.arange(num_pictures)[None, columns]
        is_same = i % NUM_PHOTOGRAPHS == j % NUM_PHOTOGRAPHS
        same += np.histogram(values[is_same & (i < j)], edges)[0]
        other += np.histogram(values[~is_same & (i < j)], edges)[0]
    right, wrong = np.cumsum(same[::-1])[::-1], np.cumsum(other[::-1])[::-1]
    precision = right / np.maximum(1, right + wrong)
    cut = int(np.flatnonzero((precision >= MIN_PRECISION) & (right > 0))[0])
    originals = slice(0, NUM_PHOTOGRAPHS)
    recall = {
        name: float((np.diag(nearness(originals, _versions(number))) >= edges[cut]).mean())
        for number, name in enumerate(MANIPULATIONS, 1)
    }
    return Found(float(edges[cut]), float(precision[cut]), recall, float(right[cut] / same.sum()))


def _versions(number: int) -> slice:
    return slice(number * NUM_PHOTOGRAPHS, (number + 1) * NUM_PHOTOGRAPHS)


def _halves(num_pictures: int) -> Iterator[tuple[slice, slice]]:
    starts = range(0, num_pictures, _BLOCK)
    return ((slice(i, i + _BLOCK), slice(j, j + _BLOCK)) for i in starts for j in starts if j >= i)


def by_embedding(embeddings: Matrix) -> Blocks:
    """Cosines."""
    return lambda rows, columns: embeddings[rows] @ embeddings[columns].T


def by_hash(hashes: UInt64) -> Blocks:
    """Bits that are alike, so that -1 is none and 1 all 64."""
    return lambda rows, columns: np.float32(1) - np.bitwise_count(hashes[rows, None] ^ hashes[columns]) / np.float32(32)


def embed(detector: Detector, pictures: Sequence[bytes]) -> Matrix:
    """The embeddings, in half precision as they are stored."""
    embeddings = encoder_from_files(to_files(detector), "memory", 256, "cpu")(pictures)
    return to_matrix(to_column(embeddings))


def cells(embeddings: Matrix, threshold: float) -> Iterator[str]:
    """Rows of Markdown: what is found of all pairs above a threshold with one, two and three cells a picture."""
    ids = [hash128(str(number)) for number in range(len(embeddings))]
    ranks = pa.array(np.arange(len(ids), dtype=np.uint64))
    table = pa.table({"pair_id": ids, "rank": ranks, "embedding": to_column(embeddings)})
    most = len(embeddings)
    started = time.perf_counter()
    everything = embedding_edges(
        cell_members(table, np.eye(1, embeddings.shape[1], dtype=np.float32), 1), threshold, most
    )
    yield f"| all with all | {everything.num_rows:,} | 1 | {time.perf_counter() - started:.1f} |"
    started = time.perf_counter()
    centroids = learn_centroids(table, CellsConfig(num_cells=NUM_CELLS))
    seconds = time.perf_counter() - started
    for each in (1, 2, 3):
        started = time.perf_counter()
        found = embedding_edges(cell_members(table, centroids, each), threshold, most).num_rows
        spent = time.perf_counter() - started
        yield f"| {NUM_CELLS} cells, {each} each | {found:,} | {found / everything.num_rows:.4f} | {spent:.1f} |"
    yield f"\nk-means over {len(ids):,} embeddings: {seconds:.1f} s, one thread."


def main() -> None:
    """Measure and print."""
    photographs = pq.read_table(DATA / "photos.parquet", columns=["image"])["image"].to_pylist()
    tried, others = photographs[:NUM_PHOTOGRAPHS], photographs[NUM_PHOTOGRAPHS:]
    pictures = [*tried, *(manipulate(image) for manipulate in MANIPULATIONS.values() for image in tried)]
    config = detector_config("tiny")
    trained, started = new_detector(config, TRAINING.seed), time.perf_counter()
    steps = list(train_detector(trained, others, TRAINING))
    seconds = time.perf_counter() - started
    last = np.mean([step.accuracy for step in steps[-20:]])
    print(f"{len(others)} photographs, {len(steps)} steps of {TRAINING.batch_size} in {seconds:.0f} s; ", end="")
    print(f"accuracy of the last 20 steps {last:.3f}")
    started = time.perf_counter()
    embeddings = embed(trained, pictures)
    print(f"{len(pictures) / (time.perf_counter() - started):,.0f} pictures/s embedded\n")
    found = {
        "detector": judge(by_embedding(embeddings), len(pictures)),
        "untrained": judge(by_embedding(embed(new_detector(config, TRAINING.seed).eval(), pictures)), len(pictures)),
        "perceptual hash": judge(by_hash(perceptual_hash(pictures)), len(pictures)),
    }
    rows = {name: [f"{one.recall[name]:.3f}" for one in found.values()] for name in MANIPULATIONS}
    rows["*all pairs of one photograph*"] = [f"{one.recall_of_all:.3f}" for one in found.values()]
    rows["*precision among all pairs*"] = [f"{one.precision:.5f}" for one in found.values()]
    rows["*threshold*"] = [f"{one.threshold:.3f}" for one in found.values()]
    print(f"| | {' | '.join(found)} |\n|---|" + "---:|" * len(found))
    for name, columns in rows.items():
        print(f"| {name} | {' | '.join(columns)} |")
    print("\n| | pairs | share | seconds |\n|---|---:|---:|---:|")
    for row in cells(embeddings, found["detector"].threshold):
        print(row)


if __name__ == "__main__":
    main()
