import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.eval.sets.evaluation_sets import (
    CAPTIONED,
    LABELLED,
    Dataset,
    Kind,
    check_samples,
    parse_description,
    serialise,
    sklearn_digits,
)

SHAPES = {"name": "shapes", "kind": "classification", "classes": ["circle", "square"], "templates": ["a {}."]}


def describe(**changes: Any) -> bytes:
    return json.dumps(SHAPES | changes).encode()


def test_a_classification_set_is_read() -> None:
    dataset = parse_description(describe(), "shapes/dataset.json")
    assert dataset == Dataset(
        name="shapes", kind=Kind.CLASSIFICATION, classes=("circle", "square"), templates=("a {}.",)
    )
    assert dataset.schema == LABELLED


def test_a_retrieval_set_has_neither_classes_nor_templates() -> None:
    dataset = parse_description(b'{"name": "pairs", "kind": "retrieval"}', "pairs/dataset.json")
    assert dataset == Dataset(name="pairs", kind=Kind.RETRIEVAL)
    assert dataset.schema == CAPTIONED


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "needs a name"),
        (describe(name=""), "needs a name"),
        (describe(name="../x"), "needs a name"),
        (describe(kind="probe"), "kind is 'probe'; it must be one of classification, retrieval"),
        (describe(classes=["circle"]), "at least two different names"),
        (describe(classes=["circle", "circle"]), "at least two different names"),
        (describe(templates=["a photo"]), "exactly one"),
        (b'{"name": "a\xff"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (describe(name=5), "needs a name"),
        (describe(kind=["classification"]), "kind is "),
        (describe(classes=None), "classes must be a list of texts, got null"),
        (describe(classes="ab"), 'classes must be a list of texts, got "ab"'),
        (describe(classes=[1, 2]), "classes must be a list of texts; it contains 1"),
        (describe(classes=[["a"], ["b"]]), "classes must be a list of texts; it contains "),
        (describe(classes=["\ud800", "b"]), r"classes must be a list of texts; it contains .*ud800"),
        (describe(templates=7), "templates must be a list of texts, got 7"),
        (describe(templates=[None]), "templates must be a list of texts; it contains null"),
    ],
)
def test_an_invalid_description_is_refused_and_its_file_named(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^sets/shapes/dataset\.json: .*{message}"):
        parse_description(content, "sets/shapes/dataset.json")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 2, 1], "sample 1 has label 2, but the set has 2 classes"),
        ([0, -1], "sample 1 has label -1"),
        ([], "no samples"),
        ([0, None], "sample 1 has no label"),
    ],
)
def test_labels_without_a_class_are_refused(labels: list[int | None], message: str) -> None:
    samples = pa.table({"label": pa.array(labels, pa.int32())})
    with pytest.raises(ValueError, match=message):
        check_samples(parse_description(describe(), "x"), samples, "test.parquet")


@pytest.mark.parametrize("captions", [[["a"], []], [["a"], None]])
def test_an_image_without_a_caption_is_refused(captions: list[list[str] | None]) -> None:
    samples = pa.table({"captions": pa.array(captions, pa.list_(pa.string()))})
    with pytest.raises(ValueError, match="sample 1 has no caption"):
        check_samples(Dataset(name="pairs", kind=Kind.RETRIEVAL), samples, "test.parquet")


def test_a_caption_that_is_null_is_refused() -> None:
    samples = pa.table({"captions": pa.array([["a"], ["b", "c"], ["d", None]])})
    with pytest.raises(ValueError, match="sample 2 has a caption that is null"):
        check_samples(Dataset(name="pairs", kind=Kind.RETRIEVAL), samples, "test.parquet")


def test_a_serialised_set_is_read_back_unchanged() -> None:
    dataset = parse_description(describe(), "x")
    samples = pa.table({"image": [b"one", b"two"], "label": pa.array([1, 0], pa.int32())}, schema=LABELLED)
    files = serialise(dataset, samples)
    assert parse_description(files["dataset.json"], "x") == dataset
    assert pq.read_table(io.BytesIO(files["test.parquet"])).equals(samples)


def test_the_digits_of_scikit_learn_are_drawn_dark_on_white_with_their_names() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    dataset, samples = sklearn_digits()
    check_samples(dataset, samples, "digits")
    source = datasets.load_digits()
    assert samples.num_rows == 1_797
    assert [dataset.classes[label] for label in samples["label"].to_pylist()[:5]] == ["0", "1", "2", "3", "4"]
    picture = Image.open(io.BytesIO(samples["image"][0].as_py()))
    assert (picture.size, picture.mode) == ((64, 64), "RGB")
    small = np.asarray(picture.convert("L").resize((8, 8), Image.Resampling.BOX), dtype=float)
    assert np.corrcoef(255 - small.ravel(), source.images[0].ravel())[0, 1] > 0.95
