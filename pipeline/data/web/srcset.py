"""Parse srcset attributes as the HTML standard does, and choose one of their images.

The parser is the standard's "parse a srcset attribute": only ASCII white space separates, a comma within parentheses
does not end a candidate, and a candidate with an invalid descriptor is dropped. Every character is read once.

parse            a srcset -> its image candidates, one after another
choose           the image for a corpus: the largest one that is not wider than a bound
browser_choice   the image that a browser shows
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

ASCII_WHITESPACE = "\t\n\f\r "
_URL = re.compile(r"[\t\n\f\r ,]*+([^\t\n\f\r ]++)")
_DESCRIPTORS = re.compile(r"((?:[^,(]++|\([^)]*+\)?)*+),?")
"""Everything up to a comma outside parentheses; parentheses do not nest, and the end of the text closes them."""
_BETWEEN = re.compile(r"[\t\n\f\r ]++")
_INTEGER = re.compile(r"[0-9]++([wh])")
_FLOAT = re.compile(r"-?+(?:[0-9]++(?:\.[0-9]++)?+|\.[0-9]++)(?:[eE][-+]?+[0-9]++)?+x")


class ImageSource(NamedTuple):
    """One candidate of a srcset; at most one of the descriptors is set."""

    url: str
    width: float | None = None
    """In pixels, positive; infinite if it is not a finite double."""
    density: float | None = None
    """Image pixels per CSS pixel, 0 or more; a candidate without a descriptor counts as 1."""


def parse(srcset: str) -> Iterator[ImageSource]:
    """The valid image candidates of a srcset, in order."""
    position = 0
    while match := _URL.match(srcset, position):
        url, position = match[1], match.end()
        if url.endswith(","):
            yield ImageSource(url.rstrip(","))  # `_URL` skips leading commas, so something remains
            continue
        rest = _DESCRIPTORS.match(srcset, position)
        assert rest is not None, "the pattern matches every text"
        position = rest.end()
        source = _described(url, rest[1].strip(ASCII_WHITESPACE))
        if source is not None:
            yield source


def _described(url: str, descriptors: str) -> ImageSource | None:
    """The candidate with these descriptors, or None if one of them is invalid or contradicts another."""
    if not descriptors:
        return ImageSource(url)
    width = height = density = None
    parts = _BETWEEN.split(descriptors, 2)
    if len(parts) > 2:
        return None
    for descriptor in parts:
        if match := _INTEGER.fullmatch(descriptor):
            number = float(descriptor[:-1])  # int() refuses more than 4,300 digits
            if number == 0 or density is not None:
                return None
            if match[1] == "w":
                if width is not None:
                    return None
                width = number
            else:
                if height is not None:
                    return None
                height = number
        elif _FLOAT.fullmatch(descriptor):
            number = float(descriptor[:-1])
            if not 0 <= number < math.inf or width is not None or height is not None or density is not None:
                return None
            density = number
        else:
            return None
    if height is not None and width is None:
        return None
    return ImageSource(url, width, density)


def choose(srcset: str, max_width: int, src: str = "") -> str:
    """The URL of the best image for a corpus, or "" if there is none.

    This is the widest image up to `max_width` pixels. If no candidate has such a width, it is the one with the highest
    density, because `2x` has twice the width of `1x`, whatever that is. Otherwise it is the narrowest.

    Args:
        srcset: the attribute.
        max_width: in pixels.
        src: the src attribute of an img. It counts as `1x` where the standard adds it to the candidates.
    """
    best, best_key = "", (-1, 0.0)
    for source in _with_src(srcset, src):
        if source.width is None:
            key = (1, 1.0 if source.density is None else source.density)
        else:
            key = (2, source.width) if source.width <= max_width else (0, -source.width)
        if key > best_key:
            best, best_key = source.url, key
    return best


def browser_choice(srcset: str, src: str = "", *, density: float = 1.0, source_size: float = 1024.0) -> str:
    """The URL that a browser shows, or "" if there is none.

    The standard leaves the choice to the browser. This is what browsers have in common: the lowest density that
    suffices for the screen, or else the highest.

    Args:
        srcset: the attribute.
        src: the src attribute of an img.
        density: image pixels per CSS pixel of the screen.
        source_size: width of the image on the page in CSS pixels, which the sizes attribute gives.
    """
    best, best_key = "", (-1, 0.0)
    for source in _with_src(srcset, src):
        if source.width is None:
            offered = 1.0 if source.density is None else source.density
        else:
            offered = source.width / source_size
        key = (1, -offered) if offered >= density else (0, offered)
        if key > best_key:
            best, best_key = source.url, key
    return best


def _with_src(srcset: str, src: str) -> Iterator[ImageSource]:
    """The candidates, and src unless one of them has a width or the density 1 ("create a source set", step 4)."""
    is_complete = False
    for source in parse(srcset):
        is_complete = is_complete or source.width is not None or source.density in {None, 1.0}
        yield source
    if not is_complete and (src := src.strip(ASCII_WHITESPACE)):
        yield ImageSource(src)
