"""Read image headers and run the checks that need no decoding."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image, ImageFile

from pipeline.data.images.phash import perceptual_hash as perceptual_hash
from pipeline.pictures import decode
from pipeline.pictures.decode import DECODER_ERRORS as DECODER_ERRORS
from pipeline.pictures.decode import NO_WARNINGS, OpenedPicture, UnknownTypeError, open_picture
from pipeline.pictures.essential import image_type as image_type
from pipeline.pictures.essential import read_directory
from pipeline.printable import printable, storable
from pipeline.reasons import Reason
from pipeline.resume_safe import RESUME_SAFE

MAX_EXIF_BYTES = 2**20
"""Maximum bytes of all EXIF values. Larger EXIF data is left out."""
MAX_EXIF_CHARACTERS = 2**16
"""Maximum length of all EXIF values as JSON. Tags beyond it are left out."""
_ORIENTATION = 0x0112


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Requirements for images, and how they are resized. `image_size` to `skip_reencode` are img2dataset's options."""

    max_pixels: int = decode.MAX_PIXELS
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
    sixteen_bit: Literal["reduce", "refuse"] = "reduce"
    """Pictures with 16 bits per channel: `reduce` keeps the upper eight, as browsers do, whereas img2dataset turns them
    white. Pictures with 12 or 32 bits or floats per channel are always refused."""
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

    @property
    def shown_size(self) -> tuple[int, int]:
        """Width and height of the upright picture."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


@dataclass(frozen=True)
class CheckedPicture:
    """A picture that has passed the checks. All but a JPEG has been decoded."""

    header: Header
    opened: OpenedPicture


def inspect(data: bytes, config: ImageConfig) -> Header | tuple[Reason, str]:
    """The header of an image, or the reason for refusing the image and a detail, as `check` does."""
    checked = check(data, config)
    return checked.header if isinstance(checked, CheckedPicture) else checked


def check(data: bytes, config: ImageConfig) -> CheckedPicture | tuple[Reason, str]:
    """Check an image; returns it, or the reason for refusing it and a detail.

    The header is checked before any pixel is decoded. A JPEG must have its end marker; other damage is detected when it
    is resized. All other types are decoded strictly, because decoders that fill in missing data would accept truncated
    files. Only the first frame of an animation is checked and used.
    """
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "ImageFile.LOAD_TRUNCATED_IMAGES must be False"
    if image_type(data) is None:
        return Reason.NOT_AN_IMAGE, f"begins with {data[:12]!r}"
    try:
        with NO_WARNINGS:  # about metadata and size; the size is checked below
            opened = open_picture(data)
            if refusal := _refusal(opened, config):
                return refusal
            header = _header(opened)
            if opened.kind != "JPEG":
                opened.decode()
            elif problem := _problem_of_jpeg(opened.data):
                return Reason.CORRUPT_IMAGE, problem
            return CheckedPicture(header, opened)
    except UnknownTypeError as error:
        return Reason.NOT_AN_IMAGE, str(error)
    except Image.DecompressionBombError as error:
        return Reason.TOO_MANY_PIXELS, str(error)
    except DECODER_ERRORS as error:
        return Reason.CORRUPT_IMAGE, printable(str(error) or type(error).__name__)


def _refusal(opened: OpenedPicture, config: ImageConfig) -> tuple[Reason, str] | None:
    width, height = opened.image.size
    if width * height > config.max_pixels:
        return Reason.TOO_MANY_PIXELS, f"{width}x{height}"
    if min(width, height) < config.min_side:
        return Reason.TOO_SMALL, f"{width}x{height}"
    if max(width, height) > config.max_aspect_ratio * min(width, height):
        return Reason.TOO_ELONGATED, f"{width}x{height}"
    if not opened.is_reducible or (opened.bits_per_channel > 8 and config.sixteen_bit == "refuse"):
        return Reason.RESIZE_FAILED, "more than 8 bits per channel"
    return None


def _header(opened: OpenedPicture) -> Header:
    width, height = opened.image.size
    return Header(opened.kind, width, height, opened.image.mode, _exif(opened), opened.orientation)


def _problem_of_jpeg(data: bytes) -> str | None:
    """The defect in the markers of a JPEG's essential parts, or None."""
    start = data.find(b"\xff\xda")
    if start < 0:
        return "no scan: the file is truncated"
    return "no end marker: the file is truncated" if data.rfind(b"\xff\xd9", start) < 0 else None


def _exif(opened: OpenedPicture) -> str:
    """The EXIF data as JSON in ASCII, without lone surrogates."""
    try:
        if read_directory(opened.exif or opened.data).value_bytes > MAX_EXIF_BYTES:
            return "{}"
        tags = Image.Exif()
        if opened.exif is not None:
            tags.load(opened.exif)
        elif opened.kind == "TIFF":
            tags = opened.image.getexif()
        texts: dict[str, str] = {}
        num_characters = 0
        for key, value in tags.items():
            texts[str(key)] = storable(str(value))
            num_characters += len(json.dumps(texts[str(key)]))
            if num_characters > MAX_EXIF_CHARACTERS:
                del texts[str(key)]
                break
        if opened.kind == "TIFF" and opened.orientation != 1:  # decoders do not see it
            texts[str(_ORIENTATION)] = str(opened.orientation)
        return json.dumps(texts)
    except DECODER_ERRORS:  # damaged metadata does not affect the picture
        return "{}"
