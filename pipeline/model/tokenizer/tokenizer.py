"""Lower-cased byte-level byte-pair encoding (section 2.4): trained on the corpus's own captions, or as released.

Any text can be encoded. It is cleaned, cut at white space, then into words, and each word is merged by itself (in
Rust); so what lies between two white spaces always gives the same tokens, and is looked up when seen before.
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
    numbered,
    released_merges,
)

if TYPE_CHECKING:
    from torch import Tensor

Int32 = npt.NDArray[np.int32]

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_MENDED = 10_000
"""Characters of a text that needs mending: more of them are not read (75 tokens are some 350 characters)."""
MAX_REMEMBERED, MAX_REMEMBERED_LENGTH = 1 << 17, 32
"""Pieces between white spaces whose tokens are kept, and how long these may be: some 30 MB."""
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def clean(text: str) -> str:
    """Mojibake and HTML entities repaired (twice escaped ones too), lower case, white space collapsed.

    A lone surrogate becomes U+FFFD. Of a text that needs repair, `MAX_MENDED` characters are read. U+0345 goes, the one
    character that belongs to no word of open_clip's.
    """
    return " ".join(_mended(text).split())


def _mended(text: str) -> str:
    """The same, white space as it was. Printable ASCII without an ampersand has nothing to repair."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.lower()
    return html.unescape(html.unescape(ftfy.fix_text(text[:MAX_MENDED]))).lower().replace("\u0345", " ")


class _Pieces(dict[str, list[int]]):
    """The tokens of what lies between two white spaces, merged when first asked for."""

    # As open_clip's tokenizer compiles it, in whose library for regular expressions letters are those of the newest
    # Unicode (17,000 more than the Rust side knows) and case is ignored
    _words = regex.compile(f"{RELEASED_START}|{RELEASED_END}|{_WORDS}", regex.IGNORECASE)

    def __init__(self, backend: Backend, max_tokens: int) -> None:
        self._backend, self._max_tokens = backend, max_tokens

    def __missing__(self, piece: str) -> list[int]:
        tokens: list[int] = []
        for word in self._words.finditer(piece):
            if len(tokens) >= self._max_tokens:
                break
            tokens += self._merged(word[0])
        del tokens[self._max_tokens :]
        if len(piece) <= MAX_REMEMBERED_LENGTH:
            if len(self) >= MAX_REMEMBERED:
                self.clear()
            self[piece] = tokens
        return tokens

    def _merged(self, word: str) -> list[int]:
        if word in {RELEASED_START, RELEASED_END}:
            special = self._backend.token_to_id(word)
            if special is not None:
                return [special]
        [(characters, _)] = _BYTES.pre_tokenize_str(word)
        return [token.id for token in self._backend.model.tokenize(characters)]


class Tokenizer:
    """Captions -> token numbers, for one context length."""

    def __init__(self, backend: Backend, context_length: int) -> None:
        self._backend = backend
        self.context_length = context_length
        self._pieces = _Pieces(backend, context_length - 2)

    @classmethod
    def released(cls, vocab_size: int = RELEASED_SIZE, context_length: int = paper.CONTEXT_LENGTH.value) -> Tokenizer:
        """The released models' vocabulary, or its first entries: the same tokens as open_clip's SimpleTokenizer.

        That holds for `<start_of_text>` and `<end_of_text>` in a text too, which are these tokens there; a vocabulary
        trained here takes them for text.

        Raises:
            ValueError: there are not as many entries.
            ModuleNotFoundError: the package open_clip_torch, which has the vocabulary, is not installed.
        """
        merges = released_merges(vocab_size)
        vocabulary = numbered(merges, RELEASED_START, RELEASED_END)
        return cls(_backend(BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=WORD_END)), context_length)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, context_length: int) -> Tokenizer:
        """Learn merges until the vocabulary has `vocab_size` entries, or the captions have no more to merge.

        Raises:
            ValueError: `vocab_size` does not hold the bytes and special tokens.
        """
        if vocab_size < NUM_FIXED:
            raise ValueError(f"vocab_size={vocab_size} is too small: bytes and special tokens alone are {NUM_FIXED}")
        learner = _backend(BPE(end_of_word_suffix=WORD_END))
        trainer = BpeTrainer(
            vocab_size=vocab_size - 2,
            initial_alphabet=list(ALPHABET),
            # The trainer breaks ties by number, and numbers word ends in the order of a randomly seeded hash map,
            # unless they are there from the start
            special_tokens=list(WORD_ENDS),
            end_of_word_suffix=WORD_END,
            show_progress=False,
        )
        learner.train_from_iterator((clean(caption) for caption in captions), trainer)
        merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
        vocabulary = numbered(merges, START, END)
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
        room = self.context_length - 2
        start, end = [self.end_token - 1], [self.end_token]
        # Every piece has a token, so that no more pieces than tokens can matter
        pieces = (_mended(text).split(maxsplit=room)[:room] for text in texts)
        bodies = [list(chain.from_iterable(map(self._pieces.__getitem__, split)))[:room] for split in pieces]
        lengths = np.fromiter(map(len, bodies), np.int32, len(bodies)) + 2
        tokens = np.zeros((len(bodies), lengths.max(initial=0)), np.int32)
        flat = chain.from_iterable(chain(start, body, end) for body in bodies)
        tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = np.fromiter(flat, np.int32, lengths.sum())
        return tokens, lengths

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What `encode_arrays` gives, as tensors int64."""
        import torch  # takes seconds, and the reading tasks of a training run do without it

        tokens, lengths = self.encode_arrays(texts)
        return torch.from_numpy(tokens).long(), torch.from_numpy(lengths).long()

    def decode(self, tokens: Iterable[int]) -> str:
        """The cleaned text, a space behind every word, of tokens up to the end token.

        Words that were written together come apart ("it's" is two), for no token tells; the text gives the same tokens.
        Where a cut went through a character there is U+FFFD.
        """
        parts: list[str] = []
        for token in takewhile(self.end_token.__ne__, tokens):
            entry = self._backend.id_to_token(token)
            assert entry is not None, f"the vocabulary has no entry {token}"
            if token != self.end_token - 1:
                # The space, which stands for no byte, passes as it is
                parts += (entry.removesuffix(WORD_END), " ") if entry.endswith(WORD_END) else (entry,)
        return str(decoders.ByteLevel().decode(parts)).strip()

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
            _BYTES,
        ]
    )
    return backend
