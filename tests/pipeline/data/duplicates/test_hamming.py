from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.duplicates import dedupe, hamming
from pipeline.data.duplicates.hamming import band_keys, near, near_in_band, near_pairs, near_values
from pipeline.hashing import UInt64

RADII = (*range(11), 20, 32, 62, 63)
Int64 = npt.NDArray[np.int64]


def flipped(base: int, bits: list[int]) -> int:
    return base ^ sum(1 << bit for bit in set(bits))


# Hashes in clusters around a few centres, some exactly at the radius, many equal
crowded = st.builds(
    flipped,
    st.sampled_from([0, 2**64 - 1, 0x0123456789ABCDEF, 0x0123456789ABCDE0, 1 << 63]),
    st.lists(st.integers(0, 63), max_size=3) | st.lists(st.integers(0, 63), max_size=24),
)
# Hashes that differ only in a few adjacent bits, so that whole blocks are equal in all hashes
low_bits = st.integers(0, 255).map(lambda bits: 0xFEDC000000000000 | bits << 20)
hash_lists = st.lists(crowded, max_size=40) | st.lists(low_bits, max_size=60) | st.lists(st.integers(0, 2**64 - 1))


def compared(queries: UInt64, hashes: UInt64, radius: int) -> Int64:
    """The pairs found by comparing every query with every hash."""
    return np.argwhere(np.bitwise_count(queries[:, None] ^ hashes[None]) <= radius).astype(np.int64)


def all_pairs(hashes: UInt64, radius: int) -> Int64:
    pairs = compared(hashes, hashes, radius)
    return pairs[pairs[:, 0] < pairs[:, 1]]


def as_set(a: UInt64, b: UInt64) -> set[frozenset[int]]:
    return {frozenset(pair) for pair in zip(a.tolist(), b.tolist(), strict=True)}


@settings(max_examples=100, deadline=None)
@given(hash_lists, st.sampled_from(RADII), st.sampled_from([1, 2]))
def test_near_pairs_are_all_pairs_within_the_radius(values: list[int], radius: int, num_threads: int) -> None:
    hashes = np.array(values, np.uint64)
    found = near_pairs(hashes, radius, num_threads)
    assert found.dtype == np.int64
    assert found.shape == (len(found), 2)
    assert found.tolist() == all_pairs(hashes, radius).tolist()


@settings(max_examples=100, deadline=None)
@given(hash_lists, hash_lists, st.sampled_from(RADII))
def test_near_finds_all_hashes_within_the_radius_of_each_query(
    queries: list[int], values: list[int], radius: int
) -> None:
    sides = np.array(queries, np.uint64), np.array(values, np.uint64)
    found = near(*sides, radius)
    assert found.dtype == np.int64
    assert found.shape == (len(found), 2)
    assert found.tolist() == compared(*sides, radius).tolist()


@settings(max_examples=100, deadline=None)
@given(hash_lists, st.sampled_from(RADII))
def test_all_bands_together_report_each_pair_once(values: list[int], radius: int) -> None:
    hashes = np.unique(np.array(values, np.uint64))
    i, j = all_pairs(hashes, radius).T
    found = [near_in_band(hashes, radius, band) for band in range(radius + 1)]
    assert sum(len(a) for a, _ in found) == len(i)
    assert set().union(*(as_set(*pairs) for pairs in found)) == as_set(hashes[i], hashes[j])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**64 - 1), st.integers(0, 63), st.data())
def test_hashes_within_the_radius_share_a_band(value: int, radius: int, data: st.DataObject) -> None:
    other = flipped(value, data.draw(st.lists(st.integers(0, 63), max_size=radius)))
    keys = band_keys(np.array([value, other], np.uint64), radius)
    assert len(keys) == radius + 1
    assert any(a == b for a, b in keys)


def clustered(count: int, num_centres: int, flips: float, seed: int) -> UInt64:
    """Hashes around random centres; each bit is flipped with the probability `flips`."""
    random = np.random.default_rng(seed)
    centres = random.integers(0, 2**64, num_centres, dtype=np.uint64)
    flip = np.packbits(random.random((count, 64)) < flips, axis=1).view(np.uint64)[:, 0]
    hashes: UInt64 = centres[random.integers(0, num_centres, count)] ^ flip
    return hashes


