"""What an image says of itself before it is decoded, and the checks that need no more."""

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
"""What Pillow's decoders raise over damaged and hostile bytes."""
MAX_SCANS = 100
"""Of a progressive JPEG: each of them is a pass over all of its pixels, and ten are usual."""
_ORIENTATION = 0x0112


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """What an image must be, and what it becomes. From `image_size` to `skip_reencode` as img2dataset's options."""

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
    upright: bool = True
    """Turn pictures as their EXIF orientation says, as browsers show them; img2dataset leaves them lying."""
    resizer: Literal["img2dataset", "scaled"] = "img2dataset"
    """`scaled` lets libjpeg decode large JPEGs at 1/2, 1/4 or 1/8 before they are resized: faster, and not the same
    bytes (docs/results.md)."""
    num_decoders: int = field(default=2, metadata=RESUME_SAFE)
    """Processes that decode and resize, beside each fetcher."""
    decoder_memory_gib: float = field(default=2.0, metadata=RESUME_SAFE)
    """Memory that a decoder may take beyond what it starts with."""
    decoder_timeout_seconds: float = field(default=20.0, metadata=RESUME_SAFE)
    """A decoder that works longer on one image is ended, and the image refused."""

    def __post_init__(self) -> None:
        if self.num_decoders < 1:
            raise ValueError(f"image.num_decoders = {self.num_decoders}: must be at least 1")
        for name in ("decoder_memory_gib", "decoder_timeout_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"image.{name} = {getattr(self, name)}: must be more than 0")


@dataclass(frozen=True)
class Header:
    """What an image says of itself before it is decoded."""

    kind: str
    width: int
    height: int
    mode: str
    exif: str
    orientation: int


def image_type(data: bytes) -> str | None:
    """The type of an image by its first bytes, never by its name or header; None where it is none we know."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:12] in {b"ftypavif", b"ftypavis"}:
        return "AVIF"
    return next((name for signature, name in SIGNATURES if data.startswith(signature)), None)


def inspect(data: bytes, config: ImageConfig) -> Header | tuple[Reason, str]:
    """What an image says of itself, or why it is refused and a detail.

    The header is judged before a pixel is decoded. A JPEG must have its end marker; what else may be wrong with it
    shows when it is resized. All other types are decoded, strictly, because decoders that fill what is missing would
    let a truncated file pass. Of an animation this is the first frame, and so is what becomes of it.
    """
    kind = image_type(data)
    if kind is None:
        return Reason.NOT_AN_IMAGE, f"begins with {data[:12]!r}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the verdict says what there is to say
            image = Image.open(io.BytesIO(data), formats=[kind])
            width, height = image.size
            if width * height > config.max_pixels:
                return Reason.TOO_MANY_PIXELS, f"{width}x{height}"
            if min(width, height) < config.min_side:
                return Reason.TOO_SMALL, f"{width}x{height}"
            if max(width, height) > config.max_aspect_ratio * min(width, height):
                return Reason.TOO_ELONGATED, f"{width}x{height}"
            if image.mode[0] in "IF" or (kind == "PNG" and data[24] > 8):
                return Reason.RESIZE_FAILED, "more than 8 bits a channel"  # img2dataset makes such an image white
            assert not ImageFile.LOAD_TRUNCATED_IMAGES, "Pillow was told to accept truncated images"
            if kind != "JPEG":
                image.load()
            elif problem := _problem_of_jpeg(data):
                return Reason.CORRUPT_IMAGE, problem
            exif, orientation = _exif(image)
            return Header(kind, width, height, image.mode, exif, orientation)
    except UnidentifiedImageError:  # its text has the address of an object in it
        return Reason.NOT_AN_IMAGE, "its header cannot be read"
    except Image.DecompressionBombError as error:
        return Reason.TOO_MANY_PIXELS, str(error)
    except DECODER_ERRORS as error:
        return Reason.CORRUPT_IMAGE, str(error) or type(error).__name__


def _problem_of_jpeg(data: bytes) -> str | None:
    """What is wrong with a JPEG's markers from the first scan on (a thumbnail before it has markers of its own)."""
    place = 2
    while place + 4 <= len(data):
        marker = data[place + 1]
        if marker == 0xDA:  # start of scan
            if data.rfind(b"\xff\xd9", place) < 0:
                return "no end marker: the file is truncated"
            return None if data.count(b"\xff\xda", place) <= MAX_SCANS else f"more than {MAX_SCANS} scans"
        alone = marker == 0xFF or marker == 0x01 or 0xD0 <= marker <= 0xD7  # filling, or a marker without a length
        place += 1 if marker == 0xFF else 2 if alone else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return "no scan: the file is truncated"


def _exif(image: Image.Image) -> tuple[str, int]:
    """EXIF data as JSON, and the orientation (1 is upright)."""
    try:
        tags = image.getexif()
        orientation = tags.get(_ORIENTATION, 1)
        valid = isinstance(orientation, int) and 1 <= orientation <= 8
        return json.dumps({str(key): str(value) for key, value in tags.items()}), orientation if valid else 1
    except DECODER_ERRORS:  # damage beside the picture does not harm the picture
        return "{}", 1
