"""All pairs of 64-bit hashes that differ in few bits: exact, by sorting.

Bits are cut into m blocks. Two hashes within radius r differ in at most r of them, so they agree on m - r, and a table
for each choice of m - r blocks, sorted by these, has them side by side (Manku, Jain and Das Sarma 2007). A pair that
several tables have is told by the first alone, so nothing is collected that must be made unique again. m follows the
number of hashes: more blocks make more tables and longer keys, and the cheapest number is taken. The blocks are cut so
that each tells as much apart, whatever bits are the same in most hashes, and a heap of hashes with one key is searched
by the bits that are left, in tables of its own: what is crowded, as hashes of simple pictures are, does not cost the
square of its number.

Memory is a copy of the hashes for each thread and the pairs found: candidates are made and judged a slice at a time,
whatever the distribution. Equal hashes are one hash until the result is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import combinations, pairwise
from math import comb

import numpy as np
import numpy.typing as npt

from pipeline.hashing import UInt64, mix

Int64 = npt.NDArray[np.int64]
IndexPairs = tuple[UInt64, UInt64]
"""Equally long: the hashes of one side and of the other."""

_SLICE = 1 << 16
"""Hashes, and candidates, that are worked on at once: what fits a core's cache."""
_SORT_COST = 30.0
"""Of a hash in a table, in candidates that could be compared instead."""
_TABLE_COST = 50_000.0
"""Of a table that holds nothing, as well."""
_STEP_SHARE = 8
"""As many rows are compared with their neighbours, be they of one key or not, in the time of one chosen candidate."""
_STEP_COST = 1_000
"""Of a comparison of all neighbours when there are none, in chosen candidates."""
_HEAP = 1 << 21
"""Candidates of one key above which tables of its own are thought of."""
_MAX_TABLES = 20_000
_SAMPLE = 4_096
"""Hashes that are looked at for what their bits tell apart."""
Blocks = list[tuple[int, int]]
"""Of each its lowest bit, and the one after its highest."""


def band_keys(hashes: UInt64, radius: int) -> list[UInt64]:
    """For each of radius + 1 bands a key per hash; two hashes within the radius share one of them."""
    keys = []
    for number, (low, high) in enumerate(_bands(radius)):
        bits = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        keys.append(mix(mix(bits) ^ np.uint64(number)))
    return keys


def near_in_band(hashes: UInt64, radius: int, band: int, others: UInt64 | None = None) -> IndexPairs:
    """The pairs of `near_values`, or of hashes and others, that share this band and none before it.

    Of all hashes in buckets by their keys of a band (`band_keys`), the bands together tell each pair once.

    Args:
        hashes: distinct, those that share a key with one of them among them; in any order.
        radius: bits, 0 to 63.
        band: number of the band, 0 to radius.
        others: distinct as well, to compare the hashes with, instead of with each other.
    """
    assert radius < 64, radius
    return _join((band,), _bands(radius), radius, np.sort(hashes), None if others is None else np.sort(others))


def near_values(hashes: UInt64, radius: int, num_threads: int = 1) -> Iterator[IndexPairs]:
    """All pairs of distinct hashes that differ in at most `radius` bits, each once, a table's at a time.

    Args:
        hashes: distinct, in any order.
        radius: bits, 0 to 63.
        num_threads: that search at once, each with a copy of the hashes.
    """
    return _near(np.sort(hashes), None, radius, num_threads)


def near_pairs(hashes: UInt64, radius: int, num_threads: int = 1) -> Int64:
    """All pairs of hashes that differ in at most `radius` bits.

    Args:
        hashes: uint64 of shape (B,).
        radius: bits, 0 to 63.
        num_threads: that search at once, each with a copy of the hashes.

    Returns:
        int64 of shape (M, 2): i < j, each pair once, in ascending order.
    """
    side = _Side(hashes)
    found = [side.members(side, pairs) for pairs in _near(side.distinct, None, radius, num_threads)]
    found.append(side.repetitions())
    i, j = (np.concatenate(rows) for rows in zip(*found, strict=True))
    return _ascending(np.minimum(i, j), np.maximum(i, j), len(hashes))


