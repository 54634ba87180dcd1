import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.hashing import bucket_of, draws, hash64, hash128, id_words, mix

words = st.integers(0, 2**64 - 1)
texts = st.text(st.characters(), max_size=8)  # includes lone surrogates, which occur on the web


def array(*values: int) -> npt.NDArray[np.uint64]:
    return np.array(values, np.uint64)


def test_hashes_never_change() -> None:
    assert hash128("http://a.example/x.jpg", "a red star") == "0616c7a04821e4300755860bd0e3560a"
    assert hash64(["", "star", "é"]).tolist() == [13020603013274838756, 3611906587882700873, 3394012004367669963]
    assert draws(7, array(1, 2), array(3, 3)).tolist() == [15068375702381615036, 12322787970845588431]


def test_mix_is_the_published_splitmix64() -> None:
    """The expected values are the first outputs of the reference implementation for seed 0."""
    states = array(*(0x9E3779B97F4A7C15 * i % 2**64 for i in range(4)))
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert mix(states).tolist() == published


@given(st.lists(texts, max_size=4), st.lists(texts, max_size=4))
def test_hash128_is_equal_only_for_equal_tuples(some: list[str], others: list[str]) -> None:
    assert (hash128(*some) == hash128(*others)) == (some == others)


def test_hash128_depends_on_the_borders_between_fields() -> None:
    assert len({hash128("a", "bc"), hash128("ab", "c"), hash128("abc"), hash128("abc", ""), hash128("", "abc")}) == 5


@given(st.lists(texts, max_size=5))
def test_hash64_is_blake2b_of_each_string(values: list[str]) -> None:
    digests = [hashlib.blake2b(v.encode("utf-8", "surrogatepass"), digest_size=8).digest() for v in values]
    assert hash64(iter(values)).tolist() == [int.from_bytes(digest, "little") for digest in digests]


@given(st.lists(st.integers(0, 2**128 - 1), max_size=5))
def test_words_of_ids_are_the_first_16_digits(values: list[int]) -> None:
    ids = [f"{value:032x}" for value in values]
    assert id_words(ids).tolist() == [int(i[:16], 16) for i in ids]


@given(st.integers(-(2**63), 2**64 - 1), st.lists(st.tuples(words, words), min_size=1, max_size=20))
def test_a_draw_depends_on_its_own_row_only(seed: int, rows: list[tuple[int, int]]) -> None:
    drawn = draws(seed, array(*(a for a, _ in rows)), array(*(b for _, b in rows)))
    assert [draws(seed, array(a), array(b))[0] for a, b in rows] == drawn.tolist()


@given(st.integers(0, 2**63), words, words)
def test_a_draw_depends_on_the_seed_the_words_and_their_order(seed: int, a: int, b: int) -> None:
    others = [(seed + 1, a, b), (seed, a ^ 1, b), (seed, a, b ^ 1), *([] if a == b else [(seed, b, a)])]
    drawn = draws(seed, array(a), array(b))[0]
    assert all(draws(other, array(x), array(y))[0] != drawn for other, x, y in others)


@given(words, words)
def test_seed_and_first_word_are_not_interchangeable(seed: int, word: int) -> None:
    """Draws also differ if the seed and the word have the same value."""
    assert (draws(seed, array(word))[0] == draws(word, array(seed))[0]) == (seed == word)
    assert draws(seed, array(seed))[0] != draws(word, array(word))[0] or seed == word


def test_draws_are_uniform_even_for_consecutive_ids() -> None:
    """Each byte of the draws passes a chi-squared test over 256 cells, with 255 degrees of freedom."""
    drawn = draws(0, np.arange(100_000, dtype=np.uint64), array(*[5] * 100_000))
    for shift in range(0, 64, 8):
        counts = np.bincount((drawn >> np.uint64(shift)).astype(np.uint8), minlength=256)
        expected = len(drawn) / 256
        assert ((counts - expected) ** 2 / expected).sum() < 360  # 99.999% of the distribution


@settings(max_examples=300)
@given(st.lists(words, min_size=1, max_size=20), st.integers(1, 2**20))
def test_buckets_are_equal_ranges_of_the_hash(hashes: list[int], num_buckets: int) -> None:
    found = bucket_of(array(*hashes), num_buckets)
    assert found.tolist() == [(value >> 32) * num_buckets >> 32 for value in hashes]
    assert found.dtype == np.int32


@pytest.mark.parametrize("num_buckets", [1, 2, 7, 64, 1000])
def test_buckets_have_the_order_of_the_hashes_and_all_are_used(num_buckets: int) -> None:
    hashes = np.sort(mix(np.arange(50_000, dtype=np.uint64)))
    found = bucket_of(hashes, num_buckets)
    assert (np.diff(found) >= 0).all()
    assert set(found.tolist()) == set(range(num_buckets))
