"""Draw the pictures of the demo's web, caption them and write them to their hosts with the planned faults.

Each picture has its own random generators (seed, purpose, index), so no picture depends on the order of drawing.
"""

import base64
import io
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote, urlsplit

import numpy as np
from PIL import Image

from jobs.demo.web.dirt import ERROR_PAGE, PRIVATE_ADDRESSES, Fate, bomb_png, foreign_caption, junk_caption, plan_fates
from jobs.demo.web.pages import CAPTION_SOURCES, Picture
from jobs.demo.web.render import encode_jpeg, render
from jobs.demo.web.scenes import Kind, Scene, describe, pick, sample_scene
from jobs.demo.web.server import Route, SiteWriter

PAGE_HOSTS: Final = (
    "shapes.example", "colours.example", "numbers.example", "letters.example", "patterns.example",
    *(f"gallery-{i:02d}.example" for i in range(1, 8)),
)  # fmt: skip
CDN_HOST: Final = "pictures-cdn.example"
CLOSED_HOST: Final = "closed.example"
"""Answers 503 to requests for its robots.txt, which therefore forbids everything (RFC 9309, section 2.3.1.4)."""

_ROBOTS: Final = (
    ("User-agent: *\nDisallow: /members/\n", "http://{host}/members/{n:05d}.jpg"),
    ("# the longest match wins\nUser-agent: *\nAllow: /\nDisallow: /*/private-*.jpg$\n", "http://{host}/img/private-{n:05d}.jpg"),
    ("", f"http://{CLOSED_HOST}/img/{{n:05d}}.jpg"),
    ("User-agent: greedybot\nDisallow: /\n\nUser-agent: *\nDisallow: /members/\n", "http://{host}/members/{n:05d}.jpg"),
)  # fmt: skip

_SOURCE_SHARES: Final = (0.34, 0.28, 0.16, 0.11, 0.11)
_FORMATS: Final = ("jpg", "png", "gif", "webp")
_FORMAT_SHARES: Final = (0.86, 0.06, 0.03, 0.05)
_FOLDERS: Final = ("img", "images/2024", "uploads")
_PERMISSIONS: Final = ("otherbot: noindex", "otherbot: noai, noimageai", "max-image-preview:large", "all")
_PROHIBITIONS: Final = ("noai", "noai, noimageai", "max-image-preview:large, noai", "noimageindex")
_COPIES: Final = frozenset({Fate.DUPLICATE_URL, Fate.DUPLICATE_EXACT, Fate.DUPLICATE_RESIZED, Fate.DUPLICATE_REENCODED})


def robots_txt(host: str) -> tuple[str, str]:
    """The robots.txt of a page host (empty if it has none), and a template for addresses that the host forbids."""
    return _ROBOTS[PAGE_HOSTS.index(host) % len(_ROBOTS)]


