"""Caption rules: decide which texts beside an image may be its caption. Cheap rules run first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from pipeline.data.text.junk import BOILERPLATE as BOILERPLATE
from pipeline.data.text.junk import is_boilerplate, is_domain, is_file_name, tidy
from pipeline.data.text.language import LANGUAGES, MIN_PROBABILITY, identifier
from pipeline.data.text.personal_data import redact
from pipeline.data.text.spelling import visible
from pipeline.data.text.words import is_long_enough, words_of
from pipeline.hashing import hash128
from pipeline.reasons import Reason
from pipeline.schemas import with_reasons

_MARKUP = re.compile(r"(?i)https?://|www\.|</?[a-z][^<>]*+>|<!--|\{\{|\}\}|\$\{|&\w++;")
_MARKUP_SIGNS = ("<", "&", "{", "}", "://", "www.")
"""One of these is in all markup; looking for them first is seven times as fast."""
_MIN_WORDS_TO_REPEAT = 5


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Rules that a caption must pass."""

    min_words: int = 2
    """Minimum number of words in a caption."""
    min_characters_unspaced: int = 4
    """Minimum number of letters and digits, without vowel signs, in a caption of a script without blanks between words
    (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan). The default is two Chinese words of two characters, as
    `min_words` is two words. In a mixed caption a character is worth `min_words / min_characters_unspaced` words, so an
    English word and two Chinese characters are enough."""
    max_characters: int = 1000
    """Maximum number of characters in a caption."""
    max_repetition: float = 0.6
    """Maximum share of a caption's words that may be the same word; applies to captions of five words or more. In a
    script without blanks, a character with its vowel signs counts as a word."""
    personal_data: Literal["redact", "drop", "keep"] = "redact"
    """How e-mail addresses and telephone numbers are treated. redact: they are removed from the caption. drop: the row
    is dropped, and they are removed from its stored caption. keep: they stay."""
    language: str | None = "en"
    """The required language of captions, as a code such as en, de or zh; null or '' takes any language."""
    min_language_confidence: float = 0.3
    """Minimum probability of the likeliest language; below it, the caption's language is unknown."""
    min_language_odds: float = 16.0
    """A caption is dropped if another language is at least this many times as likely as `language`; captions of unknown
    language are kept. The defaults lose few English captions and let some foreign ones pass: docs/results.md."""

    def __post_init__(self) -> None:
        if self.language and self.language not in LANGUAGES:
            raise ValueError(
                f"caption.language = {self.language!r}: unknown code; '' takes captions of any language, "
                f"and these codes are known: {' '.join(sorted(LANGUAGES))}"
            )
        if self.min_characters_unspaced < 1:
            raise ValueError(f"caption.min_characters_unspaced = {self.min_characters_unspaced}: must be at least 1")
        if not 0 <= self.min_language_confidence <= 1:
            raise ValueError(
                f"caption.min_language_confidence = {self.min_language_confidence}: must be a probability from 0 to 1"
            )
        if not 1 <= self.min_language_odds <= 1 / MIN_PROBABILITY:
            raise ValueError(f"caption.min_language_odds = {self.min_language_odds}: must be from 1 to 1,000")


def rejection_reason(caption: str, config: CaptionConfig) -> Reason | None:
    """The reason to drop a caption, or None. The rules read it as `cleaned`, in time linear in its length."""
    caption = cleaned(caption)
    if len(caption) > config.max_characters:
        return Reason.CAPTION_LONG
    words = words_of(caption)
    if not words:
        return Reason.CAPTION_EMPTY
    if is_file_name(caption):
        return Reason.CAPTION_FILE_NAME
    if is_boilerplate(caption, words):
        return Reason.CAPTION_BOILERPLATE
    if is_domain(caption):
        return Reason.CAPTION_MARKUP
    if not is_long_enough(words, config.min_words, config.min_characters_unspaced):
        return Reason.CAPTION_SHORT
    lower = caption.lower()
    if any(sign in lower for sign in _MARKUP_SIGNS) and _MARKUP.search(caption):
        return Reason.CAPTION_MARKUP
    most = config.max_repetition * len(words)
    may_repeat = len(words) >= _MIN_WORDS_TO_REPEAT and len(words) - len(set(words)) + 1 > most
    if may_repeat and max(Counter(words).values()) > most:
        return Reason.CAPTION_REPETITION
    return None


def cleaned(caption: str) -> str:
    """The caption as it is stored: HTML entities are read, invisible characters removed, words that underscores join
    separated, and the ending of a file name cut from a caption of several words. Most captions are unchanged.
    """
    return tidy(visible(caption))


def apply_rules(table: pa.Table, config: CaptionConfig) -> pa.Table:
    """Set the reason of each row whose caption breaks a rule, and the language of each remaining caption.

    Rows that are already dropped keep their reason. The captions of all rows are first `cleaned`, and unless
    `config.personal_data` is keep, personal data is removed from them. Each changed caption gets the pair id of its new
    text. So personal data is never stored, matched or hashed from here on.

    Args:
        table: CANDIDATES.
        config: the rules.

    Returns:
        CANDIDATES.
    """
    originals = [caption or "" for caption in table["caption"].to_pylist()]
    captions = list(map(visible, originals))
    reasons: list[str | None] = table["reason"].to_pylist()
    if config.personal_data != "keep":
        redacted = list(map(redact, captions))
        if config.personal_data == "drop":
            for row, (old, new) in enumerate(zip(captions, redacted, strict=True)):
                if old != new:
                    reasons[row] = reasons[row] or Reason.CAPTION_PERSONAL_DATA
        captions = redacted
    captions = list(map(tidy, captions))
    changed = [row for row, (old, new) in enumerate(zip(originals, captions, strict=True)) if old != new]
    table = _with_captions(table, captions, changed) if changed else table
    reasons = [reason or rejection_reason(caption, config) for caption, reason in zip(captions, reasons, strict=True)]
    languages: list[str | None] = [None] * len(captions)
    remaining = [row for row, reason in enumerate(reasons) if reason is None]
    guesses = identifier()([captions[row] for row in remaining], config.language or None)
    for row, guess in zip(remaining, guesses, strict=True):
        if guess.confidence >= config.min_language_confidence:
            languages[row] = guess.language
            # The odds are 1 if the caption is in the required language, or if no language is required
            if guess.odds > 1 and guess.odds >= config.min_language_odds:
                reasons[row] = Reason.CAPTION_LANGUAGE
    index = table.schema.get_field_index("language")
    return with_reasons(table.set_column(index, "language", pa.array(languages, pa.string())), reasons)


def _with_captions(table: pa.Table, captions: Sequence[str], changed: Sequence[int]) -> pa.Table:
    """The table with the captions of the `changed` rows replaced, and their pair ids recomputed."""
    texts, ids = table["caption"].to_pylist(), table["pair_id"].to_pylist()
    urls = table["url"].to_pylist()
    for row in changed:
        texts[row] = captions[row]
        ids[row] = hash128(urls[row] or "", captions[row])
    for name, values in (("caption", texts), ("pair_id", ids)):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return table
