"""Measure which copies of a photograph embeddings find: `python -m tests.perf.corpus.embeddings`; needs CLIP_DATA.

The small duplicate detector is trained on 480 photographs and their quarters. It is tested like the hashes in
tests/perf/corpus/detection.py: 2,000 other photographs and the copies of copies.py are compared, all with all, at the
largest distance (1 - cosine) with a precision of 0.999. The script also measures the detector combined with hashes, the
untrained network, and the share of pairs within that distance that are found in the cells of k-means.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.duplicates.embedding_neighbours import CellsConfig, cell_members, embedding_edges, learn_centroids
from pipeline.data.duplicates.embeddings import Matrix, to_column, to_matrix
from pipeline.data.images.phash import perceptual_hash
from pipeline.hashing import hash128
from pipeline.model.encoders.duplicate_detector import Detector, detector_config, to_files
from pipeline.model.encoders.image_encoder import encoder_from_files
from pipeline.train.detector.duplicate_detector import DetectorTraining, new_detector, train_detector
from tests.perf.corpus.copies import TRANSFORMATIONS, jpeg, versions
from tests.perf.corpus.detection import NUM_PHOTOGRAPHS, Found, Judged, by_hash, judge, show
from tests.perf.crawl.matching import DATA

TRAINING = DetectorTraining(batch_size=96, num_images=96 * 600, learning_rate=3e-3, flips=True)
MIN_PRECISION = 0.999
DISTANCES = np.arange(2, 121) / 400
"""The distances that are tried: 0.005 to 0.3."""
RADIUS = 4
NUM_CELLS = 200
_BLOCK = 2_000


def with_quarters(photographs: Sequence[bytes]) -> list[bytes]:
    """The photographs, followed by the four quarters of each as separate photographs."""
    found = list(photographs)
    for photograph in photographs:
        picture = Image.open(io.BytesIO(photograph)).convert("RGB")
        x, y = picture.width // 2, picture.height // 2
        boxes = [(left, top, left + x, top + y) for left in (0, x) for top in (0, y)]
        found += [jpeg(picture.crop(box)) for box in boxes]
    return found


def embed(detector: Detector, pictures: Sequence[bytes]) -> Matrix:
    """The embeddings of the pictures, rounded to half precision as in storage."""
    return to_matrix(to_column(encoder_from_files(to_files(detector), "memory", 256, "cpu")(pictures)))


def by_embedding(embeddings: Matrix, distance: float) -> Found:
    """Find all pairs whose cosine is at least 1 - distance."""
    pairs, distances = [], []
    for start in range(0, len(embeddings), _BLOCK):
        for first in range(start, len(embeddings), _BLOCK):
            products = embeddings[start : start + _BLOCK] @ embeddings[first : first + _BLOCK].T
            i, j = np.nonzero(products >= 1 - distance)
            later = j + first > i + start
            pairs.append(np.stack([i[later] + start, j[later] + first], axis=1))
            distances.append(1 - products[i[later], j[later]])
    return Found(np.concatenate(pairs), np.concatenate(distances))


def at_largest_distance(embeddings: Matrix) -> Judged:
    """The result at the largest distance with MIN_PRECISION, or at the smallest distance if none is precise enough."""
    distances = [float(distance) for distance in DISTANCES]
    num_versions = len(TRANSFORMATIONS) + 1
    for bound in (0.05, 0.1, 0.2, 0.3):  # increasing bounds, so that no more pairs than necessary are in memory
        tried = [distance for distance in distances if distance <= bound]
        judged = judge(by_embedding(embeddings, bound), tried, NUM_PHOTOGRAPHS, num_versions)
        precise = [result for result in judged if result.precision >= MIN_PRECISION]
        if not precise or precise[-1].threshold < bound:
            break
    return precise[-1] if precise else judged[0]


def merged(first: Found, second: Found) -> Found:
    """The union of two sets of pairs, with distances of 0."""
    pairs = np.unique(np.concatenate([first.pairs, second.pairs]), axis=0)
    return Found(pairs, np.zeros(len(pairs)))


def in_cells(embeddings: Matrix, min_similarity: float) -> Iterator[str]:
    """Yield Markdown rows: how many of all near pairs are found with one, two and three cells per picture."""
    ids = [hash128(str(number)) for number in range(len(embeddings))]
    numbers = pa.array(np.arange(len(ids), dtype=np.uint64))
    columns = {"pair_id": ids, "part": pa.repeat(np.int32(0), len(ids)), "phash": numbers, "rank": numbers}
    table = pa.table(columns | {"embedding": to_column(embeddings)})
    started = time.perf_counter()
    together = cell_members(table, np.eye(1, embeddings.shape[1], dtype=np.float32), 1)
    everything = embedding_edges(together, min_similarity, len(ids)).num_rows
    yield f"| all with all | {everything:,} | 1 | {time.perf_counter() - started:.1f} |"
    started = time.perf_counter()
    centroids = learn_centroids(table, CellsConfig(num_cells=NUM_CELLS))
    seconds = time.perf_counter() - started
    for each in (1, 2, 3):
        started = time.perf_counter()
        found = embedding_edges(cell_members(table, centroids, each), min_similarity, len(ids)).num_rows
        spent = time.perf_counter() - started
        yield f"| {NUM_CELLS} cells, {each} each | {found:,} | {found / everything:.4f} | {spent:.1f} |"
    yield f"\nk-means over {len(ids):,} embeddings of {embeddings.shape[1]}: {seconds:.1f} s on one core"


def main() -> None:
    """Measure and print."""
    photographs = pq.read_table(DATA / "photos.parquet", columns=["image"])["image"].to_pylist()
    training_pictures = with_quarters(photographs[NUM_PHOTOGRAPHS:])
    config, started = detector_config("tiny"), time.perf_counter()
    detector = new_detector(config, TRAINING.seed)
    accuracies = [step.accuracy for step in train_detector(detector, training_pictures, TRAINING)]
    seconds = time.perf_counter() - started
    print(
        f"{len(training_pictures)} pictures, {len(accuracies)} steps of {TRAINING.batch_size} in {seconds:.0f} s;",
        end=" ",
    )
    print(f"accuracy of the last 20 steps {np.mean(accuracies[-20:]):.3f}", flush=True)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        tried = [image for own in pool.map(versions, photographs[:NUM_PHOTOGRAPHS], chunksize=50) for image in own]
    started = time.perf_counter()
    embeddings = embed(detector, tried)
    print(f"{len(tried) / (time.perf_counter() - started):,.0f} pictures/s embedded", flush=True)
    trained = at_largest_distance(embeddings)
    show("trained", [trained])
    hashes = perceptual_hash(tried)
    either = merged(by_hash(hashes, RADIUS), by_embedding(embeddings, trained.threshold))
    show(f"hash within {RADIUS} bits, or trained", judge(either, [1.0], NUM_PHOTOGRAPHS, len(TRANSFORMATIONS) + 1))
    show("untrained", [at_largest_distance(embed(new_detector(config, TRAINING.seed).eval(), tried))])
    print("\n| | pairs | share | seconds |\n|---|---:|---:|---:|")
    for row in in_cells(embeddings, 1 - trained.threshold):
        print(row, flush=True)


if __name__ == "__main__":
    main()