class Pictures:
    """The pictures of one web. `page_hosts[i]` is the host of the page that shows picture i."""

    def __init__(self, writer: SiteWriter, seed: int, page_hosts: Sequence[str]) -> None:
        self.fates = plan_fates(len(page_hosts), np.random.default_rng([seed, 0]))
        self._writer, self._seed, self._page_hosts = writer, seed, page_hosts
        self._bomb = bomb_png()
        self._scenes: dict[int, Scene] = {}
        self._original: dict[int, int] = {}
        """The index of the original, by the index of the copy."""
        copies = [i for i, fate in enumerate(self.fates) if fate in _COPIES]
        # Different patterns or words can have close perceptual hashes, so only shapes have copies.
        originals = [i for i, fate in enumerate(self.fates) if fate is Fate.OK and self.scene(i).kind == "shape"]
        assert len(copies) <= len(originals), f"{len(originals)} originals for {len(copies)} copies"
        shuffled = self._generator(0, "copies").permutation(originals).tolist()
        self._original |= zip(copies, shuffled, strict=False)

    def scene(self, index: int) -> Scene:
        """The scene that picture `index` shows. A copy shows the scene of its original."""
        index = self._original.get(index, index)
        if index not in self._scenes:
            kind: Kind | None = "shape" if self.fates[index] is Fate.FOREIGN_CAPTION else None
            self._scenes[index] = sample_scene(self._generator(index, "scene"), kind)
        return self._scenes[index]

    def put(self, index: int, page_url: str, first_of_page: bool) -> Picture:
        """Draw picture `index`, write its files and routes, and return what the page shows."""
        rng = self._generator(index, "picture")
        fate, scene = self.fates[index], self.scene(index)
        source = pick(rng, CAPTION_SOURCES, _SOURCE_SHARES)
        if source == "srcset" and fate is not Fate.OK:
            source = "figcaption"
        if first_of_page and rng.random() < 0.1:
            source = "og:image:alt"
        caption = describe(scene, rng)
        match fate:
            case Fate.JUNK_CAPTION:
                caption = junk_caption(rng)
            case Fate.FOREIGN_CAPTION:
                caption = foreign_caption(scene, rng)
        small_url = self._url(index, "-small") if source == "srcset" else ""
        if small_url:
            self._writer.put(small_url, self._bytes(index, scale=0.5))
        return Picture(
            url=self._put_image(index, rng), page_url=page_url, caption=caption, source=source, fate=fate,
            same_as=self._url(self._original[index]) if fate in _COPIES else "", small_url=small_url,
        )  # fmt: skip

    def _generator(self, index: int, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, 1 + index, *purpose.encode()])

    def _host(self, index: int) -> str:
        return CDN_HOST if self._generator(index, "host").random() < 0.1 else self._page_hosts[index]

    def _url(self, index: int, suffix: str = "") -> str:
        """The usual address of a picture."""
        rng, scene = self._generator(index, "url"), self.scene(index)
        words = [scene.colour, *(scene.shape or scene.text).split()]
        names = (f"{'-'.join(words)}-{index:05d}", f"IMG_{index:04d}", f"{' '.join(words)} {index}")
        name = pick(rng, names, (0.6, 0.35, 0.05))
        query = f"?v={int(rng.integers(1, 9))}&w=160" if rng.random() < 0.04 else ""
        return f"http://{self._host(index)}/{pick(rng, _FOLDERS)}/{quote(name)}{suffix}.{self._format(index)}{query}"

    def _format(self, index: int) -> str:
        if self.fates[index] is Fate.BOMB:
            return "png"
        if self.fates[index] in {Fate.TRUNCATED, Fate.HTML, Fate.DUPLICATE_RESIZED, Fate.DUPLICATE_REENCODED}:
            return "jpg"
        return pick(self._generator(self._original.get(index, index), "format"), _FORMATS, _FORMAT_SHARES)

    def _bytes(self, index: int, scale: float = 1.0, quality: int | None = None) -> bytes:
        """The file of a picture. A copy has the size and the quality of its original, unless they are given."""
        original = self._original.get(index, index)
        image = render(self.scene(index), int(self._generator(original, "size").integers(96, 201)))
        if scale != 1.0:
            size = (round(image.width * scale), round(image.height * scale))
            image = image.resize(size, Image.Resampling.LANCZOS)
        quality = quality or int(self._generator(original, "quality").integers(85, 96))
        return _encode(image, self._format(index), quality)

    def _put_image(self, index: int, rng: np.random.Generator) -> str:
        """Write the files and routes of a picture, and return the address that the page shows."""
        put, url = self._writer.put, self._url(index)
        host = urlsplit(url).netloc
        match self.fates[index]:
            case Fate.DATA_URL:
                return f"data:image/{self._format(index)};base64," + base64.b64encode(self._bytes(index)).decode(
                    "ascii"
                )
            case Fate.PRIVATE:
                return pick(rng, PRIVATE_ADDRESSES).format(n=index)
            case Fate.DUPLICATE_URL:
                return self._url(self._original[index])
            case Fate.DUPLICATE_RESIZED:
                put(url, self._bytes(index, scale=pick(rng, (0.8, 0.9, 1.25))))
            case Fate.DUPLICATE_REENCODED:
                put(url, self._bytes(index, quality=75))
            case Fate.NOT_FOUND:
                pass  # the address has no file
            case Fate.GONE:
                put(url, route=Route(status=410))
            case Fate.SERVER_ERROR:
                put(url, route=Route(status=500))
            case Fate.RESET:
                put(url, route=Route(fault="reset"))
            case Fate.REDIRECT_OK:
                put(url, self._bytes(index))
                hop = f"http://{host}/go/{index}"
                put(hop, route=Route(status=pick(rng, (301, 302, 307, 308)), headers={"Location": url}))
                return hop
            case Fate.REDIRECT_LOOP:
                first, second = f"http://{host}/loop/{index}-a", f"/loop/{index}-b"
                put(first, route=Route(status=302, headers={"Location": second}))
                put(f"http://{host}{second}", route=Route(status=302, headers={"Location": first}))
                return first
            case Fate.REDIRECT_PRIVATE:
                private = pick(rng, PRIVATE_ADDRESSES).format(n=index)
                put(url, route=Route(status=302, headers={"Location": private}))
            case Fate.ROBOTS:
                url = robots_txt(self._page_hosts[index])[1].format(host=self._page_hosts[index], n=index)
                put(url, self._bytes(index))
            case Fate.NOAI:
                put(url, self._bytes(index), Route(headers={"X-Robots-Tag": pick(rng, _PROHIBITIONS)}))
            case Fate.OTHER_BOT:
                put(url, self._bytes(index), Route(headers={"X-Robots-Tag": pick(rng, _PERMISSIONS)}))
            case Fate.TRUNCATED:
                data = self._bytes(index)
                # Either the file itself is cut, or the server announces its full length and stops early.
                route = Route(declared_length=len(data)) if rng.random() < 0.5 else None
                put(url, data[: len(data) // 2], route)
            case Fate.BOMB:
                put(url, self._bomb)
            case Fate.HTML:
                put(url, ERROR_PAGE)
            case Fate.OK | Fate.DUPLICATE_EXACT | Fate.JUNK_CAPTION | Fate.FOREIGN_CAPTION:
                put(url, self._bytes(index))
        return url


def _encode(image: Image.Image, suffix: str, quality: int) -> bytes:
    if suffix == "jpg":
        return encode_jpeg(image, quality)
    buffer = io.BytesIO()
    if suffix == "gif":
        image = image.quantize(96)
    image.save(buffer, suffix, quality=quality)
    return buffer.getvalue()
