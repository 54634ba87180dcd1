import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.web.media_queries import MAX_CHARACTERS, MAX_NESTING, matches

WIDTH = 1024


@pytest.mark.parametrize(
    ("media", "expected"),
    [
        ("", True),
        (" \n", True),
        ("/* nothing */", True),
        ("all", True),
        ("SCREEN", True),
        ("print", False),
        ("tty", False),
        ("unheard-of", False),
        ("only screen", True),
        ("only print", False),
        ("not print", True),
        ("not unheard-of", True),
        ("not all", False),
        ("not screen", False),
        # Lists: one query is enough, and a bad one harms only itself
        ("print, screen", True),
        ("print, speech", False),
        ("(bad:, screen", False),  # the comma is within the parentheses
        ("bad bad, screen", True),
        (", screen", True),
        (",", False),
        # Widths
        ("(min-width: 1024px)", True),
        ("(min-width:1025px)", False),
        ("(max-width: 1024px)", True),
        ("(max-width : 1023.5px )", False),
        ("(min-width: 64em)", True),
        ("(min-width: 64.1rem)", False),
        ("(min-width: 6in) and (max-width: 12in)", True),
        ("(min-width: 28cm)", False),
        ("(max-width: 271mm)", True),
        ("(max-width: 768pt)", True),
        ("(min-width: 1e2px)", True),
        ("(min-width: +.5px)", True),
        ("(min-width: -5px)", True),
        ("(max-width: -5px)", False),
        ("(min-width: 0)", True),
        ("(max-width: 0)", False),
        ("(width: 1024px)", True),
        ("(width)", True),
        ("(min-device-width: 1000px)", True),
        ("(min-width)", False),
        ("(min-width: 600px 700px)", False),
        ("(min-width: 600px, 700px)", False),
        ("(min-width 600px)", False),
        # Comparisons
        ("(width >= 600px)", True),
        ("(width>1024px)", False),
        ("(600px <= width)", True),
        ("(600px > width)", False),
        ("(width = 64em)", True),
        ("(600px <= width <= 1024px)", True),
        ("(1024px < width <= 2000px)", False),
        ("(2000px > width >= 1000px)", True),
        ("(600px < width > 700px)", False),
        ("not (600px < width > 700px)", False),
        ("(600px = width = 700px)", False),
        ("(min-width >= 600px)", False),
        ("(width > 300px > width)", False),
        # Other features
        ("(orientation: landscape)", True),
        ("(orientation: portrait)", False),
        ("not (orientation: portrait)", True),
        ("(orientation: diagonal)", False),
        ("not (orientation: diagonal)", False),
        ("(prefers-color-scheme: light)", True),
        ("(prefers-color-scheme: dark)", False),
        ("(prefers-color-scheme: no-preference)", False),
        ("(prefers-color-scheme)", True),
        ("(prefers-reduced-motion: reduce)", False),
        ("(prefers-reduced-motion: no-preference)", True),
        ("(prefers-reduced-motion)", False),
        ("(hover: hover) and (pointer: fine)", True),
        ("(min-resolution: 2dppx)", False),
        ("(min-resolution: 96dpi)", True),
        ("(max-resolution: 1.5x)", True),
        ("(-webkit-min-device-pixel-ratio: 1.5)", False),
        ("(-webkit-max-device-pixel-ratio: 1)", True),
        ("(-webkit-min-device-pixel-ratio: 0)", True),
        ("(min-height: 1px)", False),  # not known
        ("not (min-height: 1px)", False),
        ("(unheard-of)", False),
        ("not (unheard-of)", False),
        ("(min-orientation: landscape)", False),
        # Conditions
        ("screen and (min-width: 600px)", True),
        ("screen AND (Min-Width: 600PX)", True),
        ("print and (min-width: 600px)", False),
        ("not print and (min-width: 600px)", True),
        ("not screen and (min-width: 1200px)", True),
        ("not screen and (min-width: 600px)", False),
        ("not screen and (unheard-of)", False),
        ("not print and (unheard-of)", True),
        ("(min-width: 1px)and (max-width: 9999px)", True),
        ("(min-width: 1200px) or (orientation: landscape)", True),
        ("(min-width: 1200px) or (orientation: portrait)", False),
        ("(unheard-of) or (width)", True),
        ("(unheard-of) and (width)", False),
        ("not ((unheard-of) and (not (width)))", True),
        ("screen and not (min-width: 1200px)", True),
        ("screen and ((min-width: 1200px) or (width))", True),
        ("(((min-width: 600px)))", True),
        ("(not (print))", False),
        ("(not (min-width: 1200px))", True),
        ("style(--a: b)", False),
        ("not style(--a: b)", False),
        ("(style(--a: b)) or (width)", True),
        ("(min-width: 600px", True),  # the end of the text closes it, as in CSS
        ("(not (min-width: 1200px", True),
        ("screen /* on a */ and/**/(width)", True),
        ("screen /* on a */ and /**/ (width) /* open", True),
        # w3c/csswg-drafts#952: `not` in front of a feature
        ("not (min-width: 600px)", False),
        # web-platform-tests/wpt#35435: unknown names and values
        ("(width: foobar)", False),
        ("(foobar: foobarvalue) or (width)", True),
        # stylelint/stylelint#6834
        ("screen and (not (prefers-contrast))", True),
        # lezer-parser/css#17
        ("(width >= 30em)", True),
        # samoht/cascade#323: both mean the same
        ("not all and (min-width: 1200px)", True),
        ("not (min-width: 1200px)", True),
    ],
)
def test_queries(media: str, expected: bool) -> None:
    assert matches(media, WIDTH) is expected


