import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.sources.extract import ExtractConfig, candidates_of, check_archive, read_archive
from pipeline.data.sources.wat import read_page
from pipeline.reasons import Reason
from pipeline.schemas import CANDIDATES
from tests.perf.crawl.wat_records import HtmlPage, envelope, html_metadata, record, records
from tests.pipeline.data.archives import Archive, offsets_by_warcio, open_file

URL = "http://a.example/blog/post.html"
HTML = """<base href="/img/"><meta property="og:image" content="og.jpg"><meta property="og:image" content="second.jpg">
<meta property="og:image:alt" content="A ship at sea"><a href="/" title="no image">home</a>
<img src="star.jpg" alt=" A red\n star " title="Star of the week"><img src="bare.jpg"><img src="blank.jpg" alt=" ">
<img alt="no address"><img src="//cdn.example/x?a=1&amp;b=2" title='He said "hi" \\ }{'>"""


def response(html: str | None = HTML, status: str = "200", url: str = URL, **message: Any) -> dict[str, Any]:
    metadata = {} if html is None else {"HTML-Metadata": html_metadata(html)}
    http = {"Response-Message": {"Version": "HTTP/1.1", "Status": status, **message}, **metadata}
    return envelope(url, "response", {"HTTP-Response-Metadata": http})


def read(*contents: dict[str, Any], config: ExtractConfig | None = None) -> list[dict[str, Any]]:
    data = b"".join(gzip.compress(record(URL, content)) for content in contents)
    found = candidates_of(data, config, "crawl-data/CC-MAIN-2024-22/x.warc.wat.gz")
    assert found.schema == CANDIDATES
    return list(found.to_pylist())


def test_every_text_of_an_image_is_a_candidate() -> None:
    rows = read(response())
    assert [(row["url"], row["caption_source"], row["caption"]) for row in rows] == [
        ("http://a.example/img/star.jpg", "alt", "A red star"),
        ("http://a.example/img/star.jpg", "title", "Star of the week"),
        ("http://cdn.example/x?a=1&b=2", "title", 'He said "hi" \\ }{'),
        ("http://a.example/img/og.jpg", "og:image:alt", "A ship at sea"),
    ]
    assert {row["page_url"] for row in rows} == {URL}
    assert {row["page_date"].isoformat() for row in rows} == {"2024-05-18T01:58:10+00:00"}, (
        "the date of the page, not of the WAT record"
    )
    assert {row["crawl_id"] for row in rows} == {"CC-MAIN-2024-22"}
    assert {row["record_offset"] for row in rows} == {0}


def test_the_rows_equal_those_of_the_page() -> None:
    archive = Archive()
    archive.add(HTML.encode(), url=URL)
    columns = ["pair_id", "url", "caption", "caption_source", "page_url", "reason"]
    of_page = candidates_of(archive.data).select(columns).to_pylist()
    assert [{name: row[name] for name in columns} for row in read(response())] == of_page


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (envelope(URL, "request", {"HTTP-Request-Metadata": {}}), Reason.NOT_A_RESPONSE),
        (envelope(URL, "warcinfo", {}), Reason.NOT_A_RESPONSE),
        (envelope(URL, "revisit", {"HTTP-Response-Metadata": {"Response-Message": {"Status": "200"}}}), Reason.REVISIT),
        (envelope(URL, "response", {"DNS-Metadata": {}}), Reason.NOT_HTML),
        (response(None), Reason.NOT_HTML),
        (response(None, "301"), Reason.HTTP_REDIRECT),
        (response(HTML, "404"), Reason.HTTP_ERROR_PAGE),
        (response(HTML, "503"), Reason.HTTP_ERROR_PAGE),
        (response(""), Reason.NO_IMAGE),
        (response("<img src=x><a href=y>"), Reason.NO_IMAGE),
        ({"Container": {}}, Reason.NOT_A_RESPONSE),
        ({"Envelope": {"Payload-Metadata": {"HTTP-Response-Metadata": 5}}}, Reason.BROKEN_RECORD),
    ],
)
def test_a_record_without_candidates_gives_a_row_with_a_reason(content: dict[str, Any], reason: Reason) -> None:
    rows = read(content, response("<img src=x alt='a star'>"))
    assert [row["reason"] for row in rows] == [reason, None], "the next record is unaffected"
    assert rows[0]["page_url"] == URL


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"Envelope"', b"\xff", b'{"Envelope":{"WARC-Header-Metadata":5}}']
)
def test_content_that_is_not_a_wat_record_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_page(content, 10)


def test_deeply_nested_json_gives_one_row() -> None:
    deep = record(URL, {}).replace(b"Content-Length: 2", b"Content-Length: 600000").replace(b"{}", b'{"x":' * 120_000)
    rows = candidates_of(gzip.compress(deep) + gzip.compress(record(URL, response()))).to_pylist()
    assert [row["reason"] for row in rows] == [Reason.BROKEN_RECORD, *[None] * 4]


