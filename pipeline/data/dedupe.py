"""Duplicates: rows that show the same picture, of which the best stays.

Before fetching, rows with the same address are one picture (`same_url`). After it, an edge joins two rows whose files
are equal (sha256) or whose perceptual hashes differ in at most `radius` bits, which is exact (hamming.py): 64 bits are
cut into radius + 1 bands, and by the pigeonhole principle two hashes within the radius agree on one band.

A row is dropped only for a direct edge to a row that is kept and ranks higher, never along a chain: walking the rows
from best to worst, each one stays unless a row that stayed is its neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.hamming import band_keys as band_keys
from pipeline.data.hamming import near_pairs as near_pairs
from pipeline.data.image import perceptual_hash
from pipeline.hashing import words_of_ids
from pipeline.schemas import DUPLICATES, EDGES, FINGERPRINTS, PICTURES, Reason, conform, with_reasons

CAPTION_SOURCES = ("figcaption", "alt", "table", "title", "og:image:alt")
"""Where a caption came from, best first."""


@dataclass(frozen=True, kw_only=True)
class DedupeConfig:
    """What counts as the same picture."""

    radius: int = 3
    """Bits in which two perceptual hashes of one picture may differ."""

    def __post_init__(self) -> None:
        if not 0 <= self.radius < 64:
            raise ValueError(f"dedupe.radius = {self.radius}: must be 0 to 63 of the 64 bits")


def caption_order(table: pa.Table) -> npt.NDArray[np.int64]:
    """The rows' order from the best caption to the worst: by source, then the longer one, then by id."""
    place = {source: i for i, source in enumerate(CAPTION_SOURCES)}
    columns = [table[name].to_pylist() for name in ("caption_source", "caption", "pair_id", "page_url")]
    keys = [
        (place.get(source, len(place)), -len(caption), pair_id, page_url or "")
        for source, caption, pair_id, page_url in zip(*columns, strict=True)
    ]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def same_url(table: pa.Table, url: str = "image_url") -> pa.Table:
    """The table with a reason for all but the best-captioned row of each address, which gets the others' captions.

    All rows of an address must be in the table (flow.py gives whole buckets of addresses). Spare captions that the rows
    have already go on, longest first, so that the rows kept of two tables give what their rows at once would.
    """
    order = caption_order(table)
    urls, captions = table[url].to_pylist(), table["caption"].to_pylist()
    spare = [set(texts or ()) for texts in table["spare_captions"].to_pylist()]
    kept: dict[str, int] = {}
    reasons: list[str | None] = [None] * len(urls)
    for row in order.tolist():
        best = kept.setdefault(urls[row], row)
        if best != row:
            reasons[row] = Reason.DUPLICATE_URL
            spare[best] |= spare[row] | {captions[row]}
            spare[row] = set()
    for row in kept.values():
        spare[row].discard(captions[row])
    spares = [sorted(texts, key=lambda text: (-len(text), text)) for texts in spare]
    index = table.schema.get_field_index("spare_captions")
    table = table.set_column(index, "spare_captions", pa.array(spares, pa.list_(pa.string())))
    return with_reasons(table, reasons)


def pictures(table: pa.Table) -> pa.Table:
    """PICTURES of images.

    Args:
        table: columns pair_id, sha256, jpg, original_width, original_height.
    """
    hashes = perceptual_hash(table["jpg"].to_pylist())
    return conform(table.drop_columns(["jpg"]).append_column("phash", pa.array(hashes, pa.uint64())), PICTURES)


def with_phash(table: pa.Table, pictures: pa.Table) -> pa.Table:
    """FETCHED and the column phash, from the PICTURES of the same rows in the same order."""
    assert table["pair_id"] == pictures["pair_id"]
    return table.append_column("phash", pictures["phash"])


def fingerprints(table: pa.Table, radius: int) -> pa.Table:
    """FINGERPRINTS: radius + 1 rows for each picture, one per band of its perceptual hash.

    Equal files have equal perceptual hashes, so they meet in every band. The rank prefers more pixels of the original,
    then the id's hash, so that it does not depend on any order.

    Args:
        table: PICTURES.
        radius: bits that may differ.
    """
    width, height = (table[name].to_numpy().astype(np.uint64) for name in ("original_width", "original_height"))
    pixels = width * height
    tie = words_of_ids(table["pair_id"]) >> np.uint64(32)
    rank = ((np.uint64(2**32 - 1) - np.minimum(pixels, np.uint64(2**32 - 1))) << np.uint64(32)) | tie
    hashes = table["phash"].to_numpy()
    ranked = pa.Table.from_arrays(
        [table["pair_id"], table["sha256"], pa.array(hashes, pa.uint64()), pa.array(rank, pa.uint64())],
        names=["pair_id", "sha256", "phash", "rank"],
    )
    bands = [ranked.add_column(0, "band", pa.array(keys, pa.uint64())) for keys in band_keys(hashes, radius)]
    return pa.concat_tables(bands).cast(FINGERPRINTS)


