"""Find the character encoding of an HTML page as browsers do, and decode it.

decode_html         bytes and the Content-Type header -> text
declared_encoding   what a page declares: byte order mark, header, meta element, XML declaration, in this order
header_encoding     the charset of a Content-Type header (MIME Sniffing and Fetch standards)
prescan             the search of the HTML standard in the first 1,024 bytes
parsed_encoding     the first meta element that a parser meets; it corrects the prescan, which reads scripts as markup
encoding_of         a label -> the encoding's name (Encoding standard, https://encoding.spec.whatwg.org)

Source: HTML standard, "Determining the character encoding" and "Changing the encoding while parsing". A page that
declares nothing is guessed. Pages are untrusted: every search is linear in the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import webencodings  # type: ignore[import-untyped]
from resiliparse.parse.encoding import detect_encoding

from pipeline.data.web.decoders import decode

PRESCAN_BYTES = 1024
_BOMS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16le", b"\xfe\xff": "utf-16be"}
_GUESSES = {"cp949": "euc-kr", "iso2022_jp": "iso-2022-jp", "mac-cyrillic": "x-mac-cyrillic"}
"""Names of resiliparse that are no labels, even with hyphens."""
_UTF_16_XML = {b"<\0?\0x\0": "utf-16le", b"\0<\0?\0x": "utf-16be"}


def decode_html(body: bytes, content_type: str | None) -> str:
    """Decode a page by its declared encoding, or by a guess.

    Args:
        body: the page, without transfer and content encoding.
        content_type: value of the HTTP header Content-Type; None if there is none.
    """
    for mark, encoding in _BOMS.items():
        if body.startswith(mark):
            return decode(body[len(mark) :], encoding)
    return decode(body, declared_encoding(body, content_type) or _guess(body))


def declared_encoding(body: bytes, content_type: str | None) -> str | None:
    """Name of the encoding that a page declares, or None."""
    mark = next((encoding for mark, encoding in _BOMS.items() if body.startswith(mark)), None)
    return mark or header_encoding(content_type or "") or parsed_encoding(body) or _prescanned_encoding(body)


def _prescanned_encoding(body: bytes) -> str | None:
    """The result of the prescan, unless it read markup in a script of a page that is UTF-8.

    The standard believes such a label; Chromium, which prescans with its tokenizer, does not.
    """
    encoding = prescan(body)
    return None if encoding and not body.isascii() and _is_utf_8(body) else encoding


def encoding_of(label: str) -> str | None:
    """Name of the encoding that a label means ("latin1" -> "windows-1252"), or None for an unknown label."""
    encoding = webencodings.lookup(label) if label.isascii() else None
    return str(encoding.name) if encoding else None


def _guess(body: bytes) -> str:
    is_utf_8 = _is_utf_8(body)
    if is_utf_8 and b"\x1b" not in body:
        return "utf-8"
    guess = (detect_encoding(body, html5_compatible=False) or "").lower()
    encoding = encoding_of(_GUESSES.get(guess, guess).replace("_", "-"))
    if is_utf_8 and encoding != "iso-2022-jp":  # the one encoding of the web that is ASCII with escape sequences
        return "utf-8"
    # A guess is no reason to refuse a page.
    return encoding if encoding and encoding != "replacement" else "utf-8"


def _is_utf_8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


# HTTP header

_HEADER_VALUE = re.compile(r'(?:[^",]++|"(?:[^"\\]++|\\.)*+(?:"|\\?\Z))++', re.DOTALL)
"""One of several Content-Type headers that were joined by commas."""
_HTTP_SPACE = "\t\n\r "
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_ESSENCE = re.compile(rf"{_TOKEN}/{_TOKEN}(?=[{_HTTP_SPACE}]*+(?:;|\Z))")
_PARAMETER = re.compile(
    rf';[{_HTTP_SPACE}]*+([^;=]*+)(?:=(?:"((?:[^"\\]++|\\.)*+\\?)(?:"|\Z)[^;]*+|([^;]*+)))?', re.DOTALL
)
_QUOTABLE = re.compile(r"[\t\x20-\x7e\x80-\xff]*+")
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)


def header_encoding(content_type: str) -> str | None:
    """Name of the encoding in the value of a Content-Type header, or None.

    The last of several values joined by commas wins; it inherits the charset of an equal type before it.
    """
    essence, inherited, label = "", None, None
    for value in _HEADER_VALUE.findall(content_type):
        value = value.strip(_HTTP_SPACE)
        parsed = _ESSENCE.match(value)
        if parsed is None or parsed[0] == "*/*":
            continue
        charset = _charset_parameter(value, parsed.end())
        if parsed[0].lower() != essence:
            essence, inherited = parsed[0].lower(), charset
        label = inherited if charset is None else charset
    return encoding_of(label) if label else None


def _charset_parameter(value: str, position: int) -> str | None:
    """The first valid charset among the parameters of a MIME type, which begin at a position."""
    for parameter in _PARAMETER.finditer(value, position):
        name, quoted, plain = parameter.groups()
        if name.lower() == "charset":
            charset = (plain or "").rstrip(_HTTP_SPACE) if quoted is None else _QUOTED_PAIR.sub(r"\1", quoted)
            if (charset or quoted is not None) and _QUOTABLE.fullmatch(charset):
                return charset
    return None


# Markup

_SPACE = rb"[\t\n\f\r ]*+"
_NAME = rb"[^\t\n\f\r />][^\t\n\f\r />=]*+"
_VALUE = _SPACE + rb"=" + _SPACE + rb"""(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z)|[^\t\n\f\r >]*+)"""
_ATTRIBUTE = re.compile(rb"(" + _NAME + rb")(" + _VALUE + rb")?")
_ATTRIBUTES = rb"(?:[\t\n\f\r /]++|" + _NAME + rb"(?:" + _VALUE + rb")?+)*+"
"""To the end of the tag, or of the page if the tag has no end."""
_CONTENT = re.compile(
    rb"(?i)charset" + _SPACE + rb"=" + _SPACE + rb"""(?:"([^"]*+)"|'([^']*+)'|([^\t\n\f\r ;"'][^\t\n\f\r ;]*+))?"""
)