def test_the_number_of_images_is_limited() -> None:
    rows = read(response("<img src=x alt='a star'>" * 50), config=ExtractConfig(max_images_per_page=20))
    assert len(rows) == 20


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\}{,:/'), max_size=12), max_size=4)
)
def test_any_text_is_read_unchanged(texts: list[str]) -> None:
    links = [{"path": "IMG@/src", "url": "http://a.example/x", "alt": text} for text in texts]
    content = response("")
    html = content["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]
    html["Links"] = [*links, {"path": "A@/href", "url": "x", "text": '{"path":"IMG@/src"'}]
    page = read_page(json.dumps(content).encode(), 10)
    assert page is not None
    assert [text for *_, text in page.images] == [text for text in texts if text.strip()]


def test_a_wat_in_a_single_gzip_member_and_a_plain_one(tmp_path: Path) -> None:
    plain = b"".join(records(HtmlPage(URL, HTML, {})))
    members = candidates_of(b"".join(gzip.compress(data) for data in records(HtmlPage(URL, HTML, {}))))
    for name, data in (("x.wat", plain), ("x.wat.gz", gzip.compress(plain))):
        (tmp_path / name).write_bytes(data)
        check_archive(str(tmp_path / name), open_file)
        found = candidates_of(data)
        assert found.drop_columns(["record_offset"]) == members.drop_columns(["record_offset"])
    assert pc.sum(members["reason"].is_null()).as_py() == 4


@pytest.mark.realdata
def test_a_real_wat(clip_data: Path) -> None:
    file = clip_data / "web" / "whirlwind-python-whirlwind.warc.wat.gz"
    found = read_archive(str(file), open_file, ExtractConfig()).to_pylist()
    assert [row["record_offset"] for row in found] == offsets_by_warcio(file)
    assert [row["reason"] for row in found] == [Reason.NOT_A_RESPONSE] * len(found), (
        "the archive contains only a request"
    )
    assert found[-1]["page_url"] == "https://an.wikipedia.org/wiki/Escopete"
    assert found[-1]["page_date"].isoformat() == "2024-05-18T01:58:10+00:00"


@pytest.mark.realdata
def test_wat_records_of_real_pages_give_all_their_images(clip_data: Path) -> None:
    pages = pq.read_table(clip_data / "web" / "pages.parquet").to_pylist()
    expected = 0
    data = b""
    for page in pages:
        html = page["html"].decode("utf-8", "replace")
        data += b"".join(gzip.compress(one, 1) for one in records(HtmlPage(page["url"], html, {})))
        links = html_metadata(html).get("Links", [])
        images = [link for link in links if link["path"] == "IMG@/src" and link["url"]]
        expected += sum(bool(link.get(name, "").strip()) for link in images for name in ("alt", "title"))
    found = candidates_of(data)
    assert len(set(found["record_offset"].to_pylist())) == 3 * len(pages)
    assert pc.sum(pc.is_in(found["caption_source"], pc.cast(["alt", "title"], "string"))).as_py() == expected > 700


GOOD = {"path": "IMG@/src", "url": "/star.jpg", "alt": "a star"}


@pytest.mark.parametrize(
    "link",
    [
        {**GOOD, "alt": "a cut emoji \ud83d"},  # cut between two surrogates
        {"path": "A@/href", "url": "/", "text": "\udfff"},
        {**GOOD, "alt": None},
        {**GOOD, "alt": 5},
        {**GOOD, "url": ["/x"]},
        "a link",
        None,
    ],
)
def test_one_odd_link_costs_no_other(link: object) -> None:
    content = response()
    content["Envelope"]["Payload-Metadata"]["HTTP-Response-Metadata"]["HTML-Metadata"]["Links"] = [GOOD, link, GOOD]
    rows = [(row["url"], row["caption"], row["reason"]) for row in read(content)]
    good = ("http://a.example/img/star.jpg", "a star", None)
    assert rows.count(good) == 0
    good = ("http://a.example/star.jpg", "a star", None)
    assert (rows[0], rows.count(good)) == (good, 2)


@pytest.mark.parametrize(
    ("old", "new"), [(b"A red", b"A\xffred"), (b"A red", b"A\tred"), (b'"A red', b'"\xed\xa0\x80A red')]
)
def test_octets_that_are_no_json(old: bytes, new: bytes) -> None:
    page = read_page(json.dumps(response()).encode().replace(old, new), 100)
    assert page is not None
    assert [text for _, _, text in page.images][1:] == ["Star of the week", 'He said "hi" \\ }{', "A ship at sea"]


@pytest.mark.parametrize("date", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "99999-01-01T00:00:00Z"])
def test_a_date_that_no_clock_shows_is_missing(date: str) -> None:
    content = response()
    content["Envelope"]["WARC-Header-Metadata"]["WARC-Date"] = date
    assert {row["page_date"] for row in read(content)} == {None}
