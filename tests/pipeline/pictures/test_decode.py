import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from pipeline.pictures.decode import NO_WARNINGS, decode, on_white, open_picture, upright
from pipeline.pictures.essential import FORMATS
from tests.pipeline.data.hostile_images import many_scans, png, small_png
from tests.pipeline.data.rows import encode, opened, png_header
from tests.pipeline.pictures.files import (
    ALPHA_MODES,
    JPEG,
    MIB,
    PNG,
    SHOWN,
    early_end_of_gif,
    exif_of,
    gif_with_offset_frame,
    picture,
    segment,
    shared_values,
    sixteen_bits,
    with_alpha,
    with_more_rows,
    with_segment,
    with_size,
)


def as_array(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_pictures_are_upright(kind: str, orientation: int) -> None:
    """Compare with Pillow's own transposition, and our turns of pixels with those of pictures."""
    for options in ({}, {"compression": "tiff_lzw"}) if kind == "TIFF" else ({},):
        data = encode(picture(), kind, exif=exif_of(orientation), **options)
        expected = as_array(ImageOps.exif_transpose(opened(data)))
        assert np.array_equal(as_array(decode(data)), expected)
        lying = as_array(open_picture(data).finished(upright=False))
        assert lying.shape == (64, 96, 3)
        assert np.array_equal(upright(lying, orientation), expected)
        assert np.array_equal(upright(lying[..., 0], orientation), expected[..., 0])


def test_the_orientation_of_xmp_data_is_ignored_as_in_browsers() -> None:
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    assert decode(with_segment(JPEG, segment(0xE1, xmp))).size == (96, 64)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ALPHA_MODES)
def test_transparent_pixels_are_white_whatever_the_orientation(mode: str, orientation: int) -> None:
    data = with_alpha(mode, orientation)
    found = as_array(decode(data))
    orientation = 1 if mode.endswith("GIF") else orientation
    expected = np.full((24, 40, 3), 255, np.uint8)
    expected[:, 20:] = found[np.unravel_index(found.max(2).argmin(), found.shape[:2])]
    assert expected[0, -1].max() < 120, "the opaque half is dark"
    assert np.abs(found.astype(int) - upright(expected, orientation)).max() <= (2 if mode.endswith("AVIF") else 0)


def test_blending_equals_that_of_img2dataset() -> None:
    """Its formula (resizer.py, "alpha matting with white background") for every colour with every alpha."""
    colours, alphas = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    pixels = np.stack([colours, 255 - colours, colours, alphas], -1)
    alpha = pixels[..., 3:].astype(float)
    expected = np.rint((alpha / 255 * pixels[..., :3] + 255 - alpha).clip(0, 255)).astype(np.uint8)
    assert np.array_equal(np.asarray(on_white(Image.fromarray(pixels))), expected)


def test_an_alpha_channel_that_was_never_written_is_ignored() -> None:
    """As browsers do for BMPs of 32 bits; other types with an alpha of zero are transparent."""
    masks = struct.pack("<IIII", 0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 2, 2, 1, 32, 3, 16, 0, 0, 0, 0) + masks + bytes(52)
    for alphas, expected in ((b"\0\0\0\0", (1, 2, 3)), (b"\0\0\0\xff", (255, 255, 255))):
        pixels = b"".join(b"\3\2\1" + alphas[i : i + 1] for i in range(4))
        data = b"BM" + struct.pack("<IHHI", 14 + 108 + 16, 0, 0, 122) + header + pixels
        assert decode(data).convert("RGB").getpixel((0, 1)) == expected


def test_what_a_gifs_first_frame_does_not_cover_is_white() -> None:
    found = as_array(decode(gif_with_offset_frame()))
    assert found[:8].min() == found[:, 24:].min() == 255
    assert found[8:24, 8:24].max() == 0


@pytest.mark.parametrize("big_endian", [False, True])
def test_sixteen_bits_are_reduced_to_the_upper_eight(big_endian: bool) -> None:
    """python-pillow/Pillow#3011, #2574, #5991: Pillow's own conversion clips at 255, so that the picture is white."""
    grey = np.arange(40 * 30, dtype=np.uint16).reshape(30, 40) * 50
    tiff = encode(Image.fromarray(grey), "TIFF")
    if big_endian:
        tiff = encode(Image.frombytes("I;16B", (40, 30), grey.astype(">u2").tobytes()), "TIFF")
    for data in (encode(Image.fromarray(grey)), tiff, sixteen_bits(0, grey[..., None])):
        assert open_picture(data).bits_per_channel == 16
        assert open_picture(data).is_reducible
        assert np.array_equal(np.asarray(decode(data)), grey >> 8)
    colours = np.stack([grey, grey[::-1], grey[:, ::-1]], -1)
    assert np.array_equal(np.asarray(decode(sixteen_bits(2, colours))), colours >> 8)
    ok, encoded = cv2.imencode(".tiff", colours)
    assert ok
    assert np.array_equal(np.asarray(decode(encoded.tobytes())), colours[..., ::-1] >> 8)


