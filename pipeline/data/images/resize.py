"""Resize images with img2dataset's Resizer and detect damaged JPEGs in the same pass.

JPEGs are decoded by OpenCV as in img2dataset, all other types by Pillow, which gives the same pixels. The Resizer
receives pictures that are upright, on white, and of eight bits per channel.

Decoders fill missing parts of a damaged file with grey and continue. libjpeg writes warnings to standard error, so
damage to a JPEG is detected from these warnings while it is resized (and from its end marker, image_header.py). Other
types are decoded strictly.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import os
import re
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.data.images.image_header import CheckedPicture, ImageConfig, check, perceptual_hash
from pipeline.pictures.decode import OpenedPicture, decode, opencv, upright
from pipeline.printable import message_of, printable
from pipeline.reasons import Reason

_MAX_EXTRANEOUS_BYTES = 32
_HARMLESS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
"""Warning about padding before the end marker. More than a little padding means that earlier data is corrupt."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The result for one image: a resized JPEG or the reason for refusing it. The fields are columns of FETCHED."""

    jpg: bytes | None = None
    reason: Reason | None = None
    error_message: str | None = None
    sha256: str | None = None
    """SHA-256 of the original bytes, in hexadecimal digits."""
    exif: str | None = None
    """EXIF data as JSON."""
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    phash: int | None = None
    """Perceptual hash of the JPEG, if requested."""


