"""The measurements: each does the same work twice, ours and the peer's, alternately, and takes the faster of three."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from jobs.demo.render import encode_jpeg, render
from jobs.demo.scenes import describe, sample_scene
from pipeline.data.fetch import FetchConfig, Fetcher
from pipeline.data.image import ImageConfig, ImageProcessor, perceptual_hash
from pipeline.hashing import hash128
from pipeline.model.loss import contrastive_gradients
from pipeline.model.tokenizer import Tokenizer
from pipeline.schemas import CANDIDATES, conform
from tests.web import web

REPEATS = 3
Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; both figures in `unit`, more is better."""

    work: str
    unit: str
    ours: float
    peer_name: str
    peer: float

    @property
    def ratio(self) -> float:
        """How many times the peer's figure ours is."""
        return self.ours / self.peer


def seconds_of_both(ours: Work, peer: Work, repeats: int = REPEATS) -> tuple[float, float]:
    """The shortest time of either, taken in turns, because the machine's speed changes while we look."""
    times = np.full((repeats, 2), np.inf)
    for i in range(repeats):
        for j, work in enumerate((ours, peer)):
            started = time.perf_counter()
            work()
            times[i, j] = time.perf_counter() - started
    best = times.min(axis=0)
    return float(best[0]), float(best[1])


def row(work: str, unit: str, amount: int, peer_name: str, ours: Work, peer: Work, repeats: int = REPEATS) -> Row:
    """A row of rates: `amount` units of work by the seconds it took."""
    our_seconds, peer_seconds = seconds_of_both(ours, peer, repeats)
    return Row(work=work, unit=unit, ours=amount / our_seconds, peer_name=peer_name, peer=amount / peer_seconds)


def fetching(num_images: int = 1000) -> Row:
    """Fetch and resize images of 512x384 from loopback; ours checks, hashes and reads robots.txt besides."""
    rng = np.random.default_rng(0)
    images = [encode_jpeg(render(sample_scene(rng), 512).resize((512, 384))) for _ in range(40)]
    urls = [f"http://host-{i % 20}.example/{i}.jpg" for i in range(num_images)]
    with (
        tempfile.TemporaryDirectory() as name,
        web(Path(name) / "site", {url: images[i % len(images)] for i, url in enumerate(urls)}) as site,
    ):
        (Path(name) / "urls.txt").write_text("\n".join(urls))
        table = pa.table({"image_url": urls, "caption": urls, "pair_id": [hash128(url) for url in urls]})
        candidates = conform(table, CANDIDATES)
        fetcher = Fetcher(FetchConfig(connect_to=site.connect_to, min_interval_seconds=0.0, max_in_flight_per_host=8))
        processor = ImageProcessor(ImageConfig())

        def ours() -> None:
            fetched = processor(fetcher(candidates))
            assert fetched["status"].to_pylist() == ["success"] * num_images

        runs = iter(range(10))
        with _peer_process(site.address) as command:

            def peer() -> None:
                # The command's own seconds, less what it takes to start, which ours spends once in an actor
                folder = Path(name) / f"peer-{next(runs)}"
                subprocess.run([*command, str(Path(name) / "urls.txt"), str(folder)], check=True, capture_output=True)

            started = time.perf_counter()
            subprocess.run([*command, "--only-start"], check=True, capture_output=True)
            starting = time.perf_counter() - started
            our_seconds, peer_seconds = seconds_of_both(ours, peer, repeats=2)
        fetcher.close()
    return Row(
        work=f"fetch and resize {num_images:,} images of 512x384",
        unit="images/s",
        ours=num_images / our_seconds,
        peer_name="img2dataset 1.47, without its start",
        peer=num_images / (peer_seconds - starting),
    )


_PEER = """
import sys
from img2dataset import download
if sys.argv[1] != "--only-start":
    download(url_list=sys.argv[1], output_folder=sys.argv[2], output_format="parquet", image_size=256,
             resize_mode="keep_ratio", resize_only_if_bigger=True, processes_count=1, thread_count=32)
"""


@contextmanager
def _peer_process(proxy: str) -> Iterator[list[str]]:
    with environment(http_proxy=f"http://{proxy}", NO_ALBUMENTATIONS_UPDATE="1", WANDB_MODE="offline"):
        yield [sys.executable, "-c", _PEER]


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables for a while."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def hashing(num_images: int = 1000) -> Row:
    """Perceptual hashes of encoded images of 256 pixels, bit for bit the same."""
    import io

    import imagehash
    from PIL import Image

    rng = np.random.default_rng(0)
    images = [encode_jpeg(render(sample_scene(rng), 256)) for _ in range(num_images)]

    def peer() -> list[str]:
        return [str(imagehash.phash(Image.open(io.BytesIO(image)))) for image in images]

    assert [f"{value:016x}" for value in perceptual_hash(images)] == peer()
    return row("perceptual hashes", "images/s", num_images, "imagehash", lambda: perceptual_hash(images), peer)


def tokenizing(num_captions: int = 5000) -> Row:
    """Clean and tokenize captions to padded tensors."""
    from open_clip.tokenizer import SimpleTokenizer

    rng = np.random.default_rng(0)
    captions = [describe(sample_scene(rng), rng) for _ in range(num_captions)]
    tokenizer, theirs = Tokenizer.train(captions, 1024, 77), SimpleTokenizer()
    return row(
        "tokenize captions",
        "captions/s",
        num_captions,
        "open_clip SimpleTokenizer",
        lambda: tokenizer.encode(captions),
        lambda: theirs(captions),
    )


def contrasting(batch: int = 4096, width: int = 512) -> Row:
    """Contrastive loss of one rank, forward and backward, in float32."""
    from open_clip.loss import ClipLoss

    generator = torch.Generator().manual_seed(0)
    images, texts = (
        torch.nn.functional.normalize(torch.randn(batch, width, generator=generator), dim=-1) for _ in range(2)
    )
    scale = torch.tensor(2.6593)
    theirs = ClipLoss()

    def peer() -> None:
        leaves = [images.clone().requires_grad_(), texts.clone().requires_grad_(), scale.clone().requires_grad_()]
        theirs(leaves[0], leaves[1], leaves[2].exp()).backward()

    return row(
        f"contrastive loss and gradients, {batch:,} pairs of {width}",
        "pairs/s",
        batch,
        "open_clip ClipLoss",
        lambda: contrastive_gradients(images, texts, scale, [batch], 0),
        peer,
    )


ROWS: tuple[Callable[[], Row], ...] = (fetching, hashing, tokenizing, contrasting)
