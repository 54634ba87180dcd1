"""Extract the candidates of one HTML page: every image with each of its texts.

Pages are untrusted. Nesting, images and text lengths are therefore bounded, since their cost could grow faster than
the page.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import pyarrow as pa
from selectolax.lexbor import LexborHTMLParser, LexborNode

from pipeline.data.web.data_urls import is_data_url, read_data_url
from pipeline.data.web.picture import Picture
from pipeline.data.web.urls import absolute_url, is_normalized, normalize_url
from pipeline.hashing import hash128
from pipeline.printable import storable
from pipeline.reasons import Reason
from pipeline.schemas import CANDIDATES, conform

MAX_DEPTH = 5_000
"""Maximum number of open elements. Parse time grows with its square: 100,000 open elements take 90 seconds."""
MAX_TEXT_CHARACTERS = 10_000
"""Longer texts are truncated, because one figcaption may belong to every image of a page."""
MAX_URL_CHARACTERS = 10_000
"""Longer URLs cannot be used; servers accept about 8,000 characters."""
MAX_UNREAD_CHARACTERS = 8 * MAX_URL_CHARACTERS
"""Longer texts are not parsed as URLs. The parser removes tabs and line ends, so shorter ones may become usable."""
MAX_INLINE_BYTES = 32 * 2**20
"""Larger images in data: URLs are not read. Nor is one after which the images of a page would be larger together: all
images of a <picture> may share the data: URL of its <source>, so they can be a thousand times as large as the page."""
MAX_TEXT_NODES = 10_000
"""Maximum number of nodes of a figcaption that are read."""
_FIGURE_LEVELS = 32
"""Maximum number of ancestors of an element that are looked at."""
MAX_BASES = 100
"""Maximum number of <base> elements that are looked at; the first one of HTML counts."""
_FOREIGN, _HTML_IN_FOREIGN = frozenset({"svg", "math"}), frozenset({"foreignObject", "annotation-xml"})
_NOT_TEXT = frozenset({"script", "style", "template"})
_ATTRIBUTES = r"""(?:[^>=]++|=\s*+(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z))?+)*+"""
_MARKUP = re.compile(
    r"<!--(?:>|.*?(?:-->|\Z))"
    rf"|<(?P<raw>script|style|textarea|title|xmp|iframe|noembed|noframes)(?=[\s/>]){_ATTRIBUTES}.*?(?:</(?P=raw)|\Z)"
    rf"|<(?P<end>/?)(?P<name>[a-z][^\s/>]*+){_ATTRIBUTES}(?:(?<=/)(?P<closed>>)|>|\Z)",
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


def is_deep(html: str) -> bool:
    """Whether more than MAX_DEPTH elements are open at once, estimated without parsing."""
    num_tags = html.count("<")
    if num_tags <= MAX_DEPTH or num_tags - html.count("</") <= MAX_DEPTH:
        return False
    num_open: Counter[str] = Counter()
    depth = 0
    for _, end, tag, closed in _MARKUP.findall(html):
        name = tag.lower()
        if closed or not name or name in _NEVER_DEEP or (end and not num_open[name]):
            continue
        step = -1 if end else 1
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
        srcset_max_width: in pixels; see `srcset.choose`.
        max_images: further images of the page are ignored.
    """
    num_inline_bytes = 0
    for found in _page_candidates(LexborHTMLParser(html), page_url, srcset_max_width, max_images):
        num_inline_bytes += len(found.image or b"")
        is_too_much = found.image is not None and num_inline_bytes > MAX_INLINE_BYTES
        yield found._replace(image=None, reason=Reason.TOO_MANY_BYTES) if is_too_much else found


def _page_candidates(
    tree: LexborHTMLParser, page_url: str, srcset_max_width: int, max_images: int
) -> Iterator[Candidate]:
    nodes: defaultdict[str | None, list[LexborNode]] = defaultdict(list)
    for node in tree.css("img, figcaption, base[href], meta[property]"):  # one walk through the page
        nodes[node.tag].append(node)
    base = _base_url(nodes["base"], page_url)
    urls, figcaptions = _ImageUrls(srcset_max_width), _Figcaptions(nodes["figcaption"][:max_images])
    for node in nodes["img"][:max_images]:
        url = urls.of(node)
        if not url:
            continue
        for source, text in (*_texts_of(node), *figcaptions.of(node)):
            yield candidate(resolve(base, url), text, source)
    metas = [node.attributes for node in nodes["meta"]]
    contents = {meta.get("property"): meta.get("content") or "" for meta in reversed(metas)}  # the first one counts
    if contents.get("og:image") and "og:image:alt" in contents:
        yield candidate(resolve(base, contents["og:image"]), contents["og:image:alt"], "og:image:alt")


