import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.data.images.image_header import MAX_EXIF_CHARACTERS, ImageConfig, image_type, perceptual_hash
from pipeline.data.images.resize import ImageProcessor, Picture
from pipeline.pictures.decode import open_picture
from pipeline.reasons import Reason
from tests.pipeline.data.hostile_images import broken_in_the_middle, with_exif
from tests.pipeline.data.rows import encode, opened, photo_like, png_header
from tests.pipeline.pictures.files import (
    ALPHA_MODES,
    SHOWN,
    directory,
    segment,
    shared_values,
    with_alpha,
    with_scan_bytes,
    with_segment,
)
from tests.pipeline.pictures.files import JPEG as PLAIN_JPEG
from tests.pipeline.pictures.files import PNG as PLAIN_PNG

RESIZERS: tuple[Literal["scaled", "img2dataset"], ...] = ("scaled", "img2dataset")


@pytest.fixture(scope="module")
def processor() -> ImageProcessor:
    """One processor for all tests."""
    return ImageProcessor(ImageConfig())


class TestResizing:
    """Images are resized by img2dataset's Resizer, so tools for its output can read ours."""

    @pytest.mark.parametrize(
        ("width", "height", "resized"),
        [
            (512, 384, (341, 256)),
            (384, 512, (256, 341)),
            (256, 256, (256, 256)),
            (1000, 256, (1000, 256)),
            (90, 60, (90, 60)),
        ],
    )
    def test_the_shorter_side_becomes_256_or_stays_smaller(
        self, processor: ImageProcessor, width: int, height: int, resized: tuple[int, int]
    ) -> None:
        data = encode(photo_like(0, width, height), "PNG")
        row = processor(data)
        image = opened(row.jpg or b"")
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", resized)
        assert (row.width, row.height) == resized
        assert (row.original_width, row.original_height) == (width, height)
        assert row.sha256 == hashlib.sha256(data).hexdigest()
        assert (row.reason, row.error_message) == (None, None)
        expected = np.asarray(opened(data).resize(resized, Image.Resampling.BOX), float)
        assert np.abs(np.asarray(image, float) - expected).mean() < 4

    @pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
    def test_output_equals_that_of_img2dataset(self, processor: ImageProcessor) -> None:
        """The reference is the package's own module, imported through the package."""
        from img2dataset.resizer import Resizer

        theirs = Resizer(
            image_size=256, resize_mode="keep_ratio", resize_only_if_bigger=True, encode_format="jpg", encode_quality=95
        )
        for seed in range(3):
            data = encode(photo_like(seed, 300 + 100 * seed, 400), "JPEG", quality=90)
            row = processor(data)
            image, width, height, *_ = theirs(io.BytesIO(data))
            assert (row.jpg, row.width, row.height) == (image, width, height)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
    def test_every_type_becomes_a_jpeg(self, processor: ImageProcessor, kind: str) -> None:
        data = encode(photo_like(3), kind)
        assert image_type(data) == kind
        row = processor(data)
        assert row.reason is None, row.error_message
        assert opened(row.jpg or b"").format == "JPEG"
        first, second = perceptual_hash([data, row.jpg or b""])
        assert np.bitwise_count(first ^ second) <= 3

    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
    def test_every_mode_becomes_grey_or_rgb(self, processor: ImageProcessor, mode: str) -> None:
        picture = photo_like(4, mode=mode)
        row = processor(encode(picture, "JPEG" if mode == "CMYK" else "PNG"))
        assert row.reason is None, row.error_message
        made = opened(row.jpg or b"")
        assert made.mode == ("L" if mode in {"L", "1"} else "RGB")
        assert np.abs(np.asarray(made.convert("L"), float) - np.asarray(picture.convert("L"), float)).mean() < 12

    def test_transparent_pixels_become_white(self, processor: ImageProcessor) -> None:
        row = processor(encode(Image.new("RGBA", (64, 64), (200, 0, 0, 0))))
        assert np.asarray(opened(row.jpg or b"")).min() > 250

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_more_than_8_bits_per_channel_are_refused_or_reduced(self, processor: ImageProcessor, kind: str) -> None:
        """The resizer would turn them white."""
        deep = encode(Image.fromarray(np.full((64, 64), 12_850, np.uint16)), kind)
        row = ImageProcessor(ImageConfig(sixteen_bit="refuse"))(deep)
        assert (row.reason, row.error_message) == (Reason.RESIZE_FAILED, "more than 8 bits per channel")
        shallow = encode(Image.new("L", (64, 64), 12_850 >> 8), kind)
        assert processor(deep).jpg == processor(shallow).jpg is not None

    @pytest.mark.parametrize("sixteen_bit", ["reduce", "refuse"])
    @pytest.mark.parametrize("mode", ["I", "F"])
    def test_channels_without_a_known_range_are_always_refused(self, mode: str, sixteen_bit: Any) -> None:
        row = ImageProcessor(ImageConfig(sixteen_bit=sixteen_bit))(encode(photo_like(0).convert(mode), "TIFF"))
        assert (row.reason, row.error_message) == (Reason.RESIZE_FAILED, "more than 8 bits per channel")

    @pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
    @pytest.mark.parametrize("skip_reencode", [False, True])
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
    def test_every_type_equals_that_of_img2dataset(self, kind: str, skip_reencode: bool) -> None:
        """Also of pictures with transparency, and of pictures that need no change."""
        from img2dataset.resizer import Resizer

        options: dict[str, Any] = {"image_size": 64, "resize_only_if_bigger": True, "encode_quality": 95}
        options["skip_reencode"] = skip_reencode
        for mode, width in (("RGB", 60), ("RGB", 90), ("L", 90), ("RGBA", 90)):
            picture = photo_like(3, width, 80, "RGB" if mode == "RGBA" else mode)
            if mode == "RGBA":
                picture.putalpha(photo_like(4, width, 80, "L"))
            if mode == "RGBA" and kind not in {"PNG", "WEBP"}:
                continue  # OpenCV multiplies the colours of a TIFF by alpha; the others have no alpha
            data = encode(picture, kind)
            expected, *_ = Resizer(resize_mode="keep_ratio", encode_format="jpg", **options)(io.BytesIO(data))
            assert ImageProcessor(ImageConfig(**options))(data).jpg == expected

    @pytest.mark.filterwarnings("ignore:value is deprecated:DeprecationWarning")
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("mode", ALPHA_MODES)
    def test_transparent_pixels_are_white_whatever_the_orientation(self, mode: str, orientation: int) -> None:
        """In every resize mode, whether the picture is turned upright or not."""
        data = with_alpha(mode, orientation)
        for resize_mode in ("no", "border", "keep_ratio", "keep_ratio_largest", "center_crop"):
            for is_upright in (True, False):
                config = ImageConfig(min_side=1, image_size=12, resize_mode=resize_mode, upright=is_upright)
                resize = ImageProcessor(config)
                row, opaque = resize(data), open_picture(data).finished(upright=is_upright)
                assert row.jpg is not None, row.error_message
                assert row.jpg == resize(encode(opaque)).jpg
                assert (row.original_width, row.original_height) == (40, 24)
                found = np.asarray(opened(row.jpg).convert("RGB"), np.int64)
                assert found.max() > 240
                assert (found[..., 0] - found[..., 1]).max() < 60, "the hidden colour is red"

    def test_options_equal_those_of_img2dataset(self) -> None:
        data = encode(photo_like(0, 300, 200))
        small = ImageProcessor(ImageConfig(image_size=64, resize_mode="center_crop"))
        row = small(data)
        assert (row.width, row.height) == (64, 64)


