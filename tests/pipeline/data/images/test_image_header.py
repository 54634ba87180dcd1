import time
import tracemalloc

import pytest

from pipeline.data.images.image_header import Header, ImageConfig, image_type, inspect
from pipeline.reasons import Reason
from tests.pipeline.data.rows import encode, photo_like, png_header
from tests.pipeline.pictures.files import BOMBS


def test_limits_come_from_the_configuration() -> None:
    picture = encode(photo_like(0, 100, 20))
    assert inspect(picture, ImageConfig()) == (Reason.TOO_SMALL, "100x20")
    assert inspect(picture, ImageConfig(min_side=20)) == Header("PNG", 100, 20, "RGB", "{}", 1)
    assert inspect(picture, ImageConfig(min_side=20, max_aspect_ratio=4.9)) == (Reason.TOO_ELONGATED, "100x20")
    assert inspect(picture, ImageConfig(min_side=20, max_pixels=1999)) == (Reason.TOO_MANY_PIXELS, "100x20")
    assert isinstance(inspect(picture, ImageConfig(min_side=20, max_pixels=2000)), Header)


def test_a_bomb_is_not_decoded() -> None:
    """It is refused by its header: decoding 150 million pixels would take seconds and 500 MB."""
    assert inspect(png_header(15_000, 10_000), ImageConfig()) == (Reason.TOO_MANY_PIXELS, "15000x10000")


@pytest.mark.parametrize("name", BOMBS)
def test_metadata_takes_little_time_and_memory(name: str) -> None:
    """Python's memory holds what decoders read of metadata: at most 64 MiB and four copies of the file."""
    data = BOMBS[name]()
    started = time.process_time()
    inspect(data, ImageConfig())
    assert time.process_time() - started < 5
    tracemalloc.start()
    inspect(data, ImageConfig())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20 + 4 * len(data)


def test_the_type_is_detected_by_content() -> None:
    assert image_type(b"BM" + bytes(20)) == "BMP"
    assert image_type(b"RIFF\x10\0\0\0WEBPVP8 ") == "WEBP"
    assert image_type(b"\0\0\0\x1cftypavis") == "AVIF"
    assert [image_type(data) for data in (b"", b"B", b"RIFF", b"GIF88a", b" \xff\xd8\xff")] == [None] * 5
