"""The faults of images and captions on the demo's web: their kinds, their frequencies and their data."""

import zlib
from enum import StrEnum
from typing import Final

import numpy as np

from jobs.demo.web.scenes import COLOURS, SHAPES, Scene, pick


class Fate(StrEnum):
    """The kind of an image on a page, which determines its expected outcome in the crawl."""

    OK = "ok"
    """A good pair. It may still be dropped as a perceptual duplicate or by balancing."""
    REDIRECT_OK = "redirect_ok"
    """A good pair behind one redirect."""
    OTHER_BOT = "other_bot"
    """A good pair whose X-Robots-Tag is addressed to other bots, or forbids nothing."""
    DATA_URL = "data_url"
    """A good pair whose image is embedded in the page."""
    DUPLICATE_URL = "duplicate_url"
    """The address of another picture, with another caption. Of each original and its duplicate, one is kept."""
    DUPLICATE_EXACT = "duplicate_exact"
    """The same bytes at another address."""
    DUPLICATE_RESIZED = "duplicate_resized"
    """A perceptual hash may miss a few resized or re-encoded duplicates."""
    DUPLICATE_REENCODED = "duplicate_reencoded"
    JUNK_CAPTION = "junk_caption"
    FOREIGN_CAPTION = "foreign_caption"
    """A true caption in another language. None of its words is in the English query list."""
    NOT_FOUND = "not_found"
    GONE = "gone"
    SERVER_ERROR = "server_error"
    RESET = "reset"
    REDIRECT_LOOP = "redirect_loop"
    REDIRECT_PRIVATE = "redirect_private"
    """A redirect to an address of a private network. The crawler must never connect to it."""
    PRIVATE = "private"
    ROBOTS = "robots"
    """Forbidden by robots.txt. The crawler must never send the request."""
    NOAI = "noai"
    TRUNCATED = "truncated"
    """Half a JPEG, because the connection ends early or the file itself is cut."""
    BOMB = "bomb"
    """A small PNG of 20,000 x 20,000 pixels."""
    HTML = "html"
    """An error page that is served as a JPEG."""


GOOD: Final = frozenset({Fate.OK, Fate.REDIRECT_OK, Fate.OTHER_BOT, Fate.DATA_URL})

# Shares of all images. Every fate occurs at least once; the remaining images are OK. About 80% of all images are good.
_SHARES: Final = {
    Fate.REDIRECT_OK: 0.01,
    Fate.OTHER_BOT: 0.007,
    Fate.DATA_URL: 0.003,
    Fate.DUPLICATE_URL: 0.015,
    Fate.DUPLICATE_EXACT: 0.025,
    Fate.DUPLICATE_RESIZED: 0.02,
    Fate.DUPLICATE_REENCODED: 0.02,
    Fate.JUNK_CAPTION: 0.045,
    Fate.FOREIGN_CAPTION: 0.02,
    Fate.NOT_FOUND: 0.01,
    Fate.GONE: 0.004,
    Fate.SERVER_ERROR: 0.003,
    Fate.RESET: 0.003,
    Fate.REDIRECT_LOOP: 0.002,
    Fate.REDIRECT_PRIVATE: 0.002,
    Fate.PRIVATE: 0.003,
    Fate.ROBOTS: 0.01,
    Fate.NOAI: 0.007,
    Fate.TRUNCATED: 0.004,
    Fate.BOMB: 0.001,
    Fate.HTML: 0.004,
}


def plan_fates(num_images: int, rng: np.random.Generator) -> list[Fate]:
    """Choose a fate for each image, in random order. The counts do not depend on the seed.

    Raises:
        ValueError: there are too few images to include every fate.
    """
    dirty = [fate for fate, share in _SHARES.items() for _ in range(max(1, round(share * num_images)))]
    if num_images < 2 * len(_SHARES):
        raise ValueError(f"num_images={num_images}: must be at least {2 * len(_SHARES)} to include every fate")
    fates = dirty + [Fate.OK] * (num_images - len(dirty))
    return [fates[i] for i in rng.permutation(num_images)]


_JUNK: Final = (
    "IMG_{n:04d}.jpg", "IMG_{n:04d}.JPG", "DSC{n:05d}", "DSCN{n:04d}.jpg", "screenshot {n}", "image{n}.png",
    "Photo {n}", "click here", "Click to enlarge", "click to view", "read more", "View larger image", "image", "photo",
    "untitled", "logo", "banner", "thumbnail", "icon", "placeholder", "loading", "null", "{n}", "...", "***",
    "advertisement", "http://banners.example/{n}.gif", "<b>sale</b> {n}%", "follow us", "share on facebook",
    "add to cart", "{{{{ alt }}}}", "sale sale sale sale sale sale", "no image", "previous slide",
)  # fmt: skip


def junk_caption(rng: np.random.Generator) -> str:
    """A text that does not describe its image."""
    return pick(rng, _JUNK).format(n=int(rng.integers(10, 10_000)))


# A template, the nouns in the order of SHAPES, and the colours in the order of COLOURS. None is an English word.
_LANGUAGES: Final = (
    ("Rysunek: {}, kolor {}", "koło kwadrat trójkąt gwiazda serce krzyż pierścień strzałka",
     "czerwony pomarańczowy żółty zielony niebieski fioletowy różowy brązowy czarny biały"),
    ("Piirros: {} ({})", "ympyrä neliö kolmio tähti sydän risti rengas nuoli",
     "punainen oranssi keltainen vihreä sininen violetti vaaleanpunainen ruskea musta valkoinen"),
    ("Rajz: {}, {} színben", "kör négyzet háromszög csillag szív kereszt gyűrű nyíl",
     "piros narancssárga sárga zöld kék lila rózsaszín barna fekete fehér"),
    ("Рисунок: {}, цвет {}", "круг квадрат треугольник звезда сердце крест кольцо стрелка",
     "красный оранжевый жёлтый зелёный синий фиолетовый розовый коричневый чёрный белый"),
    ("这幅画里有 {}，颜色是 {}", "圆形 正方形 三角形 星星 心形 十字 圆环 箭头",
     "红色 橙色 黄色 绿色 蓝色 紫色 粉红色 棕色 黑色 白色"),
    ("{}の絵です。色は {} です。", "円 正方形 三角形 星 ハート 十字 輪 矢印", "赤 橙 黄 緑 青 紫 桃色 茶色 黒 白"),
)  # fmt: skip


def foreign_caption(scene: Scene, rng: np.random.Generator) -> str:
    """The shape and colour of a scene (of kind shape) in another language."""
    template, shapes, colours = pick(rng, _LANGUAGES)
    shape = shapes.split()[SHAPES.index(scene.shape)]
    return template.format(shape, colours.split()[list(COLOURS).index(scene.colour)])


def bomb_png(side_px: int = 20_000) -> bytes:
    """A valid black PNG of `side_px` x `side_px` pixels. It has about 50 KB, and is made without rendering."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = side_px.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])  # 1 bit, greyscale
    rows = bytes(1 + (side_px + 7) // 8) * side_px
    compressed = zlib.compress(rows, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


ERROR_PAGE: Final = (
    b"<!doctype html><title>Error</title><h1>This picture is not available</h1><p>Please come back later.</p>\n"
)

PRIVATE_ADDRESSES: Final = (
    "http://127.0.0.1/{n}.jpg",
    "http://169.254.169.254/latest/meta-data/{n}.jpg",
    "http://10.0.0.7/{n}.jpg",
    "http://192.168.1.1/{n}.jpg",
    "http://[::1]/{n}.jpg",
    "http://localhost/{n}.jpg",
)
