"""Pictures in training: decoding and the random crop. Without torch, because reading tasks start faster so."""

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

REDUCED_SHRINK = 1.5
"""A crop that is decoded at a fraction of its size is still so many times as large as what becomes of it: then it
differs from Pillow's bicubic kernel hardly more than one that is decoded in full (docs/results.md)."""
_AREA_SHRINK = 1.2
"""Below it the cubic kernel is nearer to Pillow's, which widens with the scale, and takes a quarter of the time."""
_REDUCED = {factor: getattr(cv2, f"IMREAD_REDUCED_COLOR_{factor}") for factor in (8, 4, 2)}
_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of JPEG segments that tell height and width (ITU-T T.81, table B.1)."""


def decode(data: bytes, least_side: float | None = None) -> Pixels:
    """Pixels uint8 height x width x 3 (RGB) of a compressed image.

    Args:
        data: JPEG, or another type that OpenCV reads.
        least_side: a JPEG is decoded at a half, a quarter or an eighth of its size, which is faster, where its shorter
            side keeps so many pixels; None: in full.

    Raises:
        ValueError: OpenCV cannot read it.
    """
    shorter = 0 if least_side is None else _shorter_side(data)
    factor = next((factor for factor in _REDUCED if least_side and shorter // factor >= least_side), 1)
    flags = _REDUCED.get(factor, cv2.IMREAD_COLOR_RGB)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if pixels is None:
        raise ValueError(f"an image of {len(data)} bytes cannot be decoded")
    if factor > 1:  # these flags know one order of colours only
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    return np.asarray(pixels, np.uint8)


def random_square_crop(pixels: Pixels, image_size: int, share: float, at: tuple[float, float]) -> Pixels:
    """The paper's only augmentation: a square crop of the resized picture (section 2.3).

    Args:
        pixels: uint8 height x width x 3.
        image_size: S, side of the result.
        share: side of the crop as a share of the picture's shorter side.
        at: where the crop lies, from 0 (top, left) to 1 (bottom, right).

    Returns:
        uint8 3 x S x S, which may be a view of `pixels`.
    """
    height, width, _ = pixels.shape
    side = max(1, round(share * min(height, width)))
    top, left = (int(fraction * (room - side + 1)) for fraction, room in zip(at, (height, width), strict=True))
    crop = pixels[top : top + side, left : left + side]
    if side != image_size:
        kernel = cv2.INTER_AREA if side > _AREA_SHRINK * image_size else cv2.INTER_CUBIC
        crop = np.asarray(cv2.resize(crop, (image_size, image_size), interpolation=kernel), np.uint8)
    return crop.transpose(2, 0, 1)


def _shorter_side(jpeg: bytes) -> int:
    """In pixels, as the header says; 0 where it is not that of a JPEG."""
    at = 2 if jpeg.startswith(b"\xff\xd8") else len(jpeg)
    while at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
        if jpeg[at + 1] in _SIZES:
            return min(int.from_bytes(jpeg[start : start + 2]) for start in (at + 5, at + 7))
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4])
    return 0
