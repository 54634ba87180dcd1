"""Compare two versions: count the pairs that were added, removed, or have a different picture.

Shards that are in both versions are not read. From the other shards, ids are read one shard at a time and written to
NUM_PARTITIONS temporary files by hash, 24 bytes per pair. The partitions are then compared one by one. For two versions
of 400 million pairs without a common shard, the files take 19.2 GB; 300 MB are in memory at a time, and as much again
for sorting. Ids are compared by their first 64 bits: among 800 million ids, one collision is expected in 58
comparisons.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.snapshots import tombstones
from pipeline.data.snapshots.snapshot import Shard, Snapshot
from pipeline.hashing import bucket_of, id_words

NUM_PARTITIONS = 64
NUM_THREADS = 4
NUM_EXAMPLES = 5
RECORD = np.dtype([("pair", "<u8"), ("picture", "<u8"), ("shard", "<u4"), ("row", "<u4")])
Records = npt.NDArray[np.void]
"""One RECORD per pair: the first 64 bits of its id and of its picture's sha256, its shard and its row."""


@dataclass
class Difference:
    """The result of a comparison: numbers of pairs, and some example ids."""

    num_shards_shared: int = 0
    num_shards_old: int = 0
    num_shards_new: int = 0
    num_added: int = 0
    num_removed: int = 0
    num_changed: int = 0
    """Number of pairs whose picture is a different file."""
    removed_by_reason: Counter[str] = field(default_factory=Counter)
    """Number of removed pairs that were taken down, by the reason in the tombstone."""
    examples: dict[str, list[str]] = field(default_factory=lambda: {"added": [], "removed": [], "changed": []})
    """Ids of some pairs of each kind, those with the lowest hashes."""


def diff(old: Snapshot, new: Snapshot, progress: Callable[[int], None] = lambda _: None) -> Difference:
    """Compare two versions of a data set by the contents of their shards, including pairs that are taken down.

    Args:
        old: the version before.
        new: the version after.
        progress: called with the number of shards read since the previous call.
    """
    shared = {shard.sha256 for shard in old.shards} & {shard.sha256 for shard in new.shards}
    result = Difference(
        num_shards_shared=sum(shard.sha256 in shared for shard in new.shards),
        num_shards_old=len(old.shards),
        num_shards_new=len(new.shards),
    )
    own = [[shard for shard in snapshot.shards if shard.sha256 not in shared] for snapshot in (old, new)]
    reasons = _reasons(old.uri)
    with tempfile.TemporaryDirectory() as folder:
        sides = [Path(folder, name) for name in ("old", "new")]
        for shards, side in zip(own, sides, strict=True):
            _partition(shards, side, progress)
        for partition in range(NUM_PARTITIONS):
            before, after = (np.fromfile(side / str(partition), RECORD) for side in sides)
            _compare(before, after, own, reasons, result)
    return result


def num_shards_to_read(old: Snapshot, new: Snapshot) -> int:
    """The number of shards that a comparison reads."""
    digests = [{shard.sha256 for shard in snapshot.shards} for snapshot in (old, new)]
    return len(digests[0] ^ digests[1])


def _partition(shards: Sequence[Shard], folder: Path, progress: Callable[[int], None]) -> None:
    folder.mkdir()
    with ExitStack() as stack, ThreadPoolExecutor(NUM_THREADS) as threads:
        files = [stack.enter_context((folder / str(number)).open("wb")) for number in range(NUM_PARTITIONS)]
        for number, table in enumerate(threads.map(lambda shard: _read(shard, ["pair_id", "sha256"]), shards)):
            records = np.empty(table.num_rows, RECORD)
            records["pair"] = id_words(table["pair_id"])
            digests = table["sha256"].fill_null("0" * 64)
            records["picture"] = id_words(pc.utf8_slice_codeunits(digests, 0, 32))
            records["shard"], records["row"] = number, np.arange(table.num_rows)
            buckets = bucket_of(records["pair"].astype(np.uint64), NUM_PARTITIONS)
            order = np.argsort(buckets, kind="stable")
            ends = np.cumsum(np.bincount(buckets, minlength=NUM_PARTITIONS))
            for file, part in zip(files, np.split(records[order], ends[:-1]), strict=True):
                part.tofile(file)
            progress(1)


def _compare(
    before: Records, after: Records, shards: Sequence[Sequence[Shard]], reasons: Mapping[int, str], result: Difference
) -> None:
    before, after = (np.sort(side, order="pair") for side in (before, after))
    removed = before[~np.isin(before["pair"], after["pair"])]
    added = after[~np.isin(after["pair"], before["pair"])]
    _, first, second = np.intersect1d(before["pair"], after["pair"], return_indices=True)
    changed = after[second][before["picture"][first] != after["picture"][second]]
    result.num_removed += len(removed)
    result.num_added += len(added)
    result.num_changed += len(changed)
    known = removed["pair"][np.isin(removed["pair"], np.array(list(reasons), np.uint64))]
    result.removed_by_reason.update(reasons[word] for word in known.tolist())
    for name, records, side in (("removed", removed, 0), ("added", added, 1), ("changed", changed, 1)):
        num_missing = NUM_EXAMPLES - len(result.examples[name])
        result.examples[name] += [_id_of(shards[side], record) for record in records[:num_missing]]


def _id_of(shards: Sequence[Shard], record: Any) -> str:
    table = _read(shards[record["shard"]], ["pair_id"])
    return str(table["pair_id"][int(record["row"])].as_py())


def _reasons(uri: str) -> dict[int, str]:
    """The reason for each pair that is taken down, by the first 64 bits of its id."""
    table = tombstones.read(uri)
    table = table.filter(table["pair_id"].is_valid())
    words = id_words(table["pair_id"].to_pylist())
    return dict(zip(words.tolist(), table["reason"].to_pylist(), strict=True))


def _read(shard: Shard, columns: list[str]) -> pa.Table:
    return shard.read(lambda file: file.read(columns=columns))
