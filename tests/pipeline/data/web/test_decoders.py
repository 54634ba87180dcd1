import html
import json
import random
import re
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webencodings.labels import LABELS  # type: ignore[import-untyped]

from pipeline.data.web.charsets import encoding_of
from pipeline.data.web.decoders import decode
from tests.pipeline.data.web.chromium import dump_dom, needs_chromium

MULTI_BYTE = ["big5", "euc-jp", "euc-kr", "gb18030", "gbk", "shift_jis"]
SINGLE_BYTE = [
    *(f"iso-8859-{part}" for part in (2, 3, 4, 5, 6, 7, 8, "8-i", 10, 13, 14, 15, 16)),
    *(f"windows-{page}" for page in (874, *range(1250, 1259))),
    *("ibm866", "koi8-r", "koi8-u", "macintosh", "x-mac-cyrillic", "x-user-defined"),
]
ENCODINGS = [*MULTI_BYTE, *SINGLE_BYTE, "iso-2022-jp", "replacement", "utf-8", "utf-16le", "utf-16be"]
"""All 40 of the standard."""
CHROMIUM_BUGS = {
    # index-big5 has no pointers for them; the decoder's first step names these pairs of characters.
    ("big5", b"\x88\x62"): "\u00ca\u0304",
    ("big5", b"\x88\x64"): "\u00ca\u030c",
    ("big5", b"\x88\xa3"): "\u00ea\u0304",
    ("big5", b"\x88\xa5"): "\u00ea\u030c",
}
"""Pairs that Chromium 156 decodes to other characters than the standard does."""
CHROMIUM_STATE_BUGS = {
    # After an error in the third byte of JIS X 0212, Chromium reads the next pair as JIS X 0212, too.
    "euc-jp": re.compile(rb"\x8f[\xa1-\xfe](?![\xa1-\xfe])"),
    # After ESC and ( or $, Chromium skips a wrong byte without a U+FFFD of its own, and ends in ASCII.
    "iso-2022-jp": re.compile(rb"\x1b(?:\((?![BIJ])|\$(?![@B]))"),
}


def hex_of(sequences: list[bytes]) -> str:
    return " ".join(sequence.hex() for sequence in sequences)


def four_bytes(pointer: int) -> bytes:
    """The four-byte sequence of a pointer of gb18030."""
    return bytes(
        (
            0x81 + pointer // 12600 % 126,
            0x30 + pointer // 1260 % 10,
            0x81 + pointer // 10 % 126,
            0x30 + pointer % 10,
        )
    )


