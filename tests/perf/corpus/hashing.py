"""Compare perceptual hashes with imagehash on photographs: `python -m tests.perf.corpus.hashing`; needs CLIP_DATA."""

from __future__ import annotations

import io
from collections.abc import Callable

import imagehash
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.images.phash import MIRRORED, UNCHANGED, Variant, perceptual_hash, perceptual_hashes
from tests.perf.corpus.rows import row
from tests.perf.crawl.matching import DATA

NUM_PHOTOGRAPHS = 1_000
ROTATED = [Variant(degrees=degrees) for degrees in (-5, 5)]


def main() -> None:
    """Measure and print."""
    images = pq.read_table(DATA / "photos.parquet", columns=["image"])["image"][:NUM_PHOTOGRAPHS].to_pylist()

    def peer() -> list[int]:
        return [int(str(imagehash.phash(Image.open(io.BytesIO(image)))), 16) for image in images]

    assert perceptual_hash(images).tolist() == peer()
    ours: dict[str, Callable[[], object]] = {
        "unchanged": lambda: perceptual_hash(images),
        "and mirrored": lambda: perceptual_hashes(images, [UNCHANGED, MIRRORED]),
        "and mirrored, and rotated by ±5°": lambda: perceptual_hashes(images, [UNCHANGED, MIRRORED, *ROTATED]),
        "decoding to luminance only": lambda: [
            np.asarray(Image.open(io.BytesIO(image)).convert("L")).sum() for image in images
        ],
    }
    print("| hashes of 224x224 JPEGs | images/s | imagehash | ratio |\n|---|---:|---:|---:|")
    for name, work in ours.items():
        result = row(name, "images/s", len(images), "imagehash", work, peer)
        print(f"| {name} | {result.ours:,.0f} | {result.peer:,.0f} | {result.ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
