import struct

import pytest

from pipeline.data.text.language import Guess
from tests.perf.crawl.languages import Measured, catalogue, num_words, sample, share_refused, tables


def compiled(order: str, *pairs: tuple[bytes, bytes]) -> bytes:
    """Build a message catalogue: header, table of messages, table of translations, texts."""
    count, texts = len(pairs), b""
    entries: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
    for pair in pairs:
        for column, text in enumerate(pair):
            entries[column].append((len(text), 28 + 16 * count + len(texts)))
            texts += text + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, count, 28, 28 + 8 * count, 0, 0)
    return head + b"".join(struct.pack(f"{order}2I", *entry) for column in (0, 1) for entry in entries[column]) + texts


@pytest.mark.parametrize("order", ["<", ">"])
def test_messages_of_a_catalogue_are_read(order: str) -> None:
    pairs = [(b"", b"header"), (b"menu\4Open", b"\xc3\x96ffnen"), (b"one\0two", b"eins\0zwei"), (b"Cut", b"\xe9")]
    assert list(catalogue(compiled(order, *pairs))) == [("Open", "Öffnen"), ("Cut", "\ufffd")]


def test_words_are_counted_or_estimated() -> None:
    assert num_words("ein Hund", "de") == 2
    assert num_words("一只棕色的狗在草", "zh_CN") == 3


def test_a_sample_does_not_depend_on_the_order() -> None:
    texts = [str(number) for number in range(50)]
    assert sample(texts, 7) == sample(texts[::-1] + texts, 7)
    assert len(set(sample(texts, 7))) == 7


def test_texts_likely_in_another_language_are_refused() -> None:
    guesses = [Guess("en", 0.9, 1.0), Guess("de", 0.9, 90.0), Guess("de", 0.5, 3.0), Guess(None, 0.0, 1.0)]
    assert share_refused(guesses, 0.5, 1.0) == 0.5
    assert share_refused(guesses, 0.5, 4.0) == share_refused(guesses, 0.8, 1.0) == 0.25


def test_tables_contain_tools_and_rules() -> None:
    shares = {"p 0.5": 0.01, "p 0.8": 0.0, "odds 4": 0.0, "odds 16": 0.5, "odds 64": 0.0}
    one = Measured(tool="x", captions_per_second=1234.5, mebibytes=5, load_seconds=0.5, refused={"captions": shares})
    text = tables([one])
    assert "| x | 1,234 | 5 | 0.50 |" in text
    assert "| captions | 1.00 | 0.00 | 0.00 | 50.00 | 0.00 |" in text
