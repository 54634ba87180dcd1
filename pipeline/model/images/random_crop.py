"""Decode and randomly crop training images. Does not import torch, so that reading tasks start faster."""

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

REDUCED_SHRINK = 1.5
"""A crop decoded at reduced size must still be this many times as large as the result. At 1.5 it differs from Pillow's
bicubic resize hardly more than a crop that was decoded in full (docs/results.md)."""
_AREA_SHRINK = 1.2
"""Up to this shrink factor, crops are resized with OpenCV's cubic kernel. It is closer to Pillow's kernel, which widens
with the scale, than the area kernel, and takes a quarter of the time."""
_REDUCED = {factor: getattr(cv2, f"IMREAD_REDUCED_COLOR_{factor}") for factor in (8, 4, 2)}
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the JPEG segments that contain height and width (ITU-T T.81, table B.1)."""


def decode(data: bytes, least_side: float | None = None) -> Pixels:
    """Decode a compressed image to pixels, uint8 height x width x 3 (RGB).

    Args:
        data: a JPEG, or another format that OpenCV reads.
        least_side: minimum shorter side of the result in pixels. A JPEG is decoded at a half, a quarter or an eighth
            of its size, which is faster, if its shorter side keeps this many pixels. None: decode in full.

    Raises:
        ValueError: OpenCV cannot read the data.
    """
    shorter = 0 if least_side is None else _shorter_side(data)
    factor = next((factor for factor in _REDUCED if least_side and shorter // factor >= least_side), 1)
    flags = _REDUCED.get(factor, cv2.IMREAD_COLOR_RGB)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if pixels is None:
        raise ValueError(f"an image of {len(data)} bytes cannot be decoded")
    if factor > 1:  # the flags for reduced sizes always give BGR
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return np.asarray(pixels, np.uint8)


def random_square_crop(pixels: Pixels, image_size: int, share: float, at: tuple[float, float]) -> Pixels:
    """Cut a square crop and resize it: the paper's only augmentation (section 2.3).

    Args:
        pixels: uint8 height x width x 3.
        image_size: S, the side of the result.
        share: the crop's side as a share of the picture's shorter side.
        at: vertical and horizontal position of the crop, from 0 (top, left) to 1 (bottom, right).

    Returns:
        uint8 3 x S x S, which may be a view of `pixels`.
    """
    height, width, _ = pixels.shape
    side = max(1, round(share * min(height, width)))
    top, left = (int(fraction * (length - side + 1)) for fraction, length in zip(at, (height, width), strict=True))
    crop = pixels[top : top + side, left : left + side]
    if side != image_size:
        kernel = cv2.INTER_AREA if side > _AREA_SHRINK * image_size else cv2.INTER_CUBIC
        crop = np.asarray(cv2.resize(crop, (image_size, image_size), interpolation=kernel), np.uint8)
    return crop.transpose(2, 0, 1)


def _shorter_side(jpeg: bytes) -> int:
    """The shorter side in pixels, from the header of a JPEG; 0 for any other data."""
    offset = 2 if jpeg.startswith(b"\xff\xd8") else len(jpeg)
    while offset + 9 <= len(jpeg) and jpeg[offset] == 0xFF:
        if jpeg[offset + 1] in _FRAME_MARKERS:
            return min(int.from_bytes(jpeg[start : start + 2]) for start in (offset + 5, offset + 7))
        offset += 2 + int.from_bytes(jpeg[offset + 2 : offset + 4])
    return 0
