import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.safety.screening import SafetyConfig, Screen, find_classifier, load_classifier, screen
from pipeline.reasons import Reason
from pipeline.schemas import FETCHED
from tests.pipeline.data.rows import fetched

HERE = __name__


class ByFirstByte:
    """A classifier as in docs/safety.md: the first byte, 0 to 255, is a probability from 0 to 1."""

    def __init__(self, scale: float = 255.0) -> None:
        self.scale = scale
        self.num_images: list[int] = []

    def __call__(self, images: Sequence[bytes]) -> list[float]:
        self.num_images.append(len(images))
        return [image[0] / self.scale for image in images]


class NoCall:
    """Not a classifier."""


class Answers:
    """Returns or raises a given value."""

    def __init__(self, scores: Any) -> None:
        self.scores = scores

    def __call__(self, images: Sequence[bytes]) -> Any:
        assert images
        if isinstance(self.scores, Exception):
            raise self.scores
        return self.scores


def rows(*images: bytes | None) -> pa.Table:
    """FETCHED of some images; None is a row that is already dropped."""
    return fetched(
        jpg=list(images),
        reason=[None if image else Reason.NOT_FOUND for image in images],
        status=["success" if image else "failed_to_download" for image in images],
        error_message=[None if image else "HTTP 404" for image in images],
        exif=["{}" if image else None for image in images],
        sha256=["ab" * 32 if image else None for image in images],
        url=[f"http://a.example/{number}" for number in range(len(images))],
    )


def test_unsafe_images_are_removed_and_remain_identifiable() -> None:
    table, classifier = rows(b"\x00", None, b"\xff", b"\x80", b"\x7f"), ByFirstByte()
    done = screen(table, classifier, 128 / 255)
    assert classifier.num_images == [4]
    assert done.schema == FETCHED
    assert done["reason"].to_pylist() == [None, Reason.NOT_FOUND, Reason.UNSAFE, Reason.UNSAFE, None]
    assert done["jpg"].to_pylist() == [b"\x00", None, None, None, b"\x7f"]
    assert done["exif"].to_pylist() == ["{}", None, None, None, "{}"]
    failed = "failed_to_download"
    assert done["status"].to_pylist() == ["success", failed, failed, failed, "success"]
    assert done["error_message"].to_pylist() == [None, "HTTP 404", "probability 1.000", "probability 0.502", None]
    unchanged = ["reason", "jpg", "exif", "status", "error_message"]
    assert done.drop_columns(unchanged) == table.drop_columns(unchanged)


def test_rows_without_an_image_are_not_judged() -> None:
    for table in (rows(None, None), rows(None).slice(1)):
        assert screen(table, Answers(AssertionError("called without images")), 0.5) == table


def test_the_images_of_a_call_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.safety.screening.IMAGES_PER_CALL", 3)
    classifier = ByFirstByte()
    done = screen(rows(b"\x01", b"\xff", None, b"\x02", b"\x03", b"\xfe"), classifier, 0.5)
    assert classifier.num_images == [3, 2]
    assert done["jpg"].to_pylist() == [b"\x01", None, None, b"\x02", b"\x03", None]


@pytest.mark.parametrize(
    "scores",
    [[0.1], [0.1, 0.2, 0.3], [], 0.1, [[0.1], [0.2]], [0.1, math.nan], [0.1, 1.5], [-0.1, 0.2], [0.1, math.inf]],
)
def test_scores_that_are_not_one_probability_per_image_stop_the_job(scores: Any) -> None:
    with pytest.raises(
        ValueError, match=r"safety\.classifier: Answers returned (scores of shape|a score that is not a prob)"
    ):
        screen(rows(b"a", None, b"b"), Answers(scores), 0.5)


def test_an_error_of_the_classifier_stops_the_job() -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        screen(rows(b"a"), Answers(RuntimeError("out of memory")), 0.5)


def test_scores_may_be_an_array() -> None:
    assert screen(rows(b"a", b"b"), Answers(np.array([0.2, 0.9], np.float32)), 0.5)["jpg"].to_pylist() == [b"a", None]


def test_the_class_is_created_with_its_options() -> None:
    config = SafetyConfig(classifier=f"{HERE}:ByFirstByte", classifier_options={"scale": 510.0})
    assert find_classifier(config) is ByFirstByte
    classifier = load_classifier(config)
    assert classifier is not None
    assert list(classifier([b"\xff"])) == [0.5]
    assert Screen(config)(rows(b"\xff", b"\x01"))["reason"].to_pylist() == [Reason.UNSAFE, None]


def test_without_a_class_every_image_passes() -> None:
    table = rows(b"\xff", None)
    assert find_classifier(SafetyConfig()) is None
    assert Screen(SafetyConfig())(table) is table


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ByFirstByte", {}, r"safety\.classifier=ByFirstByte: must be package\.module:Class"),
        (f"{HERE}:", {}, r"must be package\.module:Class"),
        ("no.such:Class", {}, r"module no not found; it must be importable on every node"),
        ("pipeline.none:Class", {}, r"module pipeline\.none not found; "),
        (f"{HERE}:Missing", {}, r"has no class Missing"),
        (f"{HERE}:rows", {}, r"has no class rows"),
        (f"{HERE}:NoCall", {}, r"its instances cannot be called"),
        (f"{HERE}:ByFirstByte", {"size": 3}, r"safety\.classifier_options do not fit .*: got an unexpected .*'size'"),
        (f"{HERE}:Answers", {}, r"safety\.classifier_options do not fit .*: missing a required argument: 'scores'"),
    ],
)
def test_a_classifier_that_cannot_be_created_is_named(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_classifier(SafetyConfig(classifier=name, classifier_options=options))


def test_a_missing_import_of_the_classifier_raises_the_original_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_classifier.py").write_text("import a_package_of_theirs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_of_theirs"):
        find_classifier(SafetyConfig(classifier="their_classifier:Class"))
    assert "their_classifier" not in sys.modules


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phash_radius": 64}, r"safety\.phash_radius = 64: must be 0 to 63"),
        ({"unsafe_threshold": 0.0}, r"safety\.unsafe_threshold = 0\.0: must be a probability above 0"),
        ({"unsafe_threshold": math.nan}, r"safety\.unsafe_threshold = nan"),
        ({"block_urls": "urls.txt"}, r"safety\.block_urls = 'urls\.txt': must be a list of files"),
        ({"classifier_options": {"model": "x"}}, r"safety\.classifier_options are given, but no safety\.classifier"),
    ],
)
def test_invalid_options_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SafetyConfig(**options)
