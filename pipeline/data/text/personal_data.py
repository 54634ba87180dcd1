"""Personal data in captions: e-mail addresses and telephone numbers.

Telephone numbers are told from years, sizes, prices, dates and part numbers by how people write them: with + or 00 and
a country's code (ITU-T E.123), in North America's groups of three, three and four, with a leading zero and in groups,
or behind a word such as "tel". A number of none of these forms stays: most of those are no telephone's.
"""

from __future__ import annotations

import re

OMITTED = "[...]"
"""Stands in the place of what was taken out. It has no letter, so no query can match it, no rule takes it for a word
and no language is guessed from it; a word such as "[phone]" would be learnt beside pictures that show none."""

_EMAIL = r"[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}(?!(?:avif|bmp|gif|jpe?g|png|svg|tiff?|webp)\b)[^\W\d_]{2,24}\b"
_GAP = r"(?:[ .\u00a0]| ?[\-/\u2010-\u2015] ?)"
_END = r"(?![\w-]|[.,:]\d)"
_NUMBERS = (
    # +49 30 1234567, 0049 (0)30 1234567
    rf"(?:\+|00(?=[1-9]\d{{0,2}}{_GAP}))(?:{_GAP}?\(?\d\)?){{7,15}}",
    # (212) 555-0123, 1-212-555-0123, 212.555.0123
    rf"(?:1{_GAP})?(?:\([2-9]\d\d\){_GAP}?|[2-9]\d\d(?P<gap>{_GAP}))[2-9]\d\d(?(gap)(?P=gap)|{_GAP})\d{{4}}",
    # 030/1234567, (020) 7946 0958, 06 12 34 56 78; no date, though
    rf"(?!\d\d?{_GAP}\d\d?{_GAP}\d{{4}})\(?0[1-9]\d{{0,3}}(?:\){_GAP}?|{_GAP})\d(?:{_GAP}?\d){{5,8}}",
)
_PERSONAL = re.compile(
    rf"(?<![\w.+%-]){_EMAIL}"
    rf"|(?P<word>\b(?i:tel|phone|call|fax|mobile|whatsapp)[.:]? ?)\d(?:{_GAP}?\d){{6,14}}{_END}"
    rf"|(?<![\w#$€£¥.,/-])(?:{'|'.join(_NUMBERS)}){_END}"
)
_MAYBE = re.compile(r"@|\d(?:\D{0,3}\d){6}")


def redact(caption: str) -> str:
    """The caption with OMITTED for each e-mail address and telephone number; itself where there is none."""
    if not _MAYBE.search(caption):
        return caption
    return _PERSONAL.sub(lambda found: (found["word"] or "") + OMITTED, caption)
