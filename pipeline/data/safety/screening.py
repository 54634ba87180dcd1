"""What must not get in: the options, and the screening of images by a classifier. docs/safety.md is its manual.

Block lists (block_lists.py) know single addresses, files and pictures; a classifier judges what nobody has listed. It
is a class of the operator's choice, because no model of unsafe images fits every use and every law; one example is
pipeline/eval/unsafe.py.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.reasons import Reason, status_of
from pipeline.resume_safe import RESUME_SAFE
from pipeline.schemas import FETCHED

IMAGES_PER_CALL = 1_024
"""So that a part's images are not in memory twice."""
_AT_ANY_PLACE = RESUME_SAFE
"""A list is known by its content (`BlockLists.digests`), wherever it lies."""


@dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """What must not get in: block lists from files, local or s3://, and a classifier of unsafe images.

    A list is a text file with one entry a line (empty lines, and lines that begin with #, say nothing) or, where its
    name ends in .parquet, a table with a column of the kind's name: sha256, phash, url, domain.
    """

    block_sha256: Sequence[str] = field(default=(), metadata=_AT_ANY_PLACE)
    """Lists of files: SHA-256 of the bytes as they are served, 64 hexadecimal digits."""
    block_phash: Sequence[str] = field(default=(), metadata=_AT_ANY_PLACE)
    """Lists of pictures: 64-bit DCT hash (imagehash.phash), 16 hexadecimal digits, or uint64 in a table."""
    phash_radius: int = 3
    """Bits in which a picture's hash may differ from a listed one (as dedupe.radius)."""
    block_urls: Sequence[str] = field(default=(), metadata=_AT_ANY_PLACE)
    """Lists of addresses, of images and of pages: http or https, complete."""
    block_domains: Sequence[str] = field(default=(), metadata=_AT_ANY_PLACE)
    """Lists of domains, each with all its subdomains, and of IP addresses: as hosts of images and of pages."""
    classifier: str | None = None
    """The class that judges images, as package.module:Class; without one no image is judged."""
    classifier_options: Mapping[str, bool | int | float | str | Sequence[str]] = field(default_factory=dict)
    """Its arguments."""
    unsafe_threshold: float = 0.5
    """An image is out from this probability on; the default is where unsafe becomes the likelier of the two."""

    def __post_init__(self) -> None:
        for name in ("block_sha256", "block_phash", "block_urls", "block_domains"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"safety.{name} = {getattr(self, name)!r}: must be a list of files")
        if not 0 <= self.phash_radius < 64:
            raise ValueError(f"safety.phash_radius = {self.phash_radius}: must be 0 to 63 of the 64 bits")
        if not 0 < self.unsafe_threshold <= 1:
            raise ValueError(f"safety.unsafe_threshold = {self.unsafe_threshold}: must be a probability above 0")
        if self.classifier is None and self.classifier_options:
            raise ValueError("safety.classifier_options are given, but no safety.classifier")


class UnsafeClassifier(Protocol):
    """What a classifier is: made once in each actor of a pool from `safety.classifier_options`, then called."""

    def __call__(self, images: Sequence[bytes]) -> Sequence[float]:
        """For each image (as resized and encoded by the crawler) the probability that it is unsafe.

        Args:
            images: 1 to IMAGES_PER_CALL of them.
        """


def find_classifier(config: SafetyConfig) -> Callable[..., UnsafeClassifier] | None:
    """The configured class, imported but not made, so that a job can check it before work begins; None without one.

    Raises:
        ValueError: there is no such module or class, or the options are not its arguments.
    """
    if config.classifier is None:
        return None
    option = f"safety.classifier={config.classifier}"
    module_name, colon, class_name = config.classifier.partition(":")
    if not colon or not module_name or not class_name:
        raise ValueError(f"{option}: must be package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a module that this one imports, of which its author knows
        raise ValueError(f"{option}: there is no module {error.name}; it must be importable on every node") from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise ValueError(f"{option}: {module_name} has no class {class_name}")
    if not any("__call__" in vars(base) for base in found.__mro__):
        raise ValueError(f"{option}: its instances cannot be called; a classifier has a method __call__(images)")
    try:
        inspect.signature(found).bind(**config.classifier_options)
    except TypeError as error:
        raise ValueError(f"safety.classifier_options do not fit {config.classifier}: {error}") from error
    return found


class Screen:
    """Screens the images of a table. Holds the classifier, so that an actor loads its model once."""

    def __init__(self, config: SafetyConfig) -> None:
        self._classifier = load_classifier(config)
        self._threshold = config.unsafe_threshold

    def __call__(self, table: pa.Table) -> pa.Table:
        """`screen`, or the table as it is where no classifier is configured."""
        return screen(table, self._classifier, self._threshold) if self._classifier else table


def load_classifier(config: SafetyConfig) -> UnsafeClassifier | None:
    """The configured classifier, made; None without one. Raises as `find_classifier`, or what it raises."""
    found = find_classifier(config)
    return None if found is None else found(**config.classifier_options)


def screen(table: pa.Table, classifier: UnsafeClassifier, threshold: float) -> pa.Table:
    """FETCHED without the images that are unsafe: such a row has a reason, and nothing that shows the picture.

    What identifies it stays (address, sha256, sizes), so that it can be told from others and put on a list; jpg
    and exif go. Rows that are out already are not judged.

    Raises:
        ValueError: the classifier did not give each image a probability. It, and whatever the classifier raises, stops
            the job, for an image that was not judged must not pass.
    """
    judged = np.flatnonzero(table["reason"].is_null().to_numpy())
    scores = np.zeros(table.num_rows)
    for start in range(0, len(judged), IMAGES_PER_CALL):
        rows = judged[start : start + IMAGES_PER_CALL]
        images = table["jpg"].take(pa.array(rows)).to_pylist()
        assert None not in images, "a row that is still in has no image"
        scores[rows] = _checked(classifier(images), len(images), type(classifier).__name__)
    unsafe = pa.array(scores >= threshold)
    if not pc.any(unsafe).as_py():
        return table
    changed: dict[str, Any] = {
        "reason": Reason.UNSAFE.value,
        "status": status_of(Reason.UNSAFE),
        "error_message": pa.array([f"probability {score:.3f}" for score in scores.tolist()]),
        "jpg": None,
        "exif": None,
    }
    for name, value in changed.items():
        kind = FETCHED.field(name)
        new = value if isinstance(value, pa.Array) else pa.scalar(value, kind.type)
        place = table.schema.get_field_index(name)
        table = table.set_column(place, kind, pc.if_else(unsafe, new, table[name]))
    return table


def _checked(scores: Sequence[float], num_images: int, name: str) -> npt.NDArray[np.float64]:
    found = np.asarray(scores, np.float64)
    if found.shape != (num_images,):
        raise ValueError(f"safety.classifier: {name} gave scores of shape {found.shape} for {num_images} images")
    if not ((found >= 0) & (found <= 1)).all():  # not for NaN either
        raise ValueError(f"safety.classifier: {name} gave a score that is no probability")
    return found
