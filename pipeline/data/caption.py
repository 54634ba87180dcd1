"""Caption rules: which texts beside an image may be captions. Cheap, and with a reason for each that may not."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pyarrow as pa

from pipeline.schemas import Reason, with_reasons

_FILE_NAME = re.compile(
    r"(?i)^\S+\.(jpe?g|png|gif|webp|bmp|tiff?|svg|avif|heic)$|^(img|dsc|dscn|dscf|dcim|pict|image|photo|screenshot)[\s_-]*\d\S*(\s+([^\w\s]?\d\S*|at|am|pm|copy))*$"
)
_MARKUP = re.compile(r"(?i)https?://|www\.|</?\w+[^<>]*>|\{\{|\}\}|&\w+;|\w+@\w+\.\w")
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
"""Whole captions, in lower case and without punctuation, that say nothing of the image."""


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Limits of a caption."""

    min_words: int = 2
    """Words a caption has, at least."""
    max_characters: int = 1000
    """Characters a caption has, at most."""
    max_repetition: float = 0.6
    """Share of a caption's words that may be one and the same word, for captions of five words or more."""


def why_not(caption: str, config: CaptionConfig) -> Reason | None:
    """The reason for which a text is no caption, or None."""
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
    most = max(words.count(word) for word in set(words))
    if len(words) >= 5 and most > config.max_repetition * len(words):
        return Reason.CAPTION_REPETITION
    return None


def apply_rules(table: pa.Table, config: CaptionConfig) -> pa.Table:
    """CANDIDATES with a reason for each row whose caption breaks a rule; rows that are out already stay as they are."""
    rows = zip(table["caption"].to_pylist(), table["reason"].to_pylist(), strict=True)
    return with_reasons(table, [reason or why_not(caption or "", config) for caption, reason in rows])
