import asyncio
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.demo.web.server import Route
from pipeline.data.crawl import crawler
from pipeline.data.crawl.crawler import Crawler, fetched
from pipeline.data.crawl.fetch import FetchConfig, Fetcher
from pipeline.data.images.image_header import ImageConfig
from pipeline.data.images.resize import ImageProcessor, Picture
from pipeline.reasons import Reason
from pipeline.schemas import FETCHED
from tests.pipeline.data.fetching import A, config
from tests.pipeline.data.raw_server import RawServer
from tests.pipeline.data.rows import candidates, encode, photo_like
from tests.web import Answer, picture, web

JPEG = encode(photo_like(5, 200, 150), "JPEG")


def crawl(settings: FetchConfig, table: pa.Table, **options: Any) -> list[dict[str, Any]]:
    crawler = Crawler(settings, ImageConfig(num_decoders=1), **options)
    done = crawler(table)
    crawler.close()
    crawler.close()  # a second call has no effect
    assert done.schema == FETCHED
    return list(done.to_pylist())


def test_candidates_become_pictures_or_reasons(tmp_path: Path) -> None:
    answers: dict[str, Answer] = {f"{A}/1.jpg": picture(1), f"{A}/2.jpg": b"<html>", f"{A}/3.jpg": Route(status=410)}
    with web(tmp_path, answers) as site:
        table = candidates(
            url=["data:1", f"{A}/1.jpg", f"{A}/2.jpg", f"{A}/3.jpg", f"{A}/4.jpg"],
            image=[JPEG, None, None, None, None],
            reason=[None, None, None, None, Reason.BALANCED_OUT],
            caption=["a", "b", "c", "d", "e"],
        )
        rows = crawl(config(site.address), table)
        assert sorted(site.paths("a.example")) == ["/1.jpg", "/2.jpg", "/3.jpg", "/robots.txt"], "no other requests"
    processor = ImageProcessor(ImageConfig())
    assert [row["jpg"] for row in rows] == [processor(JPEG).jpg, processor(picture(1)).jpg, None, None, None]
    assert [(row["reason"], row["status"], row["error_message"]) for row in rows] == [
        (None, "success", None),
        (None, "success", None),
        (Reason.NOT_AN_IMAGE, "failed_to_resize", "begins with b'<html>'"),
        (Reason.NOT_FOUND, "failed_to_download", "HTTP 410"),
        (Reason.BALANCED_OUT, "failed_to_download", None),
    ]
    assert [row["url"] for row in rows] == table["url"].to_pylist()
    assert [row["key"] for row in rows] == [row["pair_id"] for row in rows] == table["pair_id"].to_pylist()
    assert [row["caption"] for row in rows] == ["a", "b", "c", "d", "e"]


def test_rows_with_a_redirect_url_are_requested_there(tmp_path: Path) -> None:
    answers: dict[str, Answer] = {
        f"{A}/1.jpg": Route(status=301, headers={"Location": "http://b.example/1.jpg"}),
        "http://b.example/1.jpg": picture(1),
    }
    with web(tmp_path, answers) as site:
        table = candidates(url=[f"{A}/1.jpg"], caption=["a"])
        (moved,) = crawl(config(site.address), table, owns_all=False)
        assert (moved["reason"], moved["redirect_url"]) == (Reason.MOVED, "http://b.example/1.jpg")
        again = table.append_column("redirect_url", pa.array([moved["redirect_url"]]))
        (found,) = crawl(config(site.address), again, owns_all=False)
        assert (found["reason"], found["redirect_url"], found["url"]) == (None, None, f"{A}/1.jpg")
        (followed,) = crawl(config(site.address), table)
        assert followed == found


