from math import cos, radians, sin
from pathlib import Path

import imagehash
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.data.images import image_header
from pipeline.data.images.image_header import ImageConfig
from pipeline.data.images.phash import MIRRORED, UNCHANGED, Variant, perceptual_hash, perceptual_hashes
from pipeline.data.images.resize import ImageProcessor
from pipeline.pictures.decode import decode
from tests.pipeline.data.rows import encode, opened, photo_like
from tests.pipeline.pictures.files import ALPHA_MODES, exif_of, with_alpha


def by_imagehash(data: bytes) -> int:
    return int(str(imagehash.phash(ImageOps.exif_transpose(opened(data)))), 16)


Hashes = tuple[object, list[int], list[int]]
"""The dtype, the hashes of a batch, and the hashes of each picture alone, which must not depend on the batch."""


def ours(images: list[bytes]) -> Hashes:
    found = perceptual_hash(images)
    return found.dtype, found.tolist(), [int(perceptual_hash([image])[0]) for image in images]


def expected(images: list[bytes]) -> Hashes:
    hashes = [by_imagehash(image) for image in images]
    return np.dtype(np.uint64), hashes, hashes


class TestPerceptualHash:
    """Hashes equal imagehash.phash bit for bit, and similar pictures have near hashes."""

    def test_pictures_of_any_size_and_mode(self) -> None:
        modes = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "I")
        images = [encode(photo_like(i, 40 + 31 * i, 200 - 17 * i, "RGB")) for i in range(8)]
        assert ours(images) == expected(images)
        images = [encode(photo_like(1, mode=mode), "TIFF") for mode in modes]
        assert ours(images) == expected(images)
        images = [encode(photo_like(2), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")]
        assert ours(images) == expected(images)

    @pytest.mark.parametrize("mode", ALPHA_MODES)
    def test_the_picture_that_a_page_shows_is_hashed(self, mode: str) -> None:
        """Upright and on white: an imported original and its crawled JPEG must be found to be the same picture."""
        data = with_alpha(mode, 6)
        assert perceptual_hash([data])[0] == by_imagehash(encode(decode(data).convert("RGB")))
        photo = photo_like(3, 200, 150, "RGBA")
        photo.paste((0, 0, 0, 0), (0, 0, 70, 150))
        original = encode(photo, exif=exif_of(6))
        crawled = ImageProcessor(ImageConfig())(original).jpg
        first, second = perceptual_hash([original, crawled or b""])
        assert np.bitwise_count(first ^ second) <= 2

    def test_noise(self) -> None:
        random = np.random.default_rng(0)
        images = [encode(Image.fromarray(random.integers(0, 256, (50, 70, 3), dtype=np.uint8))) for _ in range(30)]
        assert ours(images) == expected(images)

    def test_flat_and_symmetric_pictures(self) -> None:
        """Many frequencies and the median are zero, so rounding errors would determine the hash."""
        random = np.random.default_rng(0)
        halves = [random.integers(0, 256, (64, 32), dtype=np.uint8) for _ in range(10)]
        ramp = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
        arrays = [np.full((64, 64), value, np.uint8) for value in (0, 1, 127, 255)]
        arrays += [np.concatenate([half, half[:, ::-1]], axis=1) for half in halves]
        arrays += [ramp, ramp.T, ramp + ramp.T]
        images = [encode(Image.fromarray(array)) for array in arrays]
        assert ours(images) == expected(images)

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 2**32), st.integers(1, 90), st.integers(1, 90))
    def test_any_picture(self, seed: int, width: int, height: int) -> None:
        images = [encode(photo_like(seed, width, height))]
        assert ours(images) == expected(images)

    def test_similar_pictures_are_near_and_different_ones_far(self) -> None:
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
        images = pq.read_table(clip_data / "photos.parquet", columns=["image"])["image"][::62].to_pylist()
        assert ours(images) == expected(images)

    @pytest.mark.realdata
    def test_near_duplicates(self, clip_data: Path) -> None:
        files = sorted((clip_data / "near_duplicates").glob("*.jpg"))
        names = [file.stem for file in files]
        good = [file.read_bytes() for file in files if "corrupt" not in file.stem]
        assert ours(good) == expected(good)
        hashes: dict[str, np.uint64] = dict(
            zip([n for n in names if "corrupt" not in n], perceptual_hash(good), strict=True)
        )
        photograph = hashes["ukbench00120"]
        assert np.bitwise_count(photograph ^ hashes["ukbench00120_resize"]) <= 3
        for other in ("ukbench00120_hflip", "ukbench00120_rotation", "ukbench09268"):
            assert np.bitwise_count(photograph ^ hashes[other]) > 3


