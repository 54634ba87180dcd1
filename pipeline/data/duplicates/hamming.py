"""Find all pairs of 64-bit hashes that differ in few bits, exactly, by sorting.

The 64 bits are divided into m blocks. Two hashes within radius r differ in at most r blocks, so they agree on at least
m - r blocks. For each choice of m - r blocks, a table sorts the hashes by these blocks, which puts such pairs side by
side (Manku, Jain and Das Sarma 2007). Only the first table that contains a pair reports it, so the results need no
deduplication. More blocks give more tables and longer keys; m is chosen for the lowest cost at the given number of
hashes. The blocks are cut so that each contains the same amount of information, even if some bits are equal in most
hashes. A large group of hashes with one key is searched by its remaining bits, in nested tables. So crowded hashes,
such as those of simple pictures, do not take quadratic time.

Memory: one copy of the hashes per thread, and the pairs found. Candidates are created and compared one slice at a time.
Equal hashes are treated as one hash until the result is written.
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
HashPairs = tuple[UInt64, UInt64]
"""The first and the second hash of each pair, as two arrays of equal length."""

_SLICE = 1 << 16
"""Number of hashes, or of candidates, processed at a time; fits into the cache of a core."""
_SORT_COST = 30.0
"""Cost of sorting one hash into a table, in units of one candidate comparison."""
_TABLE_COST = 50_000.0
"""Fixed cost of a table, even an empty one, in candidate comparisons."""
_STEP_SHARE = 8
"""Number of neighbouring rows, with equal keys or not, that can be compared in the time of one selected candidate."""
_STEP_COST = 1_000
"""Fixed cost of comparing all rows with their neighbours, in comparisons of selected candidates."""
_NESTED_TABLES_FROM = 1 << 21
"""Number of candidates with one key above which nested tables are considered."""
_MAX_TABLES = 20_000
_SAMPLE = 4_096
"""Number of hashes from which the information of each bit is estimated."""
Blocks = list[tuple[int, int]]
"""The lowest bit of each block, and the bit after its highest."""


def band_keys(hashes: UInt64, radius: int) -> list[UInt64]:
    """One key per hash for each of radius + 1 bands; two hashes within the radius share at least one key."""
    keys = []
    for number, (low, high) in enumerate(_bands(radius)):
        bits = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        keys.append(mix(mix(bits) ^ np.uint64(number)))
    return keys


def near_in_band(hashes: UInt64, radius: int, band: int, others: UInt64 | None = None) -> HashPairs:
    """The pairs within the radius that agree on this band and on no earlier band.

    If the hashes are put in buckets by their keys (`band_keys`), all bands together report each pair once.

    Args:
        hashes: distinct hashes in any order, including all that share a key with one of them.
        radius: bits, 0 to 63.
        band: index of the band, 0 to radius.
        others: distinct hashes to compare with `hashes`; if None, `hashes` are compared with each other.
    """
    assert radius < 64, radius
    return _search_table((band,), _bands(radius), radius, np.sort(hashes), None if others is None else np.sort(others))


def near_values(hashes: UInt64, radius: int, num_threads: int = 1) -> Iterator[HashPairs]:
    """All pairs of distinct hashes that differ in at most `radius` bits, each once; yields the pairs of one table.

    Args:
        hashes: distinct hashes in any order.
        radius: bits, 0 to 63.
        num_threads: number of threads that search; each holds a copy of the hashes.
    """
    return _search(np.sort(hashes), None, radius, num_threads)


def near_pairs(hashes: UInt64, radius: int, num_threads: int = 1) -> Int64:
    """All pairs of hashes that differ in at most `radius` bits.

    Args:
        hashes: uint64 of shape (B,).
        radius: bits, 0 to 63.
        num_threads: number of threads that search; each holds a copy of the hashes.

    Returns:
        int64 of shape (M, 2): index pairs with i < j, each pair once, in ascending order.
    """
    side = _SortedHashes(hashes)
    found = [side.index_pairs(side, pairs) for pairs in _search(side.distinct, None, radius, num_threads)]
    found.append(side.equal_pairs())
    i, j = (np.concatenate(rows) for rows in zip(*found, strict=True))
    return _ascending(np.minimum(i, j), np.maximum(i, j), len(hashes))


def near(queries: UInt64, hashes: UInt64, radius: int, num_threads: int = 1) -> Int64:
    """All hashes within `radius` bits of each query.

    Args:
        queries: uint64 of shape (A,).
        hashes: uint64 of shape (B,).
        radius: bits, 0 to 63.
        num_threads: number of threads that search; each holds a copy of the queries and hashes.

    Returns:
        int64 of shape (M, 2): index of the query and index of the hash, each pair once, in ascending order.
    """
    left, right = _SortedHashes(queries), _SortedHashes(hashes)
    found = [left.index_pairs(right, pairs) for pairs in _search(left.distinct, right.distinct, radius, num_threads)]
    i, j = (np.concatenate(rows) for rows in zip(*found, strict=True))
    return _ascending(i, j, len(hashes))


class _SortedHashes:
    """Hashes in ascending order, with their original indices."""

    def __init__(self, hashes: UInt64) -> None:
        self._order: Int64 = np.argsort(hashes)
        self._sorted = hashes[self._order]
        is_new = np.ones(len(hashes), bool)
        np.not_equal(self._sorted[1:], self._sorted[:-1], out=is_new[1:])
        self.distinct = self._sorted if is_new.all() else self._sorted[is_new]

    def index_pairs(self, other: _SortedHashes, pairs: HashPairs) -> tuple[Int64, Int64]:
        """All pairs of original indices (in self, in other) whose hashes are one of the pairs."""
        ranges = []
        for side, values in zip((self, other), pairs, strict=True):
            ranges.append((side._sorted.searchsorted(values), side._sorted.searchsorted(values, side="right")))
        (begins, ends), (other_begins, other_ends) = ranges
        rows, lefts = _expand_ranges(begins, ends)
        rows, rights = _expand_ranges(other_begins[rows], other_ends[rows])
        return self._order[lefts[rows]], other._order[rights]

    def equal_pairs(self) -> tuple[Int64, Int64]:
        """All pairs of original indices with equal hashes, each pair once."""
        first = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        ends = self._sorted.searchsorted(self._sorted[first], side="right")
        rows, rights = _expand_ranges(first + 1, ends)
        return self._order[first[rows]], self._order[rights]


def _expand_ranges(begins: Int64, ends: Int64) -> tuple[Int64, Int64]:
    """Concatenate the integers of all ranges; returns the index of the range of each integer, and the integers."""
    counts = ends - begins
    rows = np.repeat(np.arange(len(counts)), counts)
    return rows, np.arange(len(rows)) + (begins - (np.cumsum(counts) - counts))[rows]


def _ascending(i: Int64, j: Int64, num_columns: int) -> Int64:
    keys = i * num_columns + j
    keys.sort()
    return np.stack(np.divmod(keys, max(num_columns, 1)), axis=1)


def _search(first: UInt64, second: UInt64 | None, radius: int, num_threads: int) -> Iterator[HashPairs]:
    """Pairs within the radius between two sorted arrays of distinct hashes, or within `first` if `second` is None."""
    assert 0 <= radius < 64, radius
    blocks = _blocks(first, second, 64, radius)
    work = partial(_search_table, blocks=blocks, radius=radius, first=first, second=second)
    if num_threads == 1:
        yield from map(work, _table_keys(blocks, radius))
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            yield from pool.map(work, _table_keys(blocks, radius))


def _table_keys(blocks: Blocks, radius: int) -> Iterable[tuple[int, ...]]:
    """The blocks in the key of each table; a single block gives one table, in which all hashes have an empty key."""
    return combinations(range(len(blocks)), max(len(blocks) - radius, 0)) if len(blocks) > 1 else [()]


def _bands(radius: int) -> Blocks:
    return list(pairwise(np.linspace(0, 64, radius + 2).astype(int).tolist()))


def _blocks(first: UInt64, second: UInt64 | None, num_bits: int, radius: int) -> Blocks:
    """Cut the lower bits into blocks of equal information, at the lowest cost; one block means to compare all pairs."""
    num_first, num_second = len(first), len(first if second is None else second)
    num_pairs = num_first * num_second / 2
    if num_pairs <= _TABLE_COST:
        return [(0, num_bits)]
    information = np.cumsum(_information(first, first if second is None else second)[:num_bits])
    total = information[-1]
    best, lowest_cost = 1, num_pairs
    for num_blocks in range(max(radius + 1, 2), int(total) + 1):
        num_tables = comb(num_blocks, radius)
        sorting = num_tables * (_TABLE_COST + _SORT_COST * (num_first + num_second) / 2)
        if sorting >= lowest_cost or num_tables > _MAX_TABLES:
            break
        cost = sorting + num_tables * num_pairs * 2.0 ** -(total * (num_blocks - radius) / num_blocks)
        if cost < lowest_cost:
            best, lowest_cost = num_blocks, cost
    cuts = information.searchsorted(np.arange(1, best) * total / best) + 1
    return list(pairwise([0, *cuts.tolist(), num_bits]))


def _information(first: UInt64, second: UInt64) -> npt.NDArray[np.float64]:
    """The information of each bit, lowest bit first: 1 if it differs in half of all pairs of hashes, 0 if in none."""
    shares = []
    for side in (first, second):
        sample = side[:: -(-len(side) // _SAMPLE)].astype("<u8")
        shares.append(np.unpackbits(sample.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little").mean(axis=0))
    same = shares[0] * shares[1] + (1 - shares[0]) * (1 - shares[1])
    information: npt.NDArray[np.float64] = -np.log2(np.maximum(same, 0.5))
    return information


class _Layout:
    """The bit order of a table: the blocks of its key are the highest bits; the relative order is kept otherwise."""

    def __init__(self, key: tuple[int, ...], blocks: Blocks) -> None:
        others = [block for block in range(len(blocks)) if block not in key]
        self._moves: list[tuple[int, int, int]] = []
        """Lowest bit before the move, lowest bit after it, number of bits."""
        target, must_differ = 0, []
        for block in [*others, *key]:
            low, high = blocks[block]
            if block in others and key and block < key[-1]:
                must_differ.append(((1 << (high - low)) - 1) << target)
            if self._moves and self._moves[-1][0] + self._moves[-1][2] == low:
                self._moves[-1] = (*self._moves[-1][:2], self._moves[-1][2] + high - low)
            else:
                self._moves.append((low, target, high - low))
            target += high - low
        self.must_differ = np.array(must_differ, np.uint64)
        """Masks of blocks in which the hashes of a pair must differ; otherwise an earlier table reports the pair."""
        self.num_rest_bits = sum(blocks[block][1] - blocks[block][0] for block in others)
        """Number of bits below the key."""
        self.rest_mask = np.uint64((1 << self.num_rest_bits) - 1)

    def apply(self, values: UInt64) -> UInt64:
        """The values with their bits in the order of the table."""
        moved = np.empty_like(values)
        for start in range(0, len(values), _SLICE):
            moved[start : start + _SLICE] = self._moved(values[start : start + _SLICE], self._moves)
        return moved

    def undo(self, values: UInt64) -> UInt64:
        """The values with their bits in the original order."""
        return self._moved(values, [(target, low, width) for low, target, width in self._moves])

    @staticmethod
    def _moved(values: UInt64, moves: list[tuple[int, int, int]]) -> UInt64:
        moved = np.zeros_like(values)
        for low, target, width in moves:
            bits = values >> np.uint64(low)
            bits &= np.uint64((1 << width) - 1)
            bits <<= np.uint64(target)
            moved |= bits
        return moved


def _search_table(key: tuple[int, ...], blocks: Blocks, radius: int, first: UInt64, second: UInt64 | None) -> HashPairs:
    """The pairs that one table finds: within the radius, equal in the key's blocks, in no earlier table."""
    layout = _Layout(key, blocks)
    first = layout.apply(first)
    first.sort()
    if second is not None:
        second = layout.apply(second)
        second.sort()
    found = [(np.zeros(0, np.uint64), np.zeros(0, np.uint64))]
    start = 0
    while start < len(first):  # a slice contains all hashes of each of its keys
        stop = min(start + _SLICE, len(first))
        stop = int(first.searchsorted(first[stop - 1] | layout.rest_mask, side="right"))
        own = first[start:stop]
        found += _near_within(layout, radius, own) if second is None else _near_between(layout, radius, own, second)
        start = stop
    a, b = (np.concatenate(side) for side in zip(*found, strict=True))
    bits = a ^ b
    is_first = bits <= layout.rest_mask
    for mask in layout.must_differ:
        is_first &= (bits & mask) != 0
    return layout.undo(a[is_first]), layout.undo(b[is_first])


