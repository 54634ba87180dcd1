"""Measure resizing of large photographs: `python -m tests.perf.crawl.resizing`; needs CLIP_DATA.

Resizes originals of 1600x1200 to 256 pixels on one core: with our processor and `resizer = "scaled"`, with our
processor and `resizer = "img2dataset"`, and with img2dataset's Resizer itself. Also measures how much the pictures of
"scaled" differ from those of img2dataset.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipeline.data.images.image_header import ImageConfig
from pipeline.data.images.resize import ImageProcessor
from tests.perf.corpus.rows import seconds_of_both
from tests.perf.crawl.image_server import photographs
from tests.perf.crawl.matching import DATA

SIZE = (1600, 1200)
NUM_PHOTOGRAPHS = 60


def psnr(one: bytes, other: bytes) -> float:
    """The peak signal-to-noise ratio of two JPEGs of equal size, in dB."""
    a, b = (np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), np.float64) for image in (one, other))
    return float(10 * np.log10(255**2 / ((a - b) ** 2).mean()))


def main() -> None:
    """Measure and print the results."""
    from img2dataset.resizer import Resizer

    images = photographs(DATA, SIZE, NUM_PHOTOGRAPHS)
    theirs = Resizer(image_size=256, resize_mode="keep_ratio", resize_only_if_bigger=True, encode_quality=95)
    scaled, same = ImageProcessor(ImageConfig(resizer="scaled")), ImageProcessor(ImageConfig())

    def peer() -> list[bytes]:
        return [theirs(io.BytesIO(image))[0] for image in images]

    fast, slow = seconds_of_both(lambda: [scaled(image) for image in images], peer)
    ours, _ = seconds_of_both(lambda: [same(image) for image in images], peer)
    rates = {"scaled": fast, "img2dataset's, in our process": ours, "img2dataset's Resizer": slow}
    for name, seconds in rates.items():
        print(f"{name:32} {NUM_PHOTOGRAPHS / seconds:6.0f} images/s/core")
    distances = [psnr(scaled(image).jpg or b"", reference) for image, reference in zip(images, peer(), strict=True)]
    print(f"scaled: {slow / fast:.2f} times, PSNR {np.median(distances):.1f} dB (lowest {min(distances):.1f})")


if __name__ == "__main__":
    main()