def malformed(encoding: str) -> Iterator[bytes]:
    """Random sequences in which errors meet characters, ASCII and the end of the input."""
    rng = random.Random(f"malformed {encoding}")
    escapes = [b"\x1b(B", b"\x1b(J", b"\x1b(I", b"\x1b$@", b"\x1b$B", b"\x1b", b"\x1b(", b"\x1b$", b"\x1b$(D"]
    units = [b"\x8f\xa2\xb7", b"\xa2A", b"\xa2B", b"\xa1\xfe", b"\x8f\xa1", b"\x81\x30", b"\x81\x30\x81", b"\x8e\xa1"]
    surrogates = [b"\xd8\x00", b"\xdc\x00", b"\x00\xd8", b"\x00\xdc", b"\x00a", b"a\x00", b"\xff\xfe", b"\xfe\xff"]
    utf_8 = [b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\xc0\x80", b"\xf0\x9f", b"\xe9"]
    kinds = {"iso-2022-jp": escapes, "utf-16le": surrogates, "utf-16be": surrogates, "utf-8": utf_8}
    bugs = [sequence for name, sequence in CHROMIUM_BUGS if name == encoding]
    state_bugs = CHROMIUM_STATE_BUGS.get(encoding, re.compile(rb"(?!)"))
    for _ in range(3_000):
        sequence = b"".join(
            rng.choice(kinds.get(encoding, units))
            if rng.random() < 0.3
            else bytes([rng.choice((0x0A, 0x0E, 0x30, 0x39, 0x3C, 0x41, 0x5C, 0x7E, 0x80, 0xFF, rng.randrange(256)))])
            for _ in range(rng.randrange(1, 9))
        )
        if not any(bug in sequence for bug in bugs) and not state_bugs.search(sequence):
            yield sequence


def sequences_of(encoding: str) -> list[bytes]:
    sequences = [bytes([byte]) for byte in range(256)]
    if encoding in SINGLE_BYTE:
        return sequences
    sequences += malformed(encoding)
    if encoding in MULTI_BYTE:
        sequences += [bytes((lead, trail)) for lead in range(0x80, 0x100) for trail in range(256)]
    if encoding == "euc-jp":
        sequences += [bytes((0x8F, row, cell)) for row in range(0xA1, 0xFF) for cell in range(0xA1, 0xFF)]
    if encoding == "gb18030":
        edges = [39_417 + i for i in range(50)] + [188_990 + i for i in range(50)] + [1_237_570 + i for i in range(50)]
        sequences += [four_bytes(pointer) for pointer in (*range(39_420), *edges, *range(189_000, 1_237_576, 997))]
    if encoding == "iso-2022-jp":
        sequences += [b"\x1b$B" + bytes((row, cell)) for row in range(0x20, 0x80) for cell in range(0x20, 0x80)]
        sequences += [b"\x1b(" + name + bytes([byte]) for name in (b"B", b"I", b"J") for byte in range(256)]
    return sequences


PAGE = """<!doctype html><meta charset=utf-8><pre id=out></pre><script>
const cases = %s, out = {};
const ascii = text => text.replace(/[^ -~]|[<>&"\\\\]/g, c => "\\\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
for (const [name, sequences] of Object.entries(cases)) {
  // A new decoder each time: Chromium's euc-jp and iso-2022-jp keep a part of their state from call to call.
  const decode = bytes => new TextDecoder(name, {ignoreBOM: true}).decode(bytes);
  out[name] = sequences.split(" ").map(hex =>
    '"' + ascii(decode(Uint8Array.from(hex.match(/../g), pair => parseInt(pair, 16)))) + '"');
}
document.getElementById("out").textContent =
  "{" + Object.entries(out).map(([name, texts]) => '"' + name + '":[' + texts + "]").join(",") + "}";
</script>"""


@pytest.fixture(scope="module")
def by_chromium(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What Chromium's TextDecoder makes of `sequences_of` each encoding."""
    folder = tmp_path_factory.mktemp("chromium")
    page = folder / "decode.html"
    cases = {name: hex_of(sequences_of(name)) for name in ENCODINGS if name != "replacement"}
    page.write_text(PAGE % json.dumps(cases))
    dom = dump_dom(page.as_uri(), folder)
    out = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
    assert out is not None
    decoded: dict[str, list[str]] = json.loads(html.unescape(out[1]))
    return decoded


@needs_chromium
@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name != "replacement"])
def test_every_sequence_is_decoded_as_chromium_decodes_it(by_chromium: dict[str, list[str]], encoding: str) -> None:
    sequences = sequences_of(encoding)
    differences = {
        (sequence.hex(), ours, theirs)
        for sequence, theirs in zip(sequences, by_chromium[encoding], strict=True)
        if (ours := decode(sequence, encoding)) != theirs and (encoding, sequence) not in CHROMIUM_BUGS
    }
    assert not differences


def test_where_chromium_differs_the_standard_is_followed() -> None:
    for (encoding, sequence), text in CHROMIUM_BUGS.items():
        assert decode(sequence, encoding) == text