def near(queries: UInt64, hashes: UInt64, radius: int, num_threads: int = 1) -> Int64:
    """All hashes within `radius` bits of each query.

    Args:
        queries: uint64 of shape (A,).
        hashes: uint64 of shape (B,).
        radius: bits, 0 to 63.
        num_threads: that search at once, each with a copy of both.

    Returns:
        int64 of shape (M, 2): index of a query and of a hash, each pair once, in ascending order.
    """
    left, right = _Side(queries), _Side(hashes)
    found = [left.members(right, pairs) for pairs in _near(left.distinct, right.distinct, radius, num_threads)]
    i, j = (np.concatenate(rows) for rows in zip(*found, strict=True))
    return _ascending(i, j, len(hashes))


class _Side:
    """Hashes in ascending order, and where each of them stood."""

    def __init__(self, hashes: UInt64) -> None:
        self._order: Int64 = np.argsort(hashes)
        self._sorted = hashes[self._order]
        new = np.ones(len(hashes), bool)
        np.not_equal(self._sorted[1:], self._sorted[:-1], out=new[1:])
        self.distinct = self._sorted if new.all() else self._sorted[new]

    def members(self, other: _Side, pairs: IndexPairs) -> tuple[Int64, Int64]:
        """Where the hashes of each pair stood, a row for each two of their places."""
        places = []
        for side, values in zip((self, other), pairs, strict=True):
            places.append((side._sorted.searchsorted(values), side._sorted.searchsorted(values, side="right")))
        (begins, ends), (other_begins, other_ends) = places
        rows, lefts = _product(begins, ends)
        rows, rights = _product(other_begins[rows], other_ends[rows])
        return self._order[lefts[rows]], other._order[rights]

    def repetitions(self) -> tuple[Int64, Int64]:
        """Where equal hashes stood, each two of them once."""
        first = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        ends = self._sorted.searchsorted(self._sorted[first], side="right")
        rows, rights = _product(first + 1, ends)
        return self._order[first[rows]], self._order[rights]


def _product(begins: Int64, ends: Int64) -> tuple[Int64, Int64]:
    """The numbers of all ranges, one range behind the other, after the row of its range for each."""
    counts = ends - begins
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) + (begins - (np.cumsum(counts) - counts))[rows]


def _ascending(i: Int64, j: Int64, num_columns: int) -> Int64:
    keys = i * num_columns + j
    keys.sort()
    return np.stack(np.divmod(keys, max(num_columns, 1)), axis=1)


def _near(first: UInt64, second: UInt64 | None, radius: int, num_threads: int) -> Iterator[IndexPairs]:
    """IndexPairs within the radius, of two sorted sides without repetitions, or of one with itself."""
    assert 0 <= radius < 64, radius
    blocks = _blocks(first, second, 64, radius)
    work = partial(_join, blocks=blocks, radius=radius, first=first, second=second)
    if num_threads == 1:
        yield from map(work, _keys(blocks, radius))
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            yield from pool.map(work, _keys(blocks, radius))


def _keys(blocks: Blocks, radius: int) -> Iterable[tuple[int, ...]]:
    """The blocks of each table's key; of a single block one table, which has all hashes under one empty key."""
    return combinations(range(len(blocks)), max(len(blocks) - radius, 0)) if len(blocks) > 1 else [()]


def _bands(radius: int) -> Blocks:
    return list(pairwise(np.linspace(0, 64, radius + 2).astype(int).tolist()))


