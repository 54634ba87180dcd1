"""What the web does to pictures, 13 ways of it: encoded images in, encoded images out."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

QUALITY = 90


def encoded(image: Image.Image, image_type: str = "JPEG", quality: int = QUALITY) -> bytes:
    """The bytes of a picture's file."""
    sink = io.BytesIO()
    image.save(sink, image_type, quality=quality)
    return sink.getvalue()


def resized(image: Image.Image, share: float) -> Image.Image:
    """Both sides cut to a share."""
    return image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.LANCZOS)


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Without a share of each side, half of it at either end."""
    left, top = round(image.width * share / 2), round(image.height * share / 2)
    return image.crop((left, top, image.width - left, image.height - top))


def watermarked(image: Image.Image) -> Image.Image:
    """With white words across the middle."""
    marked = image.copy()
    middle = (image.width / 2, image.height / 2)
    ImageDraw.Draw(marked).text(middle, "SAMPLE PHOTO", fill="white", font_size=image.width / 9, anchor="mm")
    return marked


_CHANGES: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "resize to 1/2": partial(resized, share=1 / 2),
    "resize to 1/4": partial(resized, share=1 / 4),
    "crop 5%": partial(cropped, share=0.05),
    "crop 10%": partial(cropped, share=0.1),
    "border 5%": lambda image: ImageOps.expand(image, image.width // 20, "black"),
    "brightness +30%": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "contrast +40%": lambda image: ImageEnhance.Contrast(image).enhance(1.4),
    "grey": lambda image: image.convert("L"),
    "watermark": watermarked,
    "blur, 1 pixel": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "flip": ImageOps.mirror,
}


def _changed(data: bytes, change: Callable[[Image.Image], Image.Image]) -> bytes:
    return encoded(change(_opened(data)))


def _opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


MANIPULATIONS: Mapping[str, Callable[[bytes], bytes]] = {
    "JPEG, quality 30": lambda data: encoded(_opened(data), quality=30),
    "WebP, quality 60": lambda data: encoded(_opened(data), "WEBP", 60),
    **{name: partial(_changed, change=change) for name, change in _CHANGES.items()},
}
