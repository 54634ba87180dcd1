"""All pairs of 64-bit hashes that differ in few bits: exact, by sorting.

Bits are cut into m blocks. Two hashes within radius r differ in at most r of them, so they agree on m - r, and a table
for each choice of m - r blocks, sorted by these, has them side by side (Manku, Jain and Das Sarma 2007). A pair that
several tables have is told by the first alone, so nothing is collected that must be made unique again. m follows the
number of hashes: more blocks make more tables and longer keys, and the cheapest number is taken. A heap of hashes with
one key is searched by the bits that are left, in tables of its own, so that hashes which are crowded in some bits, as
those of simple pictures are, do not cost the square of their number.

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
Pairs = tuple[UInt64, UInt64]
"""Equally long: the hashes of one side and of the other."""

_SLICE = 1 << 16
"""Hashes, and candidates, that are worked on at once: what fits a core's cache."""
_SORT_COST = 12.0
"""Of a hash in a table, in candidates that could be compared instead."""
_TABLE_COST = 50_000.0
"""Of a table that holds nothing."""
_HEAP = 1 << 21
"""Candidates of one key above which tables of its own are thought of."""
_MAX_TABLES = 20_000


def band_keys(hashes: UInt64, radius: int) -> list[UInt64]:
    """For each of radius + 1 bands a key per hash; two hashes within the radius share one of them."""
    keys = []
    for number, (low, high) in enumerate(_cuts(64, radius + 1)):
        bits = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        keys.append(mix(mix(bits) ^ np.uint64(number)))
    return keys


def near_in_band(hashes: UInt64, radius: int, band: int) -> Pairs:
    """The pairs of `near_values` that share this band and none before it.

    Of all hashes in buckets by their keys of a band (`band_keys`), the bands together tell each pair once.

    Args:
        hashes: distinct, those that share a key with one of them among them; in any order.
        radius: bits, 0 to 63.
        band: number of the band, 0 to radius.
    """
    assert radius < 64, radius
    return _join((band,), radius + 1, 64, radius, np.sort(hashes), None)


def near_values(hashes: UInt64, radius: int, num_threads: int = 1) -> Iterator[Pairs]:
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

    def members(self, other: _Side, pairs: Pairs) -> tuple[Int64, Int64]:
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


def _near(first: UInt64, second: UInt64 | None, radius: int, num_threads: int) -> Iterator[Pairs]:
    """Pairs within the radius, of two sorted sides without repetitions, or of one with itself."""
    assert 0 <= radius < 64, radius
    num_blocks = _num_blocks(len(first), len(first if second is None else second), 64, radius)
    work = partial(_join, num_blocks=num_blocks, num_bits=64, radius=radius, first=first, second=second)
    if num_threads == 1:
        yield from map(work, _keys(num_blocks, radius))
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            yield from pool.map(work, _keys(num_blocks, radius))


def _keys(num_blocks: int, radius: int) -> Iterable[tuple[int, ...]]:
    """The blocks of each table's key; without blocks one table, which has all hashes under one empty key."""
    return combinations(range(num_blocks), max(num_blocks - radius, 0))


def _num_blocks(num_first: int, num_second: int, num_bits: int, radius: int) -> int:
    """The number of blocks that costs least where bits are even; 0 where comparing all is cheapest."""
    num_pairs = num_first * num_second / 2
    best, least = 0, num_pairs
    for num_blocks in range(radius + 1, num_bits + 1):
        num_tables = comb(num_blocks, radius)
        sorting = num_tables * (_TABLE_COST + _SORT_COST * (num_first + num_second) / 2)
        if sorting >= least or num_tables > _MAX_TABLES:
            break
        cost = sorting + num_tables * num_pairs * 2.0 ** -(num_bits * (num_blocks - radius) / num_blocks)
        if cost < least:
            best, least = num_blocks, cost
    return best


def _cuts(num_bits: int, num_blocks: int) -> list[tuple[int, int]]:
    """Of each block its lowest bit, and the one after its highest."""
    return list(pairwise(np.linspace(0, num_bits, num_blocks + 1).astype(int).tolist()))