@pytest.mark.parametrize(
    "value",
    ["600", "px", "6 00px", "600 px", "1.px", "1e9", "6px6", "5vw", "", "calc(1px + 1px)", "٣px", "nanpx", "1_0px"],
)
def test_a_value_that_is_no_length_is_unknown(value: str) -> None:
    assert not matches(f"(min-width: {value})", WIDTH)
    assert not matches(f"not (min-width: {value})", WIDTH)


@pytest.mark.parametrize(
    "media",
    [
        *("min-width: 600px", "not min-width:600px", "screen and(width)", "(width) and(width)", "layer", "6", "$"),
        *("screen and", "and (width)", "not", "only", "only (width)", "not not print", "or", "screen print"),
        *("screen (width)", "(width) (width)", "(width))", ")", "(", "()", "not ()", "not (", "screen)"),
        *("screen and (width) or (width)", "(width) and (width) or (width)", "(width) or (width) and (width)"),
        *("not (width) and (width)", "(width) and not (width)", "((width) (width))", "not ((width) print)"),
    ],
)
def test_what_is_not_grammatical_does_not_match(media: str) -> None:
    assert not matches(media, WIDTH)
    assert matches(f"{media}), screen" if media.endswith("(") else f"{media}, screen", WIDTH)


def test_nesting_is_bounded() -> None:
    for depth, expected in ((MAX_NESTING, True), (MAX_NESTING + 1, False), (MAX_CHARACTERS // 3, False)):
        assert matches("(" * depth + "width" + ")" * depth, WIDTH) is expected


def test_length_is_bounded() -> None:
    assert matches("all".ljust(MAX_CHARACTERS), WIDTH)
    assert not matches("all".ljust(MAX_CHARACTERS + 1), WIDTH)


words = st.sampled_from(
    ["(", ")", ",", "not", "and", "or", "only", "screen", "print", "(width)", "(height)", "(min-width: 2000px)", "and("]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(words | st.text("(): <>=-.0px/*", max_size=5), max_size=15).map(" ".join), st.integers(1, 10_000))
def test_any_text_has_an_answer(media: str, width: int) -> None:
    assert matches(media, width) in {True, False}
    if "(" not in media and "/" not in media:
        assert matches(f"{media}, screen", width), "no query harms another one"


conditions = st.recursive(
    st.sampled_from([("(width)", True), ("(max-width: 5px)", False), ("(foo)", None)]),
    lambda inner: st.one_of(
        inner.map(lambda c: (f"(not {c[0]})", None if c[1] is None else not c[1])),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda cs: (
                "(" + " and ".join(c[0] for c in cs) + ")",
                min((c[1] for c in cs), key=[False, None, True].index),
            )
        ),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda cs: (
                "(" + " or ".join(c[0] for c in cs) + ")",
                max((c[1] for c in cs), key=[False, None, True].index),
            )
        ),
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(conditions)
def test_conditions_have_three_truth_values(condition: tuple[str, bool | None]) -> None:
    text, truth = condition
    assert matches(text, WIDTH) is (truth is True)
    assert matches(f"not {text}", WIDTH) is (truth is False)
    assert matches(f"screen and {text}", WIDTH) is (truth is True)
    assert matches(f"not screen and {text}", WIDTH) is (truth is False)


@pytest.mark.parametrize(
    "piece", ["(", ")", "()", ",", "a", " ", "not ", "a and ", "/*", "/", "* /", "1", "-", "(a:", "<", "(a,"]
)
def test_time_is_linear(piece: str) -> None:
    """The longest attribute takes 5 ms; 8 MiB are refused by their length."""
    for media in (
        "(" + piece * (MAX_CHARACTERS // len(piece) - 1),
        piece * (MAX_CHARACTERS // len(piece)),
        piece * 2**21,
    ):
        start = time.process_time()
        matches(media, WIDTH)
        assert time.process_time() - start < 0.5
