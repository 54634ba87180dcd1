import pytest

from pipeline.data.caption import BOILERPLATE, CaptionConfig, apply_rules, why_not
from pipeline.schemas import Reason
from tests.pipeline.data.rows import candidates

GOOD = (
    "A red star above two blue circles",
    "Image 3 of a series about owls",  # begins as file names do
    "Photo 1 of the wedding at the beach",
    "Logo of the city of Ulm",
    "Kölner Dom, Blick von Süden",
    "Собака на снегу",
    "5 < 7 & more",
    "Rock & roll at its best",
    "Buffalo buffalo Buffalo buffalo",  # short enough to repeat itself
    "dog dog dog cat cat",
)
BAD = {
    "": Reason.CAPTION_EMPTY,
    " \t ": Reason.CAPTION_EMPTY,
    "***": Reason.CAPTION_EMPTY,
    "—…!": Reason.CAPTION_EMPTY,
    "dog": Reason.CAPTION_SHORT,
    "Sonnenuntergang!": Reason.CAPTION_SHORT,
    "word " * 300: Reason.CAPTION_LONG,
    "IMG_0231.jpg": Reason.CAPTION_FILE_NAME,
    "img-20200101-WA0001": Reason.CAPTION_FILE_NAME,
    "DSC 0042": Reason.CAPTION_FILE_NAME,
    "DSC 0042 (1)": Reason.CAPTION_FILE_NAME,
    "photo_12": Reason.CAPTION_FILE_NAME,
    "Screenshot 2020-01-01 at 10.20.30 PM": Reason.CAPTION_FILE_NAME,
    "holiday-in-rome.JPEG": Reason.CAPTION_FILE_NAME,
    "Click here!": Reason.CAPTION_BOILERPLATE,
    "Image": Reason.CAPTION_BOILERPLATE,
    "  read   MORE… ": Reason.CAPTION_BOILERPLATE,
    "see https://a.example/x for more": Reason.CAPTION_MARKUP,
    "visit www.a.example today": Reason.CAPTION_MARKUP,
    "<b>bold</b> words in it": Reason.CAPTION_MARKUP,
    "Hello {{ user }} again": Reason.CAPTION_MARKUP,
    "Rock &amp; roll forever": Reason.CAPTION_MARKUP,
    "write to me@a.example now": Reason.CAPTION_MARKUP,
    "buy buy buy buy now": Reason.CAPTION_REPETITION,
    "cheap Cheap CHEAP cheap, cheap shoes": Reason.CAPTION_REPETITION,
}


@pytest.mark.parametrize("caption", GOOD)
def test_good_captions_stay(caption: str) -> None:
    assert why_not(caption, CaptionConfig()) is None


@pytest.mark.parametrize(("caption", "reason"), BAD.items())
def test_bad_captions_go_with_their_reason(caption: str, reason: Reason) -> None:
    assert why_not(caption, CaptionConfig()) == reason


def test_limits_are_those_of_the_configuration() -> None:
    assert why_not("dog", CaptionConfig(min_words=1)) is None
    assert why_not("a dog", CaptionConfig(min_words=3)) == Reason.CAPTION_SHORT
    assert why_not("a dog runs", CaptionConfig(max_characters=9)) == Reason.CAPTION_LONG
    assert why_not("a dog runs", CaptionConfig(max_characters=10)) is None
    assert why_not("buy buy buy buy now", CaptionConfig(max_repetition=0.8)) is None


def test_boilerplate_is_written_as_it_is_compared() -> None:
    assert all(text == " ".join(text.lower().split()) for text in BOILERPLATE)
    assert all(why_not(text.upper(), CaptionConfig()) == Reason.CAPTION_BOILERPLATE for text in BOILERPLATE)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("piece", ["<a ", "image 1 ", "1 1", "  9", "{", "&a", "a.", "http"])
def test_hostile_captions_take_no_time(piece: str) -> None:
    assert why_not("image 1" + piece * 50_000 + "!", CaptionConfig()) is not None
    why_not(piece * 50_000, CaptionConfig(max_characters=10**6, max_repetition=1.0))


def test_rows_that_are_out_stay_out_with_their_first_reason() -> None:
    table = candidates(caption=["a red star", "", None, None], reason=[None, None, None, Reason.NO_IMAGE])
    done = apply_rules(table, CaptionConfig())
    assert done["reason"].to_pylist() == [None, Reason.CAPTION_EMPTY, Reason.CAPTION_EMPTY, Reason.NO_IMAGE]
    assert done.drop_columns("reason") == table.drop_columns("reason")
