"""Split many texts into words at once, in numpy. Matching and counting share this module.

A text is normalised (spelling.py) and split into words. In scripts that separate words by blanks, a word is a run of
letters, digits and marks. Every other character is a word of its own, so a Chinese or Thai text is a sequence of its
characters, and a full stop is a word. `words_of` gives the words that rules count. A word is identified by a 64-bit
polynomial hash of its characters (Karp and Rabin 1987, modulo 2^64, each character weighted by a random 64-bit number).
The probability that any two of 10^9 different words have the same hash is 0.03.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.text.spelling import character_class
from pipeline.data.text.spelling import normalize as normalize
from pipeline.hashing import UInt64, mix

CHUNK_CHARACTERS = 2**18
"""Maximum characters of the texts that are processed at once; each takes about 40 bytes of working memory."""

_BASE = 0x9E3779B97F4A7C15
_UNSPACED = (
    *((0x0E00, 0x0E7F), (0x0E80, 0x0EFF), (0x0F00, 0x0FFF)),  # Thai, Lao, Tibetan
    *((0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)),  # Burmese
    *((0x1780, 0x17FF), (0x19E0, 0x19FF)),  # Khmer
    *((0x3005, 0x3007), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x1AFF0, 0x1B16F)),  # Japanese
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),  # Chinese
    *((0x3100, 0x312F), (0x31A0, 0x31BF), (0xA000, 0xA4CF)),  # Bopomofo, Yi
    *((0x16FE0, 0x18D8F), (0x1B170, 0x1B2FF)),  # Tangut, Khitan, Nushu
    *((0x1950, 0x19DF), (0x1A20, 0x1AAF), (0xAA80, 0xAADF), (0x11700, 0x1174F)),  # Tai Le, Lue, Tham, Viet; Ahom
)
"""Scripts whose letters have the classes SA and ID of Unicode's line breaking (UAX 14), and Tibetan."""
ASSIGNED = (*range(0x40000), *range(0xE0000, 0xE01F0))
"""Code points that include all letters, marks and numbers of Unicode."""


class Kind(IntEnum):
    """The role of a character in words."""

    SPACE = 0
    OTHER = 1
    """Punctuation or symbol: a word of its own."""
    WORD = 2
    """Letter, digit, mark or underscore of a script with blanks between words."""
    UNSPACED = 3
    """Letter, digit or mark of a script without blanks between words: a word of its own."""


def is_word_character(character: str) -> bool:
    """Whether a character can be part of a word: a letter, a digit, a combining mark, or the underscore."""
    return character == "_" or unicodedata.category(character)[0] in "LNM"


def words_of(text: str) -> list[str]:
    """The words of one text, normalised, without punctuation and symbols.

    In a script without blanks between words, such as Chinese or Thai, each letter or digit is one, with the vowel signs
    and other marks that follow it.
    """
    folded = normalize(text)
    words: list[str] = (_ASCII_WORD if folded.isascii() else _word_pattern()).findall(folded)
    return words


def is_unspaced(word: str) -> bool:
    """Whether a word of `words_of` is a letter or digit of a script without blanks between words."""
    return not word[0].isascii() and _tables()[0][ord(word[0])] == Kind.UNSPACED


def is_long_enough(words: Sequence[str], min_words: int, min_characters_unspaced: int) -> bool:
    """Whether there are enough words, or enough letters of scripts without blanks, where words cannot be counted.

    Both count in a mixed text: a letter is worth `min_words / min_characters_unspaced` words.
    """
    if len(words) >= max(min_words, min_characters_unspaced):
        return True
    num_unspaced = sum(map(is_unspaced, words))
    num_spaced = len(words) - num_unspaced
    return num_spaced * min_characters_unspaced + num_unspaced * min_words >= min_words * min_characters_unspaced


@dataclass(frozen=True)
class Words:
    """The W words of some texts, in order; the words of one text are contiguous."""

    text: npt.NDArray[np.int64]
    """Index of each word's text."""
    hash: UInt64
    kind: npt.NDArray[np.uint8]
    """Kind of each word's characters."""
    after_space: npt.NDArray[np.bool_]
    """Whether white space, or the beginning of the text, precedes each word."""
    start: npt.NDArray[np.int64]
    """Index in `characters` of each word's first character."""
    end: npt.NDArray[np.int64]
    """Index in `characters` after each word's last character."""
    characters: npt.NDArray[np.unsignedinteger[Any]]
    """Code points of all texts, concatenated."""

    def spell(self, word: npt.NDArray[np.int64]) -> pa.LargeStringArray:
        """The normalised spelling of the words with these indices, which must ascend."""
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
    """Split texts into words, chunk by chunk; the order of the texts is not kept.

    Args:
        texts: strings or bytes in UTF-8; invalid bytes are read as U+FFFD. Null has no words.
        joiners: characters that join two word characters into one word, such as the hyphen.
        fold: normalises a text. ASCII texts without entities are only lowercased, so `fold` must give the same words
            for them.
    """
    texts = pc.fill_null(texts, "" if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type) else b"")
    indices = np.arange(len(texts))
    plain = _is_plain(texts.cast(pa.large_string(), safe=False))
    for index, all_plain in ((indices[plain], True), (indices[~plain], False)):
        selected = texts.take(pa.array(index)).cast(pa.large_binary())
        _, offset_buffer, data = selected.buffers()
        offsets = np.frombuffer(offset_buffer or b"", np.int64)[selected.offset : selected.offset + len(selected) + 1]
        for first, last in _chunks(offsets):
            bounds = offsets[first : last + 1]
            if all_plain:
                codes = np.frombuffer(data, np.uint8)[bounds[0] : bounds[-1]]
                bounds = bounds - bounds[0]
            else:
                folded = [fold(text.decode("utf-8", "replace")) for text in selected[first:last].to_pylist()]
                codes = np.frombuffer("".join(folded).encode("utf-32-le", "surrogatepass"), "<u4")
                bounds = np.cumsum([0, *map(len, folded)])
            yield _words(codes, bounds, index[first:last], joiners)