def resolve(base: str, url: str) -> str:
    """The absolute form of a URL on a page, or the URL as written if it is too long or a browser would reject it."""
    return url if len(url) > MAX_UNREAD_CHARACTERS else absolute_url(base, url) or url


def base_url(page_url: str, href: str) -> str:
    """The URL that relative URLs of a page refer to: the href of its <base>, if it is a web address (HTML standard).

    A URL of more than MAX_URL_CHARACTERS counts as missing, because it would be read for each image.
    """
    page_url = page_url if len(page_url) <= MAX_URL_CHARACTERS else ""
    base = absolute_url(page_url, href) if 0 < len(href) <= MAX_URL_CHARACTERS else ""
    return base if base.startswith(("http://", "https://")) and len(base) <= MAX_URL_CHARACTERS else page_url


def _base_url(bases: Sequence[LexborNode], page_url: str) -> str:
    node = next(filter(_is_base, bases[:MAX_BASES]), None)
    return base_url(page_url, (node.attributes["href"] or "") if node is not None else "")


def _is_base(node: LexborNode) -> bool:
    """Whether a <base> is an element of HTML, not of SVG or MathML."""
    parent = node.parent
    for _ in range(_FIGURE_LEVELS):
        if parent is None or parent.tag in _HTML_IN_FOREIGN:
            return True
        if parent.tag in _FOREIGN:
            return False
        parent = parent.parent
    return True


def _texts_of(node: LexborNode) -> Iterator[tuple[str, str]]:
    for name in ("alt", "title"):
        text = node.attributes.get(name)
        if text and text.strip():
            yield name, text


class _Figcaptions:
    """The text of the first figcaption of each figure. It is read once, for all images of the figure."""

    def __init__(self, figcaptions: Sequence[LexborNode]) -> None:
        self._nodes: dict[int, LexborNode] = {}
        self._texts: dict[int, str] = {}
        for node in figcaptions:
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


class _ImageUrls:
    """The address of each image as written on the page. The sources of a <picture> are read once."""

    def __init__(self, max_width: int) -> None:
        self._max_width = max_width
        self._in_pictures: dict[int, dict[int, str]] = {}

    def of(self, image: LexborNode) -> str:
        parent = image.parent
        if parent is None or parent.tag != "picture":
            return Picture(self._max_width).image_url(image.attributes)
        if parent.mem_id not in self._in_pictures:
            self._in_pictures[parent.mem_id] = self._read(parent)
        return self._in_pictures[parent.mem_id][image.mem_id]

    def _read(self, element: LexborNode) -> dict[int, str]:
        picture, urls = Picture(self._max_width), {}
        child = element.child
        while child is not None:
            if child.tag == "source":
                picture.add_source(child.attributes)
            elif child.tag == "img":
                urls[child.mem_id] = picture.image_url(child.attributes)
            child = child.next
        return urls


@lru_cache(maxsize=1)
def _read_inline(url: str) -> tuple[str, bytes | None]:
    """The URL that stands for a data: URL, and its image. All images of a <picture>, and their texts, may share one."""
    read = read_data_url(url, MAX_INLINE_BYTES)
    return f"data:{hash128(url)}", (read[1] or None) if read else None


def candidate(url: str, caption: str, source: str, image: bytes | None = None) -> Candidate:
    """Make a candidate from an absolute URL and a text, both as written on the page.

    An image in a data: URL is decoded. An image without a URL is identified by the hash of its bytes.
    """
    caption = " ".join(storable(caption[:MAX_TEXT_CHARACTERS]).split())
    reason = None
    if is_data_url(url):
        url, inline = _read_inline(url)
        image = image or inline
        reason = None if image else Reason.BAD_URL
    elif image and not url:
        url = f"table:{blake2b(image, digest_size=16).hexdigest()}"
    elif len(url) > MAX_URL_CHARACTERS or not is_normalized(url):
        try:
            url = normalize_url(url) if len(url) <= MAX_UNREAD_CHARACTERS else url
        except ValueError:  # a relative URL, another scheme, or a URL that a browser would reject
            reason = Reason.BAD_URL
        if len(url) > MAX_URL_CHARACTERS:
            reason = Reason.BAD_URL
        url = storable(url[:MAX_URL_CHARACTERS])
    return Candidate(hash128(url, caption), url, caption, source, image, reason)
