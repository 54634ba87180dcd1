import time
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.text import words
from pipeline.data.text.match import Matcher
from pipeline.data.text.spelling import normalize, unescape, visible
from pipeline.data.text.words import is_long_enough, is_unspaced, words_of

texts = st.text(
    "ab c-'_.1²éßŉǅﬁİıI\u0301\u0307\u0323\u0345 \u00a0\u200b\u200d\u00ad™①½´’‑–❤\ufe0f&;#ampltTM3９＆", max_size=16
)


@pytest.mark.parametrize(
    ("caption", "query"),
    [
        ("LEGO™ castle", "lego"),
        ("LEGO™ castle", "lego castle"),
        ("Nintendo® Switch", "Nintendo Switch"),
        ("Game Boy℠, ©Nintendo", "nintendo"),
        ("Nintendo® Game Boy™.", "game boy"),  # ItMarki/MisekiBitmap#2
        ("TensorFlow™ install", "tensorflow"),  # EvoScientist/EvoScientist#485, and the next
        ("①install pytest", "install"),
        ("Colorfront Engine™ ", "engine"),  # languagetool-org/languagetool#1527
        ("5㎏ of rice", "kg"),
        ("1½cup of milk", "cup"),
        ("❤️love", "love"),
        ("1️⃣love", "love"),
        ("#️⃣love", "love"),
        ("👩\u200d🚀astronaut", "astronaut"),
        ("❤️", "❤"),
        ("🥑\ufe0f\ufe0f\ufe0ftoast", "toast"),  # jolicode/emoji-search#26
        ("🍏\ufe0e", "🍏\ufe0f"),  # jolicode/emoji-search#7
        ("´dog´", "dog"),
        ("don´t", "don't"),
        ("¨dog¨ and ˜cat˜", "dog"),
        ("don’t", "don't"),
        ("McDonald’s", "McDonald's"),
        ("McDonald‘s", "mcdonald’s"),
        ("O\u02bcConnor", "O'Connor"),
        ("“weird al”", '"Weird Al"'),
        ("5′ 6″", "5' 6\""),
        ("the do\u200bg", "dog"),
        ("\ufeffdog\u2060 and\u200b cat", "dog and cat"),
        ("hy\u00adphen\u00adation", "hyphenation"),
        ("Ge\u00adsamt\u00adkon\u00adzept", "gesamtkonzept"),  # contao/core#8389
        ("Anfän\u00adge\u00adrin\u00adnen", "Anfängerinnen"),  # Woundorf/foxreplace#393
        ("quite\u00ada\u00adlong\u00adword", "quitealongword"),  # jhy/jsoup#978
        ("Lo\u200brem ip\u00adsum", "lorem ipsum"),  # julkue/mark.js#69
        ("\u202bשלום\u202c", "שלום"),
        ("می\u200cخواهم", "میخواهم"),
        ("क्\u200dष", "क्ष"),
        ("Spider\u2011Man", "spider-man"),
        ("Spider\u2010Man and Spider\u2013Woman", "spider-woman"),
        ("−5 degrees", "-5 degrees"),
        ("İstanbul", "istanbul"),
        ("I\u0307STANBUL", "i\u0307stanbul"),
        ("İzmir İNCİR", "incir"),  # notepad-plus-plus/notepad-plus-plus#2417
        ("DIYARBAKIR", "Diyarbakır"),
        ("rock &amp; roll", "Rock & Roll"),
        ("dogs &amp;amp; cats", "dogs & cats"),  # lepture/mistune#440
        ("90&amp;deg; angle", "90° angle"),  # pointfreeco/swift-html#57
        ("I don&amp;#039;t know", "don't know"),  # pixelfed/pixelfed#347
        ("caf&eacute; au lait", "café"),
        ("LEGO&trade; castle", "lego castle"),
        ("dog&nbsp;house", "dog house"),
        ("dog&nbsp house", "dog house"),
        ("DOG&NBSP;HOUSE", "dog house"),
        ("it&#x2019;s", "it's"),
        ("it&#39s", "it's"),
        ("AT&T", "at&t"),
    ],
)
def test_other_spellings_match(caption: str, query: str) -> None:
    """On both sides: the plain text as the query, and the other way round where the whole text is meant."""
    assert Matcher([query]).match(caption) == [0]
    assert Matcher([normalize(query)]).match(caption) == [0]
    assert Matcher([caption]).match(normalize(caption)) == [0]


