"""Hash strings and 64-bit words in a stable way.

All samples and partitions are derived from these hashes, so no run depends on row order, the clock or Python's hash.
Strings are hashed with BLAKE2b (RFC 7693). 64-bit words are hashed with the finaliser of SplitMix64 (Steele et al.
2014), which is a bijection with full avalanche and vectorises in numpy.
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa

UInt64 = npt.NDArray[np.uint64]


def hash128(*fields: str) -> str:
    """Hash a tuple of strings to 128 bits, as 32 hexadecimal digits; ("a", "bc") and ("ab", "c") differ."""
    data = [field.encode("utf-8", "surrogatepass") for field in fields]
    return blake2b(b"".join([len(d).to_bytes(8, "little") + d for d in data]), digest_size=16).hexdigest()


def hash64(values: Iterable[str]) -> UInt64:
    """Hash each string to 64 bits."""
    digests = b"".join(blake2b(v.encode("utf-8", "surrogatepass"), digest_size=8).digest() for v in values)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64, copy=False)


def id_words(ids: Sequence[str] | pa.ChunkedArray) -> UInt64:
    """The first 64 bits of 128-bit hexadecimal ids; uniform, because the ids are hashes already.

    For a column of a table, the digits are decoded from Arrow's buffer, without creating Python strings.
    """
    chunks = ids.chunks if isinstance(ids, pa.ChunkedArray) else [pa.array(ids, pa.string())]
    raw = b"".join(unhexlify(_characters(chunk)) for chunk in chunks)
    return np.frombuffer(raw, dtype=">u8").reshape(-1, 2)[:, 0].astype(np.uint64)


def _characters(ids: pa.StringArray) -> memoryview:
    offsets, characters = ids.buffers()[1:]
    if not len(ids) or not characters:
        return memoryview(b"")
    ends = np.frombuffer(offsets, np.int32, len(ids) + 1, offset=4 * ids.offset)
    return memoryview(characters)[int(ends[0]) : int(ends[-1])]


def mix(words: UInt64) -> UInt64:
    """Apply SplitMix64's finaliser to each word; shape and dtype are preserved, and overflow wraps around silently."""
    z = words + np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def draws(seed: int, *words: UInt64) -> UInt64:
    """One uniform 64-bit draw per row, from a seed and any number of arrays of equal length."""
    state = mix(np.array([seed % 2**64], np.uint64))
    for word in words:
        state = mix(state ^ word)  # not mix(word): seed and first word would then be interchangeable
    return state


def bucket_of(hashes: UInt64, num_buckets: int) -> npt.NDArray[np.int32]:
    """The bucket of each hash: equal ranges of the upper 32 bits, so buckets have the same order as the hashes."""
    upper = (hashes >> np.uint64(32)) * np.uint64(num_buckets)
    return (upper >> np.uint64(32)).astype(np.int32)
