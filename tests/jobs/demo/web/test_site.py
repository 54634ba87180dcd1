import gzip
import hashlib
import io
import json
import re
import shutil
import urllib.error
from collections import Counter
from collections.abc import Iterator
from http.client import IncompleteRead
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import imagehash
import numpy as np
import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType, has_block_digest, has_valid_block_digest
from PIL import Image
from protego import Protego

from jobs.demo.web.dirt import GOOD, Fate, bomb_png, foreign_caption, junk_caption, plan_fates
from jobs.demo.web.pictures import CDN_HOST, CLOSED_HOST, PAGE_HOSTS, robots_txt
from jobs.demo.web.prose import corpus
from jobs.demo.web.scenes import COLOURS, SHAPES, WORDS, describe, sample_scene
from jobs.demo.web.site import build_site
from pipeline.data.sources.extract import ExtractConfig, read_archive
from pipeline.data.text.caption_rules import CaptionConfig, apply_rules, rejection_reason
from pipeline.reasons import Reason
from tests.pipeline.data.rows import candidates
from tests.web import Reply, Web, serve

NUM_IMAGES, NUM_PAGES = 240, 48


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "site"
    build_site(folder, seed=5, num_images=NUM_IMAGES, num_pages=NUM_PAGES)
    return folder


@pytest.fixture(scope="module")
def expected(site: Path) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((site / "expected.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[Web]:
    with serve(site) as found:
        yield found


def digest(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def of_fate(expected: list[dict[str, str]], *fates: Fate) -> list[dict[str, str]]:
    found = [entry for entry in expected if entry["fate"] in fates]
    assert found, fates
    return found


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        build_site(tmp_path / name, seed, num_images=60, num_pages=12)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a")["corpus.txt"] != digest(tmp_path / "c")["corpus.txt"]


def test_a_finished_site_is_not_changed(site: Path, tmp_path: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in site.rglob("*")}
    again = build_site(site, seed=5, num_images=NUM_IMAGES, num_pages=NUM_PAGES)
    assert {file: file.stat().st_mtime_ns for file in site.rglob("*")} == before
    assert (again.num_images, again.num_pages, sum(again.fates.values())) == (NUM_IMAGES, NUM_PAGES, NUM_IMAGES)
    with pytest.raises(ValueError, match="contains a different site"):
        build_site(site, seed=6, num_images=NUM_IMAGES, num_pages=NUM_PAGES)
    unfinished = tmp_path / "unfinished"
    shutil.copytree(site / "warc", unfinished / "warc")
    with pytest.raises(ValueError, match="neither empty nor a finished site"):
        build_site(unfinished, seed=5)


def test_numbers_that_are_too_small_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_images=20: .* at least 42"):
        build_site(tmp_path, seed=0, num_images=20, num_pages=12)
    with pytest.raises(ValueError, match="num_pages=3: must be from 12"):
        build_site(tmp_path, seed=0, num_images=60, num_pages=3)


def test_four_of_five_images_are_good_and_every_fate_occurs(expected: list[dict[str, str]]) -> None:
    fates = plan_fates(3000, np.random.default_rng(0))
    assert set(fates) == set(Fate)
    assert 0.79 < sum(fate in GOOD for fate in fates) / 3000 < 0.82
    assert {entry["fate"] for entry in expected} == set(Fate)
    assert len(expected) == NUM_IMAGES


def test_captions_have_all_kinds_of_sources(expected: list[dict[str, str]]) -> None:
    sources = Counter(entry["source"] for entry in expected if entry["fate"] in GOOD)
    assert set(sources) == {"alt", "figcaption", "title", "srcset", "lazy", "og:image:alt"}
    assert 0.25 < sources["alt"] / sources.total() < 0.45


def get(served: Web, url: str) -> Reply:
    """Fetch a URL, following redirects within the demo's web."""
    for _ in range(3):
        reply = served.get(url)
        if reply.status not in {301, 302, 307, 308}:
            return reply
        url = urljoin(url, reply.headers["Location"])
    raise RecursionError(url)


def test_good_pictures_are_served_and_decode(served: Web, expected: list[dict[str, str]]) -> None:
    formats: Counter[str] = Counter()
    good = of_fate(expected, Fate.OK, Fate.REDIRECT_OK, Fate.OTHER_BOT, Fate.JUNK_CAPTION, Fate.DUPLICATE_URL)
    for entry in good:
        for url in filter(None, (entry["url"], entry["small_url"])):
            reply = get(served, url)
            assert reply.status == 200, url
            with Image.open(io.BytesIO(reply.body)) as image:
                image.load()
                assert min(image.size) >= 48
                formats[image.format or ""] += 1
                assert reply.headers["Content-Type"] == Image.MIME[image.format or ""]
    assert set(formats) == {"JPEG", "PNG", "GIF", "WEBP"}
    assert formats["JPEG"] > formats.total() / 2
    assert served.get(of_fate(expected, Fate.REDIRECT_OK)[0]["url"]).status in {301, 302, 307, 308}


@pytest.mark.parametrize(("fate", "status"), [(Fate.NOT_FOUND, 404), (Fate.GONE, 410), (Fate.SERVER_ERROR, 500)])
def test_dead_links_have_their_status(served: Web, expected: list[dict[str, str]], fate: Fate, status: int) -> None:
    assert {served.get(entry["url"]).status for entry in of_fate(expected, fate)} == {status}


def test_resets_and_redirect_loops(served: Web, expected: list[dict[str, str]]) -> None:
    for entry in of_fate(expected, Fate.RESET):
        with pytest.raises((ConnectionError, urllib.error.URLError)):
            served.get(entry["url"])
    for entry in of_fate(expected, Fate.REDIRECT_LOOP):
        with pytest.raises(RecursionError):
            get(served, entry["url"])


def test_private_addresses_are_not_global(served: Web, expected: list[dict[str, str]]) -> None:
    targets = [entry["url"] for entry in of_fate(expected, Fate.PRIVATE)]
    for entry in of_fate(expected, Fate.REDIRECT_PRIVATE):
        reply = served.get(entry["url"])
        assert reply.status == 302
        targets.append(reply.headers["Location"])
    for url in targets:
        host = urlsplit(url).hostname or ""
        assert host == "localhost" or not ip_address(host).is_global


def test_robots_txt_forbids_exactly_the_pictures_of_that_fate(served: Web, expected: list[dict[str, str]]) -> None:
    rules = {}
    for host in (*PAGE_HOSTS, CDN_HOST):
        reply = served.get(f"http://{host}/robots.txt")
        assert reply.status == (200 if host != CDN_HOST and robots_txt(host)[0] else 404)
        rules[host] = Protego.parse(reply.body.decode() if reply.status == 200 else "")
    assert served.get(f"http://{CLOSED_HOST}/robots.txt").status == 503
    for entry in expected:
        host = urlsplit(entry["url"]).hostname or ""
        if host in rules:
            assert rules[host].can_fetch(entry["url"], "clip-on-ray") == (entry["fate"] != Fate.ROBOTS)
        assert (host == CLOSED_HOST) <= (entry["fate"] == Fate.ROBOTS)


def test_robots_tags_match_their_fate(served: Web, expected: list[dict[str, str]]) -> None:
    for fate, known in ((Fate.NOAI, r"no(ai|imageindex)"), (Fate.OTHER_BOT, r"^(otherbot:|max-|all)")):
        for entry in of_fate(expected, fate):
            assert re.search(known, served.get(entry["url"]).headers["X-Robots-Tag"])


def test_broken_files_cannot_be_decoded(served: Web, expected: list[dict[str, str]]) -> None:
    for entry in of_fate(expected, Fate.TRUNCATED):
        try:
            body = served.get(entry["url"]).body
        except IncompleteRead as error:
            body = error.partial
        with Image.open(io.BytesIO(body)) as image, pytest.raises(OSError, match="truncated"):
            image.load()
    for entry in of_fate(expected, Fate.HTML):
        reply = served.get(entry["url"])
        assert (reply.status, reply.headers["Content-Type"]) == (200, "image/jpeg")
        assert reply.body.startswith(b"<!doctype html>")
    for entry in of_fate(expected, Fate.BOMB):
        body = served.get(entry["url"]).body
        assert len(body) < 100_000
        with pytest.raises(Image.DecompressionBombError, match="400000000 pixels"):
            Image.open(io.BytesIO(body))


def test_the_bomb_is_a_valid_image() -> None:
    with Image.open(io.BytesIO(bomb_png(side_px=100))) as image:
        image.load()
        assert image.size == (100, 100)
        assert image.getextrema() == (0, 0)


def test_duplicates_are_equal_or_perceptually_close(served: Web, expected: list[dict[str, str]]) -> None:
    def phash(body: bytes) -> imagehash.ImageHash:
        with Image.open(io.BytesIO(body)) as image:
            return imagehash.phash(image)

    urls = {entry["url"] for entry in expected if entry["fate"] == Fate.OK}
    distances = []
    copies = (Fate.DUPLICATE_URL, Fate.DUPLICATE_EXACT, Fate.DUPLICATE_RESIZED, Fate.DUPLICATE_REENCODED)
    for entry in of_fate(expected, *copies):
        assert entry["same_as"] in urls
        copy, original = served.get(entry["url"]).body, served.get(entry["same_as"]).body
        assert (entry["url"] == entry["same_as"]) == (entry["fate"] == Fate.DUPLICATE_URL)
        if entry["fate"] in (Fate.DUPLICATE_URL, Fate.DUPLICATE_EXACT):
            assert copy == original
        else:
            assert copy != original
            distances.append(phash(copy) - phash(original))
    assert np.mean(np.array(distances) <= 3) >= 0.7
    assert max(distances) <= 8


def archives(site: Path) -> list[Path]:
    return sorted((site / "warc").iterdir())


def test_archives_are_valid_and_hold_every_page(site: Path) -> None:
    summary = json.loads((site / "site.json").read_text(encoding="utf-8"))
    kinds: Counter[str] = Counter()
    pages: dict[str, bytes] = {}
    for path in archives(site):
        with path.open("rb") as stream:
            for record in ArchiveIterator(stream, parse_http=False):
                assert has_block_digest(record)
                assert has_valid_block_digest(record)
                kinds[str(record.record_type)] += 1
        with path.open("rb") as stream:
            for record in ArchiveIterator(stream, record_types=WarcRecordType.response):
                if record.http_headers.status_code == 200 and record.http_content_type == "text/html":
                    body = record.reader.read()
                    compressed = "Content-Encoding" in record.http_headers
                    pages[record.headers["WARC-Target-URI"]] = gzip.decompress(body) if compressed else body
    assert len(archives(site)) == summary["num_archives"] == 5
    assert kinds.total() == summary["num_records"]
    assert kinds["warcinfo"] == kinds["revisit"] == 5
    assert kinds["request"] == kinds["response"] + kinds["revisit"]
    served_pages = {url for url in pages if not url.endswith("/about.html")}
    assert len(served_pages) == NUM_PAGES
    for url in served_pages:  # the archive has the bytes that the server sends
        parts = urlsplit(url)
        file = site / "www" / f"{parts.hostname}{parts.path}{'index.html' if parts.path.endswith('/') else ''}"
        assert pages[url] == file.read_bytes()


def test_extraction_finds_every_picture_and_caption(site: Path, expected: list[dict[str, str]]) -> None:
    rows: list[dict[str, Any]] = []
    for path in archives(site):
        rows += read_archive(str(path), lambda uri: io.BytesIO(Path(uri).read_bytes()), ExtractConfig()).to_pylist()
    found = {(row["page_url"], row["url"], row["caption"]) for row in rows if row["reason"] is None}
    inline = {(page_url, caption) for page_url, url, caption in found if url.startswith("data:")}
    for entry in expected:
        if entry["fate"] == Fate.DATA_URL:
            assert (entry["page_url"], entry["caption"]) in inline
        else:
            assert (entry["page_url"], entry["url"], entry["caption"]) in found
    reasons = Counter(row["reason"] for row in rows if row["reason"] is not None)
    assert reasons.keys() == {
        *(Reason.NOT_A_RESPONSE, Reason.NOT_HTML, Reason.HTTP_REDIRECT, Reason.HTTP_ERROR_PAGE),
        *(Reason.NO_IMAGE, Reason.REVISIT),
    }


def test_old_charsets_and_base_addresses_occur(site: Path) -> None:
    pages = [file.read_bytes() for file in sorted((site / "www").rglob("*.html"))]
    assert any("Zoë".encode("latin-1") in page or "José".encode("latin-1") in page for page in pages)
    assert any(b"&#235;" in page or b"&#233;" in page or b"&#252;" in page or b"&#239;" in page for page in pages)
    assert any(b'<base href="' in page for page in pages)


def test_junk_is_rejected_and_foreign_captions_share_no_word_with_the_corpus() -> None:
    rng = np.random.default_rng(0)
    config = CaptionConfig()
    assert all(rejection_reason(junk_caption(rng), config) for _ in range(500))
    english = set(re.findall(r"\w+", " ".join(corpus([], rng)).casefold()))
    for _ in range(500):
        caption = foreign_caption(sample_scene(rng, "shape"), rng)
        assert rejection_reason(caption, config) is None or not caption.isascii()
        assert not english & set(re.findall(r"\w+", caption.casefold()))


def test_only_foreign_captions_are_rejected_for_their_language() -> None:
    rng = np.random.default_rng(0)
    foreign = [foreign_caption(sample_scene(rng, "shape"), rng) for _ in range(500)]
    english = [describe(sample_scene(rng), rng) for _ in range(2000)]
    for captions, lost in ((foreign, len(foreign)), (english, 0)):
        reasons = apply_rules(candidates(caption=captions), CaptionConfig())["reason"].to_pylist()
        assert abs(reasons.count(Reason.CAPTION_LANGUAGE) - lost) <= 0.02 * len(captions)


def test_the_corpus_has_each_noun_at_least_24_times(site: Path) -> None:
    documents = (site / "corpus.txt").read_text(encoding="utf-8").splitlines()
    assert len(documents) > 500
    assert all(len(document.split()) >= 10 for document in documents)
    words = Counter(re.findall(r"\w+", " ".join(documents).casefold()))
    nouns = (*SHAPES, *COLOURS, *WORDS, "seven", "7", "striped", "dotted", "pattern", "background", "letters", "grid")
    assert {noun: words[noun] for noun in nouns if words[noun] < 24} == {}


def test_relative_references_resolve(site: Path, expected: list[dict[str, str]]) -> None:
    """Every address in a src or data-src of a page is in expected.json."""
    known = {unquote(entry[key]) for entry in expected for key in ("url", "small_url")}
    for page_url in sorted({entry["page_url"] for entry in expected}):
        parts = urlsplit(page_url)
        file = site / "www" / f"{parts.hostname}{parts.path}{'index.html' if parts.path.endswith('/') else ''}"
        html = file.read_text(encoding="latin-1")
        base = next(iter(re.findall(r'<base href="([^"]+)"', html)), page_url)
        for address in re.findall(
            r"""(?<!banner)\bsrc=["']\s*([^"'\s]+)""", re.sub(r"<script>.*?</script>|<!--.*?-->", "", html)
        ):
            url = urljoin(base, address.replace("&amp;", "&"))
            assert url.startswith("data:") or urlsplit(url).path == "/static/blank.gif" or unquote(url) in known