@pytest.mark.parametrize(
    ("caption", "query"),
    [
        ("black&white&notit; shirt", "it"),
        ("fish &copyright", "© right"),
        ("dog\u200bs", "dog"),
        ("word\u2014word", "word-word"),
        ("m²", "m"),
        ("résumé", "resume"),
    ],
)
def test_different_texts_do_not_match(caption: str, query: str) -> None:
    assert Matcher([query]).match(caption) == []


def test_mode_metaclip_keeps_its_own_rule() -> None:
    captions = ["LEGO™ castle", "rock &amp; roll", "don’t", "do\u200bg", "İstanbul"]
    assert Matcher(["LEGO", "rock & roll", "don't", "dog", "istanbul"], "metaclip")(pa.array(captions)).to_pylist() == [
        [] for _ in captions
    ]


ENTITIES = {
    "&lt;&gt;&amp;": "<>&",
    "&LT;&copy &copy;": "<© ©",
    "&copy=1 &copyx": "&copy=1 &copyx",
    "&hellip; &hellip": "… &hellip",  # without a semicolon only those that were allowed before HTML 4
    "&#8217;&#x2019;&#X2019;&#8217": "’’’’",
    "&#150; &#x80;": "– €",  # HTML reads these as windows-1252
    "&#0; &#xD800; &#x110000;": "\ufffd \ufffd \ufffd",
    f"&#{'9' * 10_000}; &#{'0' * 10_000}65;": "\ufffd A",
    "&amp;amp;amp;amp;amp;lt;": "<",
    "&#38;#39; &amp;#38;lt;": "' <",
    "&; &# &#; &#x; &nothing; & a": "&; &# &#; &#x; &nothing; & a",
    "salt&pepper; AT&T; R&B": "salt&pepper; AT&T; R&B",
}


@pytest.mark.parametrize(("text", "expected"), ENTITIES.items())
def test_entities_are_read_as_in_attributes_of_html(text: str, expected: str) -> None:
    assert unescape(text) == expected


def test_visible_keeps_what_readers_see() -> None:
    text = "LEGO™ ❤️ “it’s” می‌خواهم 👩‍🚀 a_b  c"
    assert visible(text) == text
    assert visible("\ufeffa\u00adb\u200bc\u200e &amp;shy;") == "abc "


@settings(max_examples=1000, deadline=None)
@given(st.text(max_size=12) | texts)
@example("&&num;39;")
@example("＆amp;")
@example("&\u212aappa;")
@example("&&#97;mp;")
@example("&#38;" * 9 + "#38;#38;#38;#38;lt;")
@example("i\u0307\u0301")
def test_normalising_is_idempotent(text: str) -> None:
    """Otherwise a query made from a text might not match that text."""
    assert normalize(normalize(text)) == normalize(text)


def test_each_character_is_normalised_to_one_form() -> None:
    """The table is closed: nothing that it replaces comes out of NFKC or case folding."""
    codes = [*range(0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x20000)]
    plain = normalize("".join(f"x{chr(code)}\n" for code in codes))
    assert normalize(plain) == plain


@given(st.text(st.characters(max_codepoint=127, exclude_characters="&"), max_size=20))
def test_ascii_is_only_lowercased(text: str) -> None:
    """So splitting need not fold it (`words.split`)."""
    assert normalize(text) == " ".join(text.lower().split())


@settings(deadline=None)
@given(st.lists(texts | st.text("a&lt;mp#39 ", max_size=12), max_size=8), st.integers(0, 3))
def test_splitting_a_column_gives_the_words_of_each_text(captions: list[str], skipped: int) -> None:
    """Also of a slice, and with texts that end in &."""
    column = pa.array(["&"] * skipped + captions, pa.string()).slice(skipped)
    found: list[list[str]] = [[] for _ in captions]
    for chunk in words.split(column):
        spelled = chunk.spell(np.arange(len(chunk.hash))).to_pylist()
        for text, word in zip(chunk.text.tolist(), spelled, strict=True):
            found[text].append(word)
    assert ["".join(split) for split in found] == [normalize(caption).replace(" ", "") for caption in captions]


WORDS = {
    "Don't, it's A dog_1!": ["don", "t", "it", "s", "a", "dog_1"],
    "दिल्ली हिन्दी": ["दिल्ली", "हिन्दी"],
    "தமிழ் বাংলা": ["தமிழ்", "বাংলা"],
    "黑猫 iPhone手机": ["黑", "猫", "iphone", "手", "机"],
    "กิน ขี่": ["กิ", "น", "ขี่"],
    "ខ្មែរ": ["ខ្", "មែ", "រ"],
    "한국어 낱말": ["한국어", "낱말"],
    "❤️ ™ … &amp;": [],
}


