import io
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.pictures.essential import FORMATS, essential, image_type, read_directory, shorter_side
from tests.pipeline.data.hostile_images import png_chunk
from tests.pipeline.data.rows import encode, opened
from tests.pipeline.pictures.files import (
    BOMBS,
    GIF,
    JPEG,
    MIB,
    PNG,
    directory,
    exif_of,
    picture,
    segment,
    shared_values,
    with_brand,
    with_chunks,
    with_scan_bytes,
    with_segment,
)


def data_of(data: bytes) -> bytes:
    parts = essential(data)
    assert parts is not None
    return parts.data


def pixels_of(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGBA").tobytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_the_essential_parts_are_the_same_picture(kind: str) -> None:
    data = encode(picture(), kind)
    assert image_type(data) == kind
    assert pixels_of(data_of(data)) == pixels_of(data)
    assert data_of(data_of(data)) == data_of(data)


@pytest.mark.parametrize("data", [b"", b"B", b"RIFF", b"GIF88a", b" \xff\xd8\xff", b"\0\0\0\x20ftypisom", b"%PDF"])
def test_other_files_have_no_type(data: bytes) -> None:
    assert essential(data) is None


@pytest.mark.parametrize("orientation", range(11))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_is_read(kind: str, orientation: int) -> None:
    parts = essential(encode(picture(), kind, exif=exif_of(orientation)))
    assert parts is not None
    assert parts.orientation == (orientation if 1 <= orientation <= 8 else 1)
    assert opened(parts.data).size == (96, 64), "TIFFs are not turned by their decoder"


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        directory([(0x0112, 4, 1, 6)]),  # LONG: browsers read a SHORT only
        directory([(0x0112, 3, 2, 6)]),
        directory([(0x0112, 3, 1, 65_000)]),
        directory([(0x0112, 3, 1, 6)])[:-18],
        struct.pack("<4sIH", b"II*\0", 8, 65_535),
    ],
)
def test_an_invalid_orientation_is_none(exif: bytes) -> None:
    parts = essential(with_segment(JPEG, segment(0xE1, b"Exif\0\0" + exif)))
    assert parts is not None
    assert parts.orientation == 1