class ImageProcessor:
    """Check and resize images, one at a time, with img2dataset's Resizer.

    During decoding, file descriptor 2 of the whole process is redirected to capture libjpeg's warnings. Run it in a
    separate process (decoders.py); the Resizer's own redirection would require the same.
    """

    def __init__(self, config: ImageConfig, *, with_phash: bool = False) -> None:
        self._config, self._with_phash = config, with_phash
        module = _resizer_module()
        self._decoder = _Decoder(config)
        module.cv2 = types.SimpleNamespace(**vars(cv2) | {"imdecode": self._decoder})
        self._resizer: Any = module.Resizer(
            image_size=config.image_size,
            resize_mode=config.resize_mode,
            resize_only_if_bigger=config.resize_only_if_bigger,
            encode_quality=config.encode_quality,
            encode_format="jpg",
            skip_reencode=config.skip_reencode,
        )

    def __call__(self, data: bytes) -> Picture:
        """Resize an encoded image; returns the JPEG with its size and the original size, or the reason for refusal.

        Never raises: an unforeseen exception of a library is a reason for refusal, too.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            return self._process(data, sha256)
        except Exception as error:  # noqa: BLE001 - whatever the bytes of one image cause costs its own row only
            return Picture(reason=Reason.CORRUPT_IMAGE, error_message=message_of(error), sha256=sha256)

    def _process(self, data: bytes, sha256: str) -> Picture:
        checked = check(data, self._config)
        if not isinstance(checked, CheckedPicture):
            return Picture(reason=checked[0], error_message=printable(checked[1]), sha256=sha256)
        header = checked.header
        with _native_warnings() as native_warnings:
            self._decoder.begin(checked.opened)
            # The Resizer never re-encodes a file without a JPEG's signature as it is
            source = b"turned" if self._config.upright and header.orientation != 1 else data
            jpg, width, height, _, _, error = self._resizer(io.BytesIO(source))
        problem = _problem(native_warnings[0])
        if error is not None or problem:
            corrupt = problem or self._decoder.failed
            reason = Reason.CORRUPT_IMAGE if corrupt else Reason.RESIZE_FAILED
            return Picture(reason=reason, error_message=printable(problem or error or "damaged"), sha256=sha256)
        if self._config.skip_reencode and jpg == data:
            decode(data)  # evaluation decodes it with Pillow
        sizes = {"width": width, "height": height, "original_width": header.width, "original_height": header.height}
        phash = int(perceptual_hash([jpg])[0]) if self._with_phash else None
        return Picture(jpg=bytes(jpg), sha256=sha256, exif=header.exif, phash=phash, **sizes)


class _Decoder:
    """Replacement for cv2.imdecode in the Resizer: decodes the checked picture instead of the Resizer's bytes.

    JPEGs are decoded at a fraction of their size if so configured.
    """

    def __init__(self, config: ImageConfig) -> None:
        self._config = config
        self._picture: OpenedPicture | None = None
        self.failed = False

    def begin(self, picture: OpenedPicture) -> None:
        """Set the next picture."""
        self._picture, self.failed = picture, False

    def __call__(self, _data: npt.NDArray[np.uint8], _flags: int) -> Any:
        picture, self._picture, self.failed = self._picture, None, True
        assert picture is not None
        pixels = self._decode_jpeg(picture) if picture.kind == "JPEG" else self._decode(picture)
        self.failed = pixels is None
        return pixels

    def _decode(self, picture: OpenedPicture) -> npt.NDArray[np.uint8]:
        """Grey as height x width, colours as height x width x BGR."""
        image = picture.finished(upright=self._config.upright)
        if image.mode in {"1", "L"}:
            return np.asarray(image.convert("L"))
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])

    def _decode_jpeg(self, picture: OpenedPicture) -> Any:
        pixels = opencv(picture.data, self._flags(picture))
        if pixels is None or not self._config.upright:
            return pixels
        return upright(np.asarray(pixels, np.uint8), picture.orientation)

    def _flags(self, picture: OpenedPicture) -> int:
        if self._config.resizer != "scaled" or self._config.resize_mode == "no":
            return int(cv2.IMREAD_UNCHANGED)
        largest = self._config.resize_mode in {"border", "keep_ratio_largest"}
        side = (max if largest else min)(picture.image.size)
        factor = next((n for n in (8, 4, 2) if side // n >= self._config.image_size), 1)
        if factor == 1:
            return int(cv2.IMREAD_UNCHANGED)
        kind = "GRAYSCALE" if picture.image.mode == "L" else "COLOR"
        return int(getattr(cv2, f"IMREAD_REDUCED_{kind}_{factor}")) | int(cv2.IMREAD_IGNORE_ORIENTATION)


@contextlib.contextmanager
def _native_warnings() -> Iterator[list[str]]:
    """Capture what native code writes to file descriptor 2; the text is appended to the list on exit."""
    captured: list[str] = []
    stderr, file = os.dup(2), os.memfd_create("warnings")
    os.dup2(file, 2)
    try:
        yield captured
    finally:
        os.dup2(stderr, 2)
        captured.append(os.pread(file, 4096, 0).decode("utf-8", "replace"))
        os.close(file)
        os.close(stderr)


def _problem(native_warnings: str) -> str | None:
    """The first libjpeg warning that means damage to the picture. libjpeg reports only the first fault of an image."""
    for line in native_warnings.splitlines():
        harmless = _HARMLESS.match(line)
        if "JPEG" in line and not (harmless and int(harmless[1]) <= _MAX_EXTRANEOUS_BYTES):
            return line
    return None


def _resizer_module() -> Any:
    """Load the module img2dataset.resizer without its package, which would import torch and wandb (700 MB).

    Two parts are replaced without changing any output byte: transforms are cached instead of rebuilt for every image,
    and the suppression of file descriptors 1 and 2 is disabled, because libjpeg's warnings are needed here.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    package: Any = importlib.util.find_spec("img2dataset")
    spec: Any = importlib.util.spec_from_file_location(
        "img2dataset_resizer", Path(package.origin).with_name("resizer.py")
    )
    module: Any = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'imghdr' is deprecated", DeprecationWarning)
        spec.loader.exec_module(module)
    cached = {
        name: functools.cache(getattr(module.A, name)) for name in ("SmallestMaxSize", "LongestMaxSize", "CenterCrop")
    }
    module.A = types.SimpleNamespace(**cached, PadIfNeeded=module.A.PadIfNeeded)
    module.SuppressStdoutStderr = contextlib.nullcontext
    return module
