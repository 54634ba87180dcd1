"""Encode text with lower-cased byte-level byte pairs (section 2.4), trained on the captions or as released.

Any text can be encoded. It is cleaned, split at white space into pieces, and then into words; each word is merged
separately (in Rust). A piece therefore always gives the same tokens, and they are cached.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain, takewhile
from typing import TYPE_CHECKING

import ftfy
import numpy as np
import numpy.typing as npt
import regex
from tokenizers import Regex, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from pipeline import paper
from pipeline.model.tokenizer.vocabulary import (
    ALPHABET,
    NUM_FIXED,
    RELEASED_END,
    RELEASED_SIZE,
    RELEASED_START,
    WORD_END,
    WORD_ENDS,
    number_entries,
    released_merges,
)

if TYPE_CHECKING:
    from torch import Tensor

Int32 = npt.NDArray[np.int32]

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_REPAIRED_CHARACTERS = 10_000
"""Characters that are read of a text that needs repair; 75 tokens are about 350 characters."""
MAX_CACHED_PIECES, MAX_CACHED_CHARACTERS = 1 << 17, 32
"""Number of pieces whose tokens are cached, and their maximum length in characters: about 30 MB."""
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def clean(text: str) -> str:
    """Repair mojibake and HTML entities (also doubly escaped ones), convert to lower case, collapse white space.

    A lone surrogate becomes U+FFFD. A text that needs repair is cut to `MAX_REPAIRED_CHARACTERS` first. U+0345 becomes
    a space, because it is the only visible character that is part of no word in open_clip's pattern.
    """
    return " ".join(_repair(text).split())


def _repair(text: str) -> str:
    """Clean without collapsing white space. Printable ASCII without an ampersand needs no repair."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.lower()
    return html.unescape(html.unescape(ftfy.fix_text(text[:MAX_REPAIRED_CHARACTERS]))).lower().replace("\u0345", " ")


class _Pieces(dict[str, list[int]]):
    """A cache of the tokens of each piece of text between white space, computed at its first lookup."""

    # Compiled as in open_clip's tokenizer. It ignores case, and the `regex` package follows the newest Unicode, with
    # 17,000 more letters than the Rust side
    _words = regex.compile(f"{RELEASED_START}|{RELEASED_END}|{_WORDS}", regex.IGNORECASE)

    def __init__(self, backend: Backend, max_tokens: int) -> None:
        self._backend, self._max_tokens = backend, max_tokens

    def __missing__(self, piece: str) -> list[int]:
        tokens: list[int] = []
        for word in self._words.finditer(piece):
            if len(tokens) >= self._max_tokens:
                break
            tokens += self._encode_word(word[0])
        del tokens[self._max_tokens :]
        if len(piece) <= MAX_CACHED_CHARACTERS:
            if len(self) >= MAX_CACHED_PIECES:
                self.clear()
            self[piece] = tokens
        return tokens

    def _encode_word(self, word: str) -> list[int]:
        if word in {RELEASED_START, RELEASED_END}:
            special = self._backend.token_to_id(word)
            if special is not None:
                return [special]
        [(characters, _)] = _BYTES.pre_tokenize_str(word)
        return [token.id for token in self._backend.model.tokenize(characters)]


