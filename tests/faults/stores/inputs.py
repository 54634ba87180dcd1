"""What the commands read, on S3: pairs to import, a crawl, snapshots, a model, evaluation sets, a finished training."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from cluster.runs import Run, identity
from jobs.crawl import CrawlJob
from pipeline.data.snapshots.takedown import take_down
from tests.pipeline.data.datasets import make, pair_id
from tests.pipeline.data.rows import encode, fetched, photo_like
from tests.pipeline.eval.models import save_small_model
from tests.pipeline.eval.pictures import make_sets
from tests.pipeline.train.pairs import write_snapshot
from tests.pipeline.train.telemetry.test_progress import CONFIGURATION, write_run

NUM_PAIRS = 24
NUM_FILES = 2
"""Files of pairs, and parts of the crawl."""
URL = "http://a.example/3.jpg"
"""The address of a pair in every version."""


def make_inputs(folder: Path, uri: str) -> None:
    """Make all inputs in a local folder, and copy them to a folder on S3."""
    pictures = [encode(photo_like(number, 90, 60), "JPEG") for number in range(NUM_PAIRS)]
    captions = [f"a picture with the number {number}" for number in range(NUM_PAIRS)]
    _write_pairs(folder / "pairs", pictures, captions)
    _write_pairs(folder / "other pairs", pictures[:-1], captions[1:])
    _write_crawl(folder / "crawl", pictures, captions)
    write_snapshot(folder / "snapshot", 64)
    (folder / "model").mkdir()
    save_small_model(folder / "model")
    make_sets(folder / "sets")
    for name in ("versions", "hidden"):
        make(str(folder / name), range(6), metadata={"configuration": {"seed": 1}})
        make(str(folder / name), range(2, 9), range(20, 24))
    take_down(str(folder / "hidden"), {"pair_id": [pair_id(5)]}, "asked for")
    (folder / "urls").write_text(f"{URL}\n", encoding="utf-8")
    Run.open(str(folder / "run"), CONFIGURATION)
    write_run(folder / "run", [2, 4], checkpoints=(2, 4))
    (folder / "run" / "result.json").write_text("{}")
    for path in (Path(parent, name) for parent, _, names in os.walk(folder) for name in names):
        if not path.name.startswith("."):
            storage.write_bytes(storage.join(uri, str(path.relative_to(folder))), path.read_bytes())


def copy_folder(server: Any, bucket: str, source: str, target: str) -> None:
    """Copy the objects below one prefix of a bucket to another."""
    for page in server.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{source}/"):
        for entry in page.get("Contents", []):
            key = f"{target}/{entry['Key'].removeprefix(f'{source}/')}"
            server.copy_object(Bucket=bucket, Key=key, CopySource={"Bucket": bucket, "Key": entry["Key"]})


def _write_pairs(folder: Path, pictures: list[bytes], captions: list[str]) -> None:
    """Parquet files of images and captions."""
    folder.mkdir(parents=True)
    for index in range(NUM_FILES):
        table = pa.table({"image": pictures[index::NUM_FILES], "caption": captions[index::NUM_FILES]})
        pq.write_table(table, folder / f"{index:05d}.parquet")


def _write_crawl(folder: Path, pictures: list[bytes], captions: list[str]) -> None:
    """A finished run of jobs.crawl, as far as jobs.curate reads it."""
    configuration = identity(CrawlJob(input="", output=str(folder)))
    known = {"queries": "a" * 32, "fetch_parts": NUM_FILES, "block_lists": {}}
    stage = Run.open(str(folder), configuration | known).stage("fetched", NUM_FILES)
    for part in range(NUM_FILES):
        numbers = range(part, NUM_PAIRS, NUM_FILES)
        table = fetched(
            pair_id=[pair_id(number) for number in numbers],
            url=[f"http://a.example/{number}.jpg" for number in numbers],
            caption=captions[part::NUM_FILES],
            caption_source=["alt"] * len(numbers),
            spare_captions=[[]] * len(numbers),
            query_ids=[[number % 3] for number in numbers],
            jpg=pictures[part::NUM_FILES],
            width=[90] * len(numbers),
            height=[60] * len(numbers),
            original_width=[90] * len(numbers),
            original_height=[60] * len(numbers),
            sha256=[f"{number:064x}" for number in numbers],
        )
        stage.write(part, table)
    (folder / "funnel.json").write_text(json.dumps([]))
