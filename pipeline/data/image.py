"""Image checks, resizing with img2dataset's Resizer, and the perceptual hash."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageFile, UnidentifiedImageError
from scipy.fft import dct

from pipeline.schemas import FETCHED, Reason, conform

SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)
DECODER_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, RuntimeError, ArithmeticError, LookupError, TypeError),
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise over damaged and hostile bytes."""
_RESIZE_REASONS = frozenset(
    {
        Reason.NOT_AN_IMAGE,
        Reason.TOO_MANY_PIXELS,
        Reason.TOO_SMALL,
        Reason.TOO_ELONGATED,
        Reason.CORRUPT_IMAGE,
        Reason.RESIZE_FAILED,
    }
)
_FILLED = (
    *("jpg", "reason", "status", "error_message", "exif", "sha256"),
    *("width", "height", "original_width", "original_height"),
)
"""The columns of FETCHED that ImageProcessor fills row by row."""


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What an image must be, and what it becomes. The last five are img2dataset's options of the same names."""

    max_pixels: int = 89_000_000
    """By the header, before anything is decoded (Pillow's own limit for decompression bombs)."""
    min_side: int = 32
    """Pixels of the shorter side, at least."""
    max_aspect_ratio: float = 5.0
    image_size: int = 256
    resize_mode: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "keep_ratio"
    resize_only_if_bigger: bool = True
    encode_quality: int = 95
    skip_reencode: bool = False


class ImageProcessor:
    """Checks and resizes the images of a table. Holds img2dataset's Resizer."""

    def __init__(self, config: ImageConfig) -> None:
        # Imported here because img2dataset brings albumentations, which takes seconds, and asks the network for news
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        from img2dataset.resizer import Resizer

        self._config = config
        self._resizer: Any = Resizer(
            image_size=config.image_size,
            resize_mode=config.resize_mode,
            resize_only_if_bigger=config.resize_only_if_bigger,
            encode_quality=config.encode_quality,
            encode_format="jpg",
            skip_reencode=config.skip_reencode,
        )

    def __call__(self, table: pa.Table) -> pa.Table:
        """FETCHED from fetched CANDIDATES: resized JPEG, sizes, sha256 and perceptual hash, or a reason."""
        rows: dict[str, list[Any]] = {name: [] for name in _FILLED}
        messages = table["error_message"].to_pylist() if "error_message" in table.column_names else [None] * len(table)
        for image, reason, message in zip(table["image"], table["reason"].to_pylist(), messages, strict=True):
            data = image.as_py()
            row = {"reason": reason, "error_message": message} if reason or data is None else self._process(data)
            row.setdefault("status", status_of(row.get("reason")))
            for name, column in rows.items():
                column.append(row.get(name))
        names = {"image_url": "url"}
        kept = table.drop_columns([name for name in ("image", *rows) if name in table.column_names])
        kept = kept.rename_columns([names.get(name, name) for name in kept.column_names])
        kept = kept.append_column("key", kept["pair_id"])
        for name, column in rows.items():
            kept = kept.append_column(name, pa.array(column, FETCHED.field(name).type))
        hashes = np.zeros(table.num_rows, np.uint64)
        good = [i for i, reason in enumerate(rows["reason"]) if reason is None]
        hashes[good] = perceptual_hash([rows["jpg"][i] for i in good])
        missing = np.isin(np.arange(table.num_rows), good, invert=True)
        return conform(kept.append_column("phash", pa.array(hashes, pa.uint64(), mask=missing)), FETCHED)

    def _process(self, data: bytes) -> dict[str, Any]:
        sha256 = hashlib.sha256(data).hexdigest()
        reason, detail, exif = inspect(data, self._config)
        if reason is not None:
            return {"reason": reason, "error_message": detail or reason.value, "sha256": sha256}
        image, width, height, original_width, original_height, error = self._resizer(io.BytesIO(data))
        if error is not None:
            return {"reason": Reason.RESIZE_FAILED, "error_message": str(error), "sha256": sha256}
        sizes = {"width": width, "height": height, "original_width": original_width, "original_height": original_height}
        return {"jpg": bytes(image), "sha256": sha256, "exif": exif, **sizes}


def status_of(reason: str | None) -> str:
    """img2dataset's status for a row."""
    if reason is None:
        return "success"
    return "failed_to_resize" if reason in _RESIZE_REASONS else "failed_to_download"


def image_type(data: bytes) -> str | None:
    """The type of an image by its first bytes, never by its name or header; None where it is none we know."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:12] in {b"ftypavif", b"ftypavis"}:
        return "AVIF"
    return next((name for signature, name in SIGNATURES if data.startswith(signature)), None)


def inspect(data: bytes, config: ImageConfig) -> tuple[Reason | None, str, str]:
    """Why an image is refused (None: it is not), a detail, and its EXIF data as JSON.

    The header is judged before a pixel is decoded; then all of it is decoded once, strictly, because decoders that
    fill what is missing with grey would let a truncated file pass.
    """
    kind = image_type(data)
    if kind is None:
        return Reason.NOT_AN_IMAGE, f"begins with {data[:12]!r}", "{}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the verdict says what there is to say
            image = Image.open(io.BytesIO(data), formats=[kind])
            width, height = image.size
            if width * height > config.max_pixels:
                return Reason.TOO_MANY_PIXELS, f"{width}x{height}", "{}"
            if min(width, height) < config.min_side:
                return Reason.TOO_SMALL, f"{width}x{height}", "{}"
            if max(width, height) > config.max_aspect_ratio * min(width, height):
                return Reason.TOO_ELONGATED, f"{width}x{height}", "{}"
            if image.mode[0] in "IF" or (kind == "PNG" and data[24] > 8):
                return Reason.RESIZE_FAILED, "more than 8 bits a channel", "{}"  # img2dataset makes such an image white
            assert not ImageFile.LOAD_TRUNCATED_IMAGES, "Pillow was told to accept truncated images"
            image.load()
            return None, "", _exif(image)
    except UnidentifiedImageError as error:
        return Reason.NOT_AN_IMAGE, str(error), "{}"
    except Image.DecompressionBombError as error:
        return Reason.TOO_MANY_PIXELS, str(error), "{}"
    except DECODER_ERRORS as error:
        return Reason.CORRUPT_IMAGE, str(error), "{}"


def _exif(image: Image.Image) -> str:
    try:
        return json.dumps({str(key): str(value) for key, value in image.getexif().items()})
    except DECODER_ERRORS:  # damage beside the picture does not harm the picture
        return "{}"


def perceptual_hash(images: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """The 64-bit DCT hash of each encoded image: pHash (Zauner 2010), bit for bit imagehash.phash.

    Luminance at 32x32 pixels (Lanczos), the 8x8 lowest frequencies of its DCT, a bit for each above their median; the
    first row's first column is the highest bit.

    Args:
        images: encoded images that decode, B of them.

    Returns:
        uint64 of shape (B,).
    """
    if not images:
        return np.zeros(0, np.uint64)
    grey = np.stack([_luminance(image) for image in images]).astype(np.float64)
    # Not by matrix products, whose rounding would decide the bits of flat and of symmetric images
    low = dct(dct(grey, axis=1)[:, :8], axis=2)[:, :, :8].reshape(len(images), 64)
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def _luminance(data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS))
