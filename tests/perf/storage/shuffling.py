"""Compare a windowed shuffle with a full shuffle: `python -m tests.perf.storage.shuffling`.

2,048 row groups of 256 rows are read in batches of 16,384 (the rows of 64 row groups), with windows from 16 to all row
groups. The measures are computed from the plan. A full shuffle gives 1 for each measure, and 0 for the correlation:

- *clumping*: the variance of a source's share of a batch, over batches and 512 sources of 4 row groups each, divided by
  the variance of the hypergeometric distribution, which a full shuffle has. Measured once with rows in the order of
  their sources, the worst case, and once as shards are written: shuffled by a hash (pipeline/data/snapshots/shard.py).
- *batch mates*: how often two rows of one row group share a batch, divided by the expectation of that distribution.
- *met before*: how often two rows of one batch shared a batch in the previous epoch, divided by the expectation.
- *correlation* of a row's position in the snapshot with its batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.data.snapshots.epoch_order import ShardInfo
from pipeline.hashing import draws
from pipeline.train.reading.plan import Plan

NUM_GROUPS, ROWS, BATCH_GROUPS, SOURCE_GROUPS = 2048, 256, 64, 4
WINDOWS = (16, 32, 64, 128, 256, 1024, NUM_GROUPS)
NUM_ROWS, BATCH = NUM_GROUPS * ROWS, BATCH_GROUPS * ROWS
Int64 = np.ndarray[Any, np.dtype[np.int64]]


def batches_of(window: int, epoch: int) -> Int64:
    """The index of the batch of each row."""
    infos = [ShardInfo(str(shard), (ROWS,) * 32) for shard in range(NUM_GROUPS // 32)]
    plan = Plan(infos, global_batch_size=BATCH, shuffle_row_groups=window, seed=0)
    batches = np.empty(NUM_ROWS, np.int64)
    for step in range(plan.steps_per_epoch):
        _, rows = plan.step(epoch * plan.steps_per_epoch + step)
        batches[rows] = step
    return batches


def pairs_together(classes: Int64, batches: Int64) -> float:
    """The number of pairs of rows of one class that share a batch, divided by its expectation in a full shuffle."""
    together = np.bincount(classes * (NUM_ROWS // BATCH) + batches)
    size = np.bincount(classes)
    chance = (BATCH - 1) / (NUM_ROWS - 1)
    return float((together * (together - 1)).sum() / ((size * (size - 1)).sum() * chance))


def clumping(sources: Int64, batches: Int64) -> float:
    """The variance of the number of rows per source and batch, divided by that of the hypergeometric distribution."""
    share = np.bincount(sources) / NUM_ROWS
    counts = np.zeros((NUM_ROWS // BATCH, len(share)))
    np.add.at(counts, (batches, sources), 1)
    variance = BATCH * share * (1 - share) * (NUM_ROWS - BATCH) / (NUM_ROWS - 1)
    return float(((counts - BATCH * share) ** 2 / variance).mean())


def main() -> None:
    """Print the table."""
    rows = np.arange(NUM_ROWS)
    structured = rows // (ROWS * SOURCE_GROUPS)
    shuffled = structured[np.argsort(draws(1, rows.astype(np.uint64)))]
    full = np.argsort(np.argsort(draws(2, rows.astype(np.uint64)))) // BATCH
    again = np.argsort(np.argsort(draws(3, rows.astype(np.uint64)))) // BATCH
    print("| window, row groups | clumping, by source | as written | batch mates | met before | correlation |")
    print("|---:|---:|---:|---:|---:|---:|")
    cases = [(f"{window:,}", batches_of(window, 0), batches_of(window, 1)) for window in WINDOWS]
    for name, batches, following in [*cases, ("a full shuffle", full, again)]:
        found = (
            clumping(structured, batches),
            clumping(shuffled, batches),
            pairs_together(rows // ROWS, batches),
            pairs_together(batches, following),
        )
        correlation = np.corrcoef(rows, batches)[0, 1]
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in found)} | {correlation:+.3f} |", flush=True)


if __name__ == "__main__":
    main()
