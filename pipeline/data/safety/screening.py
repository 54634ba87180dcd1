"""The options of block lists and classifier, and the screening of images by the classifier. Manual: docs/safety.md.

Block lists (block_lists.py) contain known URLs, files and pictures; a classifier judges images that nobody has listed.
The operator chooses the class of the classifier, because no model of unsafe images fits every use and every law.
pipeline/eval/unsafe.py is an example.
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

from pipeline.reasons import Reason, img2dataset_status
from pipeline.resume_safe import RESUME_SAFE
from pipeline.schemas import FETCHED

IMAGES_PER_CALL = 1_024
"""Maximum images per call of the classifier, so that a part's images are not in memory twice."""
_PATH_MAY_CHANGE = RESUME_SAFE
"""A run identifies its lists by their content (`BlockLists.digests`), so the files may be moved."""


@dataclass(frozen=True, kw_only=True)
class SafetyConfig:
    """Block lists from files, local or s3://, and a classifier of unsafe images.

    A list is a text file with one entry per line; empty lines and lines that begin with # are ignored. A list whose
    name ends in .parquet is a table whose column is named after the kind: sha256, phash, url or domain.
    """

    block_sha256: Sequence[str] = field(default=(), metadata=_PATH_MAY_CHANGE)
    """Lists of files: SHA-256 of the bytes as served, 64 hexadecimal digits."""
    block_phash: Sequence[str] = field(default=(), metadata=_PATH_MAY_CHANGE)
    """Lists of pictures: 64-bit DCT hash (imagehash.phash), 16 hexadecimal digits, or uint64 in a table."""
    phash_radius: int = 3
    """Maximum number of bits in which a picture's hash may differ from a listed hash (as dedupe.radius)."""
    block_urls: Sequence[str] = field(default=(), metadata=_PATH_MAY_CHANGE)
    """Lists of complete http or https URLs, of images and of pages."""
    block_domains: Sequence[str] = field(default=(), metadata=_PATH_MAY_CHANGE)
    """Lists of hosts of images and of pages: domains, each with all its subdomains, and IP addresses."""
    classifier: str | None = None
    """The class that judges images, as package.module:Class; if unset, no image is judged."""
    classifier_options: Mapping[str, bool | int | float | str | Sequence[str]] = field(default_factory=dict)
    """Arguments of the classifier's class."""
    unsafe_threshold: float = 0.5
    """Images with at least this probability of being unsafe are dropped; at the default, both are equally likely."""

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
    """A classifier. Each actor of a pool creates one with the arguments `safety.classifier_options`, then calls it."""

    def __call__(self, images: Sequence[bytes]) -> Sequence[float]:
        """The probability that each image is unsafe.

        Args:
            images: 1 to IMAGES_PER_CALL images, as resized and encoded by the crawler.
        """


def find_classifier(config: SafetyConfig) -> Callable[..., UnsafeClassifier] | None:
    """Import the configured class, so that a job can check it before work begins; None if no class is configured.

    Raises:
        ValueError: the module or class does not exist, or the options are not arguments of the class.
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
            raise  # the module exists, but a module that it imports is missing
        raise ValueError(f"{option}: module {error.name} not found; it must be importable on every node") from error
    classifier_class = getattr(module, class_name, None)
    if not isinstance(classifier_class, type):
        raise ValueError(f"{option}: {module_name} has no class {class_name}")
    if not any("__call__" in vars(base) for base in classifier_class.__mro__):
        raise ValueError(f"{option}: its instances cannot be called; a classifier needs a method __call__(images)")
    try:
        inspect.signature(classifier_class).bind(**config.classifier_options)
    except TypeError as error:
        raise ValueError(f"safety.classifier_options do not fit {config.classifier}: {error}") from error
    return classifier_class


class Screen:
    """Screens the images of tables. Keeps the classifier, so that an actor loads its model once."""

    def __init__(self, config: SafetyConfig) -> None:
        self._classifier = load_classifier(config)
        self._threshold = config.unsafe_threshold

    def __call__(self, table: pa.Table) -> pa.Table:
        """Apply `screen`; without a configured classifier, return the table unchanged."""
        return screen(table, self._classifier, self._threshold) if self._classifier else table


def load_classifier(config: SafetyConfig) -> UnsafeClassifier | None:
    """Create the configured classifier, or return None. Raises what `find_classifier` or the class raises."""
    classifier_class = find_classifier(config)
    return None if classifier_class is None else classifier_class(**config.classifier_options)


def screen(table: pa.Table, classifier: UnsafeClassifier, threshold: float) -> pa.Table:
    """Remove unsafe images from FETCHED: such a row gets a reason and loses jpg and exif.

    Its URL, sha256 and sizes are kept, so that the image can be identified and put on a list. Rows that are already
    dropped are not judged.

    Raises:
        ValueError: the classifier did not return one probability per image. This error and any error of the classifier
            stop the job, because an image that was not judged must not pass.
    """
    judged = np.flatnonzero(table["reason"].is_null().to_numpy())
    scores = np.zeros(table.num_rows)
    for start in range(0, len(judged), IMAGES_PER_CALL):
        rows = judged[start : start + IMAGES_PER_CALL]
        images = table["jpg"].take(pa.array(rows)).to_pylist()
        assert None not in images, "a row without a reason has no image"
        scores[rows] = _checked(classifier(images), len(images), type(classifier).__name__)
    unsafe = pa.array(scores >= threshold)
    if not pc.any(unsafe).as_py():
        return table
    changed: dict[str, Any] = {
        "reason": Reason.UNSAFE.value,
        "status": img2dataset_status(Reason.UNSAFE),
        "error_message": pa.array([f"probability {score:.3f}" for score in scores.tolist()]),
        "jpg": None,
        "exif": None,
    }
    for name, value in changed.items():
        kind = FETCHED.field(name)
        new = value if isinstance(value, pa.Array) else pa.scalar(value, kind.type)
        index = table.schema.get_field_index(name)
        table = table.set_column(index, kind, pc.if_else(unsafe, new, table[name]))
    return table


def _checked(scores: Sequence[float], num_images: int, name: str) -> npt.NDArray[np.float64]:
    probabilities = np.asarray(scores, np.float64)
    if probabilities.shape != (num_images,):
        raise ValueError(
            f"safety.classifier: {name} returned scores of shape {probabilities.shape} for {num_images} images"
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():  # NaN fails this check too
        raise ValueError(f"safety.classifier: {name} returned a score that is not a probability from 0 to 1")
    return probabilities
