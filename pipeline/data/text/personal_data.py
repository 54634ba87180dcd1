"""Redact personal data in captions: e-mail addresses and telephone numbers.

Telephone numbers are distinguished from years, sizes, prices, dates and part numbers by how people write them: with +
or 00 and a country code (ITU-T E.123), in North American groups of three, three and four, with a leading zero and in
groups, or after a word such as "tel". Numbers in other forms are kept, because most are not telephone numbers.
"""

from __future__ import annotations

import re

OMITTED = "[...]"
"""Replaces each redacted text. It has no letter, so no query matches it, no rule counts it as a word and no language is
guessed from it. A word such as "[phone]" would be learnt with pictures that show no phone."""

_EMAIL = r"[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}(?!(?:avif|bmp|gif|jpe?g|png|svg|tiff?|webp)\b)[^\W\d_]{2,24}\b"
_GAP = r"(?:[ .\u00a0]| ?[\-/\u2010-\u2015] ?)"
_END = r"(?![\w-]|[.,:]\d)"
_NUMBERS = (
    # +49 30 1234567, 0049 (0)30 1234567
    rf"(?:\+|00(?=[1-9]\d{{0,2}}{_GAP}))(?:{_GAP}?\(?\d\)?){{7,15}}",
    # (212) 555-0123, 1-212-555-0123, 212.555.0123
    rf"(?:1{_GAP})?(?:\([2-9]\d\d\){_GAP}?|[2-9]\d\d(?P<gap>{_GAP}))[2-9]\d\d(?(gap)(?P=gap)|{_GAP})\d{{4}}",
    # 030/1234567, (020) 7946 0958, 06 12 34 56 78, but not dates
    rf"(?!\d\d?{_GAP}\d\d?{_GAP}\d{{4}})\(?0[1-9]\d{{0,3}}(?:\){_GAP}?|{_GAP})\d(?:{_GAP}?\d){{5,8}}",
)
_PERSONAL = re.compile(
    rf"(?<![\w.+%-]){_EMAIL}"
    rf"|(?P<word>\b(?i:tel|phone|call|fax|mobile|whatsapp)[.:]? ?)\d(?:{_GAP}?\d){{6,14}}{_END}"
    rf"|(?<![\w#$€£¥.,/-])(?:{'|'.join(_NUMBERS)}){_END}"
)
_MAY_BE_PERSONAL = re.compile(r"@|\d(?:\D{0,3}\d){6}")


def redact(caption: str) -> str:
    """Replace each e-mail address and telephone number in a caption by OMITTED."""
    if not _MAY_BE_PERSONAL.search(caption):
        return caption
    return _PERSONAL.sub(lambda match: (match["word"] or "") + OMITTED, caption)
