import hashlib
import io
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.image import (
    ImageConfig,
    ImageProcessor,
    image_type,
    inspect,
    perceptual_hash,
    status_of,
)
from pipeline.schemas import FETCHED, Reason
from tests.pipeline.data.rows import candidates, encode, photo_like

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # img2dataset imports it


@pytest.fixture(scope="module")
def processor() -> ImageProcessor:
    """One for all tests: img2dataset takes seconds to import."""
    return ImageProcessor(ImageConfig())


def process(processor: ImageProcessor, *images: bytes) -> list[dict[str, Any]]:
    done = processor(candidates(image=list(images)))
    assert done.schema == FETCHED
    return list(done.to_pylist())


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def by_imagehash(data: bytes) -> int:
    return int(str(imagehash.phash(opened(data))), 16)


class TestPerceptualHash:
    """Bit for bit imagehash.phash, and near where pictures are alike."""

    @staticmethod
    def check(images: list[bytes]) -> None:
        found = perceptual_hash(images)
        assert found.dtype == np.uint64
        assert found.tolist() == [by_imagehash(image) for image in images]
        assert found.tolist() == [int(perceptual_hash([image])[0]) for image in images], "whatever else is in the batch"

    def test_pictures_of_any_size_and_mode(self) -> None:
        modes = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I")
        self.check([encode(photo_like(i, 40 + 31 * i, 200 - 17 * i, "RGB")) for i in range(8)])
        self.check([encode(photo_like(1, mode=mode), "TIFF") for mode in modes])
        self.check([encode(photo_like(2), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")])

    def test_noise(self) -> None:
        random = np.random.default_rng(0)
        self.check([encode(Image.fromarray(random.integers(0, 256, (50, 70, 3), dtype=np.uint8))) for _ in range(30)])

    def test_flat_and_symmetric_pictures(self) -> None:
        """Many of their frequencies are zero, and so is the median: rounding errors would be the hash."""
        random = np.random.default_rng(0)
        halves = [random.integers(0, 256, (64, 32), dtype=np.uint8) for _ in range(10)]
        ramp = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
        arrays = [np.full((64, 64), value, np.uint8) for value in (0, 1, 127, 255)]
        arrays += [np.concatenate([half, half[:, ::-1]], axis=1) for half in halves]
        arrays += [ramp, ramp.T, ramp + ramp.T]
        self.check([encode(Image.fromarray(array)) for array in arrays])

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 2**32), st.integers(1, 90), st.integers(1, 90))
    def test_any_picture(self, seed: int, width: int, height: int) -> None:
        self.check([encode(photo_like(seed, width, height))])

    def test_alike_is_near_and_unlike_is_far(self) -> None:
        for seed in range(5):
            picture = photo_like(seed, 400, 300)
            versions = [encode(picture), encode(picture, "JPEG", quality=70), encode(picture.resize((200, 150)))]
            first, *others = perceptual_hash(versions)
            assert max(np.bitwise_count(other ^ first) for other in others) <= 3
            (unlike,) = perceptual_hash([encode(photo_like(seed + 100, 400, 300))])
            assert np.bitwise_count(unlike ^ first) > 10

    def test_no_pictures(self) -> None:
        assert perceptual_hash([]).shape == (0,)

    @pytest.mark.realdata
    def test_photographs(self, clip_data: Path) -> None:
        self.check(pq.read_table(clip_data / "photos.parquet", columns=["image"])["image"][::62].to_pylist())

    @pytest.mark.realdata
    def test_near_duplicates(self, clip_data: Path) -> None:
        files = sorted((clip_data / "near_duplicates").glob("*.jpg"))
        names = [file.stem for file in files]
        good = [file.read_bytes() for file in files if "corrupt" not in file.stem]
        self.check(good)
        hashes: dict[str, np.uint64] = dict(
            zip([n for n in names if "corrupt" not in n], perceptual_hash(good), strict=True)
        )
        photograph = hashes["ukbench00120"]
        assert np.bitwise_count(photograph ^ hashes["ukbench00120_resize"]) <= 3
        for other in ("ukbench00120_hflip", "ukbench00120_rotation", "ukbench09268"):
            assert np.bitwise_count(photograph ^ hashes[other]) > 3


class TestResizing:
    """img2dataset's Resizer does it, so its tools read what we write."""

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
    def test_the_shorter_side_is_256_or_what_it_was(
        self, processor: ImageProcessor, width: int, height: int, resized: tuple[int, int]
    ) -> None:
        data = encode(photo_like(0, width, height), "PNG")
        (row,) = process(processor, data)
        image = opened(row["jpg"])
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", resized)
        assert (row["width"], row["height"]) == resized
        assert (row["original_width"], row["original_height"]) == (width, height)
        assert row["sha256"] == hashlib.sha256(data).hexdigest()
        assert row["phash"] == by_imagehash(row["jpg"])
        assert (row["reason"], row["status"], row["error_message"]) == (None, "success", None)
        expected = np.asarray(opened(data).resize(resized, Image.Resampling.BOX), float)
        assert np.abs(np.asarray(image, float) - expected).mean() < 4

    def test_it_is_what_img2dataset_makes(self, processor: ImageProcessor) -> None:
        from img2dataset.resizer import Resizer

        theirs = Resizer(
            image_size=256, resize_mode="keep_ratio", resize_only_if_bigger=True, encode_format="jpg", encode_quality=95
        )
        for seed in range(3):
            data = encode(photo_like(seed, 300 + 100 * seed, 400), "JPEG", quality=90)
            (row,) = process(processor, data)
            image, width, height, *_ = theirs(io.BytesIO(data))
            assert (row["jpg"], row["width"], row["height"]) == (image, width, height)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
    def test_every_type_becomes_a_jpeg(self, processor: ImageProcessor, kind: str) -> None:
        data = encode(photo_like(3), kind)
        assert image_type(data) == kind
        (row,) = process(processor, data)
        assert row["reason"] is None, row["error_message"]
        assert opened(row["jpg"]).format == "JPEG"
        assert np.bitwise_count(np.uint64(by_imagehash(data)) ^ np.uint64(row["phash"])) <= 3

    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1"])
    def test_every_mode_becomes_a_plain_one(self, processor: ImageProcessor, mode: str) -> None:
        picture = photo_like(4, mode=mode)
        (row,) = process(processor, encode(picture, "JPEG" if mode == "CMYK" else "PNG"))
        assert row["reason"] is None, row["error_message"]
        made = opened(row["jpg"])
        assert made.mode == ("L" if mode in {"L", "1"} else "RGB")
        assert np.abs(np.asarray(made.convert("L"), float) - np.asarray(picture.convert("L"), float)).mean() < 12

    def test_transparent_is_white(self, processor: ImageProcessor) -> None:
        (row,) = process(processor, encode(Image.new("RGBA", (64, 64), (200, 0, 0, 0))))
        assert np.asarray(opened(row["jpg"])).min() > 250

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_more_than_8_bits_a_channel_are_refused(self, processor: ImageProcessor, kind: str) -> None:
        """The resizer would make them white."""
        deep = Image.fromarray(np.full((64, 64), 12_850, np.uint16))
        (row,) = process(processor, encode(deep, kind))
        assert (row["reason"], row["error_message"]) == (Reason.RESIZE_FAILED, "more than 8 bits a channel")

    def test_options_are_img2datasets(self) -> None:
        data = encode(photo_like(0, 300, 200))
        small = ImageProcessor(ImageConfig(image_size=64, resize_mode="center_crop"))
        assert process(small, data)[0]["width"] == process(small, data)[0]["height"] == 64


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is and then holds a few bytes of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


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
def test_refused_images_have_their_reason(processor: ImageProcessor, name: str) -> None:
    data, reason = REFUSED[name]
    (row,) = process(processor, data)
    assert (row["reason"], row["status"]) == (reason, "failed_to_resize")
    assert row["error_message"]
    assert row["sha256"] == hashlib.sha256(data).hexdigest(), "a block list can name it"
    assert [row[name] for name in ("jpg", "phash", "width", "height", "original_width", "original_height")] == [
        None
    ] * 6


def test_limits_are_those_of_the_configuration() -> None:
    picture = encode(photo_like(0, 100, 20))
    assert inspect(picture, ImageConfig())[0] == Reason.TOO_SMALL
    assert inspect(picture, ImageConfig(min_side=20))[0] is None
    assert inspect(picture, ImageConfig(min_side=20, max_aspect_ratio=4.9))[0] == Reason.TOO_ELONGATED
    assert inspect(picture, ImageConfig(min_side=20, max_pixels=1999))[0] == Reason.TOO_MANY_PIXELS
    assert inspect(picture, ImageConfig(min_side=20, max_pixels=2000))[0] is None


def test_a_bomb_is_not_decoded() -> None:
    """By its header alone: 150 million pixels would take seconds and half a gigabyte."""
    reason, detail, _ = inspect(png_header(15_000, 10_000), ImageConfig())
    assert (reason, detail) == (Reason.TOO_MANY_PIXELS, "15000x10000")


def test_the_type_is_told_by_content() -> None:
    assert image_type(b"BM" + bytes(20)) == "BMP"
    assert image_type(b"RIFF\x10\0\0\0WEBPVP8 ") == "WEBP"
    assert image_type(b"\0\0\0\x1cftypavis") == "AVIF"
    assert [image_type(data) for data in (b"", b"B", b"RIFF", b"GIF88a", b" \xff\xd8\xff")] == [None] * 5


def test_exif_is_kept_and_does_no_harm(processor: ImageProcessor) -> None:
    exif = Image.Exif()
    exif[271], exif[306] = "Maker", "2020:01:01 00:00:00"
    data = encode(photo_like(0), "JPEG", exif=exif)
    damaged = data.replace(b"Exif\0\0II*\0", b"Exif\0\0II*\1").replace(b"Exif\0\0MM\0*", b"Exif\0\0MM\1*")
    assert damaged != data
    whole, broken = process(processor, data, damaged)
    assert json.loads(whole["exif"]) == {"271": "Maker", "306": "2020:01:01 00:00:00"}
    assert (broken["reason"], broken["exif"]) == (None, "{}")


def test_rows_that_are_out_stay_out(processor: ImageProcessor) -> None:
    table = candidates(
        image=[JPEG, None, None], reason=[None, Reason.NOT_FOUND, Reason.BALANCED_OUT], caption=["a", "b", "c"]
    )
    table = table.append_column("error_message", pa.array([None, "HTTP 404", None], pa.string()))
    done = processor(table)
    assert done["reason"].to_pylist() == [None, Reason.NOT_FOUND, Reason.BALANCED_OUT]
    assert done["error_message"].to_pylist() == [None, "HTTP 404", None]
    assert done["status"].to_pylist() == ["success", *["failed_to_download"] * 2]
    assert done["sha256"].is_valid().to_pylist() == done["phash"].is_valid().to_pylist() == [True, False, False]
    assert done["caption"].to_pylist() == ["a", "b", "c"]
    assert processor(table.slice(0, 0)) == FETCHED.empty_table()


def test_statuses_are_img2datasets() -> None:
    assert status_of(None) == "success"
    assert status_of(Reason.RESIZE_FAILED) == status_of(Reason.NOT_AN_IMAGE) == "failed_to_resize"
    assert status_of(Reason.TIMEOUT) == status_of(Reason.ROBOTS_TXT) == "failed_to_download"


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
def test_damaged_files_are_pictures_or_reasons(
    processor: ImageProcessor, data: bytes, changes: list[tuple[float, str, int]], in_header: bool
) -> None:
    for place, edit, bit in changes:
        at = int(place * (min(len(data), 200) if in_header else len(data) - 1))
        piece = {"flip": bytes([data[at] ^ 1 << bit]), "zero": b"\0", "drop": b"", "double": data[at : at + 4] * 2}[
            edit
        ]
        data = data[:at] + piece + data[at + 1 :]
    (row,) = process(processor, data)
    if row["reason"] is None:
        picture: npt.NDArray[np.uint8] = np.asarray(opened(row["jpg"]))
        assert picture.shape[:2] == (row["height"], row["width"])
    else:
        assert row["status"] == "failed_to_resize"


@pytest.mark.realdata
def test_photographs_are_kept_and_a_damaged_one_is_not(processor: ImageProcessor, clip_data: Path) -> None:
    photos = pq.read_table(clip_data / "photos.parquet", columns=["image"])["image"][:50].to_pylist()
    assert {row["reason"] for row in process(processor, *photos)} == {None}
    files = sorted((clip_data / "near_duplicates").glob("*.jpg"))
    rows = process(processor, *(file.read_bytes() for file in files))
    reasons = {file.stem: row["reason"] for file, row in zip(files, rows, strict=True)}
    assert reasons.pop("ukbench09268_corrupt") == Reason.NOT_AN_IMAGE, "its first bytes are overwritten"
    assert set(reasons.values()) == {None}
