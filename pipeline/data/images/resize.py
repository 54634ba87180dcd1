"""Resizing with img2dataset's Resizer, which decodes an image once and is made to say what was wrong with it.

Decoders fill what a damaged file lacks with grey and go on. libjpeg at least writes what it met to standard error, so a
JPEG is judged by what the decoder says in the one pass that resizes it (and by its end marker, image_header.py). The
other
types are decoded strictly beforehand.
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
from PIL import Image, ImageOps

from pipeline.data.images.image_header import Header, ImageConfig, inspect, perceptual_hash
from pipeline.reasons import Reason

_MAX_EXTRANEOUS_BYTES = 32
_HARMLESS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
"""Padding in front of the end marker. Where much is left over, the picture lost its way before."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What became of an image: a resized JPEG, or a reason. The fields are those of FETCHED."""

    jpg: bytes | None = None
    reason: Reason | None = None
    error_message: str | None = None
    sha256: str | None = None
    """Of the original bytes."""
    exif: str | None = None
    """JSON."""
    width: int | None = None
    height: int | None = None
    original_width: int | None = None
    original_height: int | None = None
    phash: int | None = None
    """Perceptual hash of the JPEG, where it was asked for."""


class ImageProcessor:
    """Checks and resizes images, one at a time. Holds img2dataset's Resizer.

    While it decodes, file descriptor 2 of the whole process is not standard error but what libjpeg's complaints are
    read from, so it lives in a process of its own (decoders.py), as the Resizer's own redirection would ask for too.
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
        """A resized JPEG, its sizes and the original's, or why there is none."""
        sha256 = hashlib.sha256(data).hexdigest()
        found = inspect(data, self._config)
        if isinstance(found, tuple):
            return Picture(reason=found[0], error_message=found[1], sha256=sha256)
        with _complaints() as complaints:
            self._decoder.begin(found)
            jpg, width, height, _, _, error = self._resizer(io.BytesIO(data))
            if error is None and found.orientation != 1 and self._config.upright:
                self._decoder.begin(None)
                jpg, width, height, _, _, error = self._resizer(io.BytesIO(_upright(data)))
        problem = _problem(complaints[0])
        if error is not None or problem:
            corrupt = problem or self._decoder.failed
            reason = Reason.CORRUPT_IMAGE if corrupt else Reason.RESIZE_FAILED
            return Picture(reason=reason, error_message=problem or error, sha256=sha256)
        sizes = {"width": width, "height": height, "original_width": found.width, "original_height": found.height}
        phash = int(perceptual_hash([jpg])[0]) if self._with_phash else None
        return Picture(jpg=bytes(jpg), sha256=sha256, exif=found.exif, phash=phash, **sizes)


def _upright(data: bytes) -> bytes:
    """The picture turned as its EXIF orientation says, without loss."""
    sink = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB").save(sink, "BMP")
    return sink.getvalue()


class _Decoder:
    """Stands in for cv2.imdecode in the Resizer: the same, or at a fraction of the size where that is asked for."""

    def __init__(self, config: ImageConfig) -> None:
        self._config = config
        self._flags = cv2.IMREAD_UNCHANGED
        self.failed = False

    def begin(self, header: Header | None) -> None:
        """What comes next; None is a picture that is to be decoded as it is."""
        self.failed = False
        scaled = header is not None and self._config.resizer == "scaled" and header.kind == "JPEG"
        self._flags = self._reduced(header) if scaled and header is not None else cv2.IMREAD_UNCHANGED

    def __call__(self, data: npt.NDArray[np.uint8], _flags: int) -> Any:
        image = cv2.imdecode(data, self._flags)
        self.failed = image is None
        return image

    def _reduced(self, header: Header) -> int:
        largest = self._config.resize_mode in {"border", "keep_ratio_largest"}
        side = (max if largest else min)(header.width, header.height)
        factor = next((n for n in (8, 4, 2) if side // n >= self._config.image_size), 1)
        if factor == 1 or self._config.resize_mode == "no":
            return cv2.IMREAD_UNCHANGED
        kind = "GRAYSCALE" if header.mode == "L" else "COLOR"
        return int(getattr(cv2, f"IMREAD_REDUCED_{kind}_{factor}")) | cv2.IMREAD_IGNORE_ORIENTATION


@contextlib.contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collects what native code writes to file descriptor 2 meanwhile, in one text that is there at the end."""
    found: list[str] = []
    stderr, file = os.dup(2), os.memfd_create("complaints")
    os.dup2(file, 2)
    try:
        yield found
    finally:
        os.dup2(stderr, 2)
        found.append(os.pread(file, 4096, 0).decode("utf-8", "replace"))
        os.close(file)
        os.close(stderr)


def _problem(complaints: str) -> str | None:
    """What libjpeg found wrong, if the picture suffers from it. It tells the first fault of an image only."""
    for line in complaints.splitlines():
        harmless = _HARMLESS.match(line)
        if "JPEG" in line and not (harmless and int(harmless[1]) <= _MAX_EXTRANEOUS_BYTES):
            return line
    return None


def _resizer_module() -> Any:
    """A copy of the module img2dataset.resizer, without the package around it, which brings torch, wandb and 700 MB.

    Two things of it are replaced, which change no byte of what it makes: the transforms it builds anew for every image
    are kept, and file descriptors 1 and 2 stay as they are, because libjpeg's complaints are wanted here.
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
    kept = {
        name: functools.cache(getattr(module.A, name)) for name in ("SmallestMaxSize", "LongestMaxSize", "CenterCrop")
    }
    module.A = types.SimpleNamespace(**kept, PadIfNeeded=module.A.PadIfNeeded)
    module.SuppressStdoutStderr = contextlib.nullcontext
    return module
