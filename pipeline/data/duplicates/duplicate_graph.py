"""Decide which pictures to keep: build a graph of similar pictures, and drop each that has a better kept neighbour.

A node is a picture: all rows with one perceptual hash. An edge joins two pictures if their hashes differ in at most
`radius` bits; or in at most `caption_radius` bits and the pictures share a caption; or if one picture is similar to the
other mirrored or rotated. Near hashes are found exactly (hamming.py), with one band of bits in each bucket.

By definition, pictures are visited from the best to the worst, and each is kept unless a neighbour was kept before. So
a picture is dropped only for a direct neighbour that is kept and ranks higher, never along a chain. This is the
lexicographically first maximal independent set, which can be computed in parallel rounds (Blelloch, Fineman and Shun
2012). In each round, every picture without a better neighbour is kept, its neighbours are dropped, and the edges of
both are removed. A round is two passes over the remaining edges, in buckets of nodes that send messages to each other
as rows (LINKS). The number of rounds grows with the logarithm of the size of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.duplicates.hamming import band_keys, near_in_band, near_values
from pipeline.data.images.phash import MIRRORED, UNCHANGED, Variant
from pipeline.hashing import UInt64
from pipeline.reasons import Reason
from pipeline.resume_safe import RESUME_SAFE
from pipeline.schemas import DROPPED_PICTURES, EDGES, FINGERPRINTS, LINKS

Int64 = npt.NDArray[np.int64]
CAPTIONS = -1
"""Used as a band index: the key is a caption, so that pictures with a common caption are compared."""
LINK, DROP, CUT = 0, 1, 2
"""Kinds of rows of LINKS: an edge of the node; drop the node because a neighbour is kept; a neighbour is dropped."""


@dataclass(frozen=True, kw_only=True)
class DedupeConfig:
    """When two pictures count as the same."""

    radius: int = 4
    """Maximum number of bits in which the perceptual hashes of one picture may differ. Distances are nearly always
    even. 6 finds more copies, but among hundreds of millions of pictures about one wrong match per picture
    (docs/results.md)."""
    caption_radius: int = 8
    """Maximum number of bits for pictures with a common caption; has no effect unless larger than `radius`."""
    mirrored: bool = False
    """Whether a picture and its mirror image count as the same."""
    degrees: tuple[float, ...] = ()
    """Angles by which a copy may be rotated; a small angle also covers angles near to it."""
    max_links_at_once: int = field(default=2_000_000, metadata=RESUME_SAFE)
    """Maximum number of links (twice the edges) that one worker resolves, at 100 bytes per link. While more remain, the
    duplicate graph is resolved in rounds over all workers. The result is the same."""

    def __post_init__(self) -> None:
        for name in ("radius", "caption_radius"):
            if not 0 <= getattr(self, name) < 64:
                raise ValueError(f"dedupe.{name} = {getattr(self, name)}: must be 0 to 63 of the 64 bits")

    @property
    def variants(self) -> list[Variant]:
        """The variants of a picture that are hashed; the unchanged picture comes first."""
        rotated = [Variant(degrees=degrees) for degrees in self.degrees]
        return [UNCHANGED, *([MIRRORED] if self.mirrored else []), *rotated]


def leaders(pictures: pa.Table) -> Int64:
    """The index of the best row of each picture, by rank and then id; in ascending order of the hash."""
    hashes, ranks = pictures["phash"].to_numpy(), pictures["rank"].to_numpy()
    order = np.lexsort((pictures["pair_id"].to_numpy(zero_copy_only=False).astype(str), ranks, hashes))
    first = np.diff(hashes[order], prepend=~hashes[order][:1]) != 0
    leading: Int64 = order[first]
    return leading


def fingerprints(pictures: pa.Table, config: DedupeConfig) -> pa.Table:
    """FINGERPRINTS of PICTURES with all rows of each hash: one row per band and variant, and one per caption."""
    best = leaders(pictures)
    nodes = pictures.take(pa.array(best))
    hashes = nodes["phash"].to_numpy()
    rows = [
        _fingerprints(nodes, probes, band, keys)
        for probes in _probes(nodes)
        for band, keys in enumerate(band_keys(probes, config.radius))
    ]
    if config.caption_radius > config.radius:
        captions = np.stack([pictures["phash"].to_numpy(), pictures["caption_key"].to_numpy()], axis=1)
        captions = np.unique(captions[captions[:, 1] != 0], axis=0)
        indices = hashes.searchsorted(captions[:, 0])
        rows.append(_fingerprints(nodes.take(pa.array(indices)), captions[:, 0], CAPTIONS, captions[:, 1]))
    return pa.concat_tables([FINGERPRINTS.empty_table(), *rows])


def _probes(nodes: pa.Table) -> Iterator[UInt64]:
    """Yield the hashes of the pictures, then those of each variant."""
    yield nodes["phash"].to_numpy()
    if nodes.num_rows:
        variants = nodes["variants"].combine_chunks()
        yield from variants.flatten().to_numpy().reshape(nodes.num_rows, -1).T


def _fingerprints(nodes: pa.Table, probes: UInt64, band: int, keys: UInt64) -> pa.Table:
    columns = [pa.array(np.full(len(keys), band, np.int8)), pa.array(keys), pa.array(probes)]
    return pa.table([*columns, *(nodes[name] for name in FINGERPRINTS.names[3:])], schema=FINGERPRINTS)


def edges(table: pa.Table, config: DedupeConfig) -> pa.Table:
    """EDGES among FINGERPRINTS with all rows of each key; over all buckets, every edge is found at least once."""
    bands, probes, hashes = (table[name].to_numpy() for name in ("band", "probe", "phash"))
    own = probes == hashes
    found: list[tuple[UInt64, UInt64, Reason]] = []
    for band in np.unique(bands).tolist():
        in_band = bands == band
        if band == CAPTIONS:
            found += _with_common_captions(hashes[in_band], table["key"].to_numpy()[in_band], config)
            continue
        distinct = np.unique(hashes[in_band & own])
        found.append((*near_in_band(distinct, config.radius, band), Reason.DUPLICATE_PERCEPTUAL))
        if (in_band & ~own).any():
            found.append(_turned(probes[in_band & ~own], hashes[in_band & ~own], distinct, config.radius, band))
    return _edges(table, found)


def _with_common_captions(
    hashes: UInt64, keys: UInt64, config: DedupeConfig
) -> Iterator[tuple[UInt64, UInt64, Reason]]:
    order = np.argsort(keys, kind="stable")
    starts = np.flatnonzero(np.diff(keys[order], prepend=~keys[order][:1]))
    sizes = np.diff(starts, append=len(order))
    for start, size in zip(starts[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        for first, second in near_values(hashes[order[start : start + size]], config.caption_radius):
            further = np.bitwise_count(first ^ second) > config.radius
            yield first[further], second[further], Reason.DUPLICATE_CAPTION


def _turned(probes: UInt64, hashes: UInt64, others: UInt64, radius: int, band: int) -> tuple[UInt64, UInt64, Reason]:
    """Pairs of pictures where one is near a variant of the other, but not near the unchanged other."""
    order = np.argsort(probes, kind="stable")
    near_probes, near_others = near_in_band(np.unique(probes), radius, band, others)
    begins, ends = (probes[order].searchsorted(near_probes, side=side) for side in ("left", "right"))
    counts = ends - begins
    rows = np.arange(counts.sum()) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
    first, second = hashes[order[rows]], np.repeat(near_others, counts)
    is_new = np.bitwise_count(first ^ second) > radius
    return first[is_new], second[is_new], Reason.DUPLICATE_TURNED


def _edges(table: pa.Table, found: list[tuple[UInt64, UInt64, Reason]]) -> pa.Table:
    """EDGES of pairs of hashes, each directed from the better picture to the worse."""
    hashes, rows = np.unique(table["phash"].to_numpy(), return_index=True)
    ranks, ids, parts = table["rank"].to_numpy()[rows], table["pair_id"].combine_chunks(), table["part"].to_numpy()
    tables = [EDGES.empty_table()]
    for first, second, reason in found:
        i, j = hashes.searchsorted(first), hashes.searchsorted(second)
        better_first = (ranks[i] < ranks[j]) | ((ranks[i] == ranks[j]) & (first < second))
        better, worse = np.where(better_first, i, j), np.where(better_first, j, i)
        better_rows = rows[better]
        columns = [
            hashes[better],
            ranks[better],
            ids.take(pa.array(better_rows)),
            parts[better_rows],
            hashes[worse],
        ]
        tables.append(pa.table([*columns, [reason.value] * len(i)], schema=EDGES))
    return pa.concat_tables(tables)


def links(edges: pa.Table) -> pa.Table:
    """LINKS of EDGES: one row for each end of every edge."""
    better, worse = edges["better_hash"], edges["worse_hash"]
    return pa.concat_tables(
        [_links(edges, LINK, worse, better, is_better=False), _links(edges, LINK, better, worse, is_better=True)]
    )


def _links(table: pa.Table, kind: int, node: pa.ChunkedArray, other: pa.ChunkedArray, *, is_better: bool) -> pa.Table:
    columns = [pa.array(np.full(table.num_rows, kind, np.int8)), node, other]
    columns += [pa.array(np.full(table.num_rows, is_better)), *(table[name] for name in LINKS.names[4:])]
    return pa.table(columns, schema=LINKS)


def settle(table: pa.Table) -> pa.Table:
    """The first pass of a round: keep each node without a better neighbour, and send DROP to its neighbours.

    Args:
        table: all LINK and CUT rows of LINKS of some nodes; a column `reason` is ignored.

    Returns:
        LINKS: the edges of the nodes that still have a better neighbour, and the DROP rows from the kept nodes.
    """
    table = table.select(LINKS.names)
    table, cuts = _of_kind(table, LINK), _of_kind(table, CUT)
    table = table.filter(pa.array(~_is_cut(table, cuts)))
    nodes, is_better = table["node"].to_numpy(), table["node_is_better"].to_numpy()
    is_open = np.isin(nodes, nodes[~is_better])
    of_kept = table.filter(pa.array(~is_open))
    drops = _links(of_kept, DROP, of_kept["other"], of_kept["node"], is_better=False)
    return pa.concat_tables([table.filter(pa.array(is_open)), drops])


def spread(table: pa.Table) -> pa.Table:
    """The second pass of a round: drop each node that received DROP, and send CUT to its worse neighbours.

    Args:
        table: all LINK and DROP rows of LINKS of some nodes.

    Returns:
        LINKS with a column `reason`: the remaining edges, the CUT rows, and for each dropped node its best DROP row
        with the reason. `reason` is null in all other rows.
    """
    table, drops = _of_kind(table, LINK), _of_kind(table, DROP)
    nodes = table["node"].to_numpy()
    drops = drops.filter(pa.array(np.isin(drops["node"].to_numpy(), nodes)))
    dropped = drops["node"].to_numpy()
    order = np.lexsort(
        (drops["why"].to_numpy(zero_copy_only=False).astype(str), drops["other"], drops["better_rank"], dropped)
    )
    drops = drops.take(pa.array(order[np.diff(dropped[order], prepend=~dropped[order][:1]) != 0]))
    is_dropped = np.isin(nodes, dropped)
    to_worse = table.filter(pa.array(is_dropped & table["node_is_better"].to_numpy()))
    cuts = _links(to_worse, CUT, to_worse["other"], to_worse["node"], is_better=False)
    rest = pa.concat_tables([table.filter(pa.array(~is_dropped)), cuts])
    reasons = pa.chunked_array([pa.nulls(rest.num_rows, pa.string()), *drops["why"].chunks])
    return pa.concat_tables([rest, drops]).append_column("reason", reasons)


def dropped_pictures(table: pa.Table) -> pa.Table:
    """DROPPED_PICTURES of the rows of LINKS that have a reason from `spread`."""
    columns = ["node", "better_id", "better_part", "why"]
    return table.select(columns).rename_columns(DROPPED_PICTURES.names).cast(DROPPED_PICTURES)


def resolve(table: pa.Table) -> pa.Table:
    """DROPPED_PICTURES of a whole graph, given all its LINKS; runs all rounds in memory."""
    found = [DROPPED_PICTURES.empty_table()]
    while table.num_rows:
        table = spread(settle(table))
        found.append(dropped_pictures(table.filter(table["reason"].is_valid())))
        table = table.filter(table["reason"].is_null())
    return pa.concat_tables(found)


def _of_kind(table: pa.Table, kind: int) -> pa.Table:
    return table.filter(pc.equal(table["kind"], pa.scalar(kind, pa.int8())))


def _is_cut(table: pa.Table, cuts: pa.Table) -> npt.NDArray[np.bool_]:
    """Whether each row has the same `node` and `other` as one of the cuts."""
    both = [np.concatenate([table[name].to_numpy(), cuts[name].to_numpy()]) for name in ("node", "other")]
    from_cuts = np.arange(len(both[0])) >= table.num_rows
    order = np.lexsort(both)
    new = np.zeros(len(order), bool)
    for values in both:
        new |= np.diff(values[order], prepend=~values[order][:1]) != 0
    groups = np.cumsum(new)
    has_cut = np.zeros(len(order) + 1, bool)
    has_cut[groups[from_cuts[order]]] = True
    result = np.empty(len(order), bool)
    result[order] = has_cut[groups]
    return result[: table.num_rows]
