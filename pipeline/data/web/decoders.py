"""Decode bytes as browsers do: the decoders of the Encoding standard (https://encoding.spec.whatwg.org).

Python has a codec near each encoding of the standard. Here each difference is corrected:

- a single-byte encoding is a table of 256 characters;
- a multi-byte encoding is a Python codec, an error handler that decodes what only the standard defines, and a
  translation of the characters that the standard decodes to others;
- iso-2022-jp is cut at its escape sequences, and each piece is one of the above.

A malformed sequence becomes U+FFFD, and an ASCII byte in it is kept: it may be the end of a tag. Time is linear in the
input.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable

Recovery = Callable[[UnicodeError], tuple[str, int]]
"""An error handler of `codecs`: the replacement of a malformed sequence, and the position at which decoding resumes."""
_REPLACEMENT = "\ufffd"


def decode(body: bytes, encoding: str) -> str:
    """Decode with an encoding of the Encoding standard, which never fails.

    Args:
        body: a byte order mark in it is not removed.
        encoding: a name, as `charsets.encoding_of` returns it.

    Raises:
        ValueError: the standard has no such encoding.
    """
    decoder = _DECODERS.get(encoding)
    if decoder is None:
        raise ValueError(f"encoding {encoding!r}: not a name of the Encoding standard; see charsets.encoding_of")
    return decoder(body)


# Single-byte encodings

_SINGLE_BYTE = {
    **{
        name: name
        for name in ("koi8-r", "koi8-u", *(f"iso-8859-{part}" for part in (*range(2, 9), 10, *range(13, 17))))
    },
    **{f"windows-{page}": f"cp{page}" for page in (874, *range(1250, 1259))},
    "ibm866": "cp866",
    "iso-8859-8-i": "iso-8859-8",
    "macintosh": "mac-roman",
    "x-mac-cyrillic": "mac-cyrillic",
}
"""Names of the standard and of Python's codecs."""
_LETTERS = {"koi8-u": {0xAE: "\u045e", 0xBE: "\u040e"}, "windows-1255": {0xCA: "\u05ba"}}
"""Bytes that Python decodes to other characters, or to none."""


def _characters(encoding: str, codec: str) -> str:
    """The characters of a single-byte encoding's 256 bytes."""
    characters = list(bytes(range(256)).decode(codec, "replace"))
    if encoding.startswith("windows-"):  # bytes without a character are control characters up to 0x9f
        characters[0x80:0xA0] = (chr(0x80 + i) if c == _REPLACEMENT else c for i, c in enumerate(characters[0x80:0xA0]))
    for byte, character in _LETTERS.get(encoding, {}).items():
        characters[byte] = character
    return "".join(characters)


def _table_decoder(characters: str) -> Callable[[bytes], str]:
    return lambda body: codecs.charmap_decode(body, "strict", characters)[0]


# Multi-byte encodings

