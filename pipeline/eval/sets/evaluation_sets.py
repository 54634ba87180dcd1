"""Define the files of an evaluation set, and check them before scoring.

A set is a folder with `dataset.json` (name, kind, classes, templates) and `test.parquet` (LABELLED or CAPTIONED).
A sample's number is its row number in test.parquet. A label is an index into the set's own `classes`; predictions name
classes by name.
"""

from __future__ import annotations

import io
import json
import re
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
# One task reads and encodes one row group.
ROWS_PER_GROUP = 256
_DIGIT_SIZE_PX = 64
_DIGIT_LEVELS = 16


class Kind(StrEnum):
    """The task that a set is scored on."""

    CLASSIFICATION = "classification"
    RETRIEVAL = "retrieval"


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The description of an evaluation set, without its samples.

    A classification set has `classes`, in the order of the label numbers, and `templates`, which turn a class name into
    prompts. A retrieval set has neither.
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
    """Parse the content of dataset.json.

    Raises:
        ValueError: it is not JSON, lacks a key, or describes an invalid set. The message names `source`.
    """
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not JSON ({error})") from error
    name = fields.get("name") if isinstance(fields, dict) else None
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"{source}: needs a name of letters, digits, _, - and . (it is used in file names)")
    if fields.get("kind") not in list(Kind):
        raise ValueError(f"{source}: kind is {fields.get('kind')!r}; it must be one of {', '.join(Kind)}")
    kind = Kind(fields["kind"])
    if kind is Kind.RETRIEVAL:
        return Dataset(name=name, kind=kind)
    classes = _texts("classes", fields.get("classes", []), source)
    if len(classes) < 2 or len(set(classes)) != len(classes):
        raise ValueError(f"{source}: classes must be at least two different names, got {list(classes)}")
    templates = _texts("templates", fields.get("templates", list(DEFAULT_TEMPLATES)), source)
    check_templates(templates, source)
    return Dataset(name=name, kind=kind, classes=classes, templates=templates)


def _texts(key: str, values: object, source: str) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{source}: {key} must be a list of texts, got {json.dumps(values)}")
    for value in values:
        # JSON may contain lone surrogates, which have no UTF-8
        if not isinstance(value, str) or any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError(f"{source}: {key} must be a list of texts; it contains {json.dumps(value)}")
    return tuple(values)


def check_samples(dataset: Dataset, samples: pa.Table, source: str) -> None:
    """Check the samples without their images: every label must have a class, every image a caption.

    Raises:
        ValueError: the set is empty, or a sample is invalid. The message names `source` and the first such sample.
    """
    if samples.num_rows == 0:
        raise ValueError(f"{source}: has no samples")
    if dataset.kind is Kind.CLASSIFICATION:
        if samples["label"].null_count:
            raise ValueError(f"{source}: sample {_first_null(samples['label'])} has no label")
        labels = samples["label"].to_numpy()
        invalid = np.flatnonzero(~((labels >= 0) & (labels < len(dataset.classes))))
        if len(invalid):
            first, count = invalid[0], len(dataset.classes)
            raise ValueError(f"{source}: sample {first} has label {labels[first]}, but the set has {count} classes")
    else:
        counts = pc.fill_null(pc.list_value_length(samples["captions"]), 0).to_numpy()
        if not counts.all():
            raise ValueError(f"{source}: sample {np.flatnonzero(counts == 0)[0]} has no caption")
        if pc.list_flatten(samples["captions"]).null_count:
            of_caption = pc.list_parent_indices(samples["captions"])
            first = of_caption[_first_null(pc.list_flatten(samples["captions"]))]
            raise ValueError(f"{source}: sample {first} has a caption that is null")


def _first_null(values: pa.ChunkedArray) -> int:
    return int(np.flatnonzero(values.is_null().to_numpy())[0])


def serialise(dataset: Dataset, samples: pa.Table) -> dict[str, bytes]:
    """Serialise a set to the content of its files, by file name. `parse_description` and a Parquet reader read them."""
    table = io.BytesIO()
    pq.write_table(samples.cast(dataset.schema), table, row_group_size=ROWS_PER_GROUP, write_page_checksum=True)
    return {DESCRIPTION_FILE: json.dumps(asdict(dataset), indent=2).encode(), SAMPLES_FILE: table.getvalue()}


def sklearn_digits() -> tuple[Dataset, pa.Table]:
    """Load the 1,797 handwritten digits of scikit-learn (UCI optical recognition), drawn dark on white.

    The prompts are the paper's prompt for MNIST and two simpler ones.

    Raises:
        ValueError: scikit-learn is not installed.
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
