"""Which pictures stay: a graph of like pictures, of which each goes that has a better neighbour that stays.

A node is a picture, which is all rows of one perceptual hash. An edge joins two whose hashes differ in at most `radius`
bits; or in at most `caption_radius`, where they have a caption in common; or of which one is like the other mirrored
or turned. Near hashes are found exactly (hamming.py), a band of bits in each bucket.

From the best picture to the worst, each stays unless a neighbour stayed: so a picture goes only for a direct edge to
one that stays and ranks higher, never along a chain. That is the lexicographically first maximal independent set, which
needs no such walk (Blelloch, Fineman and Shun 2012): in every round those without a better neighbour are settled, their
neighbours go, and the edges of both with them. A round is two passes over what is still open, each in buckets of nodes
that send each other rows (LINKS); the rounds needed grow with the logarithm of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.duplicates.hamming import band_keys, near_in_band, near_values
from pipeline.data.images.phash import AS_IT_IS, MIRRORED, Variant
from pipeline.hashing import UInt64
from pipeline.reasons import Reason
from pipeline.resume_safe import RESUME_SAFE
from pipeline.schemas import EDGES, FINGERPRINTS, GONE, LINKS

Int64 = npt.NDArray[np.int64]
CAPTIONS = -1
"""In place of a band's number: rows that have a caption in common meet."""
LINK, DROP, CUT = 0, 1, 2
"""What a row of LINKS says to its node: an edge; that it goes, for a neighbour that stays; that a neighbour goes."""


@dataclass(frozen=True, kw_only=True)
class DedupeConfig:
    """What counts as the same picture."""

    radius: int = 4
    """Bits in which two perceptual hashes of one picture may differ; nearly all are an even number apart. 6 finds
    more copies, and among hundreds of millions about a wrong one of each (docs/results.md)."""
    caption_radius: int = 8
    """The same where the pictures have a caption in common, as far as it is more."""
    mirrored: bool = False
    """Whether a picture and its mirror image are one."""
    degrees: tuple[float, ...] = ()
    """Angles by which one picture may be turned; a small one covers those near to it."""
    max_links_at_once: int = field(default=2_000_000, metadata=RESUME_SAFE)
    """Of the duplicate graph, twice its edges: with more than these left it is worked on in rounds over all workers,
    with fewer in one, 100 bytes each. The result is the same."""

    def __post_init__(self) -> None:
        for name in ("radius", "caption_radius"):
            if not 0 <= getattr(self, name) < 64:
                raise ValueError(f"dedupe.{name} = {getattr(self, name)}: must be 0 to 63 of the 64 bits")

    @property
    def variants(self) -> list[Variant]:
        """What a picture is hashed as, itself first."""
        turned = [Variant(degrees=degrees) for degrees in self.degrees]
        return [AS_IT_IS, *([MIRRORED] if self.mirrored else []), *turned]


def leaders(pictures: pa.Table) -> Int64:
    """The best row of each picture, by rank and id; ascending by hash."""
    hashes, ranks = pictures["phash"].to_numpy(), pictures["rank"].to_numpy()
    order = np.lexsort((pictures["pair_id"].to_numpy(zero_copy_only=False).astype(str), ranks, hashes))
    first = np.diff(hashes[order], prepend=~hashes[order][:1]) != 0
    leading: Int64 = order[first]
    return leading


def fingerprints(pictures: pa.Table, config: DedupeConfig) -> pa.Table:
    """FINGERPRINTS of PICTURES that hold all rows of their hashes: a row for each band, variant and common caption."""
    best = leaders(pictures)
    nodes = pictures.take(pa.array(best))
    hashes = nodes["phash"].to_numpy()
    rows = [
        _fingerprints(nodes, probes, band, keys)
        for probes in _probes(nodes)
        for band, keys in enumerate(band_keys(probes, config.radius))
    ]
    if config.caption_radius > config.radius:
        found = np.stack([pictures["phash"].to_numpy(), pictures["caption_key"].to_numpy()], axis=1)
        found = np.unique(found[found[:, 1] != 0], axis=0)
        places = hashes.searchsorted(found[:, 0])
        rows.append(_fingerprints(nodes.take(pa.array(places)), found[:, 0], CAPTIONS, found[:, 1]))
    return pa.concat_tables([FINGERPRINTS.empty_table(), *rows])


