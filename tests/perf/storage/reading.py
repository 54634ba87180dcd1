"""Compare reading for training with webdataset: `python -m tests.perf.storage.reading`; needs CLIP_DATA.

The same 12,000 pairs (photographs at 256 pixels, quality 95) are read in shuffled order from a snapshot and from
webdataset tars, on disk and over HTTP from an S3 server in another process. Both readers yield (jpg bytes, caption).
webdataset is set up as in open_clip but without decoding: shuffled shards, then a buffer of 5,000 samples. It reads S3
in its fastest way, with curl from the public URL of the object. Our reader shuffles windows of 20 row groups of 256
pairs. Each uses one process; runs alternate, and the fastest of three counts. CPU seconds include child processes
(curl).
"""

from __future__ import annotations

import io
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from cluster import storage
from cluster.part_file import RowGroups
from cluster.parts import Stage
from pipeline.data.exchange.webdataset import TarWriter, shard_name
from pipeline.data.snapshots import shard
from pipeline.data.snapshots.epoch_order import Order, ShardInfo
from pipeline.data.snapshots.reading import ShardReader, Shards, pairs
from pipeline.hashing import hash128
from pipeline.schemas import PAIRS, conform
from pipeline.train.reading.plan import Plan
from tests.perf.corpus.rows import environment
from tests.perf.crawl.matching import DATA

NUM_PAIRS, NUM_SHARDS = 12_000, 10
WINDOW = 20
BUFFER, INITIAL = 5_000, 1_000
"""Sizes of the shuffle buffer in open_clip."""
REPEATS = 3
Pairs = Iterator[tuple[bytes, str]]


@dataclass(frozen=True)
class Measured:
    """The measurements of one pass over all pairs."""

    rows: int
    num_bytes: int
    seconds: float
    cpu_seconds: float

    def __str__(self) -> str:
        """The figures of a row of the table."""
        per_core = self.num_bytes / 1e6 / self.cpu_seconds
        return f"{self.rows / self.seconds:,.0f} | {self.num_bytes / 1e6 / self.seconds:,.0f} | {per_core:,.0f}"


def cpu_seconds() -> float:
    """CPU seconds of this process and of its terminated child processes."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(read: Callable[[], Pairs]) -> Measured:
    """Measure reading all pairs, including the access to each."""
    started, before = time.perf_counter(), cpu_seconds()
    rows = num_bytes = 0
    for image, caption in read():
        rows += 1
        num_bytes += len(image) + len(caption)
    return Measured(rows, num_bytes, time.perf_counter() - started, cpu_seconds() - before)


def make(folder: Path) -> list[ShardInfo]:
    """Write shards to folder/shards and the same pairs as tars to folder/tars."""
    photographs = pq.read_table(DATA / "photos.parquet", columns=["image", "captions"]).to_pylist()
    images = []
    for row in photographs:
        sink = io.BytesIO()
        Image.open(io.BytesIO(row["image"])).resize((256, 256), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=95)
        images.append(sink.getvalue())
    chosen = np.arange(NUM_PAIRS) % len(images)
    captions = [photographs[i]["captions"][n // len(images) % 5] for n, i in enumerate(chosen)]
    table = pa.table(
        {
            "pair_id": [hash128(str(n)) for n in range(NUM_PAIRS)],
            "url": [f"https://host-{n % 400}.example/pictures/{n}.jpg" for n in range(NUM_PAIRS)],
            "caption": captions,
            "image": pa.array([images[i] for i in chosen], pa.large_binary()),
            "sha256": [hash128(str(n)) * 2 for n in range(NUM_PAIRS)],
            "width": [256] * NUM_PAIRS,
            "height": [256] * NUM_PAIRS,
        }
    )
    table = conform(table, PAIRS)
    stage, infos = Stage(str(folder / "shards"), NUM_SHARDS), []
    shard_numbers = shard.shard_of(table, NUM_SHARDS, 0)
    (folder / "tars").mkdir()
    config = shard.ShardConfig()
    for number in range(NUM_SHARDS):
        rows = shard.arrange(table.filter(pa.array(shard_numbers == number)), 0)
        part = stage.write(
            number, rows, row_groups=RowGroups(max_rows=config.row_group_size, max_bytes=config.row_group_bytes)
        )
        infos.append(ShardInfo(f"{folder}/shards/{part.file}", part.row_groups))
        name = shard_name(number, NUM_SHARDS)
        with (folder / "tars" / f"{name}.tar").open("wb") as file:
            tar = TarWriter(file, name, rows.num_rows)
            tar.write(rows, range(rows.num_rows))
            tar.close()
    return infos


def webdataset(urls: list[str]) -> Pairs:
    """Read tars as open_clip does, but without decoding."""
    import webdataset as wds
    from open_clip_train.data import detshuffle2

    pipeline = wds.DataPipeline(
        wds.SimpleShardList(urls),
        detshuffle2(bufsize=2000, initial=500, seed=0, epoch=0),
        wds.tarfile_to_samples(),
        wds.shuffle(bufsize=BUFFER, initial=INITIAL),
        wds.to_tuple("jpg", "txt"),
    )
    for image, text in pipeline:
        yield image, text.decode()


def ours(infos: list[ShardInfo]) -> Pairs:
    """Read all pairs of an epoch with our reader."""
    return pairs(open_shards(infos), Order(infos, window=WINDOW, seed=0), 0)


def open_shards(infos: list[ShardInfo]) -> Shards:
    """Open shards as loop.py does."""
    filesystem = storage.filesystem(infos[0].path)[0]
    return Shards(filesystem, tuple(storage.filesystem(info.path)[1] for info in infos), tuple(infos))


@contextmanager
def s3_server() -> Iterator[str]:
    """Run an S3 server on loopback in its own process; yields its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        while True:
            try:
                urllib.request.urlopen(endpoint, timeout=1).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        with environment(AWS_ENDPOINT_URL=endpoint, **keys):
            yield endpoint
    finally:
        server.terminate()
        server.wait()


