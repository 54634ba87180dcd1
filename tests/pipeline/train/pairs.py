"""A small data set of coloured pictures with captions that name the colour, and a small model for it."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.data.snapshots.commit import commit
from pipeline.data.snapshots.snapshot import QUERY_COUNTS, Shard, Snapshot
from pipeline.model.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from pipeline.schemas import PAIRS, conform

MODEL = ModelConfig(
    embed_dim=16,
    image=ImageTowerConfig(
        architecture="convnext_atto",
        image_size=32,
        options={"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "kernel_sizes": 3, "ls_init_value": None},
    ),
    text=TextTowerConfig(width=16, heads=2, layers=1, context_length=14, vocab_size=560),
)
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "yellow": (230, 220, 40)}


def make_pairs(num_rows: int, seed: int = 0) -> pa.Table:
    """A table of the schema PAIRS, with values in the image and caption columns only."""
    rng = np.random.default_rng(seed)
    names = list(COLOURS)
    chosen = [names[index] for index in rng.integers(len(names), size=num_rows)]
    captions = [f"a {name} card, number {number}" for number, name in enumerate(chosen)]
    images = []
    for name in chosen:
        pixels = np.clip(np.array(COLOURS[name]) + rng.integers(-25, 25, (40, 36, 3)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG")
        images.append(buffer.getvalue())
    return conform(pa.table({"caption": captions, "image": pa.array(images, pa.large_binary())}), PAIRS)


def write_snapshot(folder: Path, num_rows: int, *, num_shards: int = 2, rows_per_group: int = 16) -> Snapshot:
    """Commit a data set in `folder` and return its snapshot."""
    table, shards = make_pairs(num_rows), []
    (folder / "data").mkdir(parents=True)
    rows_per_shard = -(-num_rows // num_shards)
    for index in range(num_shards):
        path = f"data/part-{index:05d}.parquet"
        part = table.slice(index * rows_per_shard, rows_per_shard)
        pq.write_table(part, folder / path, row_group_size=rows_per_group, write_page_checksum=True)
        data = (folder / path).read_bytes()
        metadata = pq.read_metadata(folder / path)
        shards.append(
            Shard(
                path=path,
                num_rows=part.num_rows,
                num_bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                row_groups=tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)),
            )
        )
    return commit(str(folder), shards, QUERY_COUNTS.empty_table(), {})