class Tokenizer:
    """Encodes captions as token numbers, for one context length."""

    def __init__(self, backend: Backend, context_length: int) -> None:
        self._backend = backend
        self.context_length = context_length
        self._pieces = _Pieces(backend, context_length - 2)

    @classmethod
    def released(cls, vocab_size: int = RELEASED_SIZE, context_length: int = paper.CONTEXT_LENGTH.value) -> Tokenizer:
        """The tokenizer of the released models, or of the first `vocab_size` entries of their vocabulary.

        It gives the same tokens as open_clip's SimpleTokenizer. Like it, it encodes `<start_of_text>` and
        `<end_of_text>` in a text as the special tokens; a tokenizer trained here encodes them as text.

        Raises:
            ValueError: the released vocabulary does not have `vocab_size` entries.
            ModuleNotFoundError: the package open_clip_torch, which contains the vocabulary, is not installed.
        """
        merges = released_merges(vocab_size)
        vocabulary = number_entries(merges, RELEASED_START, RELEASED_END)
        return cls(_backend(BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=WORD_END)), context_length)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, context_length: int) -> Tokenizer:
        """Learn merges until the vocabulary has `vocab_size` entries, or nothing in the captions can be merged.

        Raises:
            ValueError: `vocab_size` is too small for the bytes and the special tokens.
        """
        if vocab_size < NUM_FIXED:
            raise ValueError(
                f"vocab_size={vocab_size} is too small: bytes and special tokens alone take {NUM_FIXED} entries"
            )
        learner = _backend(BPE(end_of_word_suffix=WORD_END))
        trainer = BpeTrainer(
            vocab_size=vocab_size - 2,
            initial_alphabet=list(ALPHABET),
            # The trainer breaks ties by token number. Word ends not given here would be numbered in the order of a
            # randomly seeded hash map
            special_tokens=list(WORD_ENDS),
            end_of_word_suffix=WORD_END,
            show_progress=False,
        )
        learner.train_from_iterator((clean(caption) for caption in captions), trainer)
        merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
        vocabulary = number_entries(merges, START, END)
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
        except Exception as error:  # tokenizers raises no more specific class
            raise ValueError(f"damaged ({error})") from error

    def to_json(self) -> str:
        """The content of `tokenizer.json`, in the format of Hugging Face's `tokenizers`."""
        return str(self._backend.to_str(pretty=False))

    @cached_property
    def vocab_size(self) -> int:
        """The number of entries, special tokens included."""
        return int(self._backend.get_vocab_size())

    @property
    def end_token(self) -> int:
        """The number of the end token, at which the text tower takes a caption's features."""
        return self.vocab_size - 1

    def encode_arrays(self, texts: Sequence[str]) -> tuple[Int32, Int32]:
        """Tokens int32 B x L, zero-padded to the longest text, and lengths int32 B (start and end token included).

        A text that is too long is cut before its end token.
        """
        max_tokens = self.context_length - 2
        start, end = [self.end_token - 1], [self.end_token]
        # Every piece has at least one token, so pieces beyond the number of tokens cannot matter
        pieces = (_repair(text).split(maxsplit=max_tokens)[:max_tokens] for text in texts)
        bodies = [list(chain.from_iterable(map(self._pieces.__getitem__, split)))[:max_tokens] for split in pieces]
        lengths = np.fromiter(map(len, bodies), np.int32, len(bodies)) + 2
        tokens = np.zeros((len(bodies), lengths.max(initial=0)), np.int32)
        flat = chain.from_iterable(chain(start, body, end) for body in bodies)
        tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.fromiter(flat, np.int32, lengths.sum())
        return tokens, lengths

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The result of `encode_arrays` as int64 tensors."""
        import torch  # takes seconds, and the reading tasks of training do not need it

        tokens, lengths = self.encode_arrays(texts)
        return torch.from_numpy(tokens).long(), torch.from_numpy(lengths).long()

    def decode(self, tokens: Iterable[int]) -> str:
        """The cleaned text of the tokens before the end token, with a space after every word.

        Tokens do not record whether words were separated, so "it's" is decoded as two words. Encoding the result gives
        the same tokens. A character that was cut in half becomes U+FFFD.
        """
        parts: list[str] = []
        for token in takewhile(self.end_token.__ne__, tokens):
            entry = self._backend.id_to_token(token)
            assert entry is not None, f"the vocabulary has no entry {token}"
            if token != self.end_token - 1:
                # A space does not stand for a byte; the decoder leaves it unchanged
                parts += (entry.removesuffix(WORD_END), " ") if entry.endswith(WORD_END) else (entry,)
        return str(decoders.ByteLevel().decode(parts)).strip()

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Tokens int64 B x context_length, as returned by OpenAI's `clip.tokenize`."""
        from torch.nn.functional import pad

        tokens, _ = self.encode([texts] if isinstance(texts, str) else texts)
        return pad(tokens, (0, self.context_length - tokens.shape[1]))


def _backend(model: BPE) -> Backend:
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            _BYTES,
        ]
    )
    return backend