def _is_plain(texts: pa.LargeStringArray) -> npt.NDArray[np.bool_]:
    """Whether each text is ASCII and has no & that may begin an entity."""
    plain = np.array(pc.string_is_ascii(texts))
    _, offset_buffer, data = texts.buffers()
    if not len(texts) or data is None:
        return plain
    offsets = np.frombuffer(offset_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    characters = np.frombuffer(data, np.uint8)[: offsets[-1]]
    ampersand = np.flatnonzero(characters[offsets[0] : -1] == ord("&")) + offsets[0]
    ampersand = ampersand[_begins_an_entity()[characters[ampersand + 1]]]
    plain[np.searchsorted(offsets, ampersand, side="right") - 1] = False
    return plain


@cache
def _begins_an_entity() -> npt.NDArray[np.bool_]:
    """For each byte whether it is `#` or a letter, which can follow the & of an entity."""
    return np.array([chr(byte).isalpha() or byte == ord("#") for byte in range(0x80)] + [False] * 0x80)


def _chunks(offsets: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of texts with at most CHUNK_CHARACTERS in total; a longer text is a range of its own."""
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
    """The words of some texts; text i has the characters codes[bounds[i]:bounds[i + 1]]."""
    kinds, weights = _tables()
    kind, weight = kinds[codes], weights[codes]
    nonempty = bounds[:-1] < bounds[1:]
    before, after = np.roll(kind, 1), np.roll(kind, -1)
    before[bounds[:-1][nonempty]] = after[bounds[1:][nonempty] - 1] = Kind.SPACE
    if joiners:
        joins = np.isin(codes, [ord(joiner) for joiner in joiners]) & (before == Kind.WORD) & (after == Kind.WORD)
        kind[joins] = before[1:][joins[:-1]] = after[:-1][joins[1:]] = Kind.WORD
    in_word, in_text = kind == Kind.WORD, kind != Kind.SPACE
    start = np.flatnonzero(in_text & ~(in_word & (before == Kind.WORD)))
    end = np.flatnonzero(in_text & ~(in_word & (after == Kind.WORD))) + 1
    powers, inverses = _powers(max(CHUNK_CHARACTERS, 1 << len(codes).bit_length()))
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(weight * powers[: len(codes)], out=sums[1:])
    word_bounds = np.searchsorted(start, bounds)
    after_space = np.ones(len(start), bool)
    after_space[1:] = start[1:] != end[:-1]
    after_space[word_bounds[:-1][word_bounds[:-1] < len(start)]] = True
    return Words(
        text=np.repeat(text, np.diff(word_bounds)),
        hash=(sums[end] - sums[start]) * inverses[start],
        kind=kind[start],
        after_space=after_space,
        start=start,
        end=end,
        characters=codes,
    )


@cache
def _tables() -> tuple[npt.NDArray[np.uint8], UInt64]:
    """Kind and random weight of every code point; an ASCII capital has the weight of its lower-case letter."""
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


_ASCII_WORD = re.compile(r"\w+", re.ASCII)


@cache
def _word_pattern() -> re.Pattern[str]:
    """A run of characters of words, or one letter of a script without blanks with its marks."""
    kinds, _ = _tables()
    unspaced = np.flatnonzero(kinds == Kind.UNSPACED).tolist()
    marks_unspaced = _any_of(code for code in unspaced if _is_mark(code))
    letters_unspaced = _any_of(code for code in unspaced if not _is_mark(code))
    marks = _any_of(code for code in np.flatnonzero(kinds == Kind.WORD).tolist() if _is_mark(code))
    letters = f"[^\\W{character_class(unspaced)}]"  # \w is letters, numbers and the underscore
    return re.compile(f"(?:{letters}++|{marks})++|{letters_unspaced}{marks_unspaced}*+")


def _is_mark(code: int) -> bool:
    return unicodedata.category(chr(code))[0] == "M"


def _any_of(codes: Iterable[int]) -> str:
    """A regular expression for one of these characters that is fast where none of them occurs.

    Each range beyond 16 bits is compared with a character one by one, so all are skipped for other characters.
    """
    codes = sorted(codes)
    split = bisect_left(codes, 0x10000)
    wide = f"|(?=[\\U00010000-\\U0010ffff])[{character_class(codes[split:])}]" if codes[split:] else ""
    return f"(?:[{character_class(codes[:split])}]{wide})"


@lru_cache(maxsize=1)
def _powers(size: int) -> tuple[UInt64, UInt64]:
    """The first `size` powers of the hash's base and of its inverse, modulo 2^64."""
    factors = np.array([[_BASE], [pow(_BASE, -1, 2**64)]], np.uint64).repeat(size, axis=1)
    factors[:, 0] = 1
    base, inverse = np.cumprod(factors, axis=1, dtype=np.uint64)
    return base, inverse
