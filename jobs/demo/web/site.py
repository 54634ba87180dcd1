"""Generate the demo's web: by default 3,000 pictures on 600 pages of 12 hosts, with the faults of the real web.

`build_site` writes one folder:

    www/HOST/PATH    the response body of each URL; served by jobs.demo.web.server
    routes.json      the URLs with special responses: statuses, headers, redirects, faults
    warc/*.warc.gz   the pages in web archives, the input of the crawl
    expected.json    every image of every page, with its expected outcome (`jobs.demo.web.dirt.Fate`)
    corpus.txt       plain text about the pictures for the query list, one document per line
    site.json        the arguments and the totals; written last

Each picture has its own random generator, so the seed and the two sizes determine all bytes.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np

from jobs.demo.web.archive import Exchange, gzipped, write_archive
from jobs.demo.web.dirt import GOOD, Fate
from jobs.demo.web.pages import BLANK_GIF, BLANK_PATH, Charset, Page, Picture, page_html
from jobs.demo.web.pictures import CLOSED_HOST, PAGE_HOSTS, Pictures, robots_txt
from jobs.demo.web.prose import corpus, page_prose
from jobs.demo.web.scenes import Scene, pick
from jobs.demo.web.server import Route, SiteWriter

NUM_ARCHIVES: Final = 5
_SECTIONS: Final = ("pictures", "album", "posts", "notes/2024")
_ARTISTS: Final = ("Zoë", "José", "Günther", "Anaïs")
_CONTENT_TYPES: Final = {
    "utf-8": "text/html; charset=utf-8",
    "latin-1": "text/html; charset=iso-8859-1",
    "ascii": "text/html",
}
_RARE_CHARSETS: Final[dict[int, Charset]] = {5: "latin-1", 13: "ascii"}
"""The charset of a page by its number modulo 20; all other pages are UTF-8."""
_MAX_LINKS: Final = 30


@dataclass(frozen=True, kw_only=True)
class SiteSummary:
    """The arguments of `build_site`, and the totals of the site that it wrote."""

    seed: int
    num_images: int
    num_pages: int
    num_archives: int
    num_records: int
    """Number of WARC records in all archives together."""
    num_documents: int
    num_bytes: int
    """Total size of all files below www."""
    fates: dict[str, int]
    """Number of images of each fate."""


def build_site(folder: Path, seed: int, num_images: int = 3000, num_pages: int = 600) -> SiteSummary:
    """Write the site to `folder`. Does nothing if the folder already contains the same site.

    Raises:
        ValueError: `folder` contains something else, or the numbers are too small to include every fault.
    """
    record = folder / "site.json"
    if record.is_file():
        existing = SiteSummary(**json.loads(record.read_text(encoding="utf-8")))
        if (existing.seed, existing.num_images, existing.num_pages) != (seed, num_images, num_pages):
            raise ValueError(f"{folder} contains a different site (see its site.json); remove it or use another folder")
        return existing
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is neither empty nor a finished site; remove it, or choose another folder")
    if not len(PAGE_HOSTS) <= num_pages <= num_images:
        raise ValueError(
            f"num_pages={num_pages}: must be from {len(PAGE_HOSTS)} (one per host) to num_images={num_images}"
        )
    writer = SiteWriter(folder)
    pages, fates = _make_pages(writer, seed, num_images, num_pages)
    bodies = [page_html(page, np.random.default_rng([seed, 3, i])) for i, page in enumerate(pages)]
    for page, body in zip(pages, bodies, strict=True):
        writer.put(page.url, body, Route(headers={"Content-Type": _CONTENT_TYPES[page.charset]}))
    _put_host_files(writer)
    writer.finish()
    num_records = _write_archives(folder / "warc", pages, bodies)
    documents = list(corpus(map(_page_text, pages), np.random.default_rng([seed, 4])))
    (folder / "corpus.txt").write_text("\n".join(documents) + "\n", encoding="utf-8")
    _write_json(folder / "expected.json", [asdict(picture) for page in pages for picture in page.pictures])
    summary = SiteSummary(
        seed=seed, num_images=num_images, num_pages=num_pages, num_archives=NUM_ARCHIVES, num_records=num_records,
        num_documents=len(documents), num_bytes=writer.num_bytes, fates=dict(sorted(Counter(map(str, fates)).items())),
    )  # fmt: skip
    _write_json(record, asdict(summary))
    return summary


def _make_pages(writer: SiteWriter, seed: int, num_images: int, num_pages: int) -> tuple[list[Page], Sequence[Fate]]:
    """Draw all pictures, and assign them to pages: picture i is on page `i * num_pages // num_images`."""
    rng = np.random.default_rng([seed, 2])
    # Consecutive pages are on different hosts, so all hosts get equal shares. A host's first page is its home page.
    hosts = [PAGE_HOSTS[i % len(PAGE_HOSTS)] for i in range(num_pages)]
    paths = ["" if i < len(PAGE_HOSTS) else f"{pick(rng, _SECTIONS)}/{i:04d}.html" for i in range(num_pages)]
    urls = [f"http://{host}/{path}" for host, path in zip(hosts, paths, strict=True)]
    page_of = [i * num_pages // num_images for i in range(num_images)]
    pictures = Pictures(writer, seed, [hosts[page] for page in page_of])
    pages = []
    starts = [page_of.index(i) for i in range(num_pages)]
    for i, (first, end) in enumerate(pairwise([*starts, num_images])):
        on_page = [pictures.put(j, urls[i], first_of_page=j == first) for j in range(first, end)]
        siblings = urls[i % len(PAGE_HOSTS) :: len(PAGE_HOSTS)]
        links = siblings[1 : 1 + _MAX_LINKS] if i < len(PAGE_HOSTS) else [siblings[0], siblings[-1]]
        charset = _RARE_CHARSETS.get(i % 20, "utf-8")
        scenes = [pictures.scene(j) for j in range(first, end)]
        pages.append(Page(
            url=urls[i], title=f"Collection {i}: {_title(scenes)}", links=links, charset=charset,
            pictures=[_with_artist(picture, rng) for picture in on_page] if charset != "utf-8" else on_page,
            prose=page_prose([term for scene in scenes for term in (scene.colour, scene.shape, scene.text)], rng),
            base_href=f"http://{hosts[i]}/img/" if i % 20 == 8 else "",
        ))  # fmt: skip
    return pages, pictures.fates


def _title(scenes: Sequence[Scene]) -> str:
    return " and ".join(f"{scene.colour} {scene.shape or scene.text}" for scene in scenes[:2])


def _with_artist(picture: Picture, rng: np.random.Generator) -> Picture:
    """Add an artist's name with accents to a good caption, so that extraction must decode the page's charset."""
    if picture.fate not in GOOD:
        return picture
    return replace(picture, caption=f"{picture.caption.rstrip('.')} by {pick(rng, _ARTISTS)}")


def _page_text(page: Page) -> str:
    good = [picture.caption for picture in page.pictures if picture.fate in GOOD]
    return f"{page.title}. {' '.join(page.prose)} {'. '.join(good)}"


def _put_host_files(writer: SiteWriter) -> None:
    for host in PAGE_HOSTS:
        rules, _ = robots_txt(host)
        if rules:
            writer.put(f"http://{host}/robots.txt", rules.encode())
        writer.put(f"http://{host}{BLANK_PATH}", BLANK_GIF)
    writer.put(f"http://{CLOSED_HOST}/robots.txt", route=Route(status=503))


def _write_archives(folder: Path, pages: Sequence[Page], bodies: Sequence[bytes]) -> int:
    """Write the pages into NUM_ARCHIVES archives, each with a few other records. Returns the number of records."""
    folder.mkdir(parents=True)
    num_records = 0
    for k in range(NUM_ARCHIVES):
        chosen = range(k * len(pages) // NUM_ARCHIVES, (k + 1) * len(pages) // NUM_ARCHIVES)
        exchanges = [_page_exchange(pages[i], bodies[i], compressed=i % 20 == 7) for i in chosen]
        middle = len(exchanges) // 2
        exchanges[middle:middle] = _exchanges_of_other_kinds(pages[chosen[0]])
        num_records += write_archive(folder / f"demo-{k:05d}.warc.gz", exchanges)
    return num_records


def _page_exchange(page: Page, body: bytes, compressed: bool) -> Exchange:
    headers = {"Content-Type": _CONTENT_TYPES[page.charset], "Server": "demo"}
    if compressed:
        return Exchange(url=page.url, headers={**headers, "Content-Encoding": "gzip"}, body=gzipped(body))
    return Exchange(url=page.url, headers=headers, body=body)


def _exchanges_of_other_kinds(page: Page) -> Iterator[Exchange]:
    """Other responses in a crawl: an image, an error, a redirect, a style sheet, a page without images, a revisit."""
    host = page.url.removeprefix("http://").partition("/")[0]
    site, html = f"http://{host}", {"Content-Type": "text/html; charset=utf-8"}
    lost = b'<title>Not found</title><img src="/img/lost.jpg" alt="a picture of a lost red circle">'
    yield Exchange(url=f"{site}{BLANK_PATH}", headers={"Content-Type": "image/gif"}, body=BLANK_GIF)
    yield Exchange(url=f"{site}/lost.html", status="404 Not Found", headers=html, body=lost)
    yield Exchange(url=f"{site}/old.html", status="301 Moved Permanently", headers={**html, "Location": page.url})
    yield Exchange(url=f"{site}/style.css", headers={"Content-Type": "text/css"}, body=b"body { margin: 2em }\n")
    yield Exchange(url=f"{site}/robots.txt", headers={"Content-Type": "text/plain"}, body=robots_txt(host)[0].encode())
    yield Exchange(url=f"{site}/about.html", headers=html, body=b"<title>About</title><p>A page without a picture.\n")
    yield Exchange(url=page.url, headers=html, revisit=True)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