def _near_within(layout: _Layout, radius: int, own: UInt64) -> Iterator[HashPairs]:
    """Near pairs of sorted hashes with equal keys; may include some pairs with different keys."""
    key_starts = _key_starts(layout, own)
    sizes = np.diff(key_starts, append=len(own))
    was_nested = np.zeros(len(sizes), bool)
    for group in np.flatnonzero(sizes * sizes > _NESTED_TABLES_FROM).tolist():
        rows = own[key_starts[group] : key_starts[group] + sizes[group]]
        found = _search_nested_tables(layout, radius, rows, None)
        was_nested[group] = found is not None
        yield from found or ()
    if was_nested.any():
        own, sizes = own[~np.repeat(was_nested, sizes)], sizes[~was_nested]
    # Compare every row with the next row, the one after that, and so on, while enough of these rows have equal keys
    num_at_least = np.cumsum(np.bincount(sizes, minlength=2)[::-1])[::-1]  # groups of at least each size
    remaining = np.cumsum(num_at_least[::-1])[::-1][2:]
    num_steps = int((remaining > len(own) / _STEP_SHARE + _STEP_COST).sum())
    for step in range(1, num_steps + 1):
        near = np.flatnonzero(np.bitwise_count(own[step:] ^ own[:-step]) <= radius)
        yield own[near], own[near + step]
    large = sizes > num_steps + 1
    indices = np.flatnonzero(np.repeat(large, sizes))
    ends = np.repeat(np.cumsum(sizes)[large], sizes[large])
    yield from _compare_ranges(own[indices], own, np.minimum(indices + num_steps + 1, ends), ends, radius)


