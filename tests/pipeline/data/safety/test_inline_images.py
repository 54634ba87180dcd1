from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.data.crawl.crawler import Crawler, fetched
from pipeline.data.crawl.fetch import FetchConfig
from pipeline.data.images.image_header import ImageConfig, perceptual_hash
from pipeline.data.images.resize import ImageProcessor, Picture
from pipeline.data.safety.block_lists import read_block_lists
from pipeline.data.safety.inline_images import InlineImages, Transform
from pipeline.data.safety.screening import SafetyConfig
from pipeline.reasons import Reason
from pipeline.schemas import CANDIDATES
from tests.pipeline.data.archives import open_file
from tests.pipeline.data.rows import candidates, encode, photo_like

BLOCKED, UNSAFE, BROKEN = b"blocked", b"unsafe", b"broken"


class Recorder:
    """Stands in for the crawler and the screen; the bytes of a row's image determine its reason."""

    def __init__(self) -> None:
        self.crawled: list[bytes] = []
        self.screened: list[str | None] = []

    def crawl(self, table: pa.Table) -> pa.Table:
        images = table["image"].to_pylist()
        self.crawled += images
        reasons = {BLOCKED: Reason.BLOCKED_PICTURE, BROKEN: Reason.CORRUPT_IMAGE}
        return fetched(table, [Picture(jpg=b"x", reason=reasons.get(image)) for image in images], [None] * len(images))

    def screen(self, table: pa.Table) -> pa.Table:
        self.screened += table["reason"].to_pylist()
        unsafe = pa.array([image == UNSAFE for image in self.crawled])
        reasons = [
            Reason.UNSAFE if is_unsafe else reason
            for is_unsafe, reason in zip(unsafe.to_pylist(), table["reason"].to_pylist(), strict=True)
        ]
        return table.set_column(table.schema.get_field_index("reason"), "reason", pa.array(reasons, pa.string()))


def must_not_be_called(_: pa.Table) -> pa.Table:
    raise AssertionError("called without images")


def test_blocked_and_unsafe_images_are_removed_with_a_reason() -> None:
    recorder = Recorder()
    table = candidates(
        url=[f"http://a.example/{n}" for n in range(7)],
        caption=[f"caption {n}" for n in range(7)],
        image=[b"good", BLOCKED, None, UNSAFE, b"out", BROKEN, None],
        reason=[None, None, None, None, Reason.NO_QUERY, None, Reason.CAPTION_SHORT],
    )
    done = InlineImages(recorder.crawl, recorder.screen)(table)
    assert recorder.crawled == [b"good", BLOCKED, UNSAFE, BROKEN], "only images of rows that are not dropped"
    assert recorder.screened == [None, Reason.BLOCKED_PICTURE, None, Reason.CORRUPT_IMAGE]
    assert done.schema == CANDIDATES
    assert done["reason"].to_pylist() == [
        None,
        Reason.BLOCKED_PICTURE,
        None,
        Reason.UNSAFE,
        Reason.NO_QUERY,
        None,  # the crawl reports corrupt images later
        Reason.CAPTION_SHORT,
    ]
    assert done["image"].to_pylist() == [b"good", None, None, None, None, BROKEN, None]
    unchanged = [name for name in CANDIDATES.names if name not in {"image", "reason"}]
    assert done.select(unchanged) == table.select(unchanged)


@pytest.mark.parametrize("images", [[None, b"out"], []])
def test_nothing_is_called_without_images_to_screen(images: list[bytes | None]) -> None:
    reasons = [Reason.NO_QUERY if image else None for image in images]
    table = candidates(url=["http://a.example/"] * len(images), image=images, reason=reasons)
    unused: Transform = must_not_be_called
    done = InlineImages(unused, unused)(table)
    assert done["reason"].to_pylist() == reasons
    assert done["image"].to_pylist() == [None] * len(images)


def test_listed_pictures_are_found_by_the_crawler(tmp_path: Path) -> None:
    images = [encode(photo_like(seed), "JPEG") for seed in range(3)]
    jpg = ImageProcessor(ImageConfig())(images[1]).jpg
    assert jpg is not None
    (tmp_path / "pictures.txt").write_text(f"{int(perceptual_hash([jpg])[0]) ^ 0b11:016x}")
    lists = read_block_lists(SafetyConfig(block_phash=[str(tmp_path / "pictures.txt")]), open_file)
    crawler = Crawler(FetchConfig(), ImageConfig(num_decoders=1), lists)
    done = InlineImages(crawler, lambda table: table)(candidates(url=["data:"] * 3, image=images))
    crawler.close()
    assert done["reason"].to_pylist() == [None, Reason.BLOCKED_PICTURE, None]
    assert done["image"].to_pylist() == [images[0], None, images[2]]