def _probes(nodes: pa.Table) -> Iterator[UInt64]:
    """The hashes of the pictures, and those of each variant."""
    yield nodes["phash"].to_numpy()
    if nodes.num_rows:
        variants = nodes["variants"].combine_chunks()
        yield from variants.flatten().to_numpy().reshape(nodes.num_rows, -1).T


def _fingerprints(nodes: pa.Table, probes: UInt64, band: int, keys: UInt64) -> pa.Table:
    columns = [pa.array(np.full(len(keys), band, np.int8)), pa.array(keys), pa.array(probes)]
    return pa.table([*columns, *(nodes[name] for name in FINGERPRINTS.names[3:])], schema=FINGERPRINTS)


def edges(table: pa.Table, config: DedupeConfig) -> pa.Table:
    """EDGES among FINGERPRINTS that hold all rows of their keys; over all buckets each edge at least once."""
    bands, probes, hashes = (table[name].to_numpy() for name in ("band", "probe", "phash"))
    own = probes == hashes
    found: list[tuple[UInt64, UInt64, Reason]] = []
    for band in np.unique(bands).tolist():
        here = bands == band
        if band == CAPTIONS:
            found += _with_common_captions(hashes[here], table["key"].to_numpy()[here], config)
            continue
        distinct = np.unique(hashes[here & own])
        found.append((*near_in_band(distinct, config.radius, band), Reason.DUPLICATE_PERCEPTUAL))
        if (here & ~own).any():
            found.append(_turned(probes[here & ~own], hashes[here & ~own], distinct, config.radius, band))
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
    """Pictures of which one is near to a variant of the other, and not to the other itself."""
    order = np.argsort(probes, kind="stable")
    near, other = near_in_band(np.unique(probes), radius, band, others)
    begins, ends = (probes[order].searchsorted(near, side=side) for side in ("left", "right"))
    counts = ends - begins
    rows = np.arange(counts.sum()) + np.repeat(begins - (np.cumsum(counts) - counts), counts)
    first, second = hashes[order[rows]], np.repeat(other, counts)
    news = np.bitwise_count(first ^ second) > radius
    return first[news], second[news], Reason.DUPLICATE_TURNED


def _edges(table: pa.Table, found: list[tuple[UInt64, UInt64, Reason]]) -> pa.Table:
    """EDGES of pairs of hashes, each directed from the better picture to the worse."""
    hashes, rows = np.unique(table["phash"].to_numpy(), return_index=True)
    ranks, ids, parts = table["rank"].to_numpy()[rows], table["pair_id"].combine_chunks(), table["part"].to_numpy()
    tables = [EDGES.empty_table()]
    for first, second, reason in found:
        i, j = hashes.searchsorted(first), hashes.searchsorted(second)
        better_first = (ranks[i] < ranks[j]) | ((ranks[i] == ranks[j]) & (first < second))
        better, worse = np.where(better_first, i, j), np.where(better_first, j, i)
        at = rows[better]
        columns = [hashes[better], ranks[better], ids.take(pa.array(at)), parts[at], hashes[worse]]
        tables.append(pa.table([*columns, [reason.value] * len(i)], schema=EDGES))
    return pa.concat_tables(tables)


def links(edges: pa.Table) -> pa.Table:
    """LINKS of EDGES: each edge told to both of its ends."""
    better, worse = edges["better_hash"], edges["worse_hash"]
    return pa.concat_tables(
        [_links(edges, LINK, worse, better, is_better=False), _links(edges, LINK, better, worse, is_better=True)]
    )


