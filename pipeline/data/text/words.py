"""Texts -> words, many texts at once in numpy: what matching and counting share.

A text is normalised (NFKC, case folding; white space of any kind and length is one blank) and cut into words: runs of
letters, digits and marks of scripts that part their words by blanks, and else single characters, so that a Chinese or
Thai text is a sequence of its characters and a full stop stands for itself. A word is known by a 64-bit polynomial hash
of its characters (Karp and Rabin 1987, modulo 2^64, each character weighted by a random word of its own): two of a
thousand million different words are the same with probability 0.03.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.hashing import UInt64, mix

CHUNK_CHARACTERS = 2**18
"""Texts are taken together up to this many characters: some 40 bytes each while they are worked on."""

_BASE = 0x9E3779B97F4A7C15
_UNSPACED = (
    *((0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x0F00, 0x0FFF)),  # Thai, Lao, Tibetan
    *((0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)),  # Burmese
    *((0x1780, 0x17FF), (0x19E0, 0x19FF)),  # Khmer
    *((0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x1AFF0, 0x1B16F)),  # Japanese
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),  # Chinese
)
ASSIGNED = (*range(0x40000), *range(0xE0000, 0xE01F0))
"""All that Unicode has given letters, marks and numbers to."""


class Kind(IntEnum):
    """What a character is to a word."""

    SPACE = 0
    OTHER = 1
    """Punctuation, symbols: a word of its own."""
    WORD = 2
    """Letter, digit, mark or underscore of a script with blanks between words."""
    UNSPACED = 3
    """Letter, digit or mark of a script without: a word of its own."""


def normalize(text: str) -> str:
    """NFKC, case-folded, every run of white space one blank, none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def is_word_character(character: str) -> bool:
    """Whether a character can be part of a word: a letter, a digit, a combining mark, or the underscore."""
    return character == "_" or unicodedata.category(character)[0] in "LNM"


@dataclass(frozen=True)
class Words:
    """The words of some texts in order, W of them; words of one text are neighbours."""

    text: npt.NDArray[np.int64]
    """Number of the text each is of."""
    hash: UInt64
    kind: npt.NDArray[np.uint8]
    """Kind of the word's characters."""
    after_space: npt.NDArray[np.bool_]
    """Whether white space, or nothing at all, stands before it."""
    start: npt.NDArray[np.int64]
    """Its first character in `characters`."""
    end: npt.NDArray[np.int64]
    """The character behind its last."""
    characters: npt.NDArray[np.unsignedinteger[Any]]
    """Code points of the texts, one text after the other."""

    def spell(self, word: npt.NDArray[np.int64]) -> pa.LargeStringArray:
        """Some of the words, given by their ascending numbers, normalised."""
        data, bounds = self.characters, np.stack([self.start[word], self.end[word]], axis=1).ravel()
        if data.dtype != np.uint8:
            lengths = 1 + sum((data >= first).astype(np.int64) for first in (0x80, 0x800, 0x10000))
            bounds = np.concatenate([[0], np.cumsum(lengths)])[bounds]
            data = np.frombuffer(data.astype("<u4").tobytes().decode("utf-32-le").encode(), np.uint8)
        if not len(word):
            return pa.array([], pa.large_string())
        buffers = [None, pa.py_buffer(bounds.astype(np.int64)), pa.py_buffer(np.ascontiguousarray(data))]
        words_and_gaps = pa.LargeStringArray.from_buffers(len(bounds) - 1, *buffers[1:])
        return pc.ascii_lower(words_and_gaps.take(pa.array(np.arange(0, len(bounds) - 1, 2))))


