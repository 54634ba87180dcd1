"""Read a worker's share of each step ahead, with a Ray Data pipeline per worker. Imports no torch, like batches.py."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import ray
import ray.data
from ray import ObjectRef
from ray.data import ExecutionResources

from cluster.session import configure_data
from pipeline.train.config import TrainConfig
from pipeline.train.reading.batches import Arrays, StepReader

READS_AHEAD = 4
"""Number of reading tasks whose rows may wait for a worker."""
READS_PER_PIPELINE = 4096
"""Reading tasks of one pipeline. It keeps the list of its tasks in memory, so a long run uses several in sequence."""


def stream(reader: StepReader, steps: range, config: TrainConfig) -> Iterator[Arrays]:
    """Yield the worker's share of each step, in order."""
    configure_data()
    local_batch_size = reader.local_batch_sizes[reader.rank]
    stride = max(1, config.rows_per_read // local_batch_size)
    bytes_per_read = stride * local_batch_size * (3 * reader.image_size**2 + 4 * reader.context_length + 12)

    reference = ray.put(reader)

    def read(item: dict[str, np.ndarray[Any, Any]]) -> Iterator[Arrays]:
        first = int(item["item"][0])
        yield from _reader(reference).read(range(first, min(first + stride, steps.stop)))

    firsts = steps[::stride]
    for start in range(0, len(firsts), READS_PER_PIPELINE):
        items = list(firsts[start : start + READS_PER_PIPELINE])
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(read, batch_size=None)
        options = dataset.context.execution_options
        options.preserve_order = True
        # By default each worker's pipeline plans with all resources of the cluster, so limit it to its share
        options.resource_limits = ExecutionResources(
            cpu=config.read_cpus_per_worker, object_store_memory=READS_AHEAD * bytes_per_read
        )
        yield from dataset.iter_batches(batch_size=local_batch_size, batch_format="numpy", prefetch_batches=1)


def checked(arrays: Iterator[Arrays], steps: range, local_batch_size: int) -> Iterator[Arrays]:
    """Yield the same arrays after checking their steps and sizes: Ray Data does not detect missing rows.

    Raises:
        RuntimeError: samples are missing, or there are too many.
    """
    for step in steps:
        part = next(arrays, None)
        received = part["step"].tolist() if part else []
        if part is None or received != [step] * local_batch_size:
            raise RuntimeError(
                f"expected {local_batch_size} samples of step {step}, received {len(received)} of steps {set(received)}"
            )
        yield part
    if next(arrays, None) is not None:
        raise RuntimeError(f"received samples after the last step, {steps.stop - 1}")


@lru_cache(maxsize=1)
def _reader(reference: ObjectRef[StepReader]) -> StepReader:
    """The reader of this process. Consecutive tasks share it, so they reuse its cached rows and its epoch order."""
    reader: StepReader = ray.get(reference)
    return reader