class TestVariants:
    """The hash of a variant equals the hash of the picture after it was mirrored or rotated."""

    PICTURES = tuple(photo_like(seed, 400, 300) for seed in range(8))

    def bits_apart(self, variant: Variant, changed: list[Image.Image]) -> npt.NDArray[np.uint8]:
        """Hash distances of changed pictures to the original pictures (column 0) and to their variants (column 1)."""
        hashes = perceptual_hashes([encode(picture) for picture in self.PICTURES], [UNCHANGED, variant])
        of_changed = perceptual_hash([encode(picture) for picture in changed])
        distances: npt.NDArray[np.uint8] = np.bitwise_count(hashes ^ of_changed[:, None])
        return distances

    def test_mirrored(self) -> None:
        bits = self.bits_apart(MIRRORED, [ImageOps.mirror(picture) for picture in self.PICTURES])
        assert bits.shape == (len(self.PICTURES), 2)
        assert bits[:, 1].max() == 0
        assert bits[:, 0].mean() > 6

    @pytest.mark.parametrize("degrees", [90, 180, 270, -90])
    def test_rotated_by_multiples_of_90_degrees(self, degrees: int) -> None:
        turned = [picture.rotate(degrees, expand=True) for picture in self.PICTURES]
        bits = self.bits_apart(Variant(degrees=degrees), turned)
        assert bits.shape == (len(self.PICTURES), 2)
        assert bits[:, 1].max() <= 2
        assert bits[:, 0].mean() > 8

    def test_upside_down(self) -> None:
        flipped = [ImageOps.flip(picture) for picture in self.PICTURES]
        bits = self.bits_apart(Variant(mirrored=True, degrees=180), flipped)
        assert bits.shape == (len(self.PICTURES), 2)
        assert bits[:, 1].max() <= 2
        assert bits[:, 0].mean() > 8

    @pytest.mark.parametrize("degrees", [-5.0, 3.0, 93.0])
    def test_rotated_by_small_angles_and_cropped(self, degrees: float) -> None:
        """The largest central part is computed independently: its corners must lie inside the rotated frame."""
        changed = []
        for picture in self.PICTURES:
            turned = picture.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
            quarter = abs(degrees) > 45
            width, height = picture.size[::-1] if quarter else picture.size
            angle = radians(abs(degrees) % 90)
            share = next(
                share
                for share in np.arange(1, 0, -0.001)
                if share * (width * cos(angle) + height * sin(angle)) <= width
                and share * (width * sin(angle) + height * cos(angle)) <= height
            )
            half = share * width / 2, share * height / 2
            x, y = turned.width / 2, turned.height / 2
            part = (x - half[0], y - half[1], x + half[0], y + half[1])
            changed.append(turned.crop(tuple(round(edge) for edge in part)))  # type: ignore[arg-type]
        bits = self.bits_apart(Variant(degrees=degrees), changed)
        assert bits.shape == (len(self.PICTURES), 2)
        assert bits[:, 1].max() <= 4
        assert bits[:, 0].mean() > 10

    def test_the_unchanged_variant_equals_imagehash_in_any_batch(self) -> None:
        images = [encode(picture) for picture in self.PICTURES]
        variants = [Variant(degrees=5), UNCHANGED, Variant(True, -5), MIRRORED]
        assert perceptual_hashes(images, variants)[:, 1].tolist() == [by_imagehash(image) for image in images]
        assert perceptual_hashes(images, []).shape == (len(images), 0)
        assert perceptual_hashes([], variants).shape == (0, 4)


def test_half_of_the_bits_of_a_photograph_are_set() -> None:
    """Distances between photographs are therefore even."""
    hashes = perceptual_hash([encode(photo_like(seed)) for seed in range(20)])
    assert set(np.bitwise_count(hashes).tolist()) == {32}


def test_image_header_exports_it_too() -> None:
    assert image_header.perceptual_hash is perceptual_hash
