"""Duplicates by embeddings: `python -m tests.perf.embeddings`; needs CLIP_DATA.

The small duplicate detector is trained on 480 photographs and tried on 2,000 others and 12 manipulated copies of each:
recall for each manipulation and precision among all pairs of the 26,000 pictures, at the lowest cosine whose precision
is 0.999; the same for an untrained detector and for perceptual hashes. Then how many of the near pairs cells find.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.cells import CellsConfig, cell_members, embedding_edges, learn_centroids
from pipeline.data.embeddings import Matrix, to_column, to_matrix
from pipeline.data.phash import perceptual_hash
from pipeline.hashing import hash128
from pipeline.model.duplicates import Detector, detector_config, to_files
from pipeline.model.encoders import encoder_from_files
from pipeline.train.duplicate_detector import DetectorTraining, new_detector, train_detector
from tests.perf.detection import MANIPULATIONS
from tests.perf.matching import DATA

NUM_PHOTOGRAPHS = 2_000
TRAINING = DetectorTraining(batch_size=96, num_images=96 * 600, flips=True)
MIN_PRECISION = 0.999
_BLOCK = 2_000
_BINS = 20_000


def main() -> None:
    """Measure and print."""
    photographs = pq.read_table(DATA / "photos.parquet", columns=["image"])["image"].to_pylist()
    tried, others = photographs[:NUM_PHOTOGRAPHS], photographs[NUM_PHOTOGRAPHS:]
    pictures = [*tried, *(manipulate(image) for manipulate in MANIPULATIONS.values() for image in tried)]
    untrained = new_detector(detector_config("tiny"), TRAINING.seed)
    started = time.monotonic()
    trained = new_detector(detector_config("tiny"), TRAINING.seed)
    steps = list(train_detector(trained, others, TRAINING))
    print(f"trained on {len(others)} photographs, {len(steps)} steps of {TRAINING.batch_size} pictures in", end=" ")
    print(f"{time.monotonic() - started:.0f} s: accuracy of the last step {steps[-1].accuracy:.2f}")


if __name__ == "__main__":
    main()
