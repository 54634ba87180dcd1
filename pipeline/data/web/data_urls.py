"""Read data: URLs as browsers do: the data: URL processor of the Fetch standard on top of the URL standard's parser.

Only the part before the comma goes through ada_url. What the URL parser does to the data behind it is undone by
percent-decoding, except that it removes tabs and line breaks, control characters and blanks at the end, and the
fragment. Data of 20 MB is therefore not escaped and unescaped again. Time and memory are linear in the URL.
"""

from __future__ import annotations

import binascii
import re

import ada_url
import numpy as np

from pipeline.printable import storable

MAX_PARSED_CHARACTERS = 2**20
"""Maximum that goes through the URL parser: the part before the comma, or all of a URL that begins with `data:/`."""

_NAME = re.compile(r"[\0- ]*+" + r"[\t\n\r]*+".join("data:"), re.IGNORECASE | re.ASCII)
_C0_AND_BLANK = "".join(map(chr, range(0x21)))
_TYPE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]++/[!#$%&'*+.^_`|~0-9A-Za-z-]++)[\t\n\r ]*+(?:;|\Z)")
"""The essence of a MIME type (MIME Sniffing standard, "parse a MIME type")."""
_BASE64_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_ASCII_WHITESPACE = b"\t\n\f\r "
_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")
_CHUNK_BYTES = 2**18
"""Escapes are decoded in chunks, because this takes up to 20 times the memory of a chunk."""
_NO_DIGIT = 16
_HEX = np.full(256, _NO_DIGIT, np.uint8)
_HEX[list(b"0123456789abcdefABCDEF")] = [*range(16), *range(10, 16)]


def is_data_url(url: str) -> bool:
    """Whether an address on a page is a data: URL, for example ` DATA:,x`."""
    return _NAME.match(url) is not None


def read_data_url(url: str, max_bytes: int) -> tuple[str, bytes] | None:
    """The essence of the MIME type, in lower case, and the data of a data: URL; None if it cannot be read.

    Args:
        url: the address as written on a page.
        max_bytes: longer data gives None. So does a URL of more than `4 * max_bytes + 64 KiB` characters, without being
            read: a byte of data takes at most four, if its base64 is escaped. See also MAX_PARSED_CHARACTERS.
    """
    if len(url) > 4 * max_bytes + 2**16 or not is_data_url(url):
        return None
    head, comma, data = url.partition(",")
    if not comma or "#" in head:
        return None
    try:
        head, data = _parse(head, data)
    except ValueError:
        return None
    mime_type = head.strip("\t\n\f\r ")
    unmarked = _without_base64(mime_type)
    body = percent_decode(data)
    if unmarked is not None:
        decoded = base64_decode(body)
        if decoded is None:
            return None
        mime_type, body = unmarked, decoded
    if len(body) > max_bytes:
        return None
    essence = _TYPE.match(mime_type)
    return essence[1].lower() if essence else "text/plain", body


def percent_decode(text: str) -> bytes:
    """Percent-decode the UTF-8 bytes of a text (URL standard); a % without two hexadecimal digits stays."""
    data = storable(text).encode()
    if b"%" not in data:
        return data
    parts, start = [], 0
    while start < len(data):
        end = min(start + _CHUNK_BYTES, len(data))
        end = next((first + 3 for first in (end - 2, end - 1) if _ESCAPE.match(data, first)), end)
        parts.append(_percent_decode_chunk(data[start:end]))
        start = end
    return b"".join(parts)


def _percent_decode_chunk(data: bytes) -> bytes:
    octets = np.frombuffer(data, np.uint8)
    starts = np.flatnonzero(octets[:-2] == ord("%"))
    high, low = _HEX[octets[starts + 1]], _HEX[octets[starts + 2]]
    are_escapes = (high < _NO_DIGIT) & (low < _NO_DIGIT)
    starts = starts[are_escapes]
    decoded, kept = octets.copy(), np.ones(len(octets), bool)
    decoded[starts] = high[are_escapes] << 4 | low[are_escapes]
    kept[starts + 1] = kept[starts + 2] = False  # the digits; escapes cannot overlap
    return decoded[kept].tobytes()


def base64_decode(data: bytes) -> bytes | None:
    """Decode base64 forgivingly (Infra standard): ASCII white space is skipped, and padding may be missing.

    None if it has other characters, more padding than belongs there, or a single character too many.
    """
    data = data.translate(None, _ASCII_WHITESPACE)
    if len(data) % 4 == 0:
        data = data[:-2] + data[-2:].replace(b"==", b"").removesuffix(b"=")
    if len(data) % 4 == 1 or data.translate(None, _BASE64_ALPHABET):
        return None
    return binascii.a2b_base64(data + b"=" * (-len(data) % 4))


def _parse(head: str, data: str) -> tuple[str, str]:
    """What the URL parser makes of the parts before and behind the first comma, without the scheme.

    Raises:
        ValueError: the URL is invalid, as in data://a:b/,x, or too much of it would be parsed.
    """
    before = storable(_joined(head).lstrip(_C0_AND_BLANK))
    has_path = before[5:6] == "/"  # or a host; the parser of both also reads the data
    if len(before) + len(data) * has_path > MAX_PARSED_CHARACTERS:
        raise ValueError("longer than MAX_PARSED_CHARACTERS")
    if has_path:
        href = ada_url.URL(storable(f"{before},{data}")).href
        parsed, comma, data = href.partition("#")[0].partition(",")
        if not comma:
            raise ValueError("a /../ has removed the comma")
        return parsed[5:], data
    parsed = ada_url.URL(f"{before},").href
    # The parser strips the ends of the whole URL first, and a blank in front of the fragment is data
    data = _joined(data.rstrip(_C0_AND_BLANK).partition("#")[0])
    return parsed[5:].removesuffix(","), data


def _without_base64(mime_type: str) -> str | None:
    """The MIME type without `;base64` at its end, or None if it has none there."""
    rest = mime_type[:-6].rstrip(" ")
    return rest[:-1] if mime_type[-6:].lower() == "base64" and rest.endswith(";") else None


def _joined(text: str) -> str:
    """The text without tabs and line breaks."""
    return text.replace("\t", "").replace("\n", "").replace("\r", "")
