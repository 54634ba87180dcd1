"""Format numbers, sizes, URLs and pictures for the report."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from markupsafe import Markup
from PIL import Image

from pipeline.pictures.decode import decode

THUMBNAIL_PX = 144
_JPEG_QUALITY = 78


def compact(value: float) -> str:
    """Format a number in short form, such as 12,300, 4.1M, 0.0005 or 5e-06."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    magnitude = abs(value)
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # Numbers below 100,000 are written out.
        if magnitude >= factor and magnitude >= 1e5:
            return f"{value / factor:.3g}{suffix}"
    if magnitude >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if magnitude >= 1e-4 else f"{value:.0e}"


def percent(share: float) -> str:
    """Format a share in [0, 1] as a percentage, with two decimals below 1%: 12.5%, 0.25%."""
    return f"{100 * share:.{2 if 0 < share < 0.01 else 1}f}%"


def duration(seconds: float) -> str:
    """Format a duration, such as 0.4 s, 48 s, 3 min 05 s or 2 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60:02d} min"


def size(num_bytes: float) -> str:
    """Format a number of bytes, such as 31.0 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1_024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1_024
    return f"{num_bytes:.1f} TiB"


def host(url: str) -> str:
    """The host of a URL, or the whole text if it has none."""
    try:
        return urlsplit(url).hostname or url
    except ValueError:  # a URL from the web may be malformed
        return url


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested plain values as (dotted name, text), in order."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "none" if value is None else str(value)


def picture(image: bytes) -> Markup:
    """Encode the image again as a small JPEG, as a data URL for `src`.

    Raises:
        ValueError: the image cannot be decoded, or has more pixels than the pipeline ever keeps.
    """
    try:
        small = decode(image, draft_px=THUMBNAIL_PX).convert("RGB")
    except ValueError as error:
        raise ValueError(f"an image of the report cannot be decoded ({error})") from error
    small.info.clear()  # otherwise Pillow copies the original's comment
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return Markup("data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode())


def picture_if_readable(image: bytes | None) -> Markup | None:
    """`picture` for the image of a rejected pair; None if it is missing or cannot be decoded."""
    try:
        return None if image is None else picture(image)
    except ValueError:
        return None
