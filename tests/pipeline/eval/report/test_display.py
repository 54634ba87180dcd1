import base64
import io
import struct
import zlib

import pytest
from PIL import Image

from pipeline.eval.report.display import (
    THUMBNAIL_PX,
    compact,
    duration,
    flatten,
    host,
    percent,
    picture,
    picture_if_readable,
    size,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0005, "0.0005"), (0.000005, "5e-06"), (0.05, "0.05"), (3.14159, "3.14"), (999, "999"),
     (12_345, "12,345"), (123_456, "123k"), (4_100_000, "4.1M"), (2.5e9, "2.5G"), (-20, "-20"), (float("nan"), "nan")],
)  # fmt: skip
def test_numbers_are_short(value: float, text: str) -> None:
    assert compact(value) == text


@pytest.mark.parametrize(("share", "text"), [(0, "0.0%"), (0.0025, "0.25%"), (0.125, "12.5%"), (1, "100.0%")])
def test_percentages(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3_599.7, "1 h 00 min"),
        (7_800, "2 h 10 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1_023, "1023 B"), (19_400_000, "18.5 MiB"), (3 * 2**40, "3.0 TiB"), (5_000 * 2**40, "5000.0 TiB")],
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://a.example:80/x?y", "a.example"),
        ("javascript:alert(1)", "javascript:alert(1)"),
        ("http://[broken/", "http://[broken/"),
    ],
)
def test_hosts(url: str, text: str) -> None:
    assert host(url) == text


def test_nested_values_get_dotted_names() -> None:
    values = {"seed": 0, "fetch": {"timeout_seconds": 3.5, "only": {}, "proxy": None}, "sizes": [1, 2]}
    assert dict(flatten(values)) == {
        "seed": "0",
        "fetch.timeout_seconds": "3.5",
        "fetch.only": "{}",
        "fetch.proxy": "none",
        "sizes": "[1, 2]",
    }


@pytest.mark.parametrize(
    ("mode", "form"), [("RGB", "JPEG"), ("L", "JPEG"), ("P", "GIF"), ("RGBA", "PNG"), ("RGB", "WEBP")]
)
def test_a_picture_is_encoded_again_as_a_small_jpeg(mode: str, form: str) -> None:
    content = io.BytesIO()
    Image.new(mode, (600, 300)).save(content, form)
    address = picture(content.getvalue())
    kind, _, data = address.partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (THUMBNAIL_PX, THUMBNAIL_PX // 2))


def test_metadata_of_the_original_is_removed() -> None:
    content = io.BytesIO()
    Image.new("RGB", (32, 32)).save(content, "JPEG", comment=b"<script>alert(1)</script>")
    assert b"<script>" in content.getvalue()
    assert b"<script>" not in base64.b64decode(picture(content.getvalue()).partition(",")[2])


def bomb() -> bytes:
    """A PNG whose header claims 20,000 x 20,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "cannot be decoded"), (b"<svg/>", "cannot be decoded"), (bomb(), "cannot be decoded")],
)
def test_a_file_that_is_not_a_picture_raises(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        picture(content)


def test_the_image_of_a_rejected_pair_is_shown_if_it_can_be_decoded() -> None:
    content = io.BytesIO()
    Image.new("RGB", (32, 32)).save(content, "PNG")
    assert picture_if_readable(content.getvalue()) == picture(content.getvalue())
    assert picture_if_readable(content.getvalue()[:60]) is None
    assert picture_if_readable(None) is None


def test_only_the_formats_of_the_web_are_opened() -> None:
    content = io.BytesIO()
    Image.new("RGB", (32, 32)).save(content, "EPS")
    with pytest.raises(ValueError, match="cannot be decoded"):
        picture(content.getvalue())