def _blocks(first: UInt64, second: UInt64 | None, num_bits: int, radius: int) -> Blocks:
    """Blocks of the lower bits that each tell as much, as many as cost least; a single one means to compare all."""
    num_first, num_second = len(first), len(first if second is None else second)
    num_pairs = num_first * num_second / 2
    if num_pairs <= _TABLE_COST:
        return [(0, num_bits)]
    told = np.cumsum(_told_apart(first, first if second is None else second)[:num_bits])
    best, least = 1, num_pairs
    for num_blocks in range(max(radius + 1, 2), int(told[-1]) + 1):
        num_tables = comb(num_blocks, radius)
        sorting = num_tables * (_TABLE_COST + _SORT_COST * (num_first + num_second) / 2)
        if sorting >= least or num_tables > _MAX_TABLES:
            break
        cost = sorting + num_tables * num_pairs * 2.0 ** -(told[-1] * (num_blocks - radius) / num_blocks)
        if cost < least:
            best, least = num_blocks, cost
    cuts = told.searchsorted(np.arange(1, best) * told[-1] / best) + 1
    return list(pairwise([0, *cuts.tolist(), num_bits]))


def _told_apart(first: UInt64, second: UInt64) -> npt.NDArray[np.float64]:
    """Of each bit, lowest first, what it tells: 1 if it differs in every second pair of hashes, 0 if in none."""
    shares = []
    for side in (first, second):
        sample = side[:: -(-len(side) // _SAMPLE)].astype("<u8")
        shares.append(np.unpackbits(sample.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little").mean(axis=0))
    same = shares[0] * shares[1] + (1 - shares[0]) * (1 - shares[1])
    told: npt.NDArray[np.float64] = -np.log2(np.maximum(same, 0.5))
    return told


class _Layout:
    """Bits in a table's order: the blocks of its key on top, the others below, both as they were."""

    def __init__(self, key: tuple[int, ...], blocks: Blocks) -> None:
        others = [block for block in range(len(blocks)) if block not in key]
        self._moves: list[tuple[int, int, int]] = []
        """From a bit, to a bit, how many."""
        place, unlike = 0, []
        for block in [*others, *key]:
            low, high = blocks[block]
            if block in others and key and block < key[-1]:
                unlike.append(((1 << (high - low)) - 1) << place)
            if self._moves and self._moves[-1][0] + self._moves[-1][2] == low:
                self._moves[-1] = (*self._moves[-1][:2], self._moves[-1][2] + high - low)
            else:
                self._moves.append((low, place, high - low))
            place += high - low
        self.unlike = np.array(unlike, np.uint64)
        """Masks of the blocks that two hashes must not share, because an earlier table has the pair then."""
        self.num_rest = sum(blocks[block][1] - blocks[block][0] for block in others)
        """Bits below the key."""
        self.rest = np.uint64((1 << self.num_rest) - 1)

    def of(self, values: UInt64) -> UInt64:
        """The values, bits moved."""
        moved = np.empty_like(values)
        for start in range(0, len(values), _SLICE):
            moved[start : start + _SLICE] = self._moved(values[start : start + _SLICE], self._moves)
        return moved

    def back(self, values: UInt64) -> UInt64:
        """The values, bits where they were."""
        return self._moved(values, [(place, low, width) for low, place, width in self._moves])

    @staticmethod
    def _moved(values: UInt64, moves: list[tuple[int, int, int]]) -> UInt64:
        moved = np.zeros_like(values)
        for low, place, width in moves:
            bits = values >> np.uint64(low)
            bits &= np.uint64((1 << width) - 1)
            bits <<= np.uint64(place)
            moved |= bits
        return moved


def _join(key: tuple[int, ...], blocks: Blocks, radius: int, first: UInt64, second: UInt64 | None) -> IndexPairs:
    """What one table finds: pairs within the radius that share the blocks of its key, and of no table before it."""
    layout = _Layout(key, blocks)
    first = layout.of(first)
    first.sort()
    if second is not None:
        second = layout.of(second)
        second.sort()
    found = [(np.zeros(0, np.uint64), np.zeros(0, np.uint64))]
    start = 0
    while start < len(first):  # a slice has all hashes of its keys
        stop = min(start + _SLICE, len(first))
        stop = int(first.searchsorted(first[stop - 1] | layout.rest, side="right"))
        own = first[start:stop]
        found += _among(layout, radius, own) if second is None else _between(layout, radius, own, second)
        start = stop
    a, b = (np.concatenate(side) for side in zip(*found, strict=True))
    bits = a ^ b
    once = bits <= layout.rest
    for mask in layout.unlike:
        once &= (bits & mask) != 0
    return layout.back(a[once]), layout.back(b[once])


def _among(layout: _Layout, radius: int, own: UInt64) -> Iterator[IndexPairs]:
    """Near pairs of sorted hashes that share a key, and a few that do not."""
    heads = _heads(layout, own)
    sizes = np.diff(heads, append=len(own))
    in_tables = np.zeros(len(sizes), bool)
    for heap in np.flatnonzero(sizes * sizes > _HEAP).tolist():
        rows = own[heads[heap] : heads[heap] + sizes[heap]]
        found = _in_tables(layout, radius, rows, None)
        in_tables[heap] = found is not None
        yield from found or ()
    if in_tables.any():
        own, sizes = own[~np.repeat(in_tables, sizes)], sizes[~in_tables]
    # All rows against the next, the one after it, and so on, while enough of these are of the same key
    of_size = np.cumsum(np.bincount(sizes, minlength=2)[::-1])[::-1]  # or larger
    remaining = np.cumsum(of_size[::-1])[::-1][2:]
    num_steps = int((remaining > len(own) / _STEP_SHARE + _STEP_COST).sum())
    for step in range(1, num_steps + 1):
        near = np.flatnonzero(np.bitwise_count(own[step:] ^ own[:-step]) <= radius)
        yield own[near], own[near + step]
    large = sizes > num_steps + 1
    places = np.flatnonzero(np.repeat(large, sizes))
    ends = np.repeat(np.cumsum(sizes)[large], sizes[large])
    yield from _compared(own[places], own, np.minimum(places + num_steps + 1, ends), ends, radius)


def _between(layout: _Layout, radius: int, own: UInt64, others: UInt64) -> Iterator[IndexPairs]:
    """Near pairs of own hashes and others that share a key; both sorted."""
    heads = _heads(layout, own)
    sizes = np.diff(heads, append=len(own))
    keys = own[heads] & ~layout.rest
    begins, ends = others.searchsorted(keys), others.searchsorted(keys | layout.rest, side="right")
    for heap in np.flatnonzero(sizes * (ends - begins) > _HEAP).tolist():
        rows = own[heads[heap] : heads[heap] + sizes[heap]]
        found = _in_tables(layout, radius, rows, others[begins[heap] : ends[heap]])
        if found is not None:
            ends[heap] = begins[heap]
            yield from found
    yield from _compared(own, others, np.repeat(begins, sizes), np.repeat(ends, sizes), radius)


def _heads(layout: _Layout, own: UInt64) -> Int64:
    """Where keys begin."""
    return np.flatnonzero(np.concatenate([[True], (own[1:] ^ own[:-1]) > layout.rest]))


def _in_tables(layout: _Layout, radius: int, first: UInt64, second: UInt64 | None) -> list[IndexPairs] | None:
    """What tables find among hashes of one key by the rest of their bits; None where comparing all is cheaper."""
    blocks = _blocks(first, second, layout.num_rest, radius)
    if len(blocks) == 1:
        return None
    top = first[0] & ~layout.rest
    rests = first & layout.rest, None if second is None else second & layout.rest
    found = [_join(key, blocks, radius, *rests) for key in _keys(blocks, radius)]
    return [(a | top, b | top) for a, b in found]


def _compared(own: UInt64, others: UInt64, begins: Int64, ends: Int64, radius: int) -> Iterator[IndexPairs]:
    """The pairs within the radius of each own hash and its range of the others, compared some at a time."""
    totals = np.cumsum(ends - begins)
    total = int(totals[-1]) if len(own) else 0
    cuts = np.unique(totals.searchsorted(np.arange(_SLICE, total + _SLICE, _SLICE), side="right"))
    for low, high in pairwise([0, *cuts.tolist()]):
        rows, places = _product(begins[low:high], ends[low:high])
        a, b = own[low:high].take(rows), others.take(places)
        near = np.flatnonzero(np.bitwise_count(a ^ b) <= radius)
        yield a[near], b[near]
