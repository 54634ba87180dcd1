"""Images that a block list names or a classifier judges unsafe are written to no file and no log."""

import base64
import hashlib
import json
import logging
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from jobs import crawl
from jobs.crawl import CrawlJob
from jobs.demo.web.server import Route
from jobs.options.launch import launch
from pipeline.data.images.image_header import ImageConfig, perceptual_hash
from pipeline.data.images.resize import ImageProcessor
from pipeline.reasons import Reason
from tests.crawls import caption, write_queries
from tests.pipeline.data.archives import HTML, Archive
from tests.web import Answer, picture, web

pytestmark = [pytest.mark.faults, pytest.mark.cluster]

SIZE_PX = 64
GOOD, FILE, PICTURE, ADDRESS, PAGE, REDIRECT, UNSAFE = (picture(seed, 96) for seed in range(7))
TABLE_GOOD, TABLE_FILE, TABLE_PICTURE, TABLE_UNSAFE = (picture(seed, 96) for seed in range(7, 11))
DATA_FILE, DATA_PICTURE = (picture(seed, 96) for seed in range(11, 13))
REDIRECTED_URL = "http://cdn.example/blocked-behind-a-redirect.jpg"
ADDRESS_URL = "http://cdn.example/blocked-address.jpg"
ROWS: dict[str, tuple[bytes, Reason | None]] = {
    "good": (GOOD, None),
    "file": (FILE, Reason.BLOCKED_FILE),
    "picture": (PICTURE, Reason.BLOCKED_PICTURE),
    "address": (ADDRESS, Reason.BLOCKED_URL),
    "page": (PAGE, Reason.BLOCKED_DOMAIN),
    "redirect": (REDIRECT, Reason.BLOCKED_URL),
    "unsafe": (UNSAFE, Reason.UNSAFE),
    "table good": (TABLE_GOOD, None),
    "table file": (TABLE_FILE, Reason.BLOCKED_FILE),
    "table picture": (TABLE_PICTURE, Reason.BLOCKED_PICTURE),
    "table unsafe": (TABLE_UNSAFE, Reason.UNSAFE),
    "data file": (DATA_FILE, Reason.BLOCKED_FILE),
    "data picture": (DATA_PICTURE, Reason.BLOCKED_PICTURE),
}
"""Each image by name, and the reason to drop it; None if it is kept. Names starting with "table" are images in a table,
"data" are images in data: URLs, and all others are fetched."""


class HashClassifier:
    """A classifier that recognises unsafe images by their SHA-256."""

    def __init__(self, unsafe: Sequence[str]) -> None:
        self.unsafe = set(unsafe)

    def __call__(self, images: Sequence[bytes]) -> list[float]:
        return [float(hashlib.sha256(image).hexdigest() in self.unsafe) for image in images]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def resized(data: bytes) -> bytes:
    jpg = ImageProcessor(ImageConfig(image_size=SIZE_PX))(data).jpg
    assert jpg is not None
    return jpg


def near(data: bytes) -> str:
    """A perceptual hash that differs from the hash of an image in two bits."""
    (phash,) = perceptual_hash([resized(data)])
    return f"{int(phash) ^ 0b1001:016x}"


def page(*names: str, **other_urls: str) -> bytes:
    urls = {name: f"http://cdn.example/{name}.jpg" for name in names} | other_urls
    images = (f'<img src="{url}" alt="{caption(list(ROWS).index(name))}">' for name, url in urls.items())
    return f"<p>{'lorem ipsum ' * 20}</p>{''.join(images)}".encode()