JPEG = encode(photo_like(5, 200, 150), "JPEG")
REFUSED = {
    "empty": (b"", Reason.NOT_AN_IMAGE),
    "html": (b"<!DOCTYPE html><html><body>404", Reason.NOT_AN_IMAGE),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Reason.NOT_AN_IMAGE),
    "pdf": (b"%PDF-1.4", Reason.NOT_AN_IMAGE),
    "riff": (b"RIFF\0\0\0\0WAVE", Reason.NOT_AN_IMAGE),
    "mp4": (b"\0\0\0\x20ftypisom", Reason.NOT_AN_IMAGE),
    "bomb": (png_header(20_000, 20_000), Reason.TOO_MANY_PIXELS),
    "huge": (png_header(2**31 - 1, 2**31 - 1), Reason.TOO_MANY_PIXELS),
    "limit": (png_header(10_000, 8_901), Reason.TOO_MANY_PIXELS),
    "small": (encode(photo_like(0, 31, 31)), Reason.TOO_SMALL),
    "line": (encode(photo_like(0, 1000, 1)), Reason.TOO_SMALL),
    "elongated": (encode(photo_like(0, 161, 32)), Reason.TOO_ELONGATED),
    "tall": (encode(photo_like(0, 40, 400)), Reason.TOO_ELONGATED),
    "half": (JPEG[: len(JPEG) // 2], Reason.CORRUPT_IMAGE),
    "almost": (JPEG[:-200], Reason.CORRUPT_IMAGE),
    "no pixels": (png_header(100, 100), Reason.CORRUPT_IMAGE),
    "flipped": (encode(photo_like(0))[:200] + b"\xff" + encode(photo_like(0))[201:], Reason.CORRUPT_IMAGE),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_images_have_a_reason(processor: ImageProcessor, name: str) -> None:
    data, reason = REFUSED[name]
    row = processor(data)
    assert row.reason == reason
    assert row.error_message
    assert row.sha256 == hashlib.sha256(data).hexdigest(), "the hash is kept, so that a block list can name the image"
    assert row == Picture(reason=reason, error_message=row.error_message, sha256=row.sha256)


def test_exif_is_kept_and_damaged_exif_is_ignored(processor: ImageProcessor) -> None:
    exif = Image.Exif()
    exif[271], exif[306] = "Maker", "2020:01:01 00:00:00"
    data = encode(photo_like(0), "JPEG", exif=exif)
    damaged = data.replace(b"Exif\0\0II*\0", b"Exif\0\0II*\1").replace(b"Exif\0\0MM\0*", b"Exif\0\0MM\1*")
    assert damaged != data
    whole, broken = processor(data), processor(damaged)
    assert json.loads(whole.exif or "") == {"271": "Maker", "306": "2020:01:01 00:00:00"}
    assert (broken.reason, broken.exif) == (None, "{}")


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_rotated_as_in_browsers(processor: ImageProcessor, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photo_like(7, 90, 60), kind, exif=exif)
    lying = ImageProcessor(ImageConfig(upright=False))(data)
    expected = np.asarray(ImageOps.exif_transpose(opened(data)).convert("RGB"), float)
    row = processor(data)
    assert np.abs(np.asarray(opened(row.jpg or b""), float) - expected).mean() < 4
    assert (row.width, row.height) == ((60, 90) if 5 <= orientation <= 8 else (90, 60))
    assert (row.original_width, row.original_height) == (lying.width, lying.height) == (90, 60)
    assert (row.jpg == lying.jpg) == (orientation in {1, 9}), "9 is not a valid orientation"


@pytest.mark.filterwarnings("ignore:value is deprecated:DeprecationWarning")
class TestScaled:
    """libjpeg decodes at a fraction of the size; everything else is unchanged."""

    @pytest.mark.parametrize(
        ("size", "mode", "made"),
        [
            ((1600, 1200), "keep_ratio", (341, 256)),
            ((1024, 1024), "keep_ratio", (256, 256)),
            ((600, 500), "keep_ratio", (307, 256)),
            ((1200, 400), "center_crop", (256, 256)),
            ((2000, 600), "keep_ratio_largest", (256, 77)),
            ((2000, 600), "border", (256, 256)),
            ((600, 500), "no", (600, 500)),
        ],
    )
    def test_sizes_are_equal_and_pictures_nearly_equal(
        self, size: tuple[int, int], mode: Any, made: tuple[int, int]
    ) -> None:
        data = encode(photo_like(8, *size), "JPEG", quality=90)
        scaled, full = (ImageProcessor(ImageConfig(resizer=resizer, resize_mode=mode))(data) for resizer in RESIZERS)
        assert (scaled.width, scaled.height) == (full.width, full.height) == made
        assert (scaled.original_width, scaled.original_height) == size
        difference = np.asarray(opened(scaled.jpg or b""), float) - np.asarray(opened(full.jpg or b""), float)
        assert 10 * np.log10(255**2 / max((difference**2).mean(), 1e-9)) > 40

    def test_two_processors_in_one_process_are_independent(self) -> None:
        data = encode(photo_like(8, 1600, 1200), "JPEG")
        scaled, full = (ImageProcessor(ImageConfig(resizer=resizer)) for resizer in RESIZERS)
        assert scaled(data).jpg != full(data).jpg == ImageProcessor(ImageConfig())(data).jpg

    def test_grey_stays_grey_and_damage_is_detected(self) -> None:
        processor = ImageProcessor(ImageConfig(resizer="scaled"))
        grey = processor(encode(photo_like(9, 1200, 900, "L"), "JPEG"))
        assert opened(grey.jpg or b"").mode == "L"
        whole = encode(photo_like(9, 1200, 900), "JPEG")
        for data in (whole[: len(whole) // 2], whole[: len(whole) // 2] + b"\xff\xd9"):
            assert processor(data).reason == Reason.CORRUPT_IMAGE


@pytest.mark.parametrize("report", SHOWN)
def test_what_browsers_and_opencv_show_is_kept(processor: ImageProcessor, report: str) -> None:
    data = SHOWN[report]()
    plain = processor(PLAIN_JPEG if data.startswith(b"\xff\xd8") else PLAIN_PNG)
    assert processor(data) == dataclasses.replace(plain, sha256=hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("brand", [b"mif1", b"msf1", b"miaf", b"MA1B"])
def test_an_avif_of_another_major_brand_is_kept(processor: ImageProcessor, brand: bytes) -> None:
    plain = encode(photo_like(0), "AVIF")
    assert processor(plain[:8] + brand + plain[12:]).jpg == processor(plain).jpg is not None


class TestExif:
    """EXIF data becomes JSON of valid, bounded text whatever it contains."""

    @pytest.mark.parametrize(
        ("kind", "content", "expected"),
        [
            (2, b"caf\xe9 noir\0", "caf\xe9 noir"),
            (2, b"\xed\xa0\x80 lone\0", "\xed\xa0\x80 lone"),
            (7, b"\xff\0\xfe", str(b"\xff\0\xfe")),
            (2, b"a\0b\0", "a\0b"),
        ],
    )
    def test_any_bytes(self, processor: ImageProcessor, kind: int, content: bytes, expected: str) -> None:
        """huggingface/datasets#7668, and EXIF data in Latin-1."""
        content = content.ljust(5, b"\0")
        exif = directory([(0x010E, kind, len(content), 26)], content)
        row = processor(with_exif(PLAIN_JPEG, exif))
        (text,) = json.loads(row.exif or "").values()
        assert text.rstrip("\0") == expected or text == str(content)
        assert (row.exif or "").isascii()

    def test_a_lone_surrogate(self, processor: ImageProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image.Exif, "items", lambda _exif: [(1, "\ud800x")])
        row = processor(with_exif(PLAIN_JPEG, directory([])))
        assert json.loads(row.exif or "") == {"1": "\N{REPLACEMENT CHARACTER}x"}

    def test_an_unforeseen_exception(self, processor: ImageProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image.Exif, "load", lambda *_: {}.undefined)  # type: ignore[attr-defined]
        row = processor(with_exif(PLAIN_JPEG, directory([])))
        assert (row.reason, row.exif) == (None, "{}")

    def test_the_length_is_bounded(self, processor: ImageProcessor) -> None:
        for num_entries, num_bytes, is_kept in ((8, 9_000, True), (40, 16_000, True), (2_000, 40_000, False)):
            exif = shared_values(num_entries, num_bytes)
            row = processor(with_exif(PLAIN_JPEG, exif))
            assert row.reason is None
            assert len(row.exif or "") < 2 * MAX_EXIF_CHARACTERS
            assert bool(json.loads(row.exif or "")) == is_kept


@pytest.mark.parametrize(
    "error", [KeyError("\ud800\n"), AssertionError(), StopIteration("x" * 9_999), RecursionError()]
)
def test_an_unforeseen_exception_is_a_reason(
    processor: ImageProcessor, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.data.images.resize.check", fail)
    row = processor(JPEG)
    message = row.error_message or ""
    assert (row.reason, row.sha256) == (Reason.CORRUPT_IMAGE, hashlib.sha256(JPEG).hexdigest())
    assert message.startswith(type(error).__name__)
    assert message.isprintable()
    assert len(message) <= 300


class TestDamagedJpeg:
    """Decoders fill missing parts with grey; no such image may be accepted."""

    @pytest.mark.parametrize("oddity", [b"\xee", b"\xe0", b"\xda", b"\0"])
    def test_an_oddity_hides_no_damage(self, processor: ImageProcessor, oddity: bytes) -> None:
        """libjpeg reports only its first warning, which would be about the oddity."""
        whole = encode(photo_like(10, 400, 300), "JPEG", quality=92)
        hole = broken_in_the_middle(whole)
        for data, reason in ((whole, None), (hole, Reason.CORRUPT_IMAGE)):
            odd = {
                b"\xee": with_segment(data, segment(0xEE, b"Adobe\0\x64\0\0\0\0\x44")),
                b"\xe0": data[:11] + b"\0\2" + data[13:],
                b"\xda": with_scan_bytes(data, b"\0\0\0"),
                b"\0": with_segment(data, bytes(99)),
            }[oddity]
            assert odd != data
            assert processor(odd).reason is reason

    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 8}])
    @pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
    def test_half_grey(self, processor: ImageProcessor, options: dict[str, Any], share: float) -> None:
        whole = encode(photo_like(10, 400, 300), "JPEG", quality=92, **options)
        cut = whole[: int(len(whole) * share)]
        hole = cut[:-400] + whole[int(len(whole) * share) :]
        for data in (cut, cut + b"\xff\xd9", hole, whole[:-2]):
            assert processor(data).reason == Reason.CORRUPT_IMAGE
        assert processor(whole).reason is None

    def test_data_after_the_end_and_padding_before_it_are_ignored(self, processor: ImageProcessor) -> None:
        whole = encode(photo_like(10, 400, 300), "JPEG")
        plain = processor(whole)
        assert processor(whole + b"PK\3\4" + bytes(5000)).jpg == plain.jpg
        assert processor(whole[:-2] + bytes(8) + b"\xff\xd9").jpg == plain.jpg

    def test_the_end_marker_of_a_thumbnail_is_ignored(self, processor: ImageProcessor) -> None:
        whole = encode(photo_like(10, 400, 300), "JPEG")
        thumbnail = encode(photo_like(10, 40, 30), "JPEG")
        segment = b"\xff\xe5" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
        with_thumbnail = whole[:2] + segment + whole[2:]
        assert processor(with_thumbnail).reason is None
        assert processor(with_thumbnail[: len(with_thumbnail) // 2]).reason == Reason.CORRUPT_IMAGE

    def test_standard_error_is_restored(self, processor: ImageProcessor, capfd: pytest.CaptureFixture[str]) -> None:
        whole = encode(photo_like(10, 400, 300), "JPEG")
        processor(whole[: len(whole) // 2] + b"\xff\xd9")
        os.write(2, b"and now this")
        assert capfd.readouterr().err == "and now this", "without libjpeg's warnings"


def seeds() -> Iterator[bytes]:
    picture = photo_like(6, 64, 48)
    exif = Image.Exif()
    exif[271] = "Maker"
    for kind, options in (
        ("JPEG", {"exif": exif}),
        ("JPEG", {"progressive": True}),
        ("PNG", {"exif": exif}),
        ("GIF", {}),
        ("WEBP", {"exif": exif}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {}),
    ):
        yield encode(picture, kind, **options)


edits = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["flip", "zero", "drop", "double"]), st.integers(0, 7)), max_size=6
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(seeds())), edits, st.booleans())
def test_damaged_files_give_pictures_or_reasons(
    processor: ImageProcessor, data: bytes, changes: list[tuple[float, str, int]], in_header: bool
) -> None:
    for place, edit, bit in changes:
        at = int(place * (min(len(data), 200) if in_header else len(data) - 1))
        piece = {"flip": bytes([data[at] ^ 1 << bit]), "zero": b"\0", "drop": b"", "double": data[at : at + 4] * 2}[
            edit
        ]
        data = data[:at] + piece + data[at + 1 :]
    row = processor(data)
    if row.reason is None:
        picture: npt.NDArray[np.uint8] = np.asarray(opened(row.jpg or b""))
        assert picture.shape[:2] == (row.height, row.width)
    else:
        assert row.error_message


@pytest.mark.realdata
def test_photographs_are_kept_and_a_damaged_one_is_refused(processor: ImageProcessor, clip_data: Path) -> None:
    photos = pq.read_table(clip_data / "photos.parquet", columns=["image"])["image"][:50].to_pylist()
    assert {processor(photo).reason for photo in photos} == {None}
    files = sorted((clip_data / "near_duplicates").glob("*.jpg"))
    reasons = {file.stem: processor(file.read_bytes()).reason for file in files}
    assert reasons.pop("ukbench09268_corrupt") == Reason.NOT_AN_IMAGE, "its first bytes are overwritten"
    assert set(reasons.values()) == {None}
