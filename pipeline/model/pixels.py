"""Pictures in training: decoding and the random crop. Without torch, because reading tasks start faster so."""

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


def decode(data: bytes) -> Pixels:
    """Pixels uint8 height x width x 3 (RGB) of a compressed image.

    Raises:
        ValueError: OpenCV cannot read it.
    """
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB) if data else None
    if pixels is None:
        raise ValueError(f"an image of {len(data)} bytes cannot be decoded")
    return np.asarray(pixels, np.uint8)


def random_square_crop(pixels: Pixels, image_size: int, share: float, at: tuple[float, float]) -> Pixels:
    """The paper's only augmentation: a square crop of the resized picture (section 2.3).

    Args:
        pixels: uint8 height x width x 3.
        image_size: S, side of the result.
        share: side of the crop as a share of the picture's shorter side.
        at: where the crop lies, from 0 (top, left) to 1 (bottom, right).

    Returns:
        uint8 3 x S x S.
    """
    height, width, _ = pixels.shape
    side = max(1, round(share * min(height, width)))
    top, left = (int(fraction * (room - side + 1)) for fraction, room in zip(at, (height, width), strict=True))
    crop = pixels[top : top + side, left : left + side]
    if side != image_size:
        kernel = cv2.INTER_AREA if side > image_size else cv2.INTER_CUBIC
        crop = np.asarray(cv2.resize(crop, (image_size, image_size), interpolation=kernel), np.uint8)
    return np.ascontiguousarray(crop.transpose(2, 0, 1))
