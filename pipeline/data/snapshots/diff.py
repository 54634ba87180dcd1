"""What differs between two versions: pairs added, removed, and those whose picture is another one now.

Shards that both have are not read. Of the others the ids are read shard by shard and put into NUM_PARTITIONS files by
their hash, 24 bytes a pair, and then compared partition by partition. Two versions of 400 million pairs with no shard
in common: 19.2 GB of temporary files, 300 MB of them in memory at a time and as much again to sort them. Ids count by
their first 64 bits: among 800 million two may coincide once in 58 such comparisons.
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
from pipeline.hashing import bucket_of, words_of_ids

NUM_PARTITIONS = 64
NUM_THREADS = 4
NUM_EXAMPLES = 5
RECORD = np.dtype([("pair", "<u8"), ("picture", "<u8"), ("shard", "<u4"), ("row", "<u4")])
Records = npt.NDArray[np.void]
"""RECORD of each pair: words of its id and of its picture's sha256, and where it lies."""


@dataclass
class Difference:
    """Numbers of pairs, with the ids of some."""

    num_shards_shared: int = 0
    num_shards_old: int = 0
    num_shards_new: int = 0
    num_added: int = 0
    num_removed: int = 0
    num_changed: int = 0
    """Pairs whose picture is another file."""
    removed_by_reason: Counter[str] = field(default_factory=Counter)
    """Of those removed that a tombstone names: its reason."""
    examples: dict[str, list[str]] = field(default_factory=lambda: {"added": [], "removed": [], "changed": []})
    """Ids of some pairs of each kind, those of the lowest hashes."""


def diff(old: Snapshot, new: Snapshot, tell: Callable[[int], None] = lambda _: None) -> Difference:
    """Compare two versions of a data set by what their shards hold, pairs taken down included.

    Args:
        old: the version that pairs are removed from.
        new: the version that they are added to.
        tell: is called with the number of shards read since the call before.
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
            _partition(shards, side, tell)
        for partition in range(NUM_PARTITIONS):
            before, after = (np.fromfile(side / str(partition), RECORD) for side in sides)
            _compare(before, after, own, reasons, result)
    return result


def num_shards_to_read(old: Snapshot, new: Snapshot) -> int:
    """How many shards a comparison reads."""
    digests = [{shard.sha256 for shard in snapshot.shards} for snapshot in (old, new)]
    return len(digests[0] ^ digests[1])


def _partition(shards: Sequence[Shard], folder: Path, tell: Callable[[int], None]) -> None:
    folder.mkdir()
    with ExitStack() as stack, ThreadPoolExecutor(NUM_THREADS) as threads:
        files = [stack.enter_context((folder / str(number)).open("wb")) for number in range(NUM_PARTITIONS)]
        for number, table in enumerate(threads.map(lambda shard: _read(shard, ["pair_id", "sha256"]), shards)):
            records = np.empty(table.num_rows, RECORD)
            records["pair"] = words_of_ids(table["pair_id"])
            digests = table["sha256"].fill_null("0" * 64)
            records["picture"] = words_of_ids(pc.utf8_slice_codeunits(digests, 0, 32))
            records["shard"], records["row"] = number, np.arange(table.num_rows)
            buckets = bucket_of(records["pair"].astype(np.uint64), NUM_PARTITIONS)
            order = np.argsort(buckets, kind="stable")
            ends = np.cumsum(np.bincount(buckets, minlength=NUM_PARTITIONS))
            for file, part in zip(files, np.split(records[order], ends[:-1]), strict=True):
                part.tofile(file)
            tell(1)


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
        room = NUM_EXAMPLES - len(result.examples[name])
        result.examples[name] += [_id_of(shards[side], record) for record in records[:room]]


def _id_of(shards: Sequence[Shard], record: Any) -> str:
    table = _read(shards[record["shard"]], ["pair_id"])
    return str(table["pair_id"][int(record["row"])].as_py())


def _reasons(uri: str) -> dict[int, str]:
    """The reason of what is taken down, by the word of its id."""
    table = tombstones.read(uri)
    table = table.filter(table["pair_id"].is_valid())
    words = words_of_ids(table["pair_id"].to_pylist())
    return dict(zip(words.tolist(), table["reason"].to_pylist(), strict=True))


def _read(shard: Shard, columns: list[str]) -> pa.Table:
    with shard.open() as file:
        return file.read(columns=columns)
