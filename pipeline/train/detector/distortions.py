"""Distort pictures as copies on the web are distorted, to train the duplicate detector.

The distortions are those of the paper's appendix C (from memory): cropping and zooming, aspect ratio, small rotations,
downscaling and upscaling, JPEG, hue, saturation and value, and a random interpolation method. Additions: a frame around
the picture when zooming out, and greyscale. Flips are optional.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from pipeline.model.encoders.duplicate_detector import squash
from pipeline.model.images.random_crop import Pixels

NUM_DRAWS = 24
"""Number of uniform draws in [0, 1) for a distorted version; it uses at most this many."""
KERNELS = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4)

ZOOM = (0.78, 1.28)
"""Side of the visible region relative to the picture's side; above 1, a frame surrounds the picture."""
ASPECT = 1.15
"""Maximum factor by which one side is stretched relative to the other."""
ROTATION_DEGREES = 6.0
"""Maximum rotation in either direction."""
RESOLUTION = (0.4, 1.6)
"""Side of the intermediate picture relative to the detector's image size."""
HUE_DEGREES = 12.0
"""Maximum shift of the hue in either direction."""
SATURATION, VALUE, CONTRAST = (0.4, 1.6), (0.6, 1.4), (0.6, 1.4)
GREY_SHARE = 0.25
"""Share of versions that are greyscale."""
JPEG_QUALITY = (15, 95)
FRAME_OF_EDGE_SHARE = 0.3
"""Share of frames that extend the picture's edge pixels; the other frames are a uniform grey."""
FLIP_SHARE = 0.5


def distort(pixels: Pixels, image_size: int, draws: Sequence[float], *, flips: bool) -> Pixels:
    """Make a distorted version of a picture.

    Args:
        pixels: uint8 height x width x 3 (RGB).
        image_size: S, side of the result in pixels.
        draws: NUM_DRAWS uniform numbers in [0, 1), which determine all distortions.
        flips: whether the version may be mirrored.

    Returns:
        uint8 3 x S x S.
    """
    remaining = iter(draws)

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(remaining)

    def kernel() -> int:
        return KERNELS[int(next(remaining) * len(KERNELS))]

    square = squash(pixels, 2 * image_size).transpose(1, 2, 0)
    side = max(8, round(image_size * between(*RESOLUTION)))
    square = _transform(square, side, [next(remaining) for _ in range(7)], kernel())
    square = _recolour(square, [next(remaining) for _ in range(5)])
    square = _compress_as_jpeg(square, round(between(*JPEG_QUALITY)))
    square = np.asarray(cv2.resize(square, (image_size, image_size), interpolation=kernel()), np.uint8)
    if next(remaining) < FLIP_SHARE * flips:
        square = square[:, ::-1]
    return np.ascontiguousarray(square.transpose(2, 0, 1))


def _transform(square: Pixels, side: int, draws: Sequence[float], kernel: int) -> Pixels:
    """Zoom, stretch, rotate and shift a picture; zooming out adds a frame."""
    zoom, aspect, turn, across, down, frame, grey = draws
    visible = ZOOM[0] + (ZOOM[1] - ZOOM[0]) * zoom
    stretch = ASPECT ** (2 * aspect - 1)
    spans = np.array([visible * math.sqrt(stretch), visible / math.sqrt(stretch)])
    angle = math.radians(ROTATION_DEGREES * (2 * turn - 1))
    source = square.shape[0]
    centre = source / 2 * (1 + (1 - spans) * (2 * np.array([across, down]) - 1))
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    # Maps a pixel of the result to its position in the picture
    matrix = rotation * (spans * source / side)
    inverse = np.hstack([matrix, (centre - matrix @ np.full(2, side / 2))[:, None]])
    return np.asarray(
        cv2.warpAffine(
            np.ascontiguousarray(square),
            inverse,
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
    colours[..., 0] = (colours[..., 0] + HUE_DEGREES / 2 * (2 * hue - 1)) % 180  # OpenCV's hues are 0 to 180
    colours[..., 1] *= 0 if grey < GREY_SHARE else SATURATION[0] + (SATURATION[1] - SATURATION[0]) * saturation
    colours[..., 2] *= VALUE[0] + (VALUE[1] - VALUE[0]) * value
    mean = colours[..., 2].mean()
    colours[..., 2] = mean + (colours[..., 2] - mean) * (CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * contrast)
    recoloured = cv2.cvtColor(np.clip(np.rint(colours), 0, 255).astype(np.uint8), cv2.COLOR_HSV2RGB)
    return np.asarray(recoloured, np.uint8)


def _compress_as_jpeg(square: Pixels, quality: int) -> Pixels:
    data = cv2.imencode(".jpg", square, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
