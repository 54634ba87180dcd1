"""Redact personal data in captions: e-mail addresses and telephone numbers.

Telephone numbers are distinguished from years, sizes, prices, dates and part numbers by how people write them: with +
or 00 and a country code (ITU-T E.123), in North American groups of three, three and four, with a leading zero and in
groups, or after a word such as "tel". Numbers in other forms are kept, because most are not telephone numbers. So are
lists of sizes and years, such as `02 03 04 05 06`: numbers of one length that rise or fall by small or equal steps.
"""

from __future__ import annotations

import re
from itertools import pairwise

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
_NOT_BEFORE = r"(?<![\w#$€£¥.,/-])"
_PERSONAL = re.compile(
    rf"(?<![\w.+%-]){_EMAIL}"
    rf"|(?P<word>\b(?i:tel|phone|call|fax|mobile|whatsapp)[.:]? ?)\d(?:{_GAP}?\d){{6,14}}{_END}"
    # All neighbouring numbers of two digits: as a whole they are a telephone number, or none of them is part of one
    rf"|{_NOT_BEFORE}(?P<pairs>\d\d(?:{_GAP}\d\d){{3,39}}+){_END}"
    rf"|{_NOT_BEFORE}(?P<number>{'|'.join(_NUMBERS)}){_END}"
)
_PAIRS_OF_NUMBER = 5
"""A French number has five pairs of digits (06 12 34 56 78)."""
_MAX_STEP = 5
"""Largest step between sizes, or years, in a list."""
_MAX_EQUAL_STEP = 100
"""Largest step of a list whose steps are equal, such as 050 100 150."""
_MAY_BE_PERSONAL = re.compile(r"@|\d(?:\D{0,3}\d){6}")


def redact(caption: str) -> str:
    """Replace each e-mail address and telephone number in a caption by OMITTED."""
    if not _MAY_BE_PERSONAL.search(caption):
        return caption
    return _PERSONAL.sub(_replacement, caption)


def _replacement(match: re.Match[str]) -> str:
    if match["pairs"]:
        return OMITTED if _is_number_in_pairs(match["pairs"]) else match[0]
    if match["number"] and _is_list(match["number"]):
        return match[0]
    return (match["word"] or "") + OMITTED


def _is_number_in_pairs(text: str) -> bool:
    """Whether pairs of digits are French numbers, one or several, or a shorter number with its area code set apart."""
    pairs, gaps = _DIGITS.findall(text), _NO_DIGITS.findall(text)
    if len(pairs) % _PAIRS_OF_NUMBER == 0:
        beginnings = pairs[::_PAIRS_OF_NUMBER]
    elif gaps[0] != gaps[1]:
        beginnings = pairs[:1]
    else:
        return False
    return all(pair[0] == "0" and pair[1] != "0" for pair in beginnings) and not _is_list(text)


def _is_list(text: str) -> bool:
    """Whether numbers rise or fall by small or equal steps, or rise and are all round."""
    numbers = _DIGITS.findall(text)
    if len(numbers) < 3:
        return False
    lengths, values = set(map(len, numbers)), list(map(int, numbers))
    steps = {second - first for first, second in pairwise(values)}
    if lengths == {2}:
        steps = {(step + 50) % 100 - 50 for step in steps}  # 99 is followed by 00
    if min(steps) <= 0 <= max(steps):
        return False
    largest = max(map(abs, steps))
    if lengths == {3, 4}:  # a North American number with blanks only
        return min(steps) > 0 and not set(text) - set("0123456789 ") and not any(value % 10 for value in values)
    if lengths <= {1, 2}:
        return largest <= _MAX_STEP
    return len(lengths) == len(steps) == 1 and largest <= _MAX_EQUAL_STEP


_DIGITS = re.compile(r"\d+")
_NO_DIGITS = re.compile(r"\D+")
