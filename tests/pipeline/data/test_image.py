from pathlib import Path

import imagehash
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data.image import Header, ImageConfig, image_type, inspect, perceptual_hash
from pipeline.schemas import Reason
from tests.pipeline.data.rows import encode, opened, photo_like, png_header


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


def test_limits_are_those_of_the_configuration() -> None:
    picture = encode(photo_like(0, 100, 20))
    assert inspect(picture, ImageConfig()) == (Reason.TOO_SMALL, "100x20")
    assert inspect(picture, ImageConfig(min_side=20)) == Header("PNG", 100, 20, "RGB", "{}", 1)
    assert inspect(picture, ImageConfig(min_side=20, max_aspect_ratio=4.9)) == (Reason.TOO_ELONGATED, "100x20")
    assert inspect(picture, ImageConfig(min_side=20, max_pixels=1999)) == (Reason.TOO_MANY_PIXELS, "100x20")
    assert isinstance(inspect(picture, ImageConfig(min_side=20, max_pixels=2000)), Header)


def test_a_bomb_is_not_decoded() -> None:
    """By its header alone: 150 million pixels would take seconds and half a gigabyte."""
    assert inspect(png_header(15_000, 10_000), ImageConfig()) == (Reason.TOO_MANY_PIXELS, "15000x10000")


def test_the_type_is_told_by_content() -> None:
    assert image_type(b"BM" + bytes(20)) == "BMP"
    assert image_type(b"RIFF\x10\0\0\0WEBPVP8 ") == "WEBP"
    assert image_type(b"\0\0\0\x1cftypavis") == "AVIF"
    assert [image_type(data) for data in (b"", b"B", b"RIFF", b"GIF88a", b" \xff\xd8\xff")] == [None] * 5