@pytest.mark.parametrize(
    ("encoding", "sequence", "text"),
    [
        # python-webencodings#26, guess_html_encoding#6
        ("shift_jis", "①～㈱の写真".encode("cp932"), "①～㈱の写真"),
        ("shift_jis", b"\x87\x73", "㎏"),
        ("euc-kr", "뷁".encode("cp949"), "뷁"),
        ("big5", "啲".encode("big5hkscs"), "啲"),
        ("gbk", b"\x80\x35", "€5"),
        ("x-mac-cyrillic", b"\xa2\xb6", "\u0490\u0491"),
        # cpython#95734: row 13 of NEC in euc-jp
        ("euc-jp", b"58\xad\xd1", "58㎝"),
        # golang/go#13727: IBM's extensions of shift_jis
        ("shift_jis", b"\xfb\xfc\xfa\xb1", "髙﨑"),
        # flutter_charset_detector#5
        ("shift_jis", b"/*/\xfby\x92J \x97S\x89\xee/*/", "/*/硎谷 祐介/*/"),
        # whatwg/encoding#28: the last character of Big5, and #75: pairs that Big5-HKSCS lacks
        ("big5", b"\xf9\xfe", "\uffed"),
        ("big5", b"\x8e\x69\x9b\x76\xa3\xe1", "箸爁€"),
        # whatwg/encoding#17: deployed gb18030 has a space here
        ("gb18030", b"\xa3\xa0", "\u3000"),
        # w3lib#76
        ("gb18030", b"\x80", "€"),
        # turbohtml#423, jsdom/whatwg-encoding#22
        ("windows-1252", b"\x81\x8d\x8f\x90\x9d\x80", "\x81\x8d\x8f\x90\x9d€"),
        # chardetng-py#11
        ("windows-1255", b"\xca", "\u05ba"),
        ("koi8-u", b"\xae\xbe", "ўЎ"),
        # alice-tools#92: the wave dash of Windows
        ("shift_jis", b"\x81\x60", "\uff5e"),
        ("euc-jp", b"\xa1\xc1", "\uff5e"),
        ("iso-2022-jp", b"\x1b$B!A\x1b(B", "\uff5e"),
        ("iso-2022-jp", b"\x1b$B-!\x1b(B!", "①!"),
        # Where Chromium keeps a state that the standard resets
        ("euc-jp", b"\x8f\xa1\x81\xa1\xa1", "\ufffd\u3000"),
        ("euc-jp", b"\x8f\xa1<\xa1\xa1", "\ufffd<\u3000"),
        ("iso-2022-jp", b"\x1b(\xff\x1b$\x0ea", "\ufffd(\ufffd\ufffd$\ufffda"),
        ("iso-2022-jp", b"\x1b$B\x1b(\x1b(B", "\ufffd\ufffd"),
        ("x-user-defined", b"a\x80\xff", "a\uf780\uf7ff"),
        ("replacement", b"<p>", "\ufffd"),
        ("replacement", b"", ""),
    ],
)
def test_characters_that_python_lacks(encoding: str, sequence: bytes, text: str) -> None:
    assert decode(sequence, encoding) == text


@pytest.mark.parametrize("encoding", [*MULTI_BYTE, "utf-8"])
def test_a_broken_character_does_not_swallow_a_tag(encoding: str) -> None:
    assert decode(b'<img alt="\xe3"><b>', encoding) == '<img alt="\ufffd"><b>'


def test_every_label_has_a_decoder() -> None:
    assert {encoding_of(label) for label in LABELS} == {*ENCODINGS}


def test_an_unknown_encoding_is_an_error() -> None:
    with pytest.raises(ValueError, match="utf-7"):
        decode(b"", "utf-7")


@given(st.sampled_from(ENCODINGS), st.binary(max_size=200))
def test_decoding_never_fails(encoding: str, body: bytes) -> None:
    assert not any("\ud800" <= character <= "\udfff" for character in decode(body, encoding))


LINES = st.lists(
    st.one_of(st.binary(max_size=8), st.sampled_from([b"\xa2A", b"\x8f\xa2\xb7", b"\xa1\xfe", b"\x8f\xa2"])), max_size=8
).map(b"".join)


@given(st.sampled_from(["big5", "euc-jp", "euc-kr", "shift_jis"]), LINES, LINES)
def test_a_line_is_decoded_alone(encoding: str, one: bytes, other: bytes) -> None:
    """No character contains a line feed. (An incomplete character of gb18030 depends on what follows.)"""
    assert decode(one + b"\n" + other, encoding) == decode(one, encoding) + "\n" + decode(other, encoding)


@settings(deadline=None)
@given(st.sampled_from(MULTI_BYTE), st.data())
def test_characters_are_decoded_one_by_one(encoding: str, data: st.DataObject) -> None:
    pairs = st.binary(min_size=1, max_size=3).filter(lambda pair: "\ufffd" not in decode(pair, encoding))
    characters = data.draw(st.lists(st.one_of(pairs, st.sampled_from([b"\xa1\xa4", b"<p>"])), max_size=8))
    assert decode(b"".join(characters), encoding) == "".join(decode(pair, encoding) for pair in characters)


HOSTILE = [b"\xff", b"\xa1\xff", b"\x81", b"\xa2A", b"\x8f\xa2\xb7", b"\x81\x30\x81", b"\x1b", b"\x1b(B", b"\x1b$B!"]


@pytest.mark.parametrize("unit", HOSTILE)
def test_hostile_bytes_cost_linear_time(unit: bytes) -> None:
    body = unit * (2**20 // len(unit))
    for encoding in ENCODINGS:
        started = time.process_time()
        decode(body, encoding)
        assert time.process_time() - started < 3, encoding