def compare(location: str, ours: Callable[[], Pairs], peer: Callable[[], Pairs]) -> None:
    """Measure both readers, and print two rows of the table."""
    found: list[tuple[Measured, Measured]] = [(measure(ours), measure(peer)) for _ in range(REPEATS)]
    best = [min(side, key=lambda measured: measured.seconds) for side in zip(*found, strict=True)]
    assert best[0].rows == best[1].rows == NUM_PAIRS
    assert best[0].num_bytes == best[1].num_bytes
    ratio = best[1].seconds / best[0].seconds
    per_core = best[1].cpu_seconds / best[0].cpu_seconds
    print(f"| {location} | ours | {best[0]} | {ratio:.2f} | {per_core:.2f} |")
    print(f"| {location} | webdataset | {best[1]} | | |", flush=True)


def seek(location: str, infos: list[ShardInfo]) -> None:
    """Print the time until the first pair, for different start positions in the epoch."""
    seconds = []
    for position in (0, NUM_PAIRS // 2, NUM_PAIRS - 1):
        started = time.perf_counter()
        next(iter(pairs(open_shards(infos), Order(infos, window=1, seed=0), 0, start=position)))
        seconds.append(f"{1000 * (time.perf_counter() - started):.0f}")
    print(f"first pair at the beginning, middle and end of an epoch, {location}: {', '.join(seconds)} ms")


def training(infos: list[ShardInfo], batch: int = 256) -> None:
    """Print how often training reads a row group in an epoch, with and without the cache of row groups."""
    plan = Plan(infos, global_batch_size=batch, shuffle_row_groups=WINDOW, seed=0)
    for name, keeps in (("a reader that keeps row groups", True), ("one that does not", False)):
        reader, num_read, started = ShardReader(open_shards(infos)), 0, time.perf_counter()
        original = reader.read

        def counted(shard: int, row_group: int, original: Callable[..., pa.Table] = original) -> pa.Table:
            nonlocal num_read
            num_read += 1
            return original(shard, row_group)

        reader.read = counted  # type: ignore[method-assign, assignment]
        for step in range(plan.steps_per_epoch):
            for rows in plan.share(step, [batch], 0)[1]:
                reader.take(rows) if keeps else reader.read(rows.shard, rows.row_group).take(pa.array(rows.rows))
        seconds = time.perf_counter() - started
        num_groups = sum(len(info.row_groups) for info in infos)
        print(
            f"steps of {batch}, {name}: {num_read / num_groups:.2f} reads of each row group, "
            f"{plan.steps_per_epoch * batch / seconds:,.0f} rows/s"
        )


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        infos = make(folder)
        num_bytes = sum(Path(info.path).stat().st_size for info in infos)
        print(f"{NUM_PAIRS:,} pairs in {NUM_SHARDS} shards of {num_bytes / NUM_SHARDS / 1e6:.0f} MB\n")
        print("| from | by | rows/s | MB/s | MB/s/core | times | times/core |\n|---|---|---:|---:|---:|---:|---:|")
        tars = [str(file) for file in sorted((folder / "tars").iterdir())]
        compare("disk", lambda: ours(infos), lambda: webdataset(tars))
        with s3_server() as endpoint:
            client = boto3.client("s3")
            client.create_bucket(Bucket="pairs")
            for file in [*(Path(info.path) for info in infos), *map(Path, tars)]:
                client.upload_file(str(file), "pairs", file.name)
            remote = [ShardInfo(f"s3://pairs/{Path(info.path).name}", info.row_groups) for info in infos]
            addresses = [f"{endpoint}/pairs/{Path(tar).name}" for tar in tars]
            compare("S3", lambda: ours(remote), lambda: webdataset(addresses))
            print()
            seek("disk", infos)
            seek("S3", remote)
        training(infos)


if __name__ == "__main__":
    main()
