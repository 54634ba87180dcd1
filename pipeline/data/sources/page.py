"""Extract the candidates of one HTML page: every image with each of its texts.

Pages are untrusted. Nesting, images and text lengths are therefore bounded, since their cost could grow faster than
the page.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import pyarrow as pa
from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
from selectolax.lexbor import LexborHTMLParser, LexborNode

from pipeline.data.web.urls import absolute_url, is_normalized, normalize_url
from pipeline.hashing import hash128
from pipeline.printable import storable
from pipeline.reasons import Reason
from pipeline.schemas import CANDIDATES, conform

LAZY_ATTRIBUTES = ("data-src", "data-original", "data-lazy-src")
MAX_DEPTH = 5_000
"""Maximum number of open elements. Parse time grows with its square: 100,000 open elements take 90 seconds."""
MAX_TEXT_CHARACTERS = 10_000
"""Longer texts are truncated, because one figcaption may belong to every image of a page."""
MAX_URL_CHARACTERS = 10_000
"""Longer URLs cannot be used; servers accept about 8,000 characters."""
MAX_TEXT_NODES = 10_000
"""Maximum number of nodes of a figcaption that are read."""
RASTER_TYPES = frozenset(f"image/{name}" for name in ("jpeg", "jpg", "png", "webp", "gif", "avif", "bmp"))
"""Accepted types of <source> elements; vector images (SVG) are not accepted."""
_FIGURE_LEVELS = 32
_NOT_TEXT = frozenset({"script", "style", "template"})
_SETS = ("data-srcset", "srcset")
_MEDIA_WIDTH = re.compile(r"(min|max)-width\s*:\s*(\d+(?:\.\d+)?)(px|em)", re.ASCII)
_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_DESCRIPTOR = re.compile(r"(\d+|\d*\.\d+)([wx])", re.ASCII)
_SRCSET_URL = re.compile(r"[\s,]*([^\s,]\S*)")
_ATTRIBUTES = r"""(?:[^>=]++|=\s*+(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z))?+)*+(?:>|\Z)"""
_MARKUP = re.compile(
    r"<!--(?:>|.*?(?:-->|\Z))"
    rf"|<(?P<raw>script|style|textarea|title|xmp|iframe|noembed|noframes)(?=[\s/>]){_ATTRIBUTES}.*?(?:</(?P=raw)|\Z)"
    rf"|<(?P<end>/?)(?P<name>[a-z][^\s/>]*+){_ATTRIBUTES}",
    re.IGNORECASE | re.DOTALL,
)
"""A comment, an element without markup in it, or a tag. Each ends at the end of the page at the latest, and a match is
not read again, so matching takes linear time."""
_NEVER_DEEP = frozenset(
    {
        *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"),
        *("p", "li", "dt", "dd", "option", "optgroup", "tr", "td", "th", "thead", "tbody", "tfoot"),
    }
)
"""Elements without an end tag, or that end when the next element of their kind begins."""


class Candidate(NamedTuple):
    """An image URL with one of its texts, or the reason why a record has none. Fields are columns of CANDIDATES."""

    pair_id: str | None = None
    url: str | None = None
    caption: str | None = None
    caption_source: str | None = None
    image: bytes | None = None
    reason: Reason | None = None


def as_table(candidates: Sequence[Candidate], **columns: Sequence[Any]) -> pa.Table:
    """Convert candidates to a CANDIDATES table; `columns` adds further columns, and all others are null."""
    values = dict(zip(Candidate._fields, columns_of(candidates, len(Candidate._fields)), strict=True)) | columns
    arrays = {name: pa.array(column, CANDIDATES.field(name).type) for name, column in values.items()}
    return conform(pa.table(arrays), CANDIDATES)


def columns_of(rows: Sequence[tuple[Any, ...]], num_columns: int) -> list[Sequence[Any]]:
    """Transpose rows into columns; the columns are empty if there are no rows."""
    return list(zip(*rows, strict=True)) if rows else [()] * num_columns


def decode(body: bytes, header_charset: str | None) -> str:
    """Decode HTML by its byte order mark, HTTP header, meta element (first 1,024 bytes) or a guess, in this order.

    Follows WHATWG Encoding, as browsers do: unknown labels are ignored, latin-1 means windows-1252, and an undecodable
    byte becomes one replacement character.
    """
    meta = _CHARSET.search(body[:1024].decode("ascii", "replace"))
    labels = [header_charset, "utf-8" if meta and meta[1].lower().startswith("utf-16") else meta and meta[1]]
    declared = (map_encoding_to_html5(label, fallback_utf8=False) for label in labels if label)
    by_mark = next((name for mark, name in _BOMS.items() if body.startswith(mark)), None)
    charset = by_mark or next(filter(None, declared), None) or detect_encoding(body)
    text: str = bytes_to_str(body, charset or "utf-8", errors="replace", fallback_encodings=())
    return text


def is_deep(html: str) -> bool:
    """Whether more than MAX_DEPTH elements are open at once, estimated without parsing."""
    if html.count("<") <= MAX_DEPTH:
        return False
    num_open: Counter[str] = Counter()
    depth = 0
    for match in _MARKUP.finditer(html):
        name = (match["name"] or "").lower()
        is_closed = html.endswith("/>", match.start(), match.end())
        if not name or is_closed or name in _NEVER_DEEP or (match["end"] and not num_open[name]):
            continue
        step = -1 if match["end"] else 1
        num_open[name] += step
        depth += step
        if depth > MAX_DEPTH:
            return True
    return False


def page_candidates(html: str, page_url: str, srcset_max_width: int, max_images: int) -> Iterator[Candidate]:
    """Extract the candidates of one page.

    Content of noscript elements is included, because pages with lazy loading keep the real image URLs there.

    Args:
        html: the page; check it with `is_deep` first.
        page_url: URL of the page.
        srcset_max_width: in pixels; see `best_of_srcset`.
        max_images: further images of the page are ignored.
    """
    tree = LexborHTMLParser(html)
    base = _base_url(tree, page_url)
    figcaptions = _Figcaptions(tree, max_images)
    for node in tree.css("img")[:max_images]:
        url = _image_url(node, srcset_max_width)
        if not url:
            continue
        for source, text in (*_texts_of(node), *figcaptions.of(node)):
            yield candidate(resolve(base, url), text, source)
    image = tree.css_first('meta[property="og:image"]')
    alt = tree.css_first('meta[property="og:image:alt"]')
    if image is not None and alt is not None and image.attributes.get("content"):
        text = alt.attributes.get("content") or ""
        yield candidate(resolve(base, image.attributes["content"] or ""), text, "og:image:alt")


def resolve(base: str, url: str) -> str:
    """The absolute form of a URL on a page, or the URL as written if a browser would reject it."""
    return absolute_url(base, url) or url


def base_url(page_url: str, href: str) -> str:
    """The URL that relative URLs of a page refer to: the href of its <base>, if it is a web address (HTML standard)."""
    base = absolute_url(page_url, href) if href else ""
    return base if base.startswith(("http://", "https://")) else page_url


def _base_url(tree: LexborHTMLParser, page_url: str) -> str:
    node = tree.css_first("base[href]")
    return base_url(page_url, (node.attributes.get("href") or "") if node is not None else "")


def _texts_of(node: LexborNode) -> Iterator[tuple[str, str]]:
    for name in ("alt", "title"):
        text = node.attributes.get(name)
        if text and text.strip():
            yield name, text


class _Figcaptions:
    """The text of the first figcaption of each figure. It is read once, for all images of the figure."""

    def __init__(self, tree: LexborHTMLParser, max_figcaptions: int) -> None:
        self._nodes: dict[int, LexborNode] = {}
        self._texts: dict[int, str] = {}
        for node in tree.css("figcaption")[:max_figcaptions]:
            figure = _nearest_figure(node)
            if figure is not None:
                self._nodes.setdefault(figure, node)

    def of(self, image: LexborNode) -> Iterator[tuple[str, str]]:
        figure = _nearest_figure(image) if self._nodes else None
        if figure is not None and figure in self._nodes:
            if figure not in self._texts:
                self._texts[figure] = _text_of(self._nodes[figure])
            yield "figcaption", self._texts[figure]


def _nearest_figure(node: LexborNode) -> int | None:
    """The id of the figure that contains a node, at most _FIGURE_LEVELS above it."""
    parent = node.parent
    for _ in range(_FIGURE_LEVELS):
        if parent is None:
            return None
        if parent.tag == "figure":
            return int(parent.mem_id)
        parent = parent.parent
    return None


def _text_of(node: LexborNode) -> str:
    """The text nodes below a node, separated by blanks, up to MAX_TEXT_CHARACTERS and MAX_TEXT_NODES."""
    texts: list[str] = []
    num_characters = num_nodes = 0
    nodes = [node.child]
    while nodes and num_characters < MAX_TEXT_CHARACTERS and num_nodes < MAX_TEXT_NODES:
        current = nodes.pop()
        if current is None:
            continue
        num_nodes += 1
        nodes.append(current.next)
        if current.is_text_node:
            text = current.text_content or ""
            texts.append(text[:MAX_TEXT_CHARACTERS])
            num_characters += len(text)
        elif current.tag not in _NOT_TEXT:
            nodes.append(current.child)
    return " ".join(texts)


def _image_url(node: LexborNode, srcset_max_width: int) -> str:
    """The URL that a browser would finally show: lazy-load attributes first, then srcset, then src."""
    attributes = node.attributes
    for name in LAZY_ATTRIBUTES:
        if attributes.get(name):
            return (attributes[name] or "").strip()
    sets = [attributes.get(name) for name in _SETS]
    if node.parent is not None and node.parent.tag == "picture":
        sources = [source.attributes for source in node.parent.css("source")]
        sets += [source.get(name) for source in sources if _applies(source, srcset_max_width) for name in _SETS]
    for srcset in sets:
        best = best_of_srcset(srcset or "", srcset_max_width)
        if best:
            return best
    return (attributes.get("src") or "").strip()


def _applies(source: Mapping[str, str | None], width: int) -> bool:
    """Whether a <source> of a <picture> is a raster image for a screen of this width in pixels."""
    media = (source.get("media") or "").lower()
    kind = (source.get("type") or "").split(";")[0].strip().lower()
    widths = ((bound, float(size) * (16 if unit == "em" else 1)) for bound, size, unit in _MEDIA_WIDTH.findall(media))
    fits = all(width >= size if bound == "min" else width <= size for bound, size in widths)
    return fits and "print" not in media and (not kind or kind in RASTER_TYPES)


def best_of_srcset(srcset: str, max_width: int) -> str:
    """The URL of a srcset's widest image up to `max_width` pixels, else of its narrowest; "" for an empty srcset.

    `640w` descriptors give widths. `2x` counts as twice an unknown width, and a known width always wins over it.
    """
    best, best_key = "", (-1, 0.0)
    position = 0
    while match := _SRCSET_URL.match(srcset, position):
        url, position, descriptor = match[1], match.end(), ""
        if not url.endswith(","):
            end = srcset.find(",", position)
            descriptor = srcset[position : end if end >= 0 else None].strip()
            position = end if end >= 0 else len(srcset)
        parsed = _DESCRIPTOR.fullmatch(descriptor)
        size = float(parsed[1]) if parsed else 1.0
        fits = not (parsed and parsed[2] == "w") or size <= max_width
        key = (1, size) if fits else (0, -size)
        if key > best_key:
            best, best_key = url.rstrip(","), key
    return best


def candidate(url: str, caption: str, source: str, image: bytes | None = None) -> Candidate:
    """Make a candidate from an absolute URL and a text, both as written on the page.

    An image in a data: URL is decoded. An image without a URL is identified by the hash of its bytes.
    """
    caption = " ".join(storable(caption[:MAX_TEXT_CHARACTERS]).split())
    reason = None
    if url[:5].lower() == "data:":
        image = image or _inline_image(url)
        url = f"data:{hash128(url)}"
        reason = None if image else Reason.BAD_URL
    elif image and not url:
        url = f"table:{blake2b(image, digest_size=16).hexdigest()}"
    elif len(url) > MAX_URL_CHARACTERS or not is_normalized(url):
        try:
            url = normalize_url(url)
        except ValueError:  # a relative URL, another scheme, or a URL that a browser would reject
            reason = Reason.BAD_URL
        if len(url) > MAX_URL_CHARACTERS:
            reason = Reason.BAD_URL
        url = storable(url[:MAX_URL_CHARACTERS])
    return Candidate(hash128(url, caption), url, caption, source, image, reason)


def _inline_image(url: str) -> bytes | None:
    """The bytes of a data: URL (RFC 2397), or None if it is malformed."""
    head, _, body = url.partition(",")
    data = unquote_to_bytes(body)
    if not head.lower().endswith(";base64"):
        return data or None
    try:
        return base64.b64decode(data, validate=False) or None
    except binascii.Error:
        return None