@pytest.mark.parametrize(
    "head",
    [
        b"503 Busy\r\nRetry-After: Mon, 1 Jan 99999999999999999999 00:00:00 GMT",
        b"302 Found\r\nLocation: http://other.test:8080/b\xe4r.jpg",
        b"302 Found\r\nLocation: http://[\xed\xa0\x80\x00",
        b"404 \xff\xfe\x00Not found",
    ],
)
def test_rows_of_hostile_answers_can_be_stored(head: bytes) -> None:
    with RawServer(lambda *_: b"HTTP/1.1 " + head + b"\r\nContent-Length: 0\r\n\r\n") as server:
        settings = config(server.address, attempts=1, max_interval_seconds=0.0)
        (row,) = crawl(settings, candidates(url=[f"{A}/x"], caption=["a"]))
    assert row["reason"] not in {None, Reason.UNFORESEEN}
    assert row["error_message"].isprintable()


def test_an_unforeseen_error_is_a_row_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fetch_one = Fetcher.fetch

    async def fetch(self: Fetcher, url: str) -> bytes:
        if url.endswith("/1.jpg"):
            raise ZeroDivisionError("\ud800 \0")
        return await fetch_one(self, url)

    monkeypatch.setattr(Fetcher, "fetch", fetch)
    urls = [f"{A}/{n}.jpg" for n in range(3)]
    with web(tmp_path, {url: picture(1) for url in urls}) as site:
        rows = crawl(config(site.address), candidates(url=urls, caption=["a"] * 3))
    assert [row["reason"] for row in rows] == [None, Reason.UNFORESEEN, None]
    assert rows[1]["error_message"] == f"ZeroDivisionError: \\ud800 \\x00 ({urls[1]})"
    assert rows[1]["error_message"] in caplog.text
    assert rows[1]["status"] == "failed_to_download"


class SlowDecoders:
    """Replacement for the decoders: takes 10 ms for each image, one at a time, and counts the waiting bytes."""

    waiting = most = 0

    def __init__(self, _config: ImageConfig, *, with_phash: bool) -> None:
        assert not with_phash
        self._turn = asyncio.Semaphore(1)

    async def start(self) -> None:
        """Do nothing."""

    async def __call__(self, data: bytes) -> Picture:
        SlowDecoders.waiting += len(data)
        SlowDecoders.most = max(SlowDecoders.most, SlowDecoders.waiting)
        async with self._turn:
            await asyncio.sleep(0.01)
        SlowDecoders.waiting -= len(data)
        return Picture(jpg=data)

    async def close(self) -> None:
        """Do nothing."""


def test_fetching_does_not_outrun_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request starts while too many originals wait, so only a few of 40 images are in memory at once."""
    monkeypatch.setattr(crawler, "Decoders", SlowDecoders)
    body = bytes(10_000)
    urls = [f"http://host-{i}.example/x.jpg" for i in range(40)]
    with web(tmp_path, dict.fromkeys(urls, body)) as site:
        settings = config(site.address, max_waiting_bytes=50_000, max_in_flight=3)
        rows = crawl(settings, candidates(url=urls, caption=["a"] * 40))
    assert [row["reason"] for row in rows] == [None] * 40
    assert 20_000 <= SlowDecoders.most <= 50_000 + 3 * len(body)


def test_pieces_are_yielded_before_the_whole_table_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crawler, "PIECE_ROWS", 2)
    answers: dict[str, Answer] = {f"http://host-{i}.example/x.jpg": picture(i) for i in range(4)}
    late = "http://host-4.example/x.jpg"
    answers[late] = (picture(4), Route(delay_seconds=1.5))
    with web(tmp_path, answers) as site:
        table = candidates(url=[*answers], caption=list("abcde"))
        single = Crawler(config(site.address), ImageConfig(num_decoders=1))
        pieces = single.pieces(table)
        first = [next(pieces), next(pieces)]
        first_done = time.monotonic()
        done = [*first, *pieces]
        single.close()
        (answered,) = [entry.answered for entry in site.log if (entry.host, entry.path) == ("host-4.example", "/x.jpg")]
    assert [piece.num_rows for piece in done] == [2, 2, 1]
    assert first_done < answered
    assert pa.concat_tables(done)["url"].to_pylist() == [*answers]
    assert pa.concat_tables(done)["status"].to_pylist() == ["success"] * 5


def test_no_rows() -> None:
    assert crawl(FetchConfig(), candidates(url=[], caption=[])) == []
    assert fetched(candidates(url=[], caption=[]), [], []) == FETCHED.empty_table()