def edges(table: pa.Table, radius: int) -> pa.Table:
    """EDGES among FINGERPRINTS that hold all rows of their bands.

    Rows with one and the same hash have the same neighbours, so only the best of them is compared with others, and the
    rest get a single edge to it: a picture that stands a million times in the web costs a million edges, not 10^12.
    """
    bands, hashes = table["band"].to_numpy(), table["phash"].to_numpy()
    standing = np.empty(table.num_rows, np.int64)  # 0 is the best row of all
    standing[_ranking(table)] = np.arange(table.num_rows)
    order = np.lexsort((standing, hashes, bands))
    new_band = np.diff(bands[order], prepend=~bands[order][:1]) != 0
    new_hash = new_band | (np.diff(hashes[order], prepend=~hashes[order][:1]) != 0)
    starts = np.flatnonzero(new_hash)
    leaders = order[starts]
    leader_of = np.repeat(leaders, np.diff(np.append(starts, len(order))))
    found = [np.stack([leader_of, order], axis=1)[~new_hash]]
    for group in np.split(leaders, np.flatnonzero(new_band[starts])[1:]):
        pairs = group[near_pairs(hashes[group], radius)]
        first_is_better = standing[pairs[:, :1]] < standing[pairs[:, 1:]]
        found.append(np.where(first_is_better, pairs, pairs[:, ::-1]))
    better, worse = np.concatenate(found).T
    ids, files = table["pair_id"].combine_chunks(), table["sha256"].to_numpy(zero_copy_only=False)
    ranks = table["rank"].to_numpy()
    columns = [ids.take(pa.array(better)), ranks[better], ids.take(pa.array(worse)), ranks[worse]]
    return pa.table([*columns, hashes[better] == hashes[worse], files[better] == files[worse]], schema=EDGES)


def _ranking(table: pa.Table) -> npt.NDArray[np.int64]:
    """Row numbers from the best to the worst: by rank, then by id."""
    return np.lexsort((table["pair_id"].to_numpy(zero_copy_only=False).astype(str), table["rank"].to_numpy()))


def resolve(table: pa.Table) -> pa.Table:
    """DUPLICATES from all EDGES: from best to worst, a row with a kept neighbour above it goes.

    A row hangs on the best row of its hash; where that one goes for a near neighbour, the row goes for it too, which is
    a neighbour of its own at the same distance.
    """
    names = ("worse_rank", "worse_id", "better_rank", "better_id", "same_hash", "same_file")
    dropped: dict[str, tuple[str, bool]] = {}
    for _, worse, _, better, same_hash, same_file in sorted(
        set(zip(*(table[name].to_pylist() for name in names), strict=True))
    ):
        if worse in dropped:
            continue
        if better not in dropped:
            dropped[worse] = (better, same_file)
        elif same_hash:
            dropped[worse] = (dropped[better][0], False)
    kept_ids = [kept for kept, _ in dropped.values()]
    same_files = [same_file for _, same_file in dropped.values()]
    return pa.table([list(dropped), kept_ids, same_files], schema=DUPLICATES)


class DuplicateFilter:
    """Marks the rows that `resolve` drops. Holds the ids of the dropped rows, 100 bytes each."""

    def __init__(self, duplicates: pa.Table) -> None:
        columns = (duplicates["pair_id"].to_pylist(), duplicates["same_file"].to_pylist())
        self._dropped: dict[str, bool] = dict(zip(*columns, strict=True))

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with a reason for each duplicate; rows that are out already stay as they are."""
        reasons: list[Any] = table["reason"].to_pylist()
        for i, pair_id in enumerate(table["pair_id"].to_pylist()):
            if reasons[i] is None and pair_id in self._dropped:
                same_file = self._dropped[pair_id]
                reasons[i] = Reason.DUPLICATE_SHA256 if same_file else Reason.DUPLICATE_PERCEPTUAL
        return with_reasons(table, reasons)