class TestJpeg:
    def test_metadata_is_removed(self) -> None:
        added = [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"), segment(0xE2, b"ICC_PROFILE\0" + bytes(9000))]
        added += [segment(0xED, b"Photoshop 3.0\0"), segment(0xFE, b"<script>"), segment(0xE0, b"JFXX\0")]
        assert data_of(with_segment(JPEG, b"".join(added))) == data_of(JPEG)

    @pytest.mark.parametrize("junk", [b"\0", b"\xff\0\0", bytes(range(1, 99)), b"\xff\xff\xff"])
    def test_bytes_between_segments_are_removed(self, junk: bytes) -> None:
        """python-pillow/Pillow#630, #1337, #1977, LibrePDF/OpenPDF#1247."""
        assert data_of(with_segment(JPEG, junk)) == data_of(JPEG)

    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
    def test_scan_headers_are_corrected_in_sequential_files_only(self, options: dict[str, object]) -> None:
        whole = encode(picture(), "JPEG", **options)
        odd = with_scan_bytes(whole, b"\x01\x02\x03")
        assert data_of(whole)[-500:] == whole[-500:]
        assert (data_of(odd) == data_of(whole)) == ("progressive" not in options)

    @pytest.mark.parametrize("version", [b"\0\2", b"\0\0", b"\3\1"])
    def test_the_version_of_jfif_is_corrected(self, version: bytes) -> None:
        """JiahuiYu/generative_inpainting#188, openpreserve/jhove#1103: libjpeg warns, and then about nothing else."""
        assert data_of(JPEG[:11] + version + JPEG[13:]) == data_of(JPEG)

    @pytest.mark.parametrize(
        ("mode", "transform", "expected"),
        [("RGB", 68, 1), ("RGB", 2, 1), ("RGB", 0, 0), ("CMYK", 1, 2), ("CMYK", 0, 0)],
    )
    def test_adobes_transformation_is_corrected(self, mode: str, transform: int, expected: int) -> None:
        """openpreserve/jhove#695 (transformation 68), thorfdbg/libjpeg#92 (version 101)."""
        adobe = segment(0xEE, b"Adobe\0\x65" + bytes(4) + bytes([transform]) + b"more")
        found = data_of(with_segment(encode(picture().convert(mode), "JPEG"), adobe))
        assert found.count(b"Adobe") == 1, "the last one counts"
        assert found[found.index(b"Adobe") + 11] == expected

    def test_scans_are_counted_in_progressive_files_only(self) -> None:
        """Films behind a baseline JPEG (motion photos) contain such bytes by chance."""
        for progressive in (False, True):
            parts = essential(encode(picture(), "JPEG", progressive=progressive) + b"\xff\xda" * 95)
            assert parts is not None
            assert (parts.num_scans > 95) == progressive
            assert (parts.problem is not None) == progressive

    def test_the_shorter_side(self) -> None:
        assert shorter_side(data_of(encode(picture(96, 64), "JPEG", progressive=True))) == 64
        assert [shorter_side(data) for data in (b"", b"\xff\xd8", JPEG[:20])] == [0, 0, 0]


class TestPng:
    def test_metadata_is_removed(self) -> None:
        chunks = [
            png_chunk(b"tEXt", b"a\0b"),
            png_chunk(b"gAMA", bytes(4)),
            png_chunk(b"acTL", bytes(8)),
            b"\0\0\0\0zzzz????",
        ]
        assert data_of(with_chunks(PNG, *chunks)) == data_of(PNG)

    @pytest.mark.parametrize(
        ("mode", "content", "is_kept"),
        [
            ("L", b"\0\1", True),
            ("L", b"\0", False),
            ("RGB", bytes(6), True),
            ("RGB", b"", False),
            ("RGBA", bytes(2), False),
        ],
    )
    def test_transparency_of_the_right_size_is_kept(self, mode: str, content: bytes, is_kept: bool) -> None:
        """As libpng, which ignores the chunk otherwise."""
        plain = encode(picture().convert(mode))
        made = with_chunks(plain, png_chunk(b"tRNS", content))
        assert data_of(made) == (made if is_kept else data_of(plain))

    def test_damage_is_left_for_the_decoder(self) -> None:
        at = PNG.index(b"IDAT") + 60
        flipped = PNG[:at] + bytes([PNG[at] ^ 1]) + PNG[at + 1 :]
        assert data_of(flipped) == flipped
        assert data_of(PNG[:at]) == PNG[:at]


class TestGif:
    def test_comments_and_later_frames_are_removed(self) -> None:
        animation = encode(
            picture(), "GIF", save_all=True, append_images=[Image.new("RGB", (96, 64))] * 3, comment=b"x"
        )
        found = data_of(animation)
        assert len(found) < len(animation)
        assert pixels_of(found) == pixels_of(animation)
        assert getattr(opened(found), "n_frames", 0) == 1

    def test_a_cut_frame_stays_cut(self) -> None:
        with pytest.raises(OSError, match=r"truncated|broken"):
            pixels_of(data_of(GIF[: len(GIF) // 2]))


@pytest.mark.parametrize("brand", [b"avif", b"avis", b"mif1", b"msf1", b"miaf", b"MA1A", b"MA1B", b"heic"])
def test_an_avif_may_have_another_major_brand(brand: bytes) -> None:
    """h2non/filetype#163 (miaf), fdintino/pillow-avif-plugin#5 (mif1), sylikc/jpegview#261 (msf1)."""
    data = with_brand(encode(picture(), "AVIF"), brand)
    assert image_type(data) == "AVIF"
    if brand != b"avis":  # it announces tracks, which the file lacks
        assert pixels_of(data_of(data)) == pixels_of(encode(picture(), "AVIF"))


def test_a_heif_without_a_brand_of_avif_is_none() -> None:
    """gpac/ComplianceWarden#19."""
    assert image_type(struct.pack(">I4s4sI4s4s", 24, b"ftyp", b"mif1", 0, b"mif1", b"heic") + bytes(99)) is None


@pytest.mark.parametrize("name", BOMBS)
def test_time_and_memory_are_bounded(name: str) -> None:
    """Nothing is unpacked, and each loop is linear: a few copies of the file, and 5 seconds on a slow machine."""
    data = BOMBS[name]()
    started = time.process_time()
    essential(data)
    assert time.process_time() - started < 5
    tracemalloc.start()
    essential(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * MIB


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": exif_of(6)}])
def test_the_pixels_of_a_webp_are_counted(options: dict[str, object]) -> None:
    parts = essential(encode(picture(), "WEBP", **options))
    assert parts is not None
    assert parts.num_pixels == 96 * 64


def test_directories_are_measured() -> None:
    found = read_directory(directory([(0x010F, 2, 5, 0), (0x0111, 4, 3, 0), (0x0112, 3, 1, 6), (0x8769, 4, 1, 0)]))
    assert (found.orientation, found.value_bytes, found.number_bytes) == (6, 23, 18)
    assert read_directory(found.harmless).orientation == 1
    assert read_directory(shared_values(9, 4 * MIB)).is_too_large
    assert not read_directory(shared_values(7, 4 * MIB)).is_too_large


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        [
            encode(picture(), kind, exif=exif_of(6))
            if kind in {"JPEG", "PNG", "WEBP", "TIFF", "AVIF"}
            else encode(picture(), kind)
            for kind in FORMATS
        ]
    ),
    st.lists(st.tuples(st.integers(0, 600), st.binary(max_size=5)), max_size=4),
    st.integers(0, 3000),
)
def test_any_bytes_have_essential_parts(data: bytes, changes: list[tuple[int, bytes]], length: int) -> None:
    for at, new in changes:
        data = data[:at] + new + data[at + len(new) // 2 :]
    for made in (data, data[:length]):
        parts = essential(made)
        assert (parts is None) == (image_type(made) is None)
        assert parts is None or 1 <= parts.orientation <= 8


@example(b"ftyp", b"II*\0")
@given(
    st.binary(max_size=200),
    st.sampled_from([b"\xff\xd8\xff", PNG[:8], b"GIF89a", b"II*\0", b"MM\0*", b"RIFF1234WEBP", b"\0\0\0\x20ftypavif"]),
)
def test_random_bytes_have_essential_parts(data: bytes, signature: bytes) -> None:
    assert essential(signature + data) is not None


def test_noise_in_the_data_of_a_jpeg_is_no_scan() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), "JPEG", quality=100)
    assert data_of(data)[-30_000:] == data[-30_000:]