def split(texts: pa.Array, joiners: str = "", fold: Callable[[str], str] = normalize) -> Iterator[Words]:
    """The words of each text, chunk by chunk; the order of the texts is not kept.

    Args:
        texts: strings or bytes, UTF-8; what is not valid is read as U+FFFD. Null has no words.
        joiners: characters that join two word characters to one word, such as the hyphen.
        fold: what makes texts the same; of an ASCII text it must be its small letters.
    """
    texts = pc.fill_null(texts, "" if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type) else b"")
    numbers = np.arange(len(texts))
    is_ascii = np.asarray(pc.string_is_ascii(texts.cast(pa.large_string(), safe=False)))
    for number, plain in ((numbers[is_ascii], True), (numbers[~is_ascii], False)):
        some = texts.take(pa.array(number)).cast(pa.large_binary())
        _, offset_buffer, data = some.buffers()
        offsets = np.frombuffer(offset_buffer or b"", np.int64)[some.offset : some.offset + len(some) + 1]
        for first, last in _chunks(offsets):
            bounds = offsets[first : last + 1]
            if plain:
                codes = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]
                bounds = bounds - bounds[0]
            else:
                found = [fold(text.decode("utf-8", "replace")) for text in some[first:last].to_pylist()]
                codes = np.frombuffer("".join(found).encode("utf-32-le", "surrogatepass"), "<u4")
                bounds = np.cumsum([0, *map(len, found)])
            yield _words(codes, bounds, number[first:last], joiners)


def _chunks(offsets: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of texts of some CHUNK_CHARACTERS together; a longer text has its own."""
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + CHUNK_CHARACTERS, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def _words(
    codes: npt.NDArray[np.unsignedinteger[Any]],
    bounds: npt.NDArray[np.int64],
    text: npt.NDArray[np.int64],
    joiners: str,
) -> Words:
    """The words of texts whose characters are codes[bounds[i]:bounds[i + 1]]."""
    kinds, weights = _tables()
    kind, weight = kinds[codes], weights[codes]
    full = bounds[:-1] < bounds[1:]
    before, behind = np.roll(kind, 1), np.roll(kind, -1)
    before[bounds[:-1][full]] = behind[bounds[1:][full] - 1] = Kind.SPACE
    if joiners:
        joins = np.isin(codes, [ord(joiner) for joiner in joiners]) & (before == Kind.WORD) & (behind == Kind.WORD)
        kind[joins] = before[1:][joins[:-1]] = behind[:-1][joins[1:]] = Kind.WORD
    in_word, in_text = kind == Kind.WORD, kind != Kind.SPACE
    start = np.flatnonzero(in_text & ~(in_word & (before == Kind.WORD)))
    end = np.flatnonzero(in_text & ~(in_word & (behind == Kind.WORD))) + 1
    powers, inverses = _powers(max(CHUNK_CHARACTERS, 1 << len(codes).bit_length()))
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(weight * powers[: len(codes)], out=sums[1:])
    place = np.searchsorted(start, bounds)
    after_space = np.ones(len(start), bool)
    after_space[1:] = start[1:] != end[:-1]
    after_space[place[:-1][place[:-1] < len(start)]] = True
    return Words(
        text=np.repeat(text, np.diff(place)),
        hash=(sums[end] - sums[start]) * inverses[start],
        kind=kind[start],
        after_space=after_space,
        start=start,
        end=end,
        characters=codes,
    )


@cache
def _tables() -> tuple[npt.NDArray[np.uint8], UInt64]:
    """Kind and random weight of every code point; capital ASCII letters weigh what the small ones do."""
    kinds = np.full(0x110000, Kind.OTHER, np.uint8)
    for code in ASSIGNED:
        if chr(code).isspace():
            kinds[code] = Kind.SPACE
        elif is_word_character(chr(code)):
            kinds[code] = Kind.WORD
    for first, last in _UNSPACED:
        script = kinds[first : last + 1]
        script[script == Kind.WORD] = Kind.UNSPACED
    weights = mix(np.arange(0x110000, dtype=np.uint64))
    weights[ord("A") : ord("Z") + 1] = weights[ord("a") : ord("z") + 1]
    return kinds, weights


@lru_cache(maxsize=1)
def _powers(size: int) -> tuple[UInt64, UInt64]:
    """The first powers of the hash's base and of its inverse modulo 2^64."""
    factors = np.array([[_BASE], [pow(_BASE, -1, 2**64)]], np.uint64).repeat(size, axis=1)
    factors[:, 0] = 1
    base, inverse = np.cumprod(factors, axis=1, dtype=np.uint64)
    return base, inverse
