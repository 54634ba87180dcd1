"""Perceptual hashes against imagehash, on photographs: `python -m tests.perf.corpus.hashing`; needs CLIP_DATA."""

from __future__ import annotations

import io
from collections.abc import Callable

import imagehash
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.images.phash import AS_IT_IS, MIRRORED, Variant, perceptual_hash, perceptual_hashes
from tests.perf.corpus.rows import row
from tests.perf.crawl.matching import DATA

NUM_PHOTOGRAPHS = 1_000
TURNED = [Variant(degrees=degrees) for degrees in (-5, 5)]


def main() -> None:
    """Measure and print."""
    images = pq.read_table(DATA / "photos.parquet", columns=["image"])["image"][:NUM_PHOTOGRAPHS].to_pylist()

    def peer() -> list[int]:
        return [int(str(imagehash.phash(Image.open(io.BytesIO(image)))), 16) for image in images]

    assert perceptual_hash(images).tolist() == peer()
    ours: dict[str, Callable[[], object]] = {
        "as it is": lambda: perceptual_hash(images),
        "and mirrored": lambda: perceptual_hashes(images, [AS_IT_IS, MIRRORED]),
        "and mirrored, and turned by 5° to both sides": lambda: perceptual_hashes(
            images, [AS_IT_IS, MIRRORED, *TURNED]
        ),
        "decoding to luminance alone": lambda: [
            np.asarray(Image.open(io.BytesIO(image)).convert("L")).sum() for image in images
        ],
    }
    print("| hashes of 224x224 JPEGs | images/s | imagehash | ratio |\n|---|---:|---:|---:|")
    for name, work in ours.items():
        one = row(name, "images/s", len(images), "imagehash", work, peer)
        print(f"| {name} | {one.ours:,.0f} | {one.peer:,.0f} | {one.ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
