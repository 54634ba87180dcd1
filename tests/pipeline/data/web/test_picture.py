import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.web.picture import Attributes, Picture
from pipeline.data.web.srcset import choose

WIDTH = 1024


def urls(*children: tuple[str, Attributes]) -> list[str]:
    """The addresses of the images among the children of a picture."""
    picture, found = Picture(WIDTH), []
    for tag, attributes in children:
        if tag == "source":
            picture.add_source(attributes)
        elif tag == "img":
            found.append(picture.image_url(attributes))
    return found


def source(srcset: str | None, **attributes: str | None) -> tuple[str, Attributes]:
    return "source", {"srcset": srcset, **attributes}


def img(src: str | None = "s", **attributes: str | None) -> tuple[str, Attributes]:
    return "img", {"src": src, **{name.replace("_", "-"): value for name, value in attributes.items()}}


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, ""),
        ({"src": None}, ""),
        ({"src": " s\n"}, "s"),
        ({"src": "s", "srcset": "a 320w, b 640w, c 2048w"}, "b"),
        ({"src": "s", "srcset": "c 2048w, d 4096w"}, "c"),
        ({"src": "s", "srcset": "a .5x"}, "s"),
        ({"src": "s", "srcset": "a foo"}, "s"),
        ({"src": "s", "srcset": None}, "s"),
        ({"src": "s", "srcset": " , "}, "s"),
        # Lazy loading
        ({"src": "spacer.gif", "data-src": " lazy "}, "lazy"),
        ({"src": "spacer.gif", "data-original": "lazy"}, "lazy"),
        ({"src": "s", "data-src": "  ", "data-lazy-src": None}, "s"),
        ({"src": "s", "srcset": "data:image/gif;base64,R0lGOD 1w", "data-srcset": "lazy 640w, huge 2000w"}, "lazy"),
        ({"src": "s", "data-srcset": "lazy .5x"}, "lazy"),  # src is only a placeholder for it
        ({"src": "s", "data-srcset": "bad -1w", "srcset": "a"}, "a"),
        # gallery-dl#7977, defuddle#327, lazysizes#53
        ({"src": "placeholder.gif", "data-lazy-src": "lazy", "srcset": "a 1x"}, "lazy"),
        ({"src": "data:image/gif;base64,R0lGOD", "data-original": "lazy"}, "lazy"),
        ({"src": "placeholder.gif", "data-srcset": "img-1.jpg 1x, img-2.jpg 2x"}, "img-2.jpg"),
    ],
)
def test_an_image_without_a_picture(attributes: Attributes, expected: str) -> None:
    assert Picture(WIDTH).image_url(attributes) == expected


@pytest.mark.parametrize(
    ("children", "expected"),
    [
        ([source("a.webp 320w, b.webp 800w"), source("c.avif"), img()], "b.webp"),
        ([source("first.webp"), img(srcset="img.jpg 1x")], "first.webp"),  # sources come before the img's srcset
        ([source("a"), img(srcset="b 9x")], "a"),
        ([img(), source("a")], "s"),  # a source behind the img
        ([source(None), source(""), source("bad -1x"), source("b"), img()], "b"),
        ([("source", {"src": "a"}), img()], "s"),  # src is for audio and video
        ([source(" , "), img(srcset="b")], "b"),
        # Types
        ([source("a.svg", type="image/svg+xml"), source("b.avif", type="image/avif"), img()], "b.avif"),
        ([source("a.webp", type=" IMAGE/WebP ; codecs=x"), img()], "a.webp"),
        ([source("a", type=""), img()], "a"),
        ([source("a", type=None), img()], "a"),
        ([source("a.jxl", type="image/jxl"), source("b.mp4", type="video/mp4"), img()], "s"),
        ([source("a", type="webp"), img()], "s"),
        # Media
        ([source("small", media="(max-width: 600px)"), source("large"), img()], "large"),
        ([source("huge", media="(min-width: 1200px)"), source("b", media="(min-width:600px)"), img()], "b"),
        ([source("a", media="(min-width: 600px) and (max-width: 1100.5px)"), img()], "a"),
        ([source("huge", media="(min-width: 80em)"), source("b", media="(min-width: 40em)"), img()], "b"),
        ([source("printed", media="print"), img()], "s"),
        ([source("a", media="(orientation: landscape)"), img()], "a"),
        ([source("dark", media="(prefers-color-scheme: dark)"), source("light"), img()], "light"),
        ([source("a", media="(unheard-of)"), img()], "s"),
        ([source("a", media=None), img()], "a"),
        # Lazy loading
        ([("source", {"data-srcset": "lazy.webp 640w"}), img()], "lazy.webp"),
        ([source("placeholder", **{"data-srcset": "lazy"}), img()], "lazy"),
        ([source("a", **{"data-srcset": "bad -1x"}), img()], "a"),
        ([source("a"), img(data_src="lazy")], "lazy"),
        ([source("placeholder"), img(data_srcset="lazy")], "lazy"),
        # jekyll-assets#433 and Cecil#1238: the img is the first child
        ([img("default.png"), source("medium.png", media="(min-width: 480px)"), source("small.png")], "default.png"),
        # w3c/html#1577: an img is no fallback for a source that does not load
        ([source("https://example.com/does-not-exist.jpg"), img("icon.jpg")], "https://example.com/does-not-exist.jpg"),
        # lozad.js#77
        (
            [
                ("source", {"media": "(min-width: 1024px)", "data-srcset": "large"}),
                ("source", {"media": "(min-width: 768px)", "data-srcset": "middle"}),
                ("source", {"data-srcset": "small"}),
                ("img", {"class": "lozad", "data-src": ""}),
            ],
            "large",
        ),
    ],
)
def test_an_image_of_a_picture(children: Sequence[tuple[str, Attributes]], expected: str) -> None:
    assert urls(*children) == [expected]


def test_several_images_of_a_picture() -> None:
    """picturefill#207: each image has the sources in front of it."""
    children = [
        img("a"),
        source("b", media="print"),
        ("br", {}),
        img("c"),
        source("d"),
        img("e"),
        source("f"),
        img("g"),
    ]
    assert urls(*children) == ["a", "c", "d", "d"]


attributes = st.dictionaries(
    st.sampled_from(["src", "srcset", "data-src", "data-srcset", "media", "type"]),
    st.none()
    | st.sampled_from(["a", "b 2x", "c 9w, d 5000w", "bad -1x", "", "print", "(width)", "image/png", "image/svg+xml"]),
)


@given(st.lists(st.tuples(st.sampled_from(["source", "img", "p"]), attributes), max_size=8))
def test_only_sources_in_front_of_an_image_count(children: list[tuple[str, Attributes]]) -> None:
    images = [position for position, (tag, _) in enumerate(children) if tag == "img"]
    for url, position in zip(urls(*children), images, strict=True):
        alone = [child for child in children[: position + 1] if child[0] == "source"]
        assert [url] == urls(*alone, children[position])
        without = urls(children[position])[0]
        assert url == without or any(
            url in {choose(child.get("srcset") or "", WIDTH), choose(child.get("data-srcset") or "", WIDTH)}
            for _, child in alone
        )


def test_the_time_of_many_sources_and_images() -> None:
    """8,000 sources that do not fit and 200 images take 0.03 s, and with other media each 0.2 s."""
    sources = [source("a 320w, b 640w", media=f"(min-width: {2000 + i}px)") for i in range(8_000)]
    start = time.process_time()
    assert urls(*sources, *[img()] * 200) == ["s"] * 200
    assert time.process_time() - start < 4
