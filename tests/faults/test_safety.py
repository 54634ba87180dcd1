"""What a block list names, or a classifier judges unsafe, gets onto no disk and into no log."""

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

pytestmark = pytest.mark.cluster

SIZE_PX = 64
GOOD, FILE, PICTURE, ADDRESS, PAGE, REDIRECT, UNSAFE = (picture(seed, 96) for seed in range(7))
HELD_GOOD, HELD_FILE, HELD_PICTURE, HELD_UNSAFE, DATA_FILE, DATA_PICTURE = (picture(seed, 96) for seed in range(7, 13))
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
    "held good": (HELD_GOOD, None),
    "held file": (HELD_FILE, Reason.BLOCKED_FILE),
    "held picture": (HELD_PICTURE, Reason.BLOCKED_PICTURE),
    "held unsafe": (HELD_UNSAFE, Reason.UNSAFE),
    "data file": (DATA_FILE, Reason.BLOCKED_FILE),
    "data picture": (DATA_PICTURE, Reason.BLOCKED_PICTURE),
}
"""Each image, and why it must not get in."""


class Knows:
    """A classifier that knows its unsafe images by heart."""

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
    """A perceptual hash two bits off that of an image."""
    (found,) = perceptual_hash([resized(data)])
    return f"{int(found) ^ 0b1001:016x}"


def page(*names: str, **addresses: str) -> bytes:
    places = {name: f"http://cdn.example/{name}.jpg" for name in names} | addresses
    images = (f'<img src="{url}" alt="{caption(list(ROWS).index(name))}">' for name, url in places.items())
    return f"<p>{'lorem ipsum ' * 20}</p>{''.join(images)}".encode()


def data_url(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


class Found(NamedTuple):
    """What a crawl has left behind."""

    reasons: dict[str, str | None]
    files: dict[Path, bytes]
    """Of the run, and of Ray's logs."""
    printed: str
    entries: list[str]
    """Of the lists."""
    asked: list[str]


@pytest.fixture(scope="module")
def found(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> Found:  # noqa: ARG001
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
    held = [name for name in ROWS if name.startswith("held")]
    images, captions = [ROWS[name][0] for name in held], [caption(list(ROWS).index(name)) for name in held]
    pq.write_table(pa.table({"image": images, "caption": captions}), folder / "input" / "held.parquet")
    lists = {
        "sha256": [sha256(image) for image in (FILE, HELD_FILE, DATA_FILE)],
        "phash": [near(image) for image in (PICTURE, HELD_PICTURE, DATA_PICTURE)],
        "urls": [ADDRESS_URL, REDIRECTED_URL],
        "domains": ["blocked.example"],
    }
    for kind, entries in lists.items():
        (folder / f"{kind}.txt").write_text("\n".join(entries))
    answers: dict[str, Answer] = {f"http://cdn.example/{name}.jpg": image for name, (image, _) in ROWS.items()}
    answers["http://cdn.example/redirect.jpg"] = Route(status=302, headers={"Location": REDIRECTED_URL})
    unsafe = [sha256(resized(image)) for image in (UNSAFE, HELD_UNSAFE)]
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
                f"--safety.classifier={__name__}:Knows",
                f"--safety.classifier_options={json.dumps({'unsafe': unsafe})}",
            ],
        )
        asked = [f"http://{entry.host}{entry.path}" for entry in site.log]
    logging.getLogger().removeHandler(handler)
    numbers = {caption(number): name for number, name in enumerate(ROWS)}
    tables = [*(folder / "run" / "candidates").glob("*.parquet"), *(folder / "run" / "fetched").glob("*.parquet")]
    rows = [row for file in tables for row in pq.read_table(file).to_pylist()]
    files = [file for file in (folder / "run").rglob("*") if file.is_file()]
    logs = [file for file in session_logs().rglob("*") if file.is_file()]
    return Found(
        {numbers[row["caption"]]: row["reason"] for row in rows},
        {file: file.read_bytes() for file in [*files, *logs]},
        printed.getvalue(),
        [entry for entries in lists.values() for entry in entries],
        asked,
    )


def session_logs() -> Path:
    folder: Any = ray._private.worker._global_node.get_logs_dir_path()  # type: ignore[attr-defined]
    return Path(folder)


def test_each_has_its_reason(found: Found) -> None:
    assert found.reasons == {name: reason for name, (_, reason) in ROWS.items()}


def test_what_a_list_names_is_not_asked_for(found: Found) -> None:
    assert not {ADDRESS_URL, REDIRECTED_URL, "http://cdn.example/page.jpg"} & set(found.asked)
    assert "http://cdn.example/good.jpg" in found.asked


def test_no_file_has_their_bytes(found: Found) -> None:
    """A plain search finds what is there: images are stored as they are."""

    def holders(data: bytes) -> list[str]:
        inner = data[len(data) // 4 : -len(data) // 4]
        return [str(file) for file, content in found.files.items() if inner in content]

    assert holders(resized(GOOD))
    assert holders(HELD_GOOD)
    assert holders(resized(HELD_GOOD))
    for name, (image, reason) in ROWS.items():
        if reason is not None:
            assert holders(image) == [], name
            assert holders(resized(image)) == [], name


def test_no_row_has_their_pixels(found: Found) -> None:
    for file in found.files:
        if file.suffix == ".parquet":
            for row in pq.read_table(file).to_pylist():
                if row.get("reason"):
                    assert not any(isinstance(value, bytes) for value in row.values()), file
                    assert not row.get("exif"), file


def test_no_log_and_no_manifest_has_an_entry(found: Found) -> None:
    texts = {str(file): content for file, content in found.files.items() if file.suffix != ".parquet"}
    texts["log"] = found.printed.encode()
    assert any(b"fetched" in content for name, content in texts.items() if name.endswith("events.jsonl"))
    assert "fetched: 2 rows kept" in found.printed
    for entry in found.entries:
        assert [name for name, content in texts.items() if entry.encode() in content] == [], entry


def test_they_are_pictures_of_their_own() -> None:
    """Otherwise a list would have named more of them than it should."""
    hashes = perceptual_hash([resized(image) for image, _ in ROWS.values()])
    assert len({int(value) for value in hashes}) == len(ROWS)
