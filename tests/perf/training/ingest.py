"""Compare ingest with open_clip's webdataset pipeline: `python -m tests.perf.training.ingest`. Needs CLIP_DATA.

Both sides read the 12,000 pairs of tests.perf.storage.reading (photographs at 256 pixels, quality 95) into batches of
256: ours from a snapshot, the peer from the snapshot's export to tars on disk. Ours is `StepReader`, as reading tasks
run it, for a whole epoch. It gives uint8 crops and tokens; the device normalises the crops. The peer is open_clip's
`get_wds_dataset` with its training transform (Pillow, RandomResizedCrop, float32 normalised) and its SimpleTokenizer.
It runs without workers, so that no data is sent between processes. Its first batch, which fills its buffers, is not
timed; the next 4,096 images are. The sides take turns, each in one process on one core. Rates are images per CPU second
of the process, the best of three rounds.

The script then measures how much our crops differ from the same squares resized with Pillow's bicubic kernel, which
open_clip uses.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.snapshots.epoch_order import ShardInfo
from pipeline.model.images.random_crop import REDUCED_SHRINK, decode, random_square_crop
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.train.config import TrainConfig
from pipeline.train.reading.batches import StepReader
from pipeline.train.reading.plan import Plan
from tests.perf.corpus.rows import REPEATS
from tests.perf.storage.reading import NUM_PAIRS, WINDOW, make, open_shards

BATCH = 256
PEER_BATCHES = 16
SIZES = (224, 128, 64)
SHARE = TrainConfig().crop_share
Counts = Iterator[int]
"""The number of images in each batch."""


def ours(folder: Path, image_size: int) -> Counts:
    """Read an epoch of a snapshot with StepReader."""
    infos = tuple(
        ShardInfo(str(file), tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)))
        for file in sorted((folder / "shards").glob("*.parquet"))
        for metadata in [pq.read_metadata(file)]
    )
    plan = Plan(infos, global_batch_size=BATCH, shuffle_row_groups=WINDOW, seed=0)
    reader = StepReader(
        shards=open_shards(list(infos)),
        plan=plan,
        local_batch_sizes=(BATCH,),
        rank=0,
        seed=0,
        image_size=image_size,
        crop_share=SHARE,
        tokenizer_json=Tokenizer.released().to_json(),
        context_length=77,
    )
    for arrays in reader.read(range(plan.steps_per_epoch)):
        assert arrays["image"].shape[1:] == (3, image_size, image_size)
        yield len(arrays["image"])


def theirs(folder: Path, image_size: int) -> Counts:
    """Read an epoch of tars with open_clip."""
    import torch
    from open_clip import SimpleTokenizer
    from open_clip.transform import image_transform
    from open_clip_train import data

    torch.set_num_threads(1)
    # The installed webdataset emits end-of-tar markers, which open_clip's grouping cannot handle
    data.tar_file_expander = partial(data.tar_file_expander, eof_value=None)
    arguments = SimpleNamespace(
        train_data="::".join(map(str, sorted((folder / "tars").iterdir()))), train_num_samples=NUM_PAIRS,
        train_data_upsampling_factors=None, dataset_resampled=False, seed=0, batch_size=BATCH, workers=0, world_size=1,
    )  # fmt: skip
    dataset = data.get_wds_dataset(
        arguments, image_transform(image_size, is_train=True), is_train=True, floor=True, tokenizer=SimpleTokenizer()
    )
    for images, tokens in dataset.dataloader:
        assert images.shape[1:] == (3, image_size, image_size)
        assert tokens.shape[1:] == (77,)
        yield len(images)


SIDES = {"ours": ours, "open_clip": theirs}


def images_per_cpu_second(side: str, folder: Path, image_size: int) -> float:
    """The rate of one side, measured in this process."""
    batches = SIDES[side](folder, image_size)
    if side == "open_clip":
        next(batches)
        batches = islice(batches, PEER_BATCHES)
    started = time.process_time()
    return sum(batches) / (time.process_time() - started)


def measure(side: str, folder: Path, image_size: int) -> float:
    """The rate of one side, measured in a separate process on one core."""
    command = [sys.executable, "-m", "tests.perf.training.ingest", "--one", side, str(folder), str(image_size)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def differences(photographs: list[bytes], image_size: int) -> tuple[float, float]:
    """Median and lowest peak signal-to-noise ratio, in dB, against Pillow's bicubic kernel on the same square."""
    errors = []
    for photograph in photographs:
        ours = random_square_crop(
            decode(photograph, REDUCED_SHRINK * image_size / SHARE), image_size, SHARE, (0.5, 0.5)
        ).transpose(1, 2, 0)
        whole = random_square_crop(decode(photograph), round(SHARE * 256), SHARE, (0.5, 0.5)).transpose(1, 2, 0)
        square = Image.fromarray(np.ascontiguousarray(whole))
        theirs = np.asarray(square.resize((image_size, image_size), Image.Resampling.BICUBIC))
        errors.append(((ours.astype(np.float64) - theirs) ** 2).mean())
    decibels = 10 * np.log10(255**2 / np.maximum(errors, 1e-9))
    return float(np.median(decibels)), float(decibels.min())


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=3)
    if one := parser.parse_args().one:
        side, folder_name, image_size = one
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        cv2.setNumThreads(1)
        print(json.dumps(images_per_cpu_second(side, Path(folder_name), int(image_size))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        infos = make(folder)
        print("| pixels | ours, images/s/core | open_clip | ratio | ratio of each round |\n|---:|---:|---:|---:|---|")
        for size in SIZES:
            rounds = [{side: measure(side, folder, size) for side in SIDES} for _ in range(REPEATS)]
            best = {side: max(rates[side] for rates in rounds) for side in SIDES}
            ratios = ", ".join(f"{rates['ours'] / rates['open_clip']:.2f}" for rates in rounds)
            ratio = best["ours"] / best["open_clip"]
            print(f"| {size} | {best['ours']:,.0f} | {best['open_clip']:,.0f} | {ratio:.2f} | {ratios} |", flush=True)
        photographs = pq.read_table(infos[0].path, columns=["image"])["image"].slice(0, 200).to_pylist()
        assert all(Image.open(io.BytesIO(photograph)).size == (256, 256) for photograph in photographs)
        for size in SIZES[1:]:
            median, lowest = differences(photographs, size)
            print(f"{size} pixels: {median:.1f} dB against Pillow's bicubic kernel (median; lowest {lowest:.1f})")


if __name__ == "__main__":
    main()
