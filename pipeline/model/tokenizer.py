"""Lower-cased byte-level byte-pair encoding (section 2.4), trained on the captions of the corpus itself.

The vocabulary is laid out as the released one: 256 bytes, 256 bytes that end a word, the merges in the order they were
learned, start, end. Any text can be encoded, and the end token is the last entry.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import ftfy
import numpy as np
import numpy.typing as npt
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

if TYPE_CHECKING:
    from torch import Tensor

Int32 = npt.NDArray[np.int32]

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
NUM_FIXED = 2 * 256 + 2
"""Entries that every vocabulary has: bytes, bytes at the end of a word, the two special tokens."""
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def clean(text: str) -> str:
    """Mojibake and HTML entities repaired (twice escaped ones too), lower case, white space collapsed."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).lower().split())


class Tokenizer:
    """Captions -> token numbers, for one context length."""

    def __init__(self, backend: Backend, context_length: int) -> None:
        self._backend = backend
        self.context_length = context_length

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, context_length: int) -> Tokenizer:
        """Learn merges until the vocabulary has `vocab_size` entries, or the captions have no more to merge.

        Raises:
            ValueError: `vocab_size` does not hold the bytes and special tokens.
        """
        if vocab_size < NUM_FIXED:
            raise ValueError(f"vocab_size={vocab_size} is too small: bytes and special tokens alone are {NUM_FIXED}")
        learner = _backend(BPE(end_of_word_suffix=WORD_END))
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        word_ends = [byte + WORD_END for byte in alphabet]
        trainer = BpeTrainer(
            vocab_size=vocab_size - 2,
            initial_alphabet=alphabet,
            # The trainer breaks ties by number, and numbers word ends in the order of a randomly seeded hash map,
            # unless they are there from the start
            special_tokens=word_ends,
            end_of_word_suffix=WORD_END,
            show_progress=False,
        )
        learner.train_from_iterator((clean(caption) for caption in captions), trainer)
        merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
        # Two merges may spell the same entry, which then has one number
        entries = dict.fromkeys([*alphabet, *word_ends, *map("".join, merges), START, END])
        vocabulary = {entry: index for index, entry in enumerate(entries)}
        backend = _backend(BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=WORD_END))
        return cls(backend, context_length)

    @classmethod
    def from_json(cls, text: str, context_length: int) -> Tokenizer:
        """The tokenizer that `to_json` wrote.

        Raises:
            ValueError: the text is damaged.
        """
        try:
            return cls(Backend.from_str(text), context_length)
        except Exception as error:  # tokenizers raises nothing more particular
            raise ValueError(f"damaged ({error})") from error

    def to_json(self) -> str:
        """The content of `tokenizer.json`, in the format of Hugging Face's tokenizers."""
        return str(self._backend.to_str(pretty=False))

    @cached_property
    def vocab_size(self) -> int:
        """Entries, special tokens included."""
        return int(self._backend.get_vocab_size())

    @property
    def end_token(self) -> int:
        """Number of the token from which the text tower reads a caption's features."""
        return self.vocab_size - 1

    def encode_arrays(self, texts: Sequence[str]) -> tuple[Int32, Int32]:
        """Tokens int32 B x L, zero-padded to the longest of these texts, and lengths int32 B (start and end included).

        A text that is too long is cut; it keeps its end token.
        """
        encoded = self._backend.encode_batch_fast([clean(text) for text in texts], add_special_tokens=False)
        room = self.context_length - 2
        rows = [[self.end_token - 1, *(e.ids[:room]), self.end_token] for e in encoded]
        lengths = np.array([len(row) for row in rows], np.int32)
        tokens = np.zeros((len(rows), max(map(len, rows), default=0)), np.int32)
        for row, ids in zip(tokens, rows, strict=True):
            row[: len(ids)] = ids
        return tokens, lengths

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What `encode_arrays` gives, as tensors int64."""
        import torch  # takes seconds, and the reading tasks of a training run do without it

        tokens, lengths = self.encode_arrays(texts)
        return torch.from_numpy(tokens).long(), torch.from_numpy(lengths).long()

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Tokens int64 B x context_length, as OpenAI's `clip.tokenize` gives them."""
        from torch.nn.functional import pad

        tokens, _ = self.encode([texts] if isinstance(texts, str) else texts)
        return pad(tokens, (0, self.context_length - tokens.shape[1]))


def _backend(model: BPE) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend
