"""Decode a file to its first picture: upright by its EXIF orientation and on white, as browsers show it on a page."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, UnidentifiedImageError

from pipeline.pictures.essential import FORMATS, Essential, essential, read_directory

MAX_PIXELS = 89_000_000
"""Pictures with more pixels are refused after reading their header (Pillow's limit for decompression bombs). A picture
of this size takes 270 MB."""
MAX_SCANNED_PIXELS = 2_000_000_000
"""Maximum pixels of all scans of a progressive JPEG together, which take about 20 seconds."""
DECODER_ERRORS = (
    *(OSError, EOFError, SyntaxError, ValueError, RuntimeError, ArithmeticError, LookupError, TypeError, MemoryError),
    *(AttributeError, AssertionError, cv2.error),
    struct.error,
    zlib.error,
)
"""Exceptions that decoders raise for damaged or hostile bytes."""

Pixels = npt.NDArray[np.uint8]
_LENIENT_TYPES = frozenset({"PNG", "GIF"})
_BLOCK_PIXELS = 1 << 20
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn a picture of each EXIF orientation upright."""
_BITS_PER_SAMPLE, _PHOTOMETRIC, _BLACK_IS_ZERO = 258, 262, 1


class _NoWarnings:
    """Ignores Python's warnings while any thread is inside.

    Two threads that each use warnings.catch_warnings may leave all warnings ignored for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._ignored = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._num_inside == 0:
                self._ignored = warnings.catch_warnings()
                self._ignored.__enter__()
                warnings.simplefilter("ignore")
            self._num_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if self._num_inside == 0:
                self._ignored.__exit__(None, None, None)


NO_WARNINGS = _NoWarnings()
"""Context manager for calls of Pillow, which warns of metadata and sizes."""


class UnknownTypeError(ValueError):
    """The file is no picture of a known type, or its header cannot be read."""


@dataclass(frozen=True)
class OpenedPicture:
    """A picture whose header has been read."""

    kind: str
    """One of FORMATS."""
    data: bytes
    """The essential parts of the file."""
    image: ImageFile.ImageFile
    """Not yet decoded, and not yet upright."""
    exif: bytes | None
    """EXIF data from the byte order on. None for TIFF, whose tags are EXIF data themselves."""
    orientation: int
    """1 to 8 as in EXIF; 1 is upright."""

    @property
    def bits_per_channel(self) -> int:
        """8 for pictures of fewer bits."""
        if self.kind == "PNG":
            return max(8, self.data[24])
        if self.kind == "TIFF":
            bits: tuple[int, ...] = self._tiff_tags.get(_BITS_PER_SAMPLE, (8,))
            return max(8, *bits)
        return 8

    @property
    def is_reducible(self) -> bool:
        """Whether its upper eight bits show the picture: not for floats, 12 or 32 bits, and inverted greys."""
        if self.image.mode in {"I", "F"} or self.bits_per_channel not in {8, 16}:
            return False
        is_grey_tiff = self.kind == "TIFF" and self.image.mode.startswith("I;16")
        return not is_grey_tiff or self._tiff_tags.get(_PHOTOMETRIC) == _BLACK_IS_ZERO

    @property
    def _tiff_tags(self) -> Mapping[int, Any]:
        tags: Mapping[int, Any] = getattr(self.image, "tag_v2", {})
        return tags

    def decode(self) -> None:
        """Decode the pixels strictly, once.

        Raises:
            One of DECODER_ERRORS: the file is damaged. Pillow leaves rows black that the compressed data of a PNG or
            a GIF lacks; OpenCV refuses such a file.
        """
        if self.image.fp is None and self.kind in _LENIENT_TYPES:
            return  # Pillow closes a file that it has decoded
        self.image.load()
        if self.kind in _LENIENT_TYPES and opencv(self.data, cv2.IMREAD_UNCHANGED) is None:
            raise OSError("its compressed data is truncated")

    def finished(self, *, upright: bool = True) -> Image.Image:
        """Decode the pixels strictly: eight bits per channel, upright, transparent pixels on white.

        Opaque pictures keep their mode. Pictures of mode I or F keep their values.

        Raises:
            One of DECODER_ERRORS: the file is damaged.
        """
        self.decode()
        picture = on_white(_as_browsers_see(self))
        turn = _TRANSPOSITIONS.get(self.orientation) if upright else None
        return picture if turn is None else picture.transpose(turn)


def open_picture(data: bytes) -> OpenedPicture:
    """Read the header of a picture, by the type that its first bytes show. Metadata reaches no decoder.

    Raises:
        UnknownTypeError: the file is no picture of a known type.
        Image.DecompressionBombError: the picture has more than twice MAX_PIXELS.
        One of DECODER_ERRORS: the file is damaged.
    """
    parts = essential(data)
    if parts is None:
        raise UnknownTypeError(f"not an image in a known format ({', '.join(FORMATS)})")
    if parts.problem is not None:
        raise ValueError(parts.problem)
    if parts.num_pixels is not None and parts.num_pixels > 2 * MAX_PIXELS:
        raise Image.DecompressionBombError(f"{parts.num_pixels:,} pixels are more than {2 * MAX_PIXELS:,}")
    try:
        image = Image.open(io.BytesIO(parts.data), formats=[parts.kind])
    except UnidentifiedImageError as error:  # the exception's text contains a memory address
        raise UnknownTypeError("the header cannot be read") from error
    if parts.num_scans * image.width * image.height > max(MAX_SCANNED_PIXELS, image.width * image.height):
        raise ValueError(f"{parts.num_scans} scans of {image.width} x {image.height} pixels take too long")
    if parts.kind == "TIFF" and not _is_covered(image):  # Pillow would leave the rest black
        raise ValueError("its strips are fewer than its rows")
    exif, orientation = _exif_of(parts, image)
    return OpenedPicture(parts.kind, parts.data, image, exif, orientation)


def decode(data: bytes, *, draft_px: int | None = None) -> Image.Image:
    """Decode a file to its first picture, as `OpenedPicture.finished` does.

    Args:
        data: the file.
        draft_px: a JPEG may be decoded at a half, a quarter or an eighth of its size, if each side keeps this many
            pixels. None: decode in full.

    Raises:
        ValueError: the file is no picture of a known type, is damaged, or has more than MAX_PIXELS.
    """
    assert not ImageFile.LOAD_TRUNCATED_IMAGES, "ImageFile.LOAD_TRUNCATED_IMAGES must be False"
    try:
        with NO_WARNINGS:  # about metadata and size; the size is checked below
            opened = open_picture(data)
            width, height = opened.image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
            if draft_px is not None:
                opened.image.draft("RGB", (draft_px, draft_px))
            return opened.finished()
    except ValueError:
        raise
    except (*DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise ValueError(str(error) or "damaged") from error


def opencv(data: bytes, flags: int) -> npt.NDArray[Any] | None:
    """The pixels as OpenCV decodes them, or None if it refuses them."""
    try:
        pixels: npt.NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # a side is longer than its limit of 2**20 pixels
        return None
    return pixels


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn pixels, height x width or height x width x channels, upright by their EXIF orientation."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    rows = slice(None, None, -1 if orientation in {3, 4, 7, 8} else 1)
    columns = slice(None, None, -1 if orientation in {2, 3, 6, 7} else 1)
    return np.ascontiguousarray(pixels[rows, columns]) if orientation > 1 else pixels


def on_white(image: Image.Image) -> Image.Image:
    """The picture without transparency; an opaque picture itself. The pixels equal those of img2dataset."""
    if not image.has_transparency_data:
        return image
    pixels = np.asarray(image.convert("RGBA"))
    opaque = np.empty((*pixels.shape[:2], 3), np.uint8)
    num_rows = max(1, _BLOCK_PIXELS // max(1, image.width))
    for start in range(0, image.height, num_rows):
        rows = slice(start, start + num_rows)
        alpha = pixels[rows, :, 3:].astype(np.uint16)
        opaque[rows] = (pixels[rows, :, :3] * alpha + 127) // 255 + (255 - alpha)
    return Image.fromarray(opaque)


def _is_covered(image: Image.Image) -> bool:
    """Whether the strips or tiles of a TIFF have as many pixels as the picture."""
    boxes = [tile[1] or (0, 0, 0, 0) for tile in getattr(image, "tile", [])]
    return sum((right - left) * (lower - upper) for left, upper, right, lower in boxes) >= image.width * image.height


def _exif_of(parts: Essential, image: Image.Image) -> tuple[bytes | None, int]:
    if parts.kind != "AVIF":
        return parts.exif, parts.orientation
    # Pillow enters the rotation and mirroring of the container
    exif: bytes | None = image.info.get("exif")
    exif = exif and exif.removeprefix(b"Exif\0\0")
    return exif, read_directory(exif).orientation if exif else 1


def _as_browsers_see(opened: OpenedPicture) -> Image.Image:
    """The decoded picture with eight bits per channel, and with the transparency that browsers see."""
    image = opened.image
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image)
        grey = (pixels >> 8).astype(np.uint8)
        return Image.fromarray(np.where(pixels == key, 255, grey).astype(np.uint8) if isinstance(key, int) else grey)
    if opened.kind == "PNG" and opened.bits_per_channel == 16 and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if opened.kind == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # an alpha channel that was never written
    box = getattr(image, "dispose_extent", None)
    if opened.kind == "GIF" and box and tuple(box) != (0, 0, *image.size):
        canvas = Image.new("RGB", image.size, "white")  # the first frame does not cover the picture
        canvas.paste(on_white(image).convert("RGB").crop(box), tuple(box)[:2])
        return canvas
    return image