@pytest.mark.parametrize(("text", "expected"), WORDS.items())
def test_texts_are_split_into_the_words_that_rules_count(text: str, expected: list[str]) -> None:
    assert words_of(text) == [unicodedata.normalize("NFC", word) for word in expected]


def test_words_consist_of_the_characters_that_splitting_takes_for_words() -> None:
    """`words_of` and `words.split` have one notion of a word, character by character."""
    codes = [*range(0x3500), *range(0xA000, 0xAC80), *range(0xF900, 0x20000)]
    texts = [f"a{chr(code)}b" for code in codes]
    split: list[list[str]] = [[] for _ in texts]
    unspaced = set()
    for chunk in words.split(pa.array(texts)):
        is_word = np.flatnonzero(chunk.kind != words.Kind.OTHER)
        unspaced |= set(chunk.text[chunk.kind == words.Kind.UNSPACED].tolist())
        for text, word in zip(chunk.text[is_word].tolist(), chunk.spell(is_word).to_pylist(), strict=True):
            split[text].append(word)
    assert 1_000 < len(unspaced) < len(texts) / 2
    for index, (text, found) in enumerate(zip(texts, split, strict=True)):
        if index not in unspaced:
            assert words_of(text) == found
        else:  # a mark is not a word of its own here
            assert [word[0] for word in words_of(text)] == [
                word[0] for word in found if unicodedata.category(word[0])[0] != "M"
            ]


def test_scripts_without_blanks_are_recognised() -> None:
    assert [is_unspaced(word) for word in words_of("黑 กิ カ dog é 한 हि １")] == [True] * 3 + [False] * 5


def test_words_and_characters_are_enough_together() -> None:
    split = words_of("two words 四个字符")
    assert is_long_enough(split, 3, 4)
    assert is_long_enough(split, 4, 8)
    assert not is_long_enough(split, 4, 9)
    assert is_long_enough([], 0, 4)
    assert not is_long_enough([], 1, 4)


PIECES = (
    "&",
    "&amp;",
    "&#38;",
    "&a",
    "&#",
    "&#9",
    "&#x",
    "&lt",
    "i\u0307",
    "\u0307",
    "™",
    "\u00ad",
    "´ ",
    "ﷺ",
    "中",
    "e\u0301\u0323",
)


MARKS = [chr(code) for code in range(0x300, 0x1E900) if unicodedata.combining(chr(code))]
"""Among them are all that decompose to other marks; the rest of that kind is below."""


@given(
    st.lists(st.sampled_from([*MARKS, *"\u0f73\u0f75\u0f81", "a", "ệ", "\U0001d15e", "😀"]), max_size=80).map("".join)
)
@example("\u0301\u0323" * 40)
@example("\u0f81\u0f71" * 40)
def test_long_runs_of_marks_are_normalised_as_unicodedata_does(marks: str) -> None:
    """A short text is left to unicodedata; the blanks make it long, and all but one are removed."""
    assert normalize(marks + " " * 300 + "ü") == normalize(f"{marks} ü")


@pytest.mark.parametrize("piece", PIECES)
def test_hostile_texts_are_normalised_in_linear_time(piece: str) -> None:
    assert _seconds(piece, 2**20) < 20 * _seconds(piece, 2**17) + 0.2


@pytest.mark.faults
@pytest.mark.parametrize("piece", PIECES)
def test_hostile_texts_of_8_mib_are_normalised(piece: str) -> None:
    assert _seconds(piece, 2**23) < 60


@pytest.mark.parametrize("marks", ["\u0301\u0323", "\u0344\u0323", "\u0f81\u0f71", "\u0f80\u0f71"])
def test_many_marks_of_two_kinds_are_normalised_in_linear_time(marks: str) -> None:
    """unicodedata sorts them in quadratic time: these would take 20 minutes."""
    started = time.process_time()
    normalize("a" + marks[0] * 2**19 + marks[1] * 2**19)
    normalize("a" + marks * 2**19)
    assert time.process_time() - started < 8


def _seconds(piece: str, size: int) -> float:
    """CPU seconds to normalise a text of `size` bytes that repeats a piece."""
    text = piece * (size // len(piece.encode())) + "lt;"
    started = time.process_time()
    normalize(text)
    return time.process_time() - started