def test_other_depths_are_not_reducible() -> None:
    for mode in ("I", "F"):
        assert not open_picture(encode(picture().convert(mode), "TIFF")).is_reducible
    tiff = encode(Image.fromarray(np.zeros((8, 8), np.uint16)), "TIFF")
    at = tiff.index(struct.pack("<HHI", 262, 3, 1)) + 8
    inverted = tiff[:at] + b"\0" + tiff[at + 1 :]
    assert not open_picture(inverted).is_reducible


@pytest.mark.parametrize("report", SHOWN)
def test_what_browsers_and_opencv_show_is_decoded(report: str) -> None:
    """Each is the plain picture to the last bit, and so it is for OpenCV."""
    data = SHOWN[report]()
    plain = JPEG if data.startswith(b"\xff\xd8") else PNG
    assert np.array_equal(as_array(decode(data)), as_array(decode(plain)))
    by_opencv = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))
    assert np.array_equal(by_opencv, as_array(decode(plain)))


@pytest.mark.parametrize("kind", FORMATS)
def test_the_pixels_are_those_of_opencv(kind: str) -> None:
    """img2dataset decodes with OpenCV."""
    data = encode(picture(), kind)
    by_opencv = np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))
    assert np.array_equal(as_array(decode(data)), by_opencv)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"not an image in a known format \(JPEG, PNG, GIF, WEBP, BMP, TIFF, AVIF\)"),
        (b"%!PS-Adobe-3.0", "not an image in a known format"),
        (b"\xff\xd8\xff", "the header cannot be read"),
        (JPEG[: len(JPEG) // 2], "truncated"),
        (PNG[:200], "truncated"),
        (png_header(10_000, 8_901), "10000 x 8901 pixels are more than 89,000,000"),
        (png_header(20_000, 20_000), "exceeds limit"),
        *(
            (b"RIFF" + struct.pack("<I", 22) + b"WEBP" + header + bytes(9), r"pixels are more than 178,000,000")
            for header in (
                b"VP8X\x0a\0\0\0" + bytes(4) + b"\xff\xff\0\xff\xff\0",
                b"VP8L\x0a\0\0\0\x2f\xff\xff\xff\xff\0",
                b"VP8 \x0a\0\0\0\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f",
            )
        ),
        (shared_values(60_000, MIB), "its tags are too large"),
        (png(64, 64, zlib.compress(bytes(32 * 193))), "its compressed data is truncated"),
        (early_end_of_gif(), "."),
        (many_scans(64, 101), "more than 100 scans"),
        *((with_more_rows(encode(picture(), "TIFF", **options)), ".") for options in ({}, {"compression": "tiff_lzw"})),
        (with_size(many_scans(64, 30), 9_000, 9_000), "scans of 9000 x 9000 pixels take too long"),
    ],
)
def test_other_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(data)


def test_warnings_are_ignored_in_every_thread_and_only_there() -> None:
    """The first thread to enter is not the last one to leave."""
    before, both_inside, first_left = list(warnings.filters), threading.Barrier(2), threading.Event()

    def warn(is_first: bool) -> None:
        with NO_WARNINGS:
            both_inside.wait()
            if not is_first:
                first_left.wait()
            warnings.warn("of a decoder", stacklevel=1)
        first_left.set()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(warn, (True, False)))
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning, match="of this test"):
        warnings.warn("of this test", stacklevel=1)


def test_a_draft_is_smaller() -> None:
    large = encode(picture(960, 640), "JPEG")
    assert decode(large, draft_px=100).size == (240, 160)
    assert decode(small_png(), draft_px=8).size == (64, 64)


def test_a_process_that_accepts_truncated_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(AssertionError, match="must be False"):
        decode(PNG)


SEEDS = [
    encode(picture(48, 32).convert(mode), kind, **({"exif": exif_of(6)} if kind not in {"GIF", "BMP"} else {}))
    for mode, kind in [
        *product(("RGB", "L"), FORMATS),
        ("RGBA", "PNG"),
        ("P", "PNG"),
        ("RGBA", "AVIF"),
        ("CMYK", "TIFF"),
    ]
]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6), st.integers(0, 6)), max_size=5),
    st.booleans(),
)
def test_any_damage_gives_a_picture_or_a_value_error(
    data: bytes, changes: list[tuple[float, bytes, int]], in_header: bool
) -> None:
    for place, new, num_replaced in changes:
        at = int(place * min(len(data), 200 if in_header else len(data)))
        data = data[:at] + new + data[at + num_replaced :]
    try:
        image = decode(data)
    except ValueError:
        return
    assert as_array(image).shape == (image.height, image.width, 3)
