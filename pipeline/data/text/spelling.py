"""Fold the spellings of a text into one, so that captions and queries match whatever characters they are written with.

`normalize` is for comparing and is never stored. Beyond NFKC and case folding it treats these kinds, which NFKC leaves
apart or joins to the words beside them:

- HTML entities that are left in the text, also if they were escaped twice. Without a semicolon only those that HTML
  allows, and not before a letter, a digit or `=` (HTML standard, 13.2.5.73, the rule for attributes).
- Trade mark signs become blanks. Other symbols that stand for letters or numbers, such as ① or ㎏, are set apart.
- Characters that have no width of their own are removed: soft hyphens, zero-width spaces, direction marks, variation
  selectors. These are Unicode's Default_Ignorable_Code_Points, which NFKC_Casefold removes too (section 3.13).
  ZWNJ and ZWJ are among them. They choose the shape of letters in Persian and Hindi and join emoji, and the same word
  is written with and without them, so both spellings are one.
- Apostrophes, quotation marks and hyphens become the ones of ASCII, and so does an acute accent that stands alone.
  The em dash stays, because it separates words.
- The dot of İ is dropped and ı is i, because ASCII has one capital for both.

`visible` is for storing: it changes only what no reader sees.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from html import unescape as unescape_number
from html.entities import html5
from itertools import chain, groupby

_MAX_UNSORTED, _MAX_MARKS = 300, 30
"""Shorter texts, and shorter runs of marks, may be sorted in quadratic time. Unicode's Stream-Safe Text Format (UAX 15)
also allows 30 marks."""
MAX_ESCAPES = 3
"""How often a text is unescaped. `&amp;amp;amp;lt;` counts once, so only contrived texts need more."""

_ENTITY = re.compile(r"&(#[0-9]++;?|#[xX][0-9a-fA-F]++;?|[A-Za-z][A-Za-z0-9]{1,31}(?:;|(?![A-Za-z0-9=])))")
_ESCAPED_AMPERSAND = re.compile(r"&(?:(?i:amp);|#0*+38;|#[xX]0*+26;)++")
_MAX_DIGITS = 7
"""Of a code point. Longer numbers are no code points, and int() refuses 5,000 digits."""
_IGNORABLE = (
    *((0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F)),
    *((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF)),
    *((0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF)),
)
"""Default_Ignorable_Code_Point of Unicode 15.1 (DerivedCoreProperties.txt)."""
_APOSTROPHES = (
    "\u00b4\u0384\u1fbd\u1fbf\u1ffe\u2018\u2019\u201a\u201b\u2032\u2035\u02b9\u02bb\u02bc\u02bd\u05f3\ua78b\ua78c"
)
"""Signs that are typed for an apostrophe: acute accents, spiritus, curly quotes, primes, modifier letters, geresh."""
_QUOTES = "\u201c\u201d\u201e\u201f\u2033\u2036\u301d\u301e\u301f\u05f4"
_HYPHENS = "\u2010\u2011\u2012\u2013\u2043\u2212\u058a\u05be\ufe63\uff0d"
"""Hyphens, the figure dash, the en dash, the minus sign, and the hyphens of Armenian and Hebrew."""
_TRADE_MARKS = (
    "\u00a9\u00ae\u2117\u2120\u2122\u24b8\u24d2\u24c7\u24e1\U0001f12a\U0001f12b\U0001f12c\U0001f16a\U0001f16b\U0001f16c"
)
"""Copyright, registered, sound recording, service mark and trade mark signs, and letters in circles for them."""
_BLANKS = "\u20e3\u2800"
"""The key around a digit, as in 1️⃣, which is a mark and joins words; the blank of Braille."""
_ALPHABETS = (range(0x80, 0x3400), range(0xA000, 0xAC00), range(0xF900, 0x20000))
"""Code points among which all that fold to others are; the rest are Han, Hangul and unassigned."""
_DOT = "\u0307"
_DOTTED_I = re.compile(f"i{_DOT}++")
_UNSEEN = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]+")
"""Ignorable characters that do not change how the text beside them looks, unlike ZWJ, ZWNJ and variation selectors."""


def normalize(text: str) -> str:
    """One spelling for all that are alike; see above. Each run of white space is one blank, and both ends are stripped.

    Normalising twice changes nothing. A text of ASCII without entities is only lowercased.
    """
    if text.isascii() and "&" not in text:
        return " ".join(text.lower().split())
    pattern, folds = _folds()
    if "&" in text:
        text = unescape(text)
    if pattern.search(text):
        text = text.translate(folds)
    text = _nfkc(text).casefold()
    if _DOT in text:
        text = _DOTTED_I.sub("i", text)
    text = _nfkc(text)
    if "&" in text:  # what has become an entity only now would be one when normalised again
        text = _ENTITY.sub(lambda entity: entity[0] if _character(entity) == entity[0] else " ", text)
    return " ".join(text.split())


def _nfkc(text: str) -> str:
    """NFKC in linear time: unicodedata sorts the marks of a character in quadratic time, so long runs are sorted here.

    100,000 marks of two kinds would take ten seconds. Normalising text in canonical order gives the same result.
    """
    if len(text) > _MAX_UNSORTED:
        text = _marks().sub(_in_canonical_order, text)
    return unicodedata.normalize("NFKC", text)


def _in_canonical_order(run: re.Match[str]) -> str:
    """Decomposed characters, with the marks between two letters in ascending order of their combining class."""
    characters = chain.from_iterable(unicodedata.normalize("NFKD", character) for character in run[0])
    groups = groupby(characters, lambda character: unicodedata.combining(character) > 0)
    return "".join(chain.from_iterable(sorted(group, key=unicodedata.combining) for _, group in groups))


@cache
def _marks() -> re.Pattern[str]:
    """A long run of characters that decompose to combining marks, or that are beyond 16 bits."""
    first = {code: unicodedata.normalize("NFD", chr(code))[0] for code in range(0x300, 0x10000)}
    basic = [code for code, character in first.items() if unicodedata.combining(character)]
    return re.compile(f"[{character_class(basic)}\U00010000-\U0010ffff]{{{_MAX_MARKS},}}+")


def visible(text: str) -> str:
    """The text without entities and without characters that nobody sees; all others stay as they are written."""
    text = unescape(text)
    return text if text.isascii() else _UNSEEN.sub("", text)


def unescape(text: str) -> str:
    """Replace HTML entities, also those that were escaped again, in time linear in the text."""
    for _ in range(MAX_ESCAPES):
        if "&" not in text:
            break
        before = text
        text = _ENTITY.sub(_character, _ESCAPED_AMPERSAND.sub("&", text))
        if text == before:
            break
    return text


def _character(entity: re.Match[str]) -> str:
    """The characters of an entity; the entity itself if there is none of this name."""
    name = entity[1]
    if name[0] == "#":
        digits = name.strip("#xX;").lstrip("0") or "0"
        base = "x" if name[1] in "xX" else ""
        return unescape_number(f"&#{base}{digits};") if len(digits) <= _MAX_DIGITS else "\ufffd"
    # Names in capitals come from pages that capitalise their texts
    return html5.get(name) or (html5.get(name.lower()) if name[-1] == ";" else None) or entity[0]


@cache
def _folds() -> tuple[re.Pattern[str], dict[int, str]]:
    """What each character is replaced by before NFKC, and a pattern that finds these characters."""
    folds = {code: "" for first, last in _IGNORABLE for code in range(first, last + 1)}
    for characters, fold in ((_APOSTROPHES, "'"), (_QUOTES, '"'), (_HYPHENS, "-"), (_TRADE_MARKS + _BLANKS, " ")):
        folds |= dict.fromkeys(map(ord, characters), fold)
    folds |= {0x130: "i", 0x131: "i"}
    for code in (code for codes in _ALPHABETS for code in codes if code not in folds):
        character = chr(code)
        decomposition = unicodedata.decomposition(character)
        if not decomposition:
            continue
        form = unicodedata.normalize("NFKC", character)
        if form[0] == " " and len(form) > 1:  # an accent on a blank, which would join the next letter
            folds[code] = " "
        elif _stands_for_a_word(character, decomposition, form):
            folds[code] = f" {form.translate(folds)} "
        elif any(ord(part) in folds for part in form):
            folds[code] = form.translate(folds)
    # One range for all beyond 16 bits, because each of theirs would be compared with every character of a text
    basic = [code for code in folds if code < 0x10000]
    return re.compile(f"[{character_class(basic)}\U00010000-\U0010ffff]"), folds


def _stands_for_a_word(character: str, decomposition: str, form: str) -> bool:
    """Whether a symbol, a fraction or a number in a circle stands for letters or numbers."""
    is_apart = unicodedata.category(character)[0] == "S" or decomposition.startswith(("<circle>", "<fraction>"))
    return is_apart and any(unicodedata.category(part)[0] in "LN" for part in form)


def character_class(codes: Iterable[int]) -> str:
    """The inside of a regular expression's [...] for some code points."""
    ranges: list[list[int]] = []
    for code in sorted(codes):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)
