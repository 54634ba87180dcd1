"""Flickr8k's photographs as a corpus: three quarters are pairs of a snapshot, the others are held out."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs import import_pairs
from jobs.import_pairs import ImportPairsJob
from pipeline.data.snapshots.shard import ShardConfig
from pipeline.hashing import hash64

DATA = Path(os.environ.get("CLIP_DATA", "../shared/data"))
HELD_OUT = 0.25


class Photograph(NamedTuple):
    """One, with its five captions."""

    jpeg: bytes
    captions: tuple[str, ...]


def photographs(side: int) -> tuple[list[Photograph], list[Photograph]]:
    """To learn from, and held out: all of them so many pixels high and wide."""
    learned: list[Photograph] = []
    held_out: list[Photograph] = []
    for row in pq.read_table(DATA / "photos.parquet", columns=["key", "captions", "image"]).to_pylist():
        sink = io.BytesIO()
        Image.open(io.BytesIO(row["image"])).convert("RGB").resize((side, side)).save(sink, "JPEG", quality=90)
        where = held_out if hash64([str(row["key"])])[0] / 2.0**64 < HELD_OUT else learned
        where.append(Photograph(sink.getvalue(), tuple(row["captions"])))
    return learned, held_out


def write_pairs(folder: Path, learned: list[Photograph]) -> str:
    """A snapshot in the folder, a pair for each caption; returns its data set."""
    (folder / "input").mkdir(parents=True, exist_ok=True)
    pairs = [(photograph.jpeg, caption) for photograph in learned for caption in photograph.captions]
    images, captions = zip(*pairs, strict=True)
    table = pa.table({"image": pa.array(images, pa.binary()), "caption": captions})
    pq.write_table(table, folder / "input" / "pairs.parquet")
    shard = ShardConfig(target_bytes=2**21)
    import_pairs.main(ImportPairsJob(input=str(folder / "input"), output=str(folder / "import"), shard=shard))
    return str(folder / "import" / "dataset")
