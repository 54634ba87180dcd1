"""Turn Flickr8k's photographs into a corpus: three quarters become pairs of a snapshot, the others are held out."""

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
    """A photograph and its five captions."""

    jpeg: bytes
    captions: tuple[str, ...]


def photographs(side: int) -> tuple[list[Photograph], list[Photograph]]:
    """Training and held-out photographs, all resized to `side` x `side` pixels."""
    learned: list[Photograph] = []
    held_out: list[Photograph] = []
    for row in pq.read_table(DATA / "photos.parquet", columns=["key", "captions", "image"]).to_pylist():
        sink = io.BytesIO()
        Image.open(io.BytesIO(row["image"])).convert("RGB").resize((side, side)).save(sink, "JPEG", quality=90)
        target = held_out if hash64([str(row["key"])])[0] / 2.0**64 < HELD_OUT else learned
        target.append(Photograph(sink.getvalue(), tuple(row["captions"])))
    return learned, held_out


def write_pairs(folder: Path, learned: list[Photograph]) -> str:
    """Write a snapshot with one pair per caption into the folder; return the URI of its data set."""
    (folder / "input").mkdir(parents=True, exist_ok=True)
    pairs = [(photograph.jpeg, caption) for photograph in learned for caption in photograph.captions]
    images, captions = zip(*pairs, strict=True)
    table = pa.table({"image": pa.array(images, pa.binary()), "caption": captions})
    pq.write_table(table, folder / "input" / "pairs.parquet")
    shard = ShardConfig(target_bytes=2**21)
    import_pairs.main(ImportPairsJob(input=str(folder / "input"), output=str(folder / "import"), shard=shard))
    return str(folder / "import" / "dataset")