def of_weight_32(count: int, seed: int) -> UInt64:
    """Hashes with half of the bits set, like perceptual hashes."""
    random = np.random.default_rng(seed)
    order = random.random((count, 64)).argsort(axis=1)
    return np.packbits(order < 32, axis=1).view(np.uint64)[:, 0]


def in_one_block(count: int, seed: int) -> UInt64:
    """Hashes in which 48 bits are always equal."""
    return np.random.default_rng(seed).integers(0, 2**16, count, dtype=np.uint64) << np.uint64(24)


SETS: dict[str, Callable[[], UInt64]] = {
    "even": lambda: np.random.default_rng(0).integers(0, 2**64, 4_000, dtype=np.uint64),
    "weight 32": lambda: of_weight_32(3_000, 1),
    "loose heaps": lambda: clustered(3_000, 20, 0.1, 2),
    "tight heaps": lambda: clustered(3_000, 40, 0.02, 3),
    "one heap": lambda: clustered(2_000, 1, 0.05, 4),
    "one block": lambda: in_one_block(1_500, 5),
    "repeated": lambda: np.repeat(clustered(300, 10, 0.05, 6), 5),
}


@pytest.mark.parametrize("threshold", [hamming._NESTED_TABLES_FROM, 10_000])
@pytest.mark.parametrize("name", SETS)
def test_thousands_of_hashes_of_any_distribution(name: str, threshold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search with first-level tables only, and with nested tables for small groups."""
    monkeypatch.setattr(hamming, "_NESTED_TABLES_FROM", threshold)
    monkeypatch.setattr(hamming, "_TABLE_COST", threshold / 100)
    monkeypatch.setattr(hamming, "_SLICE", 1_000)
    hashes = SETS[name]()
    distances = np.bitwise_count(hashes[:, None] ^ hashes[None])
    for radius in (3, 6):
        assert np.array_equal(near_pairs(hashes, radius, 2), np.argwhere(np.triu(distances <= radius, 1)))
    queries = hashes[::7] ^ np.uint64(5)
    assert np.array_equal(near(queries, hashes, 4, 2), compared(queries, hashes, 4))


def test_more_hashes_give_more_blocks() -> None:
    """With more hashes, keys become longer, so that few hashes share a key."""
    hashes = np.random.default_rng(0).integers(0, 2**64, 10**7, dtype=np.uint64)
    numbers = [len(hamming._blocks(hashes[: 10**power], None, 64, 4)) for power in range(2, 8)]
    assert numbers == sorted(numbers)
    assert (numbers[0], numbers[3], numbers[-1]) == (1, 5, 6)
    assert len(hamming._blocks(hashes, None, 64, 63)) == 1, "every pair is near, so tables do not help"
    assert len(hamming._blocks(hashes[:10_000] & np.uint64(15), None, 4, 4)) == 1, "too few bits for tables"


def test_blocks_contain_equal_amounts_of_information() -> None:
    """20 bits are equal in all hashes, and 12 bits are equal in most."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, 100_000, dtype=np.uint64) >> np.uint64(20)
    hashes &= np.where(random.random(len(hashes)) < 0.9, np.uint64(2**32 - 1), np.uint64(2**64 - 1))
    blocks = hamming._blocks(hashes, None, 64, 3)
    assert [low for low, _ in blocks[1:]] == [high for _, high in blocks[:-1]], "blocks are adjacent"
    assert (blocks[0][0], blocks[-1][1]) == (0, 64)
    assert [high - low for low, high in blocks] == [7, 7, 7, 6, 37]


def test_a_repeated_hash_is_searched_once() -> None:
    hashes = np.concatenate([np.full(10**5, 7, np.uint64), np.array([5, 1 << 40], np.uint64)])
    (values,) = near_values(np.unique(hashes), 3)
    assert as_set(*values) == {frozenset({5, 7}), frozenset({5, 1 << 40})}
    assert near(np.array([7, 6], np.uint64), hashes, 0).tolist() == [[0, i] for i in range(10**5)]


def test_dedupe_exports_the_same_near_pairs() -> None:
    assert dedupe.near_pairs is near_pairs
