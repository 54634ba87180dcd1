"""Make text from outside storable: every string becomes valid Unicode, and messages become one printable line."""

from __future__ import annotations

MAX_MESSAGE_CHARACTERS = 300
"""Maximum length of a message, because errors may quote arbitrarily long input."""


def storable(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD. Arrow, JSON and UTF-8 files accept no lone surrogates."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def printable(text: str, max_characters: int = MAX_MESSAGE_CHARACTERS) -> str:
    """The start of a text as one line; line breaks, control characters and lone surrogates become escapes."""
    start = text[:max_characters]
    if start.isprintable():
        return start
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in start)
    return escaped[:max_characters]


def message_of(error: BaseException) -> str:
    """The type and the text of an exception, for a row or a log line."""
    text = str(error)
    return printable(f"{type(error).__name__}: {text}" if text else type(error).__name__)
