"""Write the demo's HTML pages, with the many kinds of markup that real pages use for pictures and captions."""

import base64
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal
from urllib.parse import urlsplit

import numpy as np

from jobs.demo.web.dirt import Fate
from jobs.demo.web.scenes import pick

CaptionSource = Literal["alt", "title", "figcaption", "srcset", "lazy", "og:image:alt"]
Charset = Literal["utf-8", "latin-1", "ascii"]
CAPTION_SOURCES: Final[tuple[CaptionSource, ...]] = ("alt", "figcaption", "title", "srcset", "lazy")
"""The caption sources in elements of the body. og:image:alt is in the head of the page."""
BLANK_PATH: Final = "/static/blank.gif"
BLANK_GIF: Final = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
"""One transparent pixel, the placeholder of pictures that load later."""
_BLANK_DATA: Final = "data:image/gif;base64," + base64.b64encode(BLANK_GIF).decode("ascii")
_LAZY_ATTRIBUTES: Final = ("data-src", "data-original", "data-lazy-src")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image on one page: its address, its caption, and its expected outcome."""

    url: str
    """The absolute address that extraction should find."""
    page_url: str
    caption: str
    source: CaptionSource
    """Where the page has the caption. For `srcset` and `lazy` it is the alt text of an image whose src is not `url`."""
    fate: Fate
    same_as: str = ""
    """Of a duplicate: the address of the original picture."""
    small_url: str = ""
    """Of a srcset: the address of a smaller version of the picture."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One HTML page. An empty `base_href` means that the page has no <base>; `charset` is the encoding of its bytes."""

    url: str
    title: str
    pictures: Sequence[Picture]
    prose: Sequence[str]
    links: Sequence[str]
    base_href: str = ""
    charset: Charset = "utf-8"


def page_html(page: Page, rng: np.random.Generator) -> bytes:
    """Write a page. `rng` chooses among equivalent markups. Characters missing from the charset become entities."""
    head = [f'<meta charset="{page.charset}">'] if page.charset != "latin-1" else []
    head.append(f"<title>{escape(page.title)}</title>")
    if page.base_href:
        head.append(f'<base href="{escape(page.base_href)}">')
    blocks = [f"<p>{escape(paragraph)}" for paragraph in page.prose]  # the end tag of p is optional, and often absent
    for picture in page.pictures:
        refer = _references(page, rng)
        if picture.source == "og:image:alt":
            head.append(f'<meta property="og:image" content="{escape(picture.url)}">')
            head.append(f'<meta property="og:image:alt" content="{escape(picture.caption)}">')
        else:
            blocks.insert(int(rng.integers(len(blocks) + 1)), _MARKUP[picture.source](picture, refer, rng))
    if rng.random() < 0.2:
        blocks.append(f'<img src="{BLANK_PATH}" alt="" width="1" height="1">')
    if rng.random() < 0.15:
        blocks.append(
            "<script>document.write(\"<img src='/ads/banner.gif' alt='not an element of this page'>\")</script>"
        )
    if rng.random() < 0.15:
        blocks.append('<!-- <img src="/old/picture.jpg" alt="a picture that was here once"> -->')
    links = " ".join(f'<a href="{escape(link)}">{escape(urlsplit(link).path)}</a>' for link in page.links)
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        *head,
        "</head>",
        "<body>",
        f"<h1>{escape(page.title)}</h1>",
    ]
    lines += [*blocks, f"<nav>{links}</nav>", "</body>", "</html>"]
    return ("\n".join(lines) + "\n").encode(page.charset, "xmlcharrefreplace")


def _references(page: Page, rng: np.random.Generator) -> Callable[[str], str]:
    """Choose how the page refers to addresses: absolute, from the root, relative, or without the scheme."""
    style = pick(rng, ("absolute", "root", "relative", "protocol"))
    base = page.base_href or page.url

    def refer(url: str) -> str:
        if not url.startswith("http://"):
            return escape(url)
        target, source = urlsplit(url), urlsplit(base)
        path = target.path + (f"?{target.query}" if target.query else "")
        if style == "protocol":
            return escape(url.removeprefix("http:"))
        if style == "absolute" or target.netloc != source.netloc:
            return escape(url)
        if style == "root":
            return escape(path)
        return escape(posixpath.relpath(path, posixpath.dirname(source.path)))

    return refer


def _img(picture: Picture, refer: Callable[[str], str], rng: np.random.Generator) -> str:
    address, alt = refer(picture.url), escape(picture.caption)
    return pick(rng, (
        f'<p><img src="{address}" alt="{alt}"></p>',
        f'<div class="picture"><a href="{address}"><img class="thumb" src="{address}" alt="{alt}" width=160></a></div>',
        f'<IMG ALT="{alt}"\n     SRC="{address}" BORDER=0>',
        f"<p><img alt='{alt}' src='{address}' loading='lazy'/></p>",
        f'<table><tr><td><img src="  {address} " alt=" {alt}\n"></td></tr></table>',
    ))  # fmt: skip


def _titled(picture: Picture, refer: Callable[[str], str], rng: np.random.Generator) -> str:
    alt = pick(rng, ("", ' alt=""', ' alt="image"'))
    return f'<p><img src="{refer(picture.url)}"{alt} title="{escape(picture.caption)}"></p>'


def _figure(picture: Picture, refer: Callable[[str], str], rng: np.random.Generator) -> str:
    name = "image" if picture.url.startswith("data:") else posixpath.basename(urlsplit(picture.url).path)
    alt = pick(rng, ("", ' alt=""', f' alt="{escape(name)}"'))
    caption = escape(picture.caption)
    first, space, rest = caption.partition(" ")
    if space and rng.random() < 0.3:
        caption = f"<em>{first}</em> {rest}"
    image = f'<img src="{refer(picture.url)}"{alt}>'
    if rng.random() < 0.3:
        image = f'<div class="frame">{image}</div>'
    return f"<figure>\n  {image}\n  <figcaption>{caption}</figcaption>\n</figure>"


def _srcset(picture: Picture, refer: Callable[[str], str], rng: np.random.Generator) -> str:
    large, small, alt = refer(picture.url), refer(picture.small_url), escape(picture.caption)
    if rng.random() < 0.3:
        return f'<picture><source srcset="{large} 200w"><img src="{small}" alt="{alt}"></picture>'
    source = pick(rng, (f' src="{small}"', "", f' src="{_BLANK_DATA}"'))
    return f'<p><img{source} srcset="{small} 100w,\n {large} 200w" sizes="200px" alt="{alt}"></p>'


def _lazy(picture: Picture, refer: Callable[[str], str], rng: np.random.Generator) -> str:
    placeholder = pick(rng, (_BLANK_DATA, BLANK_PATH))
    attribute = pick(rng, _LAZY_ATTRIBUTES)
    return (
        f'<img class="lazyload" src="{placeholder}" {attribute}="{refer(picture.url)}" alt="{escape(picture.caption)}">'
    )


_MARKUP: Final[dict[CaptionSource, Callable[[Picture, Callable[[str], str], np.random.Generator], str]]] = {
    "alt": _img,
    "title": _titled,
    "figcaption": _figure,
    "srcset": _srcset,
    "lazy": _lazy,
}
