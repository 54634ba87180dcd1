"""Compare crawling with img2dataset: `python -m tests.perf.crawl.crawling`; needs CLIP_DATA.

The web has 20,000 photographs of 512x384 under 400 host names, each sent after 50 to 200 ms. Three programs fetch them:
the command jobs.crawl (from a table of URLs, with robots.txt, limits and address checks), the command img2dataset, and
a bare loop of aiohttp and img2dataset's Resizer in two processes. The steady rate is measured by the server and leaves
out the first and the last tenth of the photographs. The outputs are compared byte by byte. Memory is the proportional
set size of all processes of a command, sampled twice a second.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from pipeline.schemas import QUERIES
from tests.perf.crawl.image_server import image_server, sent
from tests.perf.crawl.matching import DATA
from tests.perf.training.memory import PeakMemory

NUM_HOSTS = 400
NUM_PHOTOGRAPHS = 2_000
SIZE = (512, 384)
IN_FLIGHT = 128
"""Simultaneous requests of each of the peer's two processes, and of each process of the bare loop."""
_PEER = """
import sys
from img2dataset import download
if __name__ == "__main__":
    download(url_list=sys.argv[1], input_format="parquet", url_col="url", caption_col="caption",
             output_folder=sys.argv[2], output_format="parquet", image_size=256, resize_mode="keep_ratio",
             resize_only_if_bigger=True, processes_count=2, thread_count=int(sys.argv[3]), number_sample_per_shard=1000)
"""


@dataclass(frozen=True)
class Measured:
    """The measurements of one program."""

    name: str
    seconds: float
    steady: float
    """Images per second, without the first and the last tenth."""
    peak_mib: float


def urls_of(count: int) -> list[str]:
    """URLs in an order that alternates between hosts."""
    return [f"http://host-{i % NUM_HOSTS:03d}.example/{i}.jpg" for i in range(count)]


def crawl_command(folder: Path, output: Path, port: int) -> list[str]:
    """The jobs.crawl command for the table of URLs."""
    options = {
        "input": folder / "addresses.parquet",
        "queries": folder / "queries.parquet",
        "output": output,
        "num_buckets": 8,
        "fetch.connect_to": f'{{"*.example": "127.0.0.1:{port}"}}',
        "fetch.min_interval_seconds": 0.1,
        "image.upright": "false",
    }
    return [sys.executable, "-m", "jobs.crawl", *(f"--{name}={value}" for name, value in options.items())]


def measure(name: str, command: Sequence[str], port: int, **environment: str) -> Measured:
    """Run a command to completion and measure it."""
    sent(port)
    started = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with PeakMemory(process.pid) as memory:
        output, _ = process.communicate()
    seconds = time.monotonic() - started
    if process.returncode:
        raise RuntimeError(f"{name} failed with exit status {process.returncode}:\n{output.decode()[-3000:]}")
    return Measured(name, seconds, steady_rate(sent(port)), memory.peak_bytes / 2**20)


def steady_rate(times: Sequence[float]) -> float:
    """Photographs per second, without the first and the last tenth."""
    first, last = len(times) // 10, len(times) * 9 // 10
    return (last - first) / (times[last] - times[first])


def bare(urls: Sequence[str], port: int) -> Measured:
    """Measure aiohttp and the Resizer alone: no robots.txt, limits, checks or output."""
    context = multiprocessing.get_context("spawn")
    sent(port)
    with context.Pool(2, _load) as pool:
        pool.starmap(
            _fetch_and_resize, [(urls[:2], port)] * 2, chunksize=1
        )  # warm up: process start and imports are not measured
        sent(port)
        started = time.monotonic()
        done = pool.starmap(_fetch_and_resize, [(urls[0::2], port), (urls[1::2], port)], chunksize=1)
        seconds = time.monotonic() - started
    assert sum(done) == len(urls)
    return Measured("bare loop", seconds, steady_rate(sent(port)), 0.0)


_resizer: Any = None
"""The Resizer of a process of the bare loop."""


def _load() -> None:
    global _resizer
    from img2dataset.resizer import Resizer

    _resizer = Resizer(image_size=256, resize_mode="keep_ratio", resize_only_if_bigger=True, encode_quality=95)


def _fetch_and_resize(urls: Sequence[str], port: int) -> int:
    async def run() -> int:
        slots, threads = asyncio.Semaphore(IN_FLIGHT), ThreadPoolExecutor(1)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT)) as session:

            async def fetch(url: str) -> bool:
                async with slots:
                    async with session.get(url, proxy=f"http://127.0.0.1:{port}") as response:
                        body = await response.read()
                    loop = asyncio.get_running_loop()
                    return (await loop.run_in_executor(threads, lambda: _resizer(io.BytesIO(body))))[0] is not None

            return sum(await asyncio.gather(*(fetch(url) for url in urls)))

    return asyncio.run(run())


def images(folder: Path) -> dict[str, bytes]:
    """The JPEG of each URL in the output of jobs.crawl or img2dataset."""
    files = sorted(str(file) for file in folder.glob("*.parquet"))
    table = pyarrow.dataset.dataset(files).to_table(["url", "jpg", "status"])
    rows = zip(*(table[name].to_pylist() for name in ("url", "jpg", "status")), strict=True)
    return {url: jpg for url, jpg, status in rows if status == "success"}


def main() -> None:
    """Measure all three programs and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    urls = urls_of(options.images)
    with tempfile.TemporaryDirectory() as name, image_server(DATA, SIZE, NUM_PHOTOGRAPHS) as port:
        folder = Path(name)
        captions = [f"a photograph of house number {i}" for i in range(len(urls))]
        pq.write_table(pa.table({"url": urls, "caption": captions}), folder / "addresses.parquet")
        columns = [[0], ["photograph"], ["bench"], [0.0], [0]]
        pq.write_table(pa.table(columns, schema=QUERIES), folder / "queries.parquet")
        for number in range(options.rounds):
            peer = folder / f"peer-{number}"
            quiet = {"http_proxy": f"http://127.0.0.1:{port}", "NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "offline"}
            command = [sys.executable, "-c", _PEER, str(folder / "addresses.parquet"), str(peer), str(IN_FLIGHT)]
            theirs = measure("img2dataset", command, port, **quiet)
            ours = measure("jobs.crawl", crawl_command(folder, folder / f"ours-{number}", port), port)
            loop = bare(urls, port)
            for measured in (ours, theirs, loop):
                whole = len(urls) / measured.seconds
                print(
                    f"{measured.name:12} {measured.steady:6.0f} steady  {whole:6.0f} whole  "
                    f"{measured.peak_mib:6.0f} MiB",
                    flush=True,
                )
            print(
                f"ratios: steady {ours.steady / theirs.steady:.2f}, whole {theirs.seconds / ours.seconds:.2f}, "
                f"of the bare loop {ours.steady / loop.steady:.2f}",
                flush=True,
            )
        our_images, peer_images = images(folder / "ours-0" / "fetched"), images(folder / "peer-0")
        num_equal = sum(our_images[url] == jpg for url, jpg in peer_images.items() if url in our_images)
        print(f"{len(our_images)} and {len(peer_images)} images, {num_equal} of them equal byte for byte")


if __name__ == "__main__":
    main()
