"""Two versions of one picture, as the web makes them: what the duplicate detector learns from.

The manipulations are those of the paper's appendix C (from memory): cropping and zooming, aspect ratio, small
rotations, scaling down and up again, JPEG, hue, saturation and value, and a random choice among ways to interpolate.
Added here: frames around the picture, which zooming out leaves, and grey, which is no saturation. Flips by option.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from pipeline.model.encoders.duplicate_detector import squash
from pipeline.model.images.random_crop import Pixels

NUM_DRAWS = 24
"""Uniform draws in [0, 1) that a version takes, at most."""
KERNELS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4)

ZOOM = (0.78, 1.28)
"""Side of what is shown as a share of the picture's; above one the rest is a frame."""
ASPECT = 1.15
"""By how much one side may be stretched against the other."""
ROTATION_DEGREES = 6.0
RESOLUTION = (0.4, 1.6)
"""Sides on the way as a share of the detector's."""
HUE_DEGREES = 12.0
SATURATION, VALUE, CONTRAST = (0.4, 1.6), (0.6, 1.4), (0.6, 1.4)
GREY_SHARE = 0.25
"""Of the versions these have no colours."""
JPEG_QUALITY = (15, 95)
FRAME_OF_EDGE_SHARE = 0.3
"""Of the frames these continue the picture's edge; the others are of one grey."""
FLIP_SHARE = 0.5


def distort(pixels: Pixels, image_size: int, draws: Sequence[float], *, flips: bool) -> Pixels:
    """One version of a picture.

    Args:
        pixels: uint8 height x width x 3 (RGB).
        image_size: S, side of the result.
        draws: NUM_DRAWS uniform numbers in [0, 1), which decide everything.
        flips: whether it may be a mirror image.

    Returns:
        uint8 3 x S x S.
    """
    chance = iter(draws)

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(chance)

    def kernel() -> int:
        return KERNELS[int(next(chance) * len(KERNELS))]

    square = squash(pixels, 2 * image_size).transpose(1, 2, 0)
    side = max(8, round(image_size * between(*RESOLUTION)))
    square = _view(square, side, [next(chance) for _ in range(7)], kernel())
    square = _recolour(square, [next(chance) for _ in range(5)])
    square = _through_jpeg(square, round(between(*JPEG_QUALITY)))
    square = np.asarray(cv2.resize(square, (image_size, image_size), interpolation=kernel()), np.uint8)
    if next(chance) < FLIP_SHARE * flips:
        square = square[:, ::-1]
    return np.ascontiguousarray(square.transpose(2, 0, 1))


def _view(square: Pixels, side: int, draws: Sequence[float], kernel: int) -> Pixels:
    """A part of the picture, or the picture and a frame: zoomed, stretched, turned, and moved within the room left."""
    zoom, aspect, turn, across, down, frame, grey = draws
    shown = ZOOM[0] + (ZOOM[1] - ZOOM[0]) * zoom
    stretch = ASPECT ** (2 * aspect - 1)
    spans = np.array([shown * math.sqrt(stretch), shown / math.sqrt(stretch)])
    angle = math.radians(ROTATION_DEGREES * (2 * turn - 1))
    source = square.shape[0]
    centre = source / 2 * (1 + (1 - spans) * (2 * np.array([across, down]) - 1))
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    # from a pixel of the result to where it lies in the picture
    matrix = rotation * (spans * source / side)
    back = np.hstack([matrix, (centre - matrix @ np.full(2, side / 2))[:, None]])
    return np.asarray(
        cv2.warpAffine(
            np.ascontiguousarray(square),
            back,
            (side, side),
            flags=(kernel if kernel != cv2.INTER_AREA else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE if frame < FRAME_OF_EDGE_SHARE else cv2.BORDER_CONSTANT,
            borderValue=(round(255 * grey),) * 3,
        ),
        np.uint8,
    )


def _recolour(square: Pixels, draws: Sequence[float]) -> Pixels:
    hue, saturation, value, contrast, grey = draws
    colours = np.asarray(cv2.cvtColor(square, cv2.COLOR_RGB2HSV), np.float32)
    colours[..., 0] = (colours[..., 0] + HUE_DEGREES / 2 * (2 * hue - 1)) % 180  # OpenCV counts hues to 180
    colours[..., 1] *= 0 if grey < GREY_SHARE else SATURATION[0] + (SATURATION[1] - SATURATION[0]) * saturation
    colours[..., 2] *= VALUE[0] + (VALUE[1] - VALUE[0]) * value
    mean = colours[..., 2].mean()
    colours[..., 2] = mean + (colours[..., 2] - mean) * (CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * contrast)
    recoloured = cv2.cvtColor(np.clip(np.rint(colours), 0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)
    return np.asarray(recoloured, np.uint8)


def _through_jpeg(square: Pixels, quality: int) -> Pixels:
    data = cv2.imencode(".jpg", square, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