def _meta_encodings(attributes: bytes) -> Iterator[str | None]:
    """The encodings that a meta element declares by `charset`, then by `http-equiv`; None for an unknown label."""
    values: dict[bytes, bytes] = {}
    for name, value in _ATTRIBUTE.findall(attributes):
        value = value.partition(b"=")[2].lstrip(b"\t\n\f\r ")
        values.setdefault(name.lower(), value[1:-1] if value.startswith((b'"', b"'")) else value)
    if b"charset" in values:
        yield _encoding_in_meta(values[b"charset"])
    if values.get(b"http-equiv", b"").lower() == b"content-type":
        found = _CONTENT.search(values.get(b"content", b""))
        if found and found.lastindex:
            yield _encoding_in_meta(found[found.lastindex])


def _encoding_in_meta(label: bytes) -> str | None:
    """What a meta element means by a label: it was read as ASCII, so that the page cannot be UTF-16."""
    encoding = encoding_of(label.decode("latin-1"))
    return {"utf-16le": "utf-8", "utf-16be": "utf-8", "x-user-defined": "windows-1252"}.get(encoding or "", encoding)


# Prescan

_PRESCAN_TAG = re.compile(rb"(?i)<(?:(meta)(?=[\t\n\f\r /])|/?[a-z][^\t\n\f\r >]*+)(" + _ATTRIBUTES + rb")(>?)")
_XML_DECLARATION = re.compile(rb"<\?xml[^>]*>")
_XML_ENCODING = re.compile(rb"encoding[\x00-\x20]*+=[\x00-\x20]*+(?:\"([^\"\x00-\x20]*+)\"|'([^'\x00-\x20]*+)')")