class _Layout:
    """Bits in a table's order: the blocks of its key on top, the others below, both as they were."""

    def __init__(self, key: tuple[int, ...], num_blocks: int, num_bits: int) -> None:
        blocks = _cuts(num_bits, num_blocks) if num_blocks else [(0, num_bits)]
        others = [block for block in range(len(blocks)) if block not in key]
        self._moves: list[tuple[int, int, int]] = []
        """From a bit, to a bit, how many."""
        place, unlike = 0, []
        self.num_rest = 0
        """Bits below the key."""
        for block in [*others, *key]:
            low, high = blocks[block]
            if key and block in others and block < key[-1]:
                unlike.append(((1 << (high - low)) - 1) << place)
            self._moves.append((low, place, high - low))
            place += high - low
            self.num_rest = place if block in others else self.num_rest
        self.unlike = np.array(unlike, np.uint64)
        """Masks of the blocks that two hashes must not share, because an earlier table has the pair then."""
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
            moved |= ((values >> np.uint64(low)) & np.uint64((1 << width) - 1)) << np.uint64(place)
        return moved


def _join(
    key: tuple[int, ...], num_blocks: int, num_bits: int, radius: int, first: UInt64, second: UInt64 | None
) -> Pairs:
    """What one table finds: pairs within the radius that share the blocks of its key, and of no table before it."""
    layout = _Layout(key, num_blocks, num_bits)
    first = layout.of(first)
    first.sort()
    if second is not None:
        second = layout.of(second)
        second.sort()
    found = [(np.zeros(0, np.uint64), np.zeros(0, np.uint64))]
    start = 0
    while start < len(first):
        stop = min(start + _SLICE, len(first))
        stop = int(first.searchsorted(first[stop - 1] | layout.rest, side="right"))
        found += _join_slice(layout, radius, first, second, start, stop)
        start = stop
    a, b = (np.concatenate(side) for side in zip(*found, strict=True))
    once = np.ones(len(a), bool)
    for mask in layout.unlike:
        once &= ((a ^ b) & mask) != 0
    return layout.back(a[once]), layout.back(b[once])


def _join_slice(
    layout: _Layout, radius: int, first: UInt64, second: UInt64 | None, start: int, stop: int
) -> Iterator[Pairs]:
    """Pairs of the keys of first[start:stop], which hold all of the first side's rows of these keys."""
    own = first[start:stop]
    heads = np.flatnonzero(np.concatenate([[True], (own[1:] ^ own[:-1]) > layout.rest]))
    sizes = np.diff(heads, append=len(own))
    if second is None:
        others, begins, ends = first, start + heads, start + heads + sizes
    else:
        others, keys = second, own[heads] & ~layout.rest
        begins, ends = second.searchsorted(keys), second.searchsorted(keys | layout.rest, side="right")
    heaps = np.flatnonzero(sizes * (ends - begins) > _HEAP)
    for heap in heaps.tolist():
        mine, theirs = own[heads[heap] : heads[heap] + sizes[heap]], others[begins[heap] : ends[heap]]
        num_blocks = _num_blocks(len(mine), len(theirs), layout.num_rest, radius)
        if num_blocks == 0:
            continue
        ends[heap] = begins[heap]  # nothing is left to do for it
        top = mine[0] & ~layout.rest
        rests = mine & layout.rest, None if second is None else theirs & layout.rest
        for inner in _keys(num_blocks, radius):
            a, b = _join(inner, num_blocks, layout.num_rest, radius, *rests)
            yield a | top, b | top
    ends = np.repeat(ends, sizes)
    begins = np.repeat(begins, sizes) if second is not None else np.minimum(np.arange(start + 1, stop + 1), ends)
    totals = np.cumsum(ends - begins)
    cuts = totals.searchsorted(np.arange(_SLICE, totals[-1] + _SLICE, _SLICE), side="right")
    for low, high in pairwise([0, *np.unique(cuts).tolist()]):
        yield _compared(own[low:high], others, begins[low:high], ends[low:high], radius)


def _compared(own: UInt64, others: UInt64, begins: Int64, ends: Int64, radius: int) -> Pairs:
    """The pairs within the radius of each own hash and its range of the others."""
    rows, places = _product(begins, ends)
    a, b = own.take(rows), others.take(places)
    near = np.flatnonzero(np.bitwise_count(a ^ b) <= radius)
    return a[near], b[near]
