"""Compare our implementation with a peer's: run both in turn on the same work, and take the fastest of three runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from jobs.demo.web.render import encode_jpeg, render
from jobs.demo.web.scenes import sample_scene
from pipeline.data.images.image_header import perceptual_hash

REPEATS = 3
Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table. Both figures are in `unit`; higher is better."""

    work: str
    unit: str
    ours: float
    peer_name: str
    peer: float

    @property
    def ratio(self) -> float:
        """Our figure divided by the peer's."""
        return self.ours / self.peer


def seconds_of_both(ours: Work, peer: Work, repeats: int = REPEATS) -> tuple[float, float]:
    """The shortest time of each; runs alternate, because the speed of the machine changes over time."""
    times = np.full((repeats, 2), np.inf)
    for i in range(repeats):
        for j, work in enumerate((ours, peer)):
            started = time.perf_counter()
            work()
            times[i, j] = time.perf_counter() - started
    best = times.min(axis=0)
    return float(best[0]), float(best[1])


def row(work: str, unit: str, amount: int, peer_name: str, ours: Work, peer: Work, repeats: int = REPEATS) -> Row:
    """A row of rates: `amount` units of work divided by the seconds that the work took."""
    our_seconds, peer_seconds = seconds_of_both(ours, peer, repeats)
    return Row(work=work, unit=unit, ours=amount / our_seconds, peer_name=peer_name, peer=amount / peer_seconds)


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables within a `with` block."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def hashing(num_images: int = 1000) -> Row:
    """Measure perceptual hashes of encoded images of 256 pixels, and check that both agree in every bit."""
    import io

    import imagehash
    from PIL import Image

    rng = np.random.default_rng(0)
    images = [encode_jpeg(render(sample_scene(rng), 256)) for _ in range(num_images)]

    def peer() -> list[str]:
        return [str(imagehash.phash(Image.open(io.BytesIO(image)))) for image in images]

    assert [f"{value:016x}" for value in perceptual_hash(images)] == peer()
    return row("perceptual hashes", "images/s", num_images, "imagehash", lambda: perceptual_hash(images), peer)


ROWS: tuple[Callable[[], Row], ...] = (hashing,)
