"""Caption rules: decide which texts beside an image may be its caption. Cheap rules run first."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from pipeline.data.text.language import LANGUAGES, MIN_PROBABILITY, identifier
from pipeline.data.text.personal_data import redact
from pipeline.hashing import hash128
from pipeline.reasons import Reason
from pipeline.schemas import with_reasons

_FILE_NAME = re.compile(
    r"(?i)^\S+\.(jpe?g|png|gif|webp|bmp|tiff?|svg|avif|heic)$|^(img|dsc|dscn|dscf|dcim|pict|image|photo|screenshot)[\s_-]*\d\S*(\s+([^\w\s]?\d\S*|at|am|pm|copy))*$"
)
_MARKUP = re.compile(r"(?i)https?://|www\.|</?\w+[^<>]*>|\{\{|\}\}|&\w+;")
_WORD = re.compile(r"\w+")
_PHRASES = """
image, photo, picture, img, logo, icon, banner, thumbnail, avatar, untitled,
placeholder, advertisement, spacer, pixel, blank, loading,
click here, click to enlarge, click to view, read more, learn more, see more,
view image, view larger image, no image, image not available, featured image, post image,
share on facebook, share on twitter, follow us, company logo, site logo, profile picture,
home page, add to cart, buy now, previous slide, next slide
"""
BOILERPLATE = frozenset(phrase.strip() for phrase in _PHRASES.split(","))
"""Whole captions, in lower case and without punctuation, that do not describe the image."""


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Rules that a caption must pass."""

    min_words: int = 2
    """Minimum number of words in a caption."""
    max_characters: int = 1000
    """Maximum number of characters in a caption."""
    max_repetition: float = 0.6
    """Maximum share of a caption's words that may be the same word; applies to captions of five words or more."""
    personal_data: Literal["redact", "drop", "keep"] = "redact"
    """How e-mail addresses and telephone numbers are treated. redact: they are removed from the caption. drop: the row
    is dropped, and they are removed from its stored caption. keep: the caption is unchanged."""
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
        if not 0 <= self.min_language_confidence <= 1:
            raise ValueError(
                f"caption.min_language_confidence = {self.min_language_confidence}: must be a probability from 0 to 1"
            )
        if not 1 <= self.min_language_odds <= 1 / MIN_PROBABILITY:
            raise ValueError(f"caption.min_language_odds = {self.min_language_odds}: must be from 1 to 1,000")


def rejection_reason(caption: str, config: CaptionConfig) -> Reason | None:
    """The reason to drop a caption, or None."""
    words = _WORD.findall(caption.lower())
    if not words:
        return Reason.CAPTION_EMPTY
    if _FILE_NAME.match(caption):
        return Reason.CAPTION_FILE_NAME
    if " ".join(words) in BOILERPLATE:
        return Reason.CAPTION_BOILERPLATE
    if len(words) < config.min_words:
        return Reason.CAPTION_SHORT
    if len(caption) > config.max_characters:
        return Reason.CAPTION_LONG
    if _MARKUP.search(caption):
        return Reason.CAPTION_MARKUP
    repeats = max(words.count(word) for word in set(words))
    if len(words) >= 5 and repeats > config.max_repetition * len(words):
        return Reason.CAPTION_REPETITION
    return None


def apply_rules(table: pa.Table, config: CaptionConfig) -> pa.Table:
    """Set the reason of each row whose caption breaks a rule, and the language of each remaining caption.

    Rows that are already dropped keep their reason. Unless `config.personal_data` is keep, personal data is first
    removed from the captions of all rows, and each changed caption gets the pair id of its new text. So personal data
    is never stored, matched or hashed from here on.

    Args:
        table: CANDIDATES.
        config: the rules.

    Returns:
        CANDIDATES.
    """
    captions = [caption or "" for caption in table["caption"].to_pylist()]
    reasons: list[str | None] = table["reason"].to_pylist()
    if config.personal_data != "keep":
        redacted = [redact(caption) for caption in captions]
        changed = [row for row, (old, new) in enumerate(zip(captions, redacted, strict=True)) if old != new]
        if config.personal_data == "drop":
            for row in changed:
                reasons[row] = reasons[row] or Reason.CAPTION_PERSONAL_DATA
        captions = redacted
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
