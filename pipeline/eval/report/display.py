"""Numbers, sizes, addresses and pictures as the report shows them."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from markupsafe import Markup
from PIL import Image

THUMBNAIL_PX = 144
_JPEG_QUALITY = 78
_MAX_PIXELS = 89_000_000
# The web's own; Pillow knows many more, some of which call other programs.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP")


def compact(value: float) -> str:
    """A number as people read it: 12,300 or 4.1M or 0.0005 or 5e-06."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    magnitude = abs(value)
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # Thousands are written out as long as they stay short.
        if magnitude >= factor and magnitude >= 1e5:
            return f"{value / factor:.3g}{suffix}"
    if magnitude >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if magnitude >= 1e-4 else f"{value:.0e}"


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage: 12.5%, and 0.25% where one decimal would say too little."""
    return f"{100 * share:.{2 if 0 < share < 0.01 else 1}f}%"


def duration(seconds: float) -> str:
    """A length of time, such as 0.4 s, 48 s, 3 min 05 s or 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60:02d} min"


def size(num_bytes: float) -> str:
    """A number of bytes, such as 31.0 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1_024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1_024
    return f"{num_bytes:.1f} TiB"


def host(url: str) -> str:
    """The host of an address, or as much of the text as there is if it has none."""
    try:
        return urlsplit(url).hostname or url
    except ValueError:  # an address from the web need not be one
        return url


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested plain values as (dotted name, text), in their order."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "none" if value is None else str(value)


def picture(image: bytes) -> Markup:
    """The image as a small JPEG of our own making, as a data address for `src`.

    Raises:
        ValueError: when it cannot be decoded, or has more pixels than anything the pipeline keeps.
    """
    try:
        with Image.open(io.BytesIO(image), formats=_FORMATS) as decoded:
            if decoded.width * decoded.height > _MAX_PIXELS:
                raise ValueError(f"an image of {decoded.width}x{decoded.height} pixels is not shown")
            # JPEG decodes straight to a smaller size.
            decoded.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))
            small = decoded.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"an image of the report cannot be decoded ({error})") from error
    small.info.clear()  # else Pillow copies the comment of the original
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return Markup("data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode())


def picture_if_readable(image: bytes | None) -> Markup | None:
    """`picture` for a file that was rejected, which may well be the reason: None where it cannot be decoded."""
    try:
        return None if image is None else picture(image)
    except ValueError:
        return None