def data_url(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


class Result(NamedTuple):
    """The output, the logs and the requests of the crawl."""

    reasons: dict[str, str | None]
    files: dict[Path, bytes]
    """Content of the files of the run and of Ray's logs."""
    printed: str
    entries: list[str]
    """Entries of the block lists."""
    requested_urls: list[str]


@pytest.fixture(scope="module")
def result(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Result:  # noqa: ARG001
    folder = tmp_path_factory.mktemp("safety")
    archive = Archive()
    archive.add(
        page("good", "file", "picture", "redirect", "unsafe", address=ADDRESS_URL)
        + page(**{"data file": data_url(DATA_FILE), "data picture": data_url(DATA_PICTURE)}),
        "http://site.example/",
        headers=HTML,
    )
    archive.add(page("page"), "http://www.blocked.example/")
    (folder / "input").mkdir()
    (folder / "input" / "pages.warc.gz").write_bytes(archive.data)
    in_table = [name for name in ROWS if name.startswith("table")]
    images, captions = [ROWS[name][0] for name in in_table], [caption(list(ROWS).index(name)) for name in in_table]
    pq.write_table(pa.table({"image": images, "caption": captions}), folder / "input" / "table.parquet")
    lists = {
        "sha256": [sha256(image) for image in (FILE, TABLE_FILE, DATA_FILE)],
        "phash": [near(image) for image in (PICTURE, TABLE_PICTURE, DATA_PICTURE)],
        "urls": [ADDRESS_URL, REDIRECTED_URL],
        "domains": ["blocked.example"],
    }
    for kind, entries in lists.items():
        (folder / f"{kind}.txt").write_text("\n".join(entries))
    answers: dict[str, Answer] = {f"http://cdn.example/{name}.jpg": image for name, (image, _) in ROWS.items()}
    answers["http://cdn.example/redirect.jpg"] = Route(status=302, headers={"Location": REDIRECTED_URL})
    unsafe = [sha256(resized(image)) for image in (UNSAFE, TABLE_UNSAFE)]
    printed = StringIO()
    handler = logging.StreamHandler(printed)
    logging.getLogger().addHandler(handler)
    with web(folder / "web", answers | {ADDRESS_URL: ADDRESS, REDIRECTED_URL: REDIRECT}) as site:
        launch(
            CrawlJob,
            crawl.main,
            [
                f"--input={folder / 'input'}",
                f"--queries={write_queries(folder)}",
                f"--output={folder / 'run'}",
                "--num_buckets=1",
                f"--image.image_size={SIZE_PX}",
                f"--fetch.connect_to={json.dumps(site.connect_to)}",
                "--fetch.min_interval_seconds=0",
                *(f"--safety.block_{kind}={json.dumps([f'{folder / kind}.txt'])}" for kind in lists),
                f"--safety.classifier={__name__}:HashClassifier",
                f"--safety.classifier_options={json.dumps({'unsafe': unsafe})}",
            ],
        )
        requested_urls = [f"http://{entry.host}{entry.path}" for entry in site.log]
    logging.getLogger().removeHandler(handler)
    numbers = {caption(number): name for number, name in enumerate(ROWS)}
    tables = [*(folder / "run" / "candidates").glob("*.parquet"), *(folder / "run" / "fetched").glob("*.parquet")]
    rows = [row for file in tables for row in pq.read_table(file).to_pylist()]
    files = [file for file in (folder / "run").rglob("*") if file.is_file()]
    logs = [file for file in session_logs().rglob("*") if file.is_file()]
    return Result(
        {numbers[row["caption"]]: row["reason"] for row in rows},
        {file: file.read_bytes() for file in [*files, *logs]},
        printed.getvalue(),
        [entry for entries in lists.values() for entry in entries],
        requested_urls,
    )


def session_logs() -> Path:
    folder: Any = ray._private.worker._global_node.get_logs_dir_path()  # type: ignore[attr-defined]
    return Path(folder)


def test_each_image_has_its_reason(result: Result) -> None:
    assert result.reasons == {name: reason for name, (_, reason) in ROWS.items()}


def test_blocked_urls_are_not_requested(result: Result) -> None:
    assert not {ADDRESS_URL, REDIRECTED_URL, "http://cdn.example/page.jpg"} & set(result.requested_urls)
    assert "http://cdn.example/good.jpg" in result.requested_urls


def test_no_file_has_bytes_of_a_dropped_image(result: Result) -> None:
    """A plain byte search finds images, because they are stored uncompressed."""

    def holders(data: bytes) -> list[str]:
        inner = data[len(data) // 4 : -len(data) // 4]
        return [str(file) for file, content in result.files.items() if inner in content]

    assert holders(resized(GOOD))
    assert holders(TABLE_GOOD)
    assert holders(resized(TABLE_GOOD))
    for name, (image, reason) in ROWS.items():
        if reason is not None:
            assert holders(image) == [], name
            assert holders(resized(image)) == [], name


def test_no_dropped_row_has_image_bytes_or_exif(result: Result) -> None:
    for file in result.files:
        if file.suffix == ".parquet":
            for row in pq.read_table(file).to_pylist():
                if row.get("reason"):
                    assert not any(isinstance(value, bytes) for value in row.values()), file
                    assert not row.get("exif"), file


def test_no_log_and_no_manifest_has_a_block_list_entry(result: Result) -> None:
    texts = {str(file): content for file, content in result.files.items() if file.suffix != ".parquet"}
    texts["log"] = result.printed.encode()
    assert any(b"fetched" in content for name, content in texts.items() if name.endswith("events.jsonl"))
    assert "fetched: 2 rows kept" in result.printed
    for entry in result.entries:
        assert [name for name, content in texts.items() if entry.encode() in content] == [], entry


def test_all_images_have_different_hashes() -> None:
    """Equal hashes would make a block list match other images too."""
    hashes = perceptual_hash([resized(image) for image, _ in ROWS.values()])
    assert len({int(value) for value in hashes}) == len(ROWS)
