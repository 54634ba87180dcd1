import json
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.web.srcset import ImageSource, browser_choice, choose, parse

NBSP = "\N{NO-BREAK SPACE}"


@pytest.mark.realdata
def test_the_candidates_of_web_platform_tests(clip_data: Path) -> None:
    """The file has the srcset parsing tests of web-platform-tests with the address that a browser shows."""
    cases = json.loads((clip_data / "conformance" / "srcset.json").read_text())
    assert len(cases) == 235
    wrong = [case for case in cases if browser_choice(case["srcset"]) != case["chosen"]]
    assert not wrong


@pytest.mark.parametrize(
    ("srcset", "expected"),
    [
        ("", []),
        (" , ,,\n", []),
        ("a", [ImageSource("a")]),
        ("a,", [ImageSource("a")]),
        ("a,,, b", [ImageSource("a"), ImageSource("b")]),
        ("a 1x,b 2x", [ImageSource("a", density=1), ImageSource("b", density=2)]),
        ("a 5w", [ImageSource("a", width=5)]),
        # A height is allowed beside a width, in either order, and by itself it is not
        ("a.jpg 320w 240h, b.jpg 768h 1024w", [ImageSource("a.jpg", width=320), ImageSource("b.jpg", width=1024)]),
        ("a 5h, b 1x 5h, c 5h 5h 1w, d 0w, e 1w 0h", []),
        ("a 1w 1x, b 1x 1w, c 1x 1x, d 1w 1w", []),
        # Numbers are those of HTML
        ("a .5x, b -0x, c 1e1x, d 1E+1x", [ImageSource(*x) for x in [("a", None, 0.5), ("b", None, 0)]]
         + [ImageSource("c", None, 10), ImageSource("d", None, 10)]),
        ("a 1.x, b +1x, c -1x, d nanx, e infx, f 1e999x, g 1_0w, h ٣w, i 1.0w, j 1W, k 1X, l x, m w, n 1e1w", []),
        # Only ASCII white space separates
        (f"a{NBSP}1x", [ImageSource(f"a{NBSP}1x")]),
        (f"a 1x{NBSP}, b 1\u2009x, c{NBSP} 2x", [ImageSource(f"c{NBSP}", density=2)]),
        ("a\v1x", [ImageSource("a\v1x")]),
        ("a\f1x\r,\tb", [ImageSource("a", density=1), ImageSource("b")]),
        # A comma in parentheses does not end a candidate; parentheses do not nest
        ("a (1x, b 1x), c", [ImageSource("c")]),
        ("a ((, b), c) 1x, d", [ImageSource("c)", density=1), ImageSource("d")]),
        ("a 1x(, b", []),
        ("a b c d, e", [ImageSource("e")]),
        # internetarchive/heritrix3#243
        ("a,b,,c,", [ImageSource("a,b,,c")]),
        ("a, b,, c,", [ImageSource("a"), ImageSource("b"), ImageSource("c")]),
        ("a (b,c),d", [ImageSource("d")]),
    ],
)  # fmt: skip
def test_candidates(srcset: str, expected: list[ImageSource]) -> None:
    assert list(parse(srcset)) == expected


@pytest.mark.parametrize(
    ("srcset", "expected"),
    [
        ("", ""),
        (",, ,", ""),
        ("a", "a"),
        ("a, b", "a"),
        ("a 1x, b 2x, c 1.5x", "b"),
        ("a .5x,b", "b"),
        ("a 320w,b 640w,c 1024w,d 1025w", "c"),
        ("a  320w ,\n\t b\t640w", "b"),
        ("d 3000w, c 2000w", "c"),
        ("a 2000w, b 2x", "b"),
        ("a 1w, b 2x", "a"),  # a known width wins
        ("http://x/a,w_100/p.jpg 100w, http://x/a,w_200/p.jpg 200w", "http://x/a,w_200/p.jpg"),
        ("data:image/png;base64,AAAA 1x, b 2x", "b"),
        ("a.jpg 320w 240h, b.jpg 1024w 768h", "b.jpg"),
        ("a -1w, b 0w", ""),  # a browser drops both
        ("a b c d", ""),
        (f"a {'9' * 5_000}w, b 10w", "b"),
        # fundus#982
        ("a-320x214.jpg, a-640x428.jpg 2x", "a-640x428.jpg"),
        # wpull#381: no blank after the comma, and a comma and parentheses in an address
        ("t/150x150/origin()/p.jpg 97w,t/f(100,100):origin()/p.jpg 225w", "t/f(100,100):origin()/p.jpg"),
        # sindresorhus/srcset#5 and plastic-image#25: commas in addresses, a height beside the last width
        ("i/c_fill,f_auto,w_320/r.jpg 320w, i/c_fill,f_auto,w_470/r.jpg 470w ", "i/c_fill,f_auto,w_470/r.jpg"),
        ("m/width:810/p 810w, m/width:500,height:750/p 500w 750h", "m/width:810/p"),
        # arto-app/Arto#253: without a blank after it, a comma is part of the address
        ("a.png,b.png 2x", "a.png,b.png"),
        # amphtml#471
        (" \n image,1 100w\n , \n image,2 50w \n", "image,1"),
    ],
)  # fmt: skip
def test_the_choice_for_a_corpus(srcset: str, expected: str) -> None:
    assert choose(srcset, 1024) == expected