_WINDOWS_JAPANESE = str.maketrans("\u301c\u2016\u2212\u00a2\u00a3\u00ac", "\uff5e\u2225\uff0d\uffe0\uffe1\uffe2")
"""Python's JIS X 0208 -> the standard's, which is that of Windows."""
_BIG5 = str.maketrans(
    "\u2022\uff64\u203e\u223c\u2641\u2609\u00a5\u00a2\u00a3",
    "\u2027\ufe51\u00af\uff5e\u2295\u2299\uffe5\uffe0\uffe1",
)
_BIG5_SLASHES = {b"\xa2A": "\u2215", b"\xa2B": "\ufe68"}
"""Python decodes these and A1FE, A240 to the same two characters, so that they cannot be translated."""
_BIG5_PIECES = re.compile(rb"(?s)\xa2[AB]|(?:(?!\xa2[AB])[\x81-\xfe](?:.|\Z)|[^\x81-\xfe]++)++")
_EUC_JP_TILDE = {b"\x8f\xa2\xb7": "\uff5e"}
"""Python decodes it to an ASCII tilde."""
_EUC_JP_PIECES = re.compile(
    rb"\x8f\xa2\xb7|(?:(?!\x8f\xa2\xb7)"
    rb"(?:[\x00-\x7f]++|\x8f[\xa1-\xfe][\x80-\xff]|[\x8e\x8f\xa1-\xfe][\x80-\xff]|[\x80-\xff]))++"
)
_GB18030 = str.maketrans(
    "\ue5e5\ue7c7\u1e3f"
    "\ue78d\ue78e\ue78f\ue790\ue791\ue792\ue793\ue794\ue795\ue796"
    "\ue81e\ue826\ue82b\ue82c\ue832\ue843\ue854\ue864",
    "\u3000\u1e3f\ue7c7"
    "\ufe10\ufe12\ufe11\ufe13\ufe14\ufe15\ufe16\ufe17\ufe18\ufe19"
    "\u9fb4\u9fb5\u9fb6\u9fb7\u9fb8\u9fb9\u9fba\u9fbb",
)
"""Private characters of GB 18030-2000 -> their characters of 2022 (U+3000: as deployed, whatwg/encoding#17)."""
_SHIFT_JIS = str.maketrans("\uf8f0\uf8f1\uf8f2\uf8f3", _REPLACEMENT * 4)
"""Python decodes the bytes A0, FD, FE and FF; in the standard they are errors."""
_BIG5_ADDED = (
    "1000㡵𡵓𣚞𦀡㻬𥣞㫵竼龗𤅡𨤍𣇪𠪊𣉞䌊蒄龖鐯䤰蘓墖靊鈘秐稲晠権袝瑌篅枂稬剏遆㓦珄𥶹瓆鿇垳 "
    "1040䤯呌䄱𣚎堘穲𧭥讏䚮𦺈䆁𥶙箮𢒼鿈𢓁𢓉𢓌鿉蔄𣖻䂴鿊䓡𪷿拁灮鿋 2082箸 2088簆 2103糎 2114緒 2123縝 2148者 "
    "2151耨 2221菁 2239蒨 2244萏 2303覦覩 2354起 2400都 2413銹 2477靜 2498響 2605鼖 2673蔃 2746兙兛兝兞 "
    "2771鍮 2780瑹 2990浧 3087禛 3259邗 3301靝 3436瀞 3451嬨 4136爁 4138矗 4141纇 4182駖 4206釔 4220惞 4230澶 "
    "4241輶 4258侻 4273營 4279鄄 4282鷰 4294菏 4329尐秣 4349婧 4419輋 4422筑 4494拐 4624恢 4694痹 4708汊 "
    "4742鬮 4748鼗 4815僭 4828弌 4902蠏 4922拎 4982瑨 4992煢 4997牐 5432␀␁␂␃␄␅␆␇␈␉␊␋␌␍␎␏␐␑␒␓␔␕␖␗␘␙␚␛␜␝␞␟␡€ "
    "10942廴 10946无 10948癶 10950隶 10957〃仝 19028倩 19035偽 19088包 19096卄 19112卿 19162嘅 19240婷 "
    "19299幵 19305廐 19326彘 19355悤 19398撐 19439晴 19454杞 19553沜渝 19557港 19611煮 19643猪 19672瑜 "
    "19697瓩 19748砉"
)
"""Characters of index-big5.txt that big5hkscs lacks: the pointer of the first, then it and its successors."""


def _big5_added() -> dict[bytes, str]:
    added = {}
    for run in _BIG5_ADDED.split():
        digits = re.match("[0-9]+", run)
        assert digits is not None
        for pointer, character in enumerate(run[digits.end() :], int(digits[0])):
            lead, trail = divmod(pointer, 157)
            added[bytes((0x81 + lead, trail + (0x40 if trail < 0x3F else 0x62)))] = character
    return added