def prescan(body: bytes) -> str | None:
    """Name of the encoding that a meta element or the XML declaration in the first 1,024 bytes declares, or None."""
    head = body[:PRESCAN_BYTES]
    for start, utf_16 in _UTF_16_XML.items():
        if head.startswith(start):
            return utf_16
    position = head.find(b"<")
    while position >= 0:
        if head.startswith(b"<!--", position):
            end = head.find(b"-->", position + 2)
        elif tag := _PRESCAN_TAG.match(head, position):
            end = tag.end() - 1 if tag[3] else -1
            encoding = next(_meta_encodings(tag[2]), None) if tag[1] and tag[3] else None
            if encoding:
                return encoding
        elif head.startswith((b"<!", b"</", b"<?"), position):
            end = head.find(b">", position)
        else:
            end = position
        position = head.find(b"<", end + 1) if end >= 0 else -1
    return _xml_encoding(head)


def _xml_encoding(head: bytes) -> str | None:
    declaration = _XML_DECLARATION.match(head)
    if declaration is None:
        return None
    position = declaration[0].find(b"encoding")
    found = _XML_ENCODING.match(head, position) if position >= 0 else None
    if found is None or found.lastindex is None:
        return None
    encoding = encoding_of(found[found.lastindex].decode("latin-1"))
    return "utf-8" if encoding in {"utf-16le", "utf-16be"} else encoding


# Parser

_RAW_TEXT = ("script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes", "noscript", "plaintext")
"""Elements whose content is text, in a browser that runs scripts. The content of plaintext has no end."""
_NOT_SKIPPED = rf"(?:meta|{'|'.join(_RAW_TEXT)})(?=[\t\n\f\r />])".encode()
_SKIPPED = re.compile(
    rb"(?i)(?:[^<]++"
    rb"|<!--(?:-?>|(?:[^-]++|-(?!-!?>))*+(?:--!?>|\Z))"  # a comment
    rb"|<(?:[!?]|/(?![a-z]))[^>]*+>?"  # a doctype, or what a parser treats as a comment
    rb"|<(?!" + _NOT_SKIPPED + rb")/?[a-z][^\t\n\f\r />]*+" + _ATTRIBUTES + rb">?"
    rb"|<(?![a-z/!?]))*+"
)
_TAG = re.compile(rb"(?i)<(?P<name>[a-z]++)(?P<attributes>" + _ATTRIBUTES + rb")>")
_RAW_TEXT_ENDS = {
    name.encode(): re.compile(rf"(?i)</{name}(?=[\t\n\f\r />])".encode() if name != "plaintext" else rb"(?!)")
    for name in _RAW_TEXT
}
_SCRIPT_PARTS = re.compile(rb"(?i)<!--(?!-*+>)|-->|</?script(?=[\t\n\f\r />])")


def parsed_encoding(body: bytes) -> str | None:
    """Name of the encoding that the first meta element with a known label declares, anywhere in the page, or None.

    Comments, attributes of other elements and the contents of scripts, styles and other text are not markup.
    """
    return _first_meta(body[:PRESCAN_BYTES]) or _first_meta(body)  # most pages need no search for the limit


def _first_meta(body: bytes) -> str | None:
    limit = body.lower().rfind(b"charset")
    position = 0
    while position < limit:
        skipped = _SKIPPED.match(body, position, limit)
        tag = _TAG.match(body, skipped.end()) if skipped else None
        if tag is None:
            return None
        position, name = tag.end(), tag["name"].lower()
        if name == b"meta":
            encoding = next(filter(None, _meta_encodings(tag["attributes"])), None)
            if encoding:
                return encoding
        else:
            position = _end_of_script(body, position) if name == b"script" else _end_of_text(body, position, name)
    return None


def _end_of_text(body: bytes, position: int, name: bytes) -> int:
    """Where the end tag of an element of text begins, or the end of the page."""
    end = _RAW_TEXT_ENDS[name].search(body, position)
    return end.start() if end else len(body)


def _end_of_script(body: bytes, position: int) -> int:
    """Where the end tag of a script begins, or the end of the page.

    A script inside `<!--` may contain a whole script element ("script data double escaped state").
    """
    is_comment = is_nested = False
    for part in _SCRIPT_PARTS.finditer(body, position):
        token = part[0].lower()
        if token == b"<!--":
            is_comment = True
        elif token == b"-->":
            is_comment = is_nested = False
        elif token == b"<script":
            is_nested = is_comment
        elif is_nested:
            is_nested = False
        else:
            return part.start()
    return len(body)
