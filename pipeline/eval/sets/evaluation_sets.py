"""Evaluation sets: what a folder of one holds, and the checks it passes before anything is scored.

A set is a folder with `dataset.json` (name, kind, classes, templates) and `test.parquet` (LABELLED or CAPTIONED).
A sample's number is its row number in test.parquet. Labels point into the set's own `classes`; everything after
this module speaks of classes by name.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from pipeline.eval.sets.prompts import DEFAULT_TEMPLATES, check_templates

DESCRIPTION_FILE = "dataset.json"
SAMPLES_FILE = "test.parquet"
LABELLED = pa.schema([("image", pa.large_binary()), ("label", pa.int32())])
CAPTIONED = pa.schema([("image", pa.large_binary()), ("captions", pa.list_(pa.string()))])
# A row group is what one task reads and encodes.
ROWS_PER_GROUP = 256
_DIGIT_SIZE_PX = 64
_DIGIT_LEVELS = 16


class Kind(StrEnum):
    """What a set is scored by."""

    CLASSIFICATION = "classification"
    RETRIEVAL = "retrieval"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The description of an evaluation set, without its samples.

    Classification: `classes` in the order the labels count, and the `templates` that turn a class into prompts.
    Retrieval: neither.
    """

    name: str
    kind: Kind
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()

    @property
    def schema(self) -> pa.Schema:
        """The columns of its test.parquet."""
        return LABELLED if self.kind is Kind.CLASSIFICATION else CAPTIONED


def parse_description(content: bytes, source: str) -> Dataset:
    """Read dataset.json.

    Raises:
        ValueError: naming `source`, when it is not JSON, lacks a key, or describes no possible set.
    """
    try:
        fields = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{source}: not JSON ({error})") from error
    if not isinstance(fields, dict) or not re.fullmatch(r"\w[\w.-]*", str(fields.get("name", ""))):
        raise ValueError(f"{source}: needs a name of letters, digits, _, - and . (files are called after it)")
    if fields.get("kind") not in list(Kind):
        raise ValueError(f"{source}: kind is {fields.get('kind')!r}; it must be one of {', '.join(Kind)}")
    kind = Kind(fields["kind"])
    if kind is Kind.RETRIEVAL:
        return Dataset(name=fields["name"], kind=kind)
    classes = tuple(fields.get("classes", ()))
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError(f"{source}: classes must be at least two different names, got {list(classes)}")
    templates = tuple(fields.get("templates", DEFAULT_TEMPLATES))
    check_templates(templates, source)
    return Dataset(name=fields["name"], kind=kind, classes=classes, templates=templates)


def check_columns(dataset: Dataset, columns: Sequence[str], source: str) -> None:
    """Check that test.parquet has the columns of its kind.

    Raises:
        ValueError: naming `source` and the column.
    """
    for name in dataset.schema.names:
        if name not in columns:
            raise ValueError(f"{source}: column '{name}' is missing; a {dataset.kind} set has {dataset.schema.names}")


def check_samples(dataset: Dataset, samples: pa.Table, source: str) -> None:
    """Check the rows, all but their images: no empty set, no label without a class, no image without a caption.

    Raises:
        ValueError: naming `source` and the first sample that is wrong.
    """
    if samples.num_rows == 0:
        raise ValueError(f"{source}: holds no samples")
    if dataset.kind is Kind.CLASSIFICATION:
        labels = samples["label"].to_numpy()
        wrong = np.flatnonzero(~((labels >= 0) & (labels < len(dataset.classes))))
        if len(wrong):
            first, count = wrong[0], len(dataset.classes)
            raise ValueError(f"{source}: sample {first} has label {labels[first]}, but the set has {count} classes")
    else:
        counts = pc.fill_null(pc.list_value_length(samples["captions"]), 0).to_numpy()
        if not counts.all():
            raise ValueError(f"{source}: sample {np.flatnonzero(counts == 0)[0]} has no caption")


def serialise(dataset: Dataset, samples: pa.Table) -> dict[str, bytes]:
    """The files of a set, by name: what `parse_description` and a Parquet reader take back."""
    table = io.BytesIO()
    pq.write_table(samples.cast(dataset.schema), table, row_group_size=ROWS_PER_GROUP, write_page_checksum=True)
    return {DESCRIPTION_FILE: json.dumps(asdict(dataset), indent=2).encode(), SAMPLES_FILE: table.getvalue()}


def sklearn_digits() -> tuple[Dataset, pa.Table]:
    """The 1,797 handwritten digits that come with scikit-learn (UCI optical recognition), dark ink on white paper.

    Prompts are the paper's for MNIST, and two plainer ones.

    Raises:
        ValueError: when scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("digits: needs scikit-learn; install the extra `benchmark`, or set digits = false") from error
    digits = load_digits()
    encoded = []
    for ink in digits.images:
        paper = np.uint8(np.round(255 * (1 - ink / _DIGIT_LEVELS)))
        picture = Image.fromarray(paper).resize((_DIGIT_SIZE_PX, _DIGIT_SIZE_PX), Image.Resampling.BICUBIC)
        content = io.BytesIO()
        picture.convert("RGB").save(content, "PNG")
        encoded.append(content.getvalue())
    dataset = Dataset(
        name="sklearn_digits",
        kind=Kind.CLASSIFICATION,
        classes=tuple(str(name) for name in digits.target_names),
        templates=('a photo of the number: "{}".', "the digit {}", "the number {}"),
    )
    return dataset, pa.table({"image": encoded, "label": digits.target.astype(np.int32)}, schema=LABELLED)