def _links(table: pa.Table, kind: int, node: pa.ChunkedArray, other: pa.ChunkedArray, *, is_better: bool) -> pa.Table:
    columns = [pa.array(np.full(table.num_rows, kind, np.int8)), node, other]
    columns += [pa.array(np.full(table.num_rows, is_better)), *(table[name] for name in LINKS.names[4:])]
    return pa.table(columns, schema=LINKS)


def settle(table: pa.Table) -> pa.Table:
    """The first pass of a round: who has no better neighbour any more stays, and its neighbours are told to go.

    Args:
        table: all rows of LINKS of some nodes, edges and cuts; a column `reason` beside them is left out.

    Returns:
        LINKS: the edges of those that still have one, and what the others say.
    """
    table = table.select(LINKS.names)
    table, cuts = _of_kind(table, LINK), _of_kind(table, CUT)
    table = table.filter(pa.array(~_among(table, cuts)))
    nodes, is_better = table["node"].to_numpy(), table["node_is_better"].to_numpy()
    open_ = np.isin(nodes, nodes[~is_better])
    stays = table.filter(pa.array(~open_))
    goes = _links(stays, DROP, stays["other"], stays["node"], is_better=False)
    return pa.concat_tables([table.filter(pa.array(open_)), goes])


def spread(table: pa.Table) -> pa.Table:
    """The second pass of a round: who is told to go goes, and tells those that it would have stood above.

    Args:
        table: all rows of LINKS of some nodes, edges and drops.

    Returns:
        LINKS and a column `reason`: the edges that are left, cuts, and for each node that goes the best of its drops,
        with its reason.
    """
    table, drops = _of_kind(table, LINK), _of_kind(table, DROP)
    nodes = table["node"].to_numpy()
    drops = drops.filter(pa.array(np.isin(drops["node"].to_numpy(), nodes)))
    going = drops["node"].to_numpy()
    order = np.lexsort(
        (drops["why"].to_numpy(zero_copy_only=False).astype(str), drops["other"], drops["better_rank"], going)
    )
    drops = drops.take(pa.array(order[np.diff(going[order], prepend=~going[order][:1]) != 0]))
    gone = np.isin(nodes, going)
    above = table.filter(pa.array(gone & table["node_is_better"].to_numpy()))
    cuts = _links(above, CUT, above["other"], above["node"], is_better=False)
    rest = pa.concat_tables([table.filter(pa.array(~gone)), cuts])
    reasons = pa.chunked_array([pa.nulls(rest.num_rows, pa.string()), *drops["why"].chunks])
    return pa.concat_tables([rest, drops]).append_column("reason", reasons)


def gone(table: pa.Table) -> pa.Table:
    """GONE of the rows of LINKS that `spread` gives a reason."""
    columns = ["node", "better_id", "better_part", "why"]
    return table.select(columns).rename_columns(GONE.names).cast(GONE)


def resolve(table: pa.Table) -> pa.Table:
    """GONE from all LINKS at once, round after round."""
    found = [GONE.empty_table()]
    while table.num_rows:
        table = spread(settle(table))
        found.append(gone(table.filter(table["reason"].is_valid())))
        table = table.filter(table["reason"].is_null())
    return pa.concat_tables(found)


def _of_kind(table: pa.Table, kind: int) -> pa.Table:
    return table.filter(pc.equal(table["kind"], pa.scalar(kind, pa.int8())))


def _among(table: pa.Table, cuts: pa.Table) -> npt.NDArray[np.bool_]:
    """Which rows have the node and the other of one of the cuts."""
    both = [np.concatenate([table[name].to_numpy(), cuts[name].to_numpy()]) for name in ("node", "other")]
    is_cut = np.arange(len(both[0])) >= table.num_rows
    order = np.lexsort(both)
    new = np.zeros(len(order), bool)
    for values in both:
        new |= np.diff(values[order], prepend=~values[order][:1]) != 0
    groups = np.cumsum(new)
    has_cut = np.zeros(len(order) + 1, bool)
    has_cut[groups[is_cut[order]]] = True
    found = np.empty(len(order), bool)
    found[order] = has_cut[groups]
    return found[: table.num_rows]
