"""Find the address of an <img>, also within a <picture>, from the attributes of its elements.

Follows "update the source set" of the HTML standard, except that attributes of lazy loading come first, because their
scripts replace the standard's attributes. Attributes are mappings, so the HTML parser does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.data.web.media_queries import matches
from pipeline.data.web.srcset import ASCII_WHITESPACE, choose

Attributes = Mapping[str, str | None]
"""Attributes by name in lower case; None is an attribute without a value."""

LAZY_ATTRIBUTES = ("data-src", "data-original", "data-lazy-src")
LAZY_SRCSET = "data-srcset"
RASTER_TYPES = frozenset(
    f"image/{name}" for name in ("apng", "avif", "bmp", "gif", "jpeg", "jpg", "pjpeg", "png", "webp", "x-png")
)
"""Accepted types of <source> elements; vector images (SVG) are not accepted."""


class Picture:
    """The <source> elements of one <picture> up to a position; a new one is an <img> without a <picture>.

    Go through the element children of the <picture> in order, call `add_source` for every <source> and `image_url` for
    every <img>: an <img> has only the sources in front of it. The cost is that of the attributes, because the first
    source that fits is the address of every <img> behind it.

    Args:
        max_width: in pixels; see `srcset.choose`. Media queries are evaluated for a screen of this width.
    """

    def __init__(self, max_width: int) -> None:
        self._max_width = max_width
        self._from_source = ""

    def add_source(self, source: Attributes) -> None:
        """Add a <source>; it is ignored without a srcset, or if its type or media does not fit."""
        if not self._from_source and (srcsets := [source[n] for n in (LAZY_SRCSET, "srcset") if source.get(n)]):
            kind = _value(source, "type").partition(";")[0].strip(ASCII_WHITESPACE).lower()
            if (not kind or kind in RASTER_TYPES) and matches(_value(source, "media"), self._max_width):
                urls = (choose(srcset or "", self._max_width) for srcset in srcsets)
                self._from_source = next(filter(None, urls), "")

    def image_url(self, img: Attributes) -> str:
        """The address of an <img> as written on the page, or "" if it has none."""
        for name in LAZY_ATTRIBUTES:
            if (value := img.get(name)) and (lazy := value.strip(ASCII_WHITESPACE)):
                return lazy
        if (srcset := img.get(LAZY_SRCSET)) and (lazy := choose(srcset, self._max_width)):
            return lazy
        if self._from_source:
            return self._from_source
        srcset, src = img.get("srcset"), _value(img, "src").strip(ASCII_WHITESPACE)
        return choose(srcset, self._max_width, src) if srcset else src


def _value(attributes: Attributes, name: str) -> str:
    return attributes.get(name) or ""