@pytest.mark.parametrize(
    ("srcset", "src", "for_corpus", "in_browser"),
    [
        ("", " s\n", "s", "s"),
        ("", "", "", ""),
        ("bad -1x", "s", "s", "s"),
        ("a .5x", "s", "s", "s"),  # src counts as 1x
        ("a 2x", "s", "a", "s"),
        ("a 2x", "", "a", "a"),
        ("a 1x, b 2x", "s", "b", "a"),
        ("a, b 2x", "s", "b", "a"),
        ("a 2000w", "s", "a", "a"),  # src does not count beside a width
        ("a 500w, b 1000w, c 2000w", "s", "b", "c"),
        ("a 500w, b 1024w, c 2000w", "s", "b", "b"),
        ("a 3x, b 2x", "", "a", "b"),
        ("a 1x, b 1x", "", "a", "a"),
    ],
)
def test_src_is_one_of_the_candidates(srcset: str, src: str, for_corpus: str, in_browser: str) -> None:
    assert choose(srcset, 1024, src) == for_corpus
    assert browser_choice(srcset, src) == in_browser


def reference(srcset: str) -> list[str]:
    """The addresses of a srcset by the standard's state machine, one character at a time, with valid descriptors."""
    blanks, position = "\t\n\f\r ", 0
    found: list[str] = []
    while True:
        while position < len(srcset) and srcset[position] in blanks + ",":
            position += 1
        if position == len(srcset):
            return found
        start = position
        while position < len(srcset) and srcset[position] not in blanks:
            position += 1
        url, current, state = srcset[start:position], "", "in"
        descriptors: list[str] = []
        if url[-1] == ",":
            url = url.rstrip(",")
        else:
            while position < len(srcset):
                character = srcset[position]
                position += 1
                if state == "parens":
                    current += character
                    state = "in" if character == ")" else state
                elif character in blanks:
                    descriptors, current = [*descriptors, current] if current else descriptors, ""
                elif character == ",":
                    break
                else:
                    current += character
                    state = "parens" if character == "(" else "in"
            descriptors += [current] if current else []
        kinds = sorted(d[-1] for d in descriptors if d[:-1].isdigit() and (d[-1] == "x" or int(d[:-1])))
        if len(kinds) == len(descriptors) and kinds in ([], ["w"], ["x"], ["h", "w"]):
            found.append(url)


WORDS = ["a", "1w", "2h", "1x", "0x", "0w", ",", "(", ")", ",b"]


@settings(max_examples=500, deadline=None)
@given(st.text("a1wxh, (\t)", max_size=25) | st.lists(st.sampled_from(WORDS)).map(" ".join))
@example("a (,)1x, b")
def test_candidates_are_those_of_the_state_machine(srcset: str) -> None:
    assert [source.url for source in parse(srcset)] == reference(srcset)


@settings(max_examples=200, deadline=None)
@given(st.text("ab,. 12wxhe()\t-" + NBSP, max_size=25), st.integers(0, 20), st.text("s \t", max_size=3))
def test_the_choice_is_one_of_the_addresses(srcset: str, max_width: int, src: str) -> None:
    addresses = {source.url for source in parse(srcset)} | {src.strip()} | {""}
    for best in (choose(srcset, max_width, src), browser_choice(srcset, src)):
        assert best in addresses
        assert not best.endswith(",")
        assert bool(best) or (not list(parse(srcset)) and not src.strip())


@pytest.mark.parametrize(
    "piece", ["a", ",", " ", "(", ")", "()", "(a", "a (", " 1", "9", " 1w", ", ", "é", "1e", "-", "a 1w 1w(", "a,1x "]
)
def test_time_and_memory_are_bounded(piece: str) -> None:
    """8 MiB of one piece, by itself and among descriptors; the slowest takes 2 s."""
    for srcset in (piece * (2**23 // len(piece)), "a 1x, b " + piece * (2**23 // len(piece)) + "x"):
        start = time.process_time()
        choose(srcset, 1024)
        assert time.process_time() - start < 20
    tracemalloc.start()
    choose(srcset[: 2**18], 1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21
