"""Recognise texts beside images that do not describe them: file names, sizes, ratings, parts of a page's frame.

The tables were made by reading real alt texts; `python -m tests.perf.corpus.captions` counts what the rules drop.
Single words need no entry, because `CaptionConfig.min_words` drops them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pipeline.data.text.words import is_unspaced, words_of

_EXTENSION = r"\.(?:jpe?g|jfif|png|gif|webp|bmp|tiff?|svg|avif|heic)"
_FILE = re.compile(rf"(?i)\S+{_EXTENSION}(?![^\W_])")
_CAMERA_FILE = re.compile(
    r"(?i)(?:img|dsc|dscn|dscf|dcim|pict|pxl|mvimg|fb[ _]img|received|image|photo|screen ?shot|whatsapp image)"
    r"[\s_-]*+\d\S*+(?:\s++(?:[^\w\s]?\d\S*+|at|am|pm|copy))*+$"
)
_AGENCY_FILE = re.compile(r"[A-Z\d]{2,}+(?:-[A-Z\d]{2,}+){2,}+")
"""Names of photographs at press agencies, such as US-AVIATION-ACCIDENT."""
_FILE_PAGE = re.compile(r"(?i)(?:file|image|datei|fichier|archivo):\s*+")
_FILE_ENDING = re.compile(rf"(?i){_EXTENSION}$")
_LETTERS = re.compile(r"[^\W\d_]{3}")
_SIZE = re.compile(r"(?i)\W*+\d{1,5} ?(?:px)? ?[x\u00d7*] ?\d{1,5}(?: ?(?:px|pixels?))?\W*+")


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NUM_HYPHENS_OF_SLUG = 3
"""So many hyphens in a text without blanks stand for blanks; `mother-in-law` has two."""
_PARTS_OF_FILES = _set(
    "banner bg blog btn cropped default footer header hires icon img logo placeholder resized scaled screenshot spacer "
    "sprite thumb thumbnail thumbs untitled"
)
_MAX_DIGITS_OF_WORD = 2
_DOMAIN = re.compile(
    r"(?i)(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}"
    r"(?:com|net|org|info|biz|edu|gov|eu|uk|de|fr|es|nl|pl|ru|cn|jp|kr|br|au|ca|ch|cz|dk|fi|gr|hu|ie|ro|se|tr|ua|us|za)"
)

_PHRASES = """
image, photo, picture, img, logo, icon, banner, thumbnail, avatar, untitled,
placeholder, advertisement, spacer, pixel, blank, loading, please wait, processing,
click here, click to enlarge, click to view, read more, learn more, see more,
view image, view larger image, no image, image not available, featured image, post image,
no image available, no photo available, image coming soon, photo coming soon, image not found, no description available,
no photo description available, image may contain text, stock photo, star rating, image result, getty images,
type the characters you see in this picture,
adobe stock, alamy stock photo, creative commons license,
share on facebook, share on twitter, follow us, company logo, site logo, profile picture, bookmark and share,
home page, add to cart, buy now, previous slide, next slide, previous page, next page, back to top, scroll to top,
skip to content, skip to main content, open menu, close menu, main menu, mobile menu, toggle navigation, mobile version,
sign in, log in, sign up, my account, about me, about us, contact us, shopping cart, view cart, add to wishlist,
quick view, play video, rss feed, rss feeds, call to action, new call to action, in english, view all, load more,
hier klicken, mehr lesen, mehr erfahren, zum vergrössern klicken, bild vergrössern, in den warenkorb,
cliquez ici, en savoir plus, lire la suite, haga clic aquí, leer más, saber más, clique aqui, leia mais, saiba mais,
clicca qui, leggi tutto, klik hier, lees meer, czytaj więcej, читать далее, подробнее здесь
"""
_PHRASES_UNSPACED = """
点击这里 点击这里给我发消息 点击查看大图 点击放大 查看更多 查看大图 了解更多 阅读更多 加载中 暂无图片 返回顶部
微信二维码 點擊這裡 查看更多圖片 もっと見る 続きを読む 詳細はこちら 詳しくはこちら こちらをクリック クリックで拡大
画像を拡大 お問い合わせ 資料請求 画像なし 読み込み中
"""
BOILERPLATE = frozenset(phrase.strip() for phrase in _PHRASES.split(",")) | frozenset(
    " ".join(phrase) for phrase in _PHRASES_UNSPACED.split()
)
"""Whole captions, as the words of `words_of` and blanks, that do not describe the image."""
_BEGINNING = re.compile(
    "(?:click (?:here|to|for|on)|tap to|powered by|share (?:on|this|via)|(?:follow|find|like|visit|join) us on"
    "|download on the|get it on|(?:learn|read) more about|hier klicken|cliquez ici"
    r"|(?:photo|image|picture|photograph) (?:by(?! (?:the|an?|my|our)\b)|credit|courtesy))\b"
)
_CREDIT = re.compile(
    r"(?:photo|photograph|image|picture|credit|source) (?:\w+ ){0,6}"
    "(?:getty images|getty|reuters|ap|afp|epa|shutterstock|istock|alamy|unsplash|flickr|pixabay)"
)
_MAX_WORDS_OF_BEGINNING = 8
"""Longer texts that begin so may describe the image all the same."""
_NEW_WINDOW = re.compile(r"\bopens? in (?:a )?new (?:tab|window)\b")
_MAX_WORDS_OF_LINK = 8

_ICONS = _set("icon icons icono iconos icona icône ícone ikon иконка")
_LOGOS = _set("logo logos logotype logotipo логотип")
_UNSPACED_SIGNS = ("アイコン", "图标", "圖示", "圖標", "ロゴ")
_MAX_CHARACTERS_OF_SIGN = 12
_PICTURES = _set(
    "ad ads advert advertisement alt avatar banner beacon btn button icon icons image images img loader loading logo "
    "logos photo photos pic picture pictures pics pixel placeholder spacer spinner thumb thumbnail untitled"
)
_FRAME = _PICTURES | _set(
    "arrow article attachment blank caption carousel compact cover default down download email feature featured file "
    "footer gallery header hero left link main menu mobile my nav navigation new next no of page post prev preview "
    "previous print profile right search share site slide slider slideshow small sponsored text title tracking up user "
    "web website your"
)
_RATED = _set("star stars rated rating ratings review reviews score estrellas étoiles sterne sternen sterren stelle")
_RATING = _RATED | _set(
    "average avg based by customer customers de from in of on out su sur total user users van vote votes von"
)


def is_file_name(text: str) -> bool:
    """Whether a text is the name of a file, also if a size or number follows it."""
    if (file := _FILE.match(text)) and not _LETTERS.search(text, file.end()):
        return True
    if _CAMERA_FILE.match(text):
        return True
    if not _is_joined(text):
        return False
    words = words_of(text.replace("_", " ").replace("-", " "))
    if _AGENCY_FILE.fullmatch(text) or any(word.rstrip("0123456789") in _PARTS_OF_FILES for word in words):
        return True
    if not _is_slug(text):
        return False
    if any(_num_digits(word) > _MAX_DIGITS_OF_WORD for word in words):
        return True
    return sum(is_unspaced(word) or (len(word) > 1 and not _num_digits(word)) for word in words) < 2


def _is_joined(text: str) -> bool:
    """Whether a text is one piece with underscores or hyphens. Names of users, addresses and hash tags do not count."""
    joined = "_" in text or "-" in text
    return joined and text[0] != "#" and "@" not in text and not any(map(str.isspace, text))


def _is_slug(text: str) -> bool:
    """Whether a text has other signs in the place of blanks."""
    return ("_" in text or text.count("-") >= _NUM_HYPHENS_OF_SLUG) and _is_joined(text)


def _num_digits(word: str) -> int:
    return sum(map(str.isdigit, word))


def tidy(text: str) -> str:
    """The text with blanks for the underscores or hyphens that join its words, and without the ending of a file.

    A text that is only a file name is unchanged, so that `is_file_name` finds it.
    """
    if "_" not in text and not _is_slug(text) and not _FILE_ENDING.search(text):
        return text
    if is_file_name(text):
        return text
    if _is_slug(text) and text.count("-") >= _NUM_HYPHENS_OF_SLUG:
        text = text.replace("-", " ")
    if ending := _FILE_ENDING.search(text):
        text = _FILE_PAGE.sub("", text[: ending.start()], count=1)
    tokens = text.split()
    return " ".join(" ".join(token if _is_address(token) else token.replace("_", " ") for token in tokens).split())


def _is_address(token: str) -> bool:
    return "@" in token or token[0] == "#" or "://" in token


def is_domain(text: str) -> bool:
    """Whether a text is only the name of a site, such as `example.com`."""
    return _DOMAIN.fullmatch(text) is not None


def is_boilerplate(text: str, words: Sequence[str]) -> bool:
    """Whether a text is part of a page's frame: a button, an icon, a rating, a size.

    Args:
        text: the text.
        words: its words, from `words_of`.
    """
    if _SIZE.fullmatch(text):
        return True
    if len(words) > max(_MAX_WORDS_OF_LINK, _MAX_CHARACTERS_OF_SIGN):
        return _is_rating(words)
    joined = " ".join(words)
    if joined in BOILERPLATE or (len(words) <= _MAX_WORDS_OF_LINK and _NEW_WINDOW.search(joined)):
        return True
    if len(words) <= _MAX_WORDS_OF_BEGINNING and (_BEGINNING.match(joined) or _CREDIT.fullmatch(joined)):
        return True
    if _is_sign(words) or _is_rating(words):
        return True
    return _consists_of(words, _FRAME, _PICTURES)


def _is_sign(words: Sequence[str]) -> bool:
    """Whether a text is an icon of at most two words, or a logo of one. `Icon of St Nicholas` describes a picture."""
    if not words:
        return False
    if is_unspaced(words[-1]):
        return len(words) <= _MAX_CHARACTERS_OF_SIGN and "".join(words).endswith(_UNSPACED_SIGNS)
    named = [word for word in words if not word.isdigit() and word != "s"]  # without the s of a genitive
    if len(named) < 2 or "of" in named:
        return False
    ends = {named[0], named[-1]}
    return bool(ends & _ICONS and len(named) <= 3) or bool(ends & _LOGOS and len(named) <= 2)


def _is_rating(words: Sequence[str]) -> bool:
    return any(map(str.isdigit, words)) and _consists_of(words, _RATING, _RATED)


def _consists_of(words: Sequence[str], allowed: frozenset[str], needed: frozenset[str]) -> bool:
    """Whether all words are numbers or allowed, and one is needed."""
    return all(word in allowed or word.isdigit() for word in words) and any(word in needed for word in words)