def _near_between(layout: _Layout, radius: int, own: UInt64, others: UInt64) -> Iterator[HashPairs]:
    """Near pairs between `own` and `others` with equal keys; both arrays are sorted."""
    key_starts = _key_starts(layout, own)
    sizes = np.diff(key_starts, append=len(own))
    keys = own[key_starts] & ~layout.rest_mask
    begins, ends = others.searchsorted(keys), others.searchsorted(keys | layout.rest_mask, side="right")
    for group in np.flatnonzero(sizes * (ends - begins) > _NESTED_TABLES_FROM).tolist():
        rows = own[key_starts[group] : key_starts[group] + sizes[group]]
        found = _search_nested_tables(layout, radius, rows, others[begins[group] : ends[group]])
        if found is not None:
            ends[group] = begins[group]
            yield from found
    yield from _compare_ranges(own, others, np.repeat(begins, sizes), np.repeat(ends, sizes), radius)


def _key_starts(layout: _Layout, own: UInt64) -> Int64:
    """The index of the first hash of each key."""
    return np.flatnonzero(np.concatenate([[True], (own[1:] ^ own[:-1]) > layout.rest_mask]))


def _search_nested_tables(layout: _Layout, radius: int, first: UInt64, second: UInt64 | None) -> list[HashPairs] | None:
    """Search hashes of one key by their remaining bits, in nested tables; None if comparing all pairs is cheaper."""
    blocks = _blocks(first, second, layout.num_rest_bits, radius)
    if len(blocks) == 1:
        return None
    key_bits = first[0] & ~layout.rest_mask
    rests = first & layout.rest_mask, None if second is None else second & layout.rest_mask
    found = [_search_table(key, blocks, radius, *rests) for key in _table_keys(blocks, radius)]
    return [(a | key_bits, b | key_bits) for a, b in found]


def _compare_ranges(own: UInt64, others: UInt64, begins: Int64, ends: Int64, radius: int) -> Iterator[HashPairs]:
    """Compare each hash of `own` with its range of `others`, a slice at a time; yield the pairs within the radius."""
    totals = np.cumsum(ends - begins)
    total = int(totals[-1]) if len(own) else 0
    cuts = np.unique(totals.searchsorted(np.arange(_SLICE, total + _SLICE, _SLICE), side="right"))
    for low, high in pairwise([0, *cuts.tolist()]):
        rows, other_rows = _expand_ranges(begins[low:high], ends[low:high])
        a, b = own[low:high].take(rows), others.take(other_rows)
        near = np.flatnonzero(np.bitwise_count(a ^ b) <= radius)
        yield a[near], b[near]
