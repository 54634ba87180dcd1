"""Build an index of the images of evaluation sets, with which jobs.curate finds them among the training pairs.

`python -m jobs.overlap --datasets sets/ --encoder.model runs/detector/model --output runs/overlap`
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from itertools import accumulate

import pyarrow as pa
import pyarrow.compute as pc

from cluster import parquet, storage
from cluster.runs import Run
from cluster.session import SessionConfig, session
from cluster.stages import Stages, Transform
from jobs.options.encoders import EncoderConfig
from jobs.options.inputs import ENCODER_KEY
from jobs.options.launch import launch
from pipeline.data.duplicates.hamming import near_pairs
from pipeline.data.duplicates.overlap import build_index_table
from pipeline.eval.flows import benchmark_flow
from pipeline.schemas import OVERLAP_INDEX

RADII = (0, 2, 4, 6, 8)
"""Hamming distances; for each of them, index.json counts the pairs of a set's own images that are this close."""

logger = logging.getLogger("clip")


@dataclass(frozen=True, kw_only=True)
class OverlapJob:
    """Hash all images of the evaluation sets, and compute their embeddings if an encoder is given."""

    datasets: str
    """Folder of evaluation sets, local or s3://. Each set is a folder with dataset.json and test.parquet."""
    output: str
    """Folder of the run. It gets index.parquet, and index.json with statistics of each set."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    session: SessionConfig = field(default_factory=SessionConfig)


@dataclass(frozen=True)
class RowGroup:
    """One row group of the test.parquet of an evaluation set."""

    benchmark: str
    set_sha256: str
    uri: str
    row_group: int
    first_item: int
    split: str = "test"

    def read(self) -> pa.Table:
        """Read the row group as a table for `build_index_table`."""
        images = benchmark_flow.read_images(self.uri, self.row_group)
        rows = images.num_rows
        columns = {name: pa.repeat(getattr(self, name), rows) for name in ("benchmark", "set_sha256", "split")}
        items = pa.array(range(self.first_item, self.first_item + rows), pa.int64())
        return pa.table(columns | {"item": items, "image": images["image"]})


def main(job: OverlapJob) -> None:
    """Index the row groups that are not indexed yet, and write the index."""
    if not storage.exists(job.datasets):
        raise FileNotFoundError(f"datasets={job.datasets}: does not exist; give the folder of the evaluation sets")
    sources = benchmark_flow.open_sets(job.datasets)
    sets = benchmark_flow.hashes_by_name(sources, job.datasets)
    encoder, encoder_sha256 = job.encoder.open() or (None, None)
    run = Run.open(job.output, {"sets": sets, "encoder": encoder_sha256})
    groups = [
        RowGroup(source.dataset.name, source.sha256, source.uri, row_group, first)
        for source in sources
        for row_group, first in enumerate(accumulate(source.row_groups[:-1], initial=0))
    ]

    def prepare() -> Transform:
        encode = encoder() if encoder else None
        return lambda table: build_index_table(table, encode)

    pools = [(prepare, job.encoder.pool)]
    with session(job.session, needs=[job.encoder.pool]):
        items = Stages(run)("items", len(groups), lambda part: groups[part].read(), pools=pools)
    index = items.table(OVERLAP_INDEX)
    metadata = {ENCODER_KEY: encoder_sha256.encode()} if encoder_sha256 else None
    written = parquet.encode(index.replace_schema_metadata(metadata))
    storage.write_bytes(storage.join(run.uri, "index.parquet"), written)
    statistics = {name: describe_set(name, index) for name in sets}
    storage.write_bytes(storage.join(run.uri, "index.json"), json.dumps(statistics, indent=1).encode())


def describe_set(name: str, index: pa.Table) -> dict[str, object]:
    """Count the images of a set, and the pairs of its own images that a search within each of RADII would confuse."""
    rows = index.filter(pc.equal(index["benchmark"], name))
    hashes = rows["phash"].drop_null().to_numpy()
    near = {radius: len(near_pairs(hashes, radius)) for radius in RADII}
    distances = ", ".join(f"{count:,} within {radius}" for radius, count in near.items())
    num_plain = rows["phash"].null_count
    message = "%s: %d images, %d too plain for a hash; pairs of near images: %s"
    logger.info(message, name, rows.num_rows, num_plain, distances)
    return {"num_images": rows.num_rows, "num_plain": num_plain, "near_pairs": near}


if __name__ == "__main__":
    launch(OverlapJob, main)