def _recover_pairs(leads: bytes, added: dict[bytes, str]) -> Recovery:
    """Recovery of an encoding of one or two bytes: `leads` begin a pair, `added` are pairs that Python lacks."""

    def recover(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        start = error.start
        pair = error.object[start : start + 2]
        if character := added.get(pair):
            return character, start + 2
        return _REPLACEMENT, start + (2 if pair[0] in leads and pair[-1] >= 0x80 and len(pair) == 2 else 1)

    return recover


def _recover_gb18030(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    start = error.start
    four = error.object[start : start + 4]
    if four[0] == 0x80:
        return "€", start + 1
    if four[0] == 0xFF or len(four) == 1:
        return _REPLACEMENT, start + 1
    if not 0x30 <= four[1] <= 0x39:
        return _REPLACEMENT, start + (2 if four[1] >= 0x80 else 1)
    # The first of four bytes; what a wrong one follows is read again, what the end follows is not.
    if (len(four) > 2 and not 0x81 <= four[2] <= 0xFE) or (len(four) > 3 and not 0x30 <= four[3] <= 0x39):
        return _REPLACEMENT, start + 1
    return _REPLACEMENT, start + len(four)


def _recover_euc_jp(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    start = error.start
    three = error.object[start : start + 3]
    if len(three) == 1 or not (three[0] in b"\x8e\x8f" or 0xA1 <= three[0] <= 0xFE) or three[1] < 0x80:
        return _REPLACEMENT, start + 1
    if three[0] == 0x8F and 0xA1 <= three[1] <= 0xFE:
        return _REPLACEMENT, start + (3 if len(three) == 3 and three[2] >= 0x80 else 2)
    if three[0] >= 0xA1 and 0xA1 <= three[1] <= 0xFE:
        return _windows_japanese((three[0] - 0xA1) * 94 + three[1] - 0xA1), start + 2
    return _REPLACEMENT, start + 2


def _windows_japanese(pointer: int) -> str:
    """The character of a pointer in the standard's index jis0208, whose source is Windows' code page 932."""
    lead, trail = divmod(pointer, 188)
    pair = bytes((lead + (0x81 if lead < 0x1F else 0xC1), trail + (0x40 if trail < 0x3F else 0x41)))
    try:
        return pair.decode("cp932")
    except UnicodeDecodeError:
        return _REPLACEMENT


def _pair_decoder(encoding: str, codec: str, recovery: Recovery, translation: dict[int, int]) -> Callable[[bytes], str]:
    handler = f"pipeline.data.web.{encoding}"
    codecs.register_error(handler, recovery)
    translated = re.compile(f"[{''.join(map(chr, translation))}]" if translation else "(?!)")

    def decoder(body: bytes) -> str:
        text = body.decode(codec, handler)
        return text.translate(translation) if translated.search(text) else text

    return decoder


def _in_pieces(
    pieces: re.Pattern[bytes], exceptions: dict[bytes, str], decoder: Callable[[bytes], str]
) -> Callable[[bytes], str]:
    """A decoder for which some byte sequences are exceptions; `pieces` matches each of them, or what is between."""

    def exceptional_decoder(body: bytes) -> str:
        if not any(sequence in body for sequence in exceptions):
            return decoder(body)
        return "".join(exceptions.get(piece) or decoder(piece) for piece in pieces.findall(body))

    return exceptional_decoder


_euc_jp = _in_pieces(
    _EUC_JP_PIECES, _EUC_JP_TILDE, _pair_decoder("euc-jp", "euc_jp", _recover_euc_jp, _WINDOWS_JAPANESE)
)
_big5 = _in_pieces(
    _BIG5_PIECES,
    _BIG5_SLASHES,
    _pair_decoder("big5", "big5hkscs", _recover_pairs(bytes(range(0x81, 0xFF)), _big5_added()), _BIG5),
)
_gb18030 = _pair_decoder("gb18030", "gb18030", _recover_gb18030, _GB18030)
_euc_kr = _pair_decoder("euc-kr", "cp949", _recover_pairs(bytes(range(0x81, 0xFF)), {}), {})
_shift_jis = _pair_decoder(
    "shift_jis", "cp932", _recover_pairs(bytes((*range(0x81, 0xA0), *range(0xE0, 0xFD))), {}), _SHIFT_JIS
)


# iso-2022-jp

_ESCAPE = re.compile(rb"\x1b(\([BJI]|\$[@B])")
_SEVEN_BIT = "".join(_REPLACEMENT if byte in (0x0E, 0x0F, 0x1B) else chr(byte) for byte in range(128)).ljust(
    256, _REPLACEMENT
)
_SETS: dict[bytes, Callable[[bytes], str]] = {
    b"(B": _table_decoder(_SEVEN_BIT),
    b"(J": _table_decoder(_SEVEN_BIT.replace("\\", "¥").replace("~", "‾")),
    b"(I": _table_decoder(
        "".join(chr(0xFF61 - 0x21 + byte) if 0x21 <= byte <= 0x5F else _REPLACEMENT for byte in range(256))
    ),
}
_TO_EUC = bytes(byte | 0x80 for byte in range(256))
_RUNS = re.compile(rb"(?s)(?:[!-~]{2})++|[!-~][^\x1b]|.")
"""In a piece of two-byte characters: whole characters, a half one with the wrong byte after it, a wrong byte."""


def _iso_2022_jp(body: bytes) -> str:
    first, *rest = _ESCAPE.split(body)
    texts = [_SETS[b"(B"](first)]
    follows_escape = False
    for name, piece in zip(rest[::2], rest[1::2], strict=True):
        if follows_escape:
            texts.append(_REPLACEMENT)  # an escape sequence right after another is an error
        follows_escape = not piece
        texts.append(_SETS[name](piece) if name in _SETS else _kanji(piece))
    return "".join(texts)


def _kanji(piece: bytes) -> str:
    runs = _RUNS.findall(piece)
    return "".join(
        _euc_jp(run.translate(_TO_EUC)) if len(run) > 1 and 0x21 <= run[1] <= 0x7E else _REPLACEMENT for run in runs
    )


# The other encodings


def _replacement(body: bytes) -> str:
    """Decode to one U+FFFD: the standard refuses encodings that can hide markup."""
    return _REPLACEMENT if body else ""


def _python_decoder(codec: str) -> Callable[[bytes], str]:
    return lambda body: body.decode(codec, "replace")


_DECODERS: dict[str, Callable[[bytes], str]] = {
    "utf-8": _python_decoder("utf-8"),
    "utf-16le": _python_decoder("utf-16-le"),
    "utf-16be": _python_decoder("utf-16-be"),
    "x-user-defined": _table_decoder("".join(chr(byte if byte < 0x80 else 0xF700 + byte) for byte in range(256))),
    "replacement": _replacement,
    "big5": _big5,
    "euc-jp": _euc_jp,
    "euc-kr": _euc_kr,
    "gb18030": _gb18030,
    "gbk": _gb18030,
    "iso-2022-jp": _iso_2022_jp,
    "shift_jis": _shift_jis,
    **{name: _table_decoder(_characters(name, codec)) for name, codec in _SINGLE_BYTE.items()},
}
