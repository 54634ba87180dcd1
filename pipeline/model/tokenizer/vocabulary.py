"""Define the order of a byte-pair vocabulary, and read the one released with CLIP.

An entry is spelled in 256 printable characters that stand for bytes. The suffix `</w>` marks an entry that ends a word.
The order is that of the released vocabulary: 256 bytes, 256 bytes that end a word, the merges in the order in which
they were learned, and the start and end token.
"""

import gzip
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from tokenizers import pre_tokenizers

from pipeline import paper

Merge = tuple[str, str]

WORD_END = "</w>"
NUM_FIXED = 2 * 256 + 2
"""Entries that every vocabulary has: bytes, bytes at the end of a word, and the start and end token."""
ALPHABET = tuple(sorted(pre_tokenizers.ByteLevel.alphabet()))
"""The characters that stand for bytes."""
WORD_ENDS = tuple(byte + WORD_END for byte in ALPHABET)
RELEASED_SIZE = paper.VOCAB_SIZE.value
"""Entries of the vocabulary that all released models share."""
RELEASED_START, RELEASED_END = "<start_of_text>", "<end_of_text>"
"""The two special tokens as open_clip spells them."""


def number_entries(merges: Sequence[Merge], start: str, end: str) -> dict[str, int]:
    """Map every entry to its number. If two merges spell the same entry, it gets one number."""
    entries = dict.fromkeys([*ALPHABET, *WORD_ENDS, *map("".join, merges), start, end])
    return {entry: index for index, entry in enumerate(entries)}


def released_merges(vocab_size: int) -> list[Merge]:
    """The first merges of the released vocabulary, as many as make `vocab_size` entries.

    Reads them from the files of the package open_clip_torch, without importing it.

    Raises:
        ValueError: `vocab_size` is larger than the released vocabulary, or smaller than the fixed entries.
        ModuleNotFoundError: the package is not installed.
    """
    if not NUM_FIXED <= vocab_size <= RELEASED_SIZE:
        raise ValueError(f"vocab_size={vocab_size}: the released vocabulary has {NUM_FIXED} to {RELEASED_SIZE} entries")
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "CLIP's released vocabulary needs the package open_clip_torch: pip install 'clip-on-ray[benchmark]'"
        )
    with gzip.open(Path(package.origin).with_name("bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8") as lines:
        next(lines)  # the format's version
        merges = (line.split() for _, line in zip(range(vocab_size - NUM_FIXED), lines, strict=False))
        return [(first, second) for first, second in merges]
