"""Read image headers and run the checks that need no decoding."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image, ImageFile, UnidentifiedImageError

from pipeline.data.images.phash import perceptual_hash as perceptual_hash
from pipeline.reasons import Reason
from pipeline.resume_safe import RESUME_SAFE

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
    *(OSError, EOFError, SyntaxError, ValueError, RuntimeError, ArithmeticError, LookupError, TypeError, MemoryError),
    struct.error,
    zlib.error,
)
"""Exceptions that Pillow's decoders raise for damaged or hostile bytes."""
MAX_SCANS = 100
"""Maximum scans of a progressive JPEG. Each scan is a pass over all pixels; ten scans are usual."""
_ORIENTATION = 0x0112


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Requirements for images, and how they are resized. `image_size` to `skip_reencode` are img2dataset's options."""

    max_pixels: int = 89_000_000
    """Maximum pixels according to the header, checked before decoding (Pillow's limit for decompression bombs)."""
    min_side: int = 32
    """Minimum pixels of the shorter side."""
    max_aspect_ratio: float = 5.0
    image_size: int = 256
    resize_mode: Literal["no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"] = "keep_ratio"
    resize_only_if_bigger: bool = True
    encode_quality: int = 95
    skip_reencode: bool = False
    upright: bool = True
    """Rotate pictures by their EXIF orientation, as browsers do. img2dataset ignores the orientation."""
    resizer: Literal["img2dataset", "scaled"] = "img2dataset"
    """`scaled` lets libjpeg decode large JPEGs at 1/2, 1/4 or 1/8 of their size before they are resized: faster, but
    the bytes differ (docs/results.md)."""
    num_decoders: int = field(default=2, metadata=RESUME_SAFE)
    """Decoder processes per fetcher."""
    decoder_memory_gib: float = field(default=2.0, metadata=RESUME_SAFE)
    """Memory that a decoder process may allocate on top of its memory at start."""
    decoder_timeout_seconds: float = field(default=20.0, metadata=RESUME_SAFE)
    """A decoder process that spends longer on one image is killed, and the image is refused."""

    def __post_init__(self) -> None:
        if self.num_decoders < 1:
            raise ValueError(f"image.num_decoders = {self.num_decoders}: must be at least 1")
        for name in ("decoder_memory_gib", "decoder_timeout_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"image.{name} = {getattr(self, name)}: must be more than 0")


@dataclass(frozen=True)
class Header:
    """Properties of an image that are known before it is decoded."""

    kind: str
    width: int
    height: int
    mode: str
    exif: str
    orientation: int


def image_type(data: bytes) -> str | None:
    """The image type by its first bytes, never by file name or HTTP header; None if the type is unknown."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:12] in {b"ftypavif", b"ftypavis"}:
        return "AVIF"
    return next((name for signature, name in SIGNATURES if data.startswith(signature)), None)


def inspect(data: bytes, config: ImageConfig) -> Header | tuple[Reason, str]:
    """The header of an image, or the reason for refusing the image and a detail.

    The header is checked before any pixel is decoded. A JPEG must have its end marker; other damage is detected when it
    is resized. All other types are decoded strictly, because decoders that fill in missing data would accept truncated
    files. Only the first frame of an animation is checked and used.
    """
    kind = image_type(data)
    if kind is None:
        return Reason.NOT_AN_IMAGE, f"begins with {data[:12]!r}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the returned reason covers these warnings
            image = Image.open(io.BytesIO(data), formats=[kind])
            width, height = image.size
            if width * height > config.max_pixels:
                return Reason.TOO_MANY_PIXELS, f"{width}x{height}"
            if min(width, height) < config.min_side:
                return Reason.TOO_SMALL, f"{width}x{height}"
            if max(width, height) > config.max_aspect_ratio * min(width, height):
                return Reason.TOO_ELONGATED, f"{width}x{height}"
            if image.mode[0] in "IF" or (kind == "PNG" and data[24] > 8):
                return Reason.RESIZE_FAILED, "more than 8 bits per channel"  # img2dataset would return a white image
            assert not ImageFile.LOAD_TRUNCATED_IMAGES, "ImageFile.LOAD_TRUNCATED_IMAGES must be False"
            if kind != "JPEG":
                image.load()
            elif problem := _problem_of_jpeg(data):
                return Reason.CORRUPT_IMAGE, problem
            exif, orientation = _exif(image)
            return Header(kind, width, height, image.mode, exif, orientation)
    except UnidentifiedImageError:  # the exception's text contains a memory address
        return Reason.NOT_AN_IMAGE, "the header cannot be read"
    except Image.DecompressionBombError as error:
        return Reason.TOO_MANY_PIXELS, str(error)
    except DECODER_ERRORS as error:
        return Reason.CORRUPT_IMAGE, str(error) or type(error).__name__


def _problem_of_jpeg(data: bytes) -> str | None:
    """The defect in a JPEG's markers from its first scan on, or None. Markers of embedded thumbnails come before it."""
    offset = 2
    while offset + 4 <= len(data):
        marker = data[offset + 1]
        if marker == 0xDA:  # start of scan
            if data.rfind(b"\xff\xd9", offset) < 0:
                return "no end marker: the file is truncated"
            return None if data.count(b"\xff\xda", offset) <= MAX_SCANS else f"more than {MAX_SCANS} scans"
        has_length = not (marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7)  # 0xFF is a fill byte
        length = int.from_bytes(data[offset + 2 : offset + 4], "big")
        offset += 1 if marker == 0xFF else 2 + length if has_length else 2
    return "no scan: the file is truncated"


def _exif(image: Image.Image) -> tuple[str, int]:
    """The EXIF data as JSON, and the orientation (1 means upright)."""
    try:
        tags = image.getexif()
        orientation = tags.get(_ORIENTATION, 1)
        valid = isinstance(orientation, int) and 1 <= orientation <= 8
        return json.dumps({str(key): str(value) for key, value in tags.items()}), orientation if valid else 1
    except DECODER_ERRORS:  # damaged metadata does not affect the picture
        return "{}", 1
