from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.duplicates.dedupe import drop_duplicate_urls
from pipeline.data.text.caption_rules import BOILERPLATE, CaptionConfig, apply_rules, rejection_reason
from pipeline.hashing import hash128
from pipeline.reasons import Reason
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
    "Buffalo buffalo Buffalo buffalo",  # too short for the rule on repetition
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
    "buy buy buy buy now": Reason.CAPTION_REPETITION,
    "cheap Cheap CHEAP cheap, cheap shoes": Reason.CAPTION_REPETITION,
}


@pytest.mark.parametrize("caption", GOOD)
def test_good_captions_are_kept(caption: str) -> None:
    assert rejection_reason(caption, CaptionConfig()) is None


@pytest.mark.parametrize(("caption", "reason"), BAD.items())
def test_bad_captions_are_dropped_with_a_reason(caption: str, reason: Reason) -> None:
    assert rejection_reason(caption, CaptionConfig()) == reason


def test_limits_can_be_configured() -> None:
    assert rejection_reason("dog", CaptionConfig(min_words=1)) is None
    assert rejection_reason("a dog", CaptionConfig(min_words=3)) == Reason.CAPTION_SHORT
    assert rejection_reason("a dog runs", CaptionConfig(max_characters=9)) == Reason.CAPTION_LONG
    assert rejection_reason("a dog runs", CaptionConfig(max_characters=10)) is None
    assert rejection_reason("buy buy buy buy now", CaptionConfig(max_repetition=0.8)) is None


def test_boilerplate_phrases_are_normalised() -> None:
    assert all(text == " ".join(text.lower().split()) for text in BOILERPLATE)
    assert all(rejection_reason(text.upper(), CaptionConfig()) == Reason.CAPTION_BOILERPLATE for text in BOILERPLATE)


@pytest.mark.timeout(10)
@pytest.mark.parametrize("piece", ["<a ", "image 1 ", "1 1", "  9", "{", "&a", "a.", "http"])
def test_hostile_captions_are_checked_in_bounded_time(piece: str) -> None:
    assert rejection_reason("image 1" + piece * 50_000 + "!", CaptionConfig()) is not None
    rejection_reason(piece * 50_000, CaptionConfig(max_characters=10**6, max_repetition=1.0))


def test_dropped_rows_keep_their_reason() -> None:
    table = candidates(caption=["a red star", "", None, None], reason=[None, None, None, Reason.NO_IMAGE])
    done = apply_rules(table, CaptionConfig())
    assert done["reason"].to_pylist() == [None, Reason.CAPTION_EMPTY, Reason.CAPTION_EMPTY, Reason.NO_IMAGE]
    assert done["language"].to_pylist() == ["en", None, None, None]
    assert done.schema == table.schema
    assert done.drop_columns(["reason", "language"]) == table.drop_columns(["reason", "language"])


IN_LANGUAGES = {
    "A brown dog runs through the high grass": "en",
    "Ein brauner Hund läuft durch das hohe Gras": "de",
    "Коричневая собака бежит по высокой траве": "ru",
    "一只棕色的狗 在高高的草丛中奔跑": "zh",
    "2024 - 2025": None,
    "Mxyzptlk Qwrt": None,
}


@pytest.mark.parametrize("language", ["en", "de", "ru", "zh", "", None])
def test_captions_of_another_language_are_dropped(language: str | None) -> None:
    table = candidates(caption=list(IN_LANGUAGES))
    done = apply_rules(table, CaptionConfig(language=language))
    assert done["language"].to_pylist() == list(IN_LANGUAGES.values())
    assert done["reason"].to_pylist() == [
        Reason.CAPTION_LANGUAGE if language and own not in (language, None) else None for own in IN_LANGUAGES.values()
    ]


def test_language_limits_can_be_configured() -> None:
    captions = [text for text, language in IN_LANGUAGES.items() if language not in ("en", None)]
    table = candidates(caption=[*captions, "chambre double"])
    strict, lenient, certain = (
        apply_rules(table, config)
        for config in (
            CaptionConfig(min_language_odds=1.0, min_language_confidence=0.0),
            CaptionConfig(min_language_odds=1000.0),
            CaptionConfig(min_language_confidence=1.0),
        )
    )
    assert strict["reason"].null_count == 0
    assert lenient["reason"].null_count > 0
    assert certain["reason"].null_count == table.num_rows


def test_cheap_rules_run_before_the_language_rule() -> None:
    done = apply_rules(candidates(caption=["Hund", "kaufen kaufen kaufen kaufen jetzt"]), CaptionConfig())
    assert done["reason"].to_pylist() == [Reason.CAPTION_SHORT, Reason.CAPTION_REPETITION]
    assert done["language"].to_pylist() == [None, None]


def test_an_empty_table_is_unchanged() -> None:
    table = candidates(caption=[])
    assert apply_rules(table, CaptionConfig()) == table


PERSONAL = {
    "Write to jane@a.example for a red car": "Write to [...] for a red car",
    "jane@a.example": "[...]",
    "Two dogs, call 030 1234567": "Two dogs, call [...]",
    "A red star of 1999": "A red star of 1999",
}


def test_personal_data_is_redacted_before_all_rules() -> None:
    urls = [f"http://a.example/{number}" for number in range(4)]
    table = candidates(caption=list(PERSONAL), url=urls, reason=[None, None, Reason.BAD_URL, None])
    done = apply_rules(table, CaptionConfig(language=""))
    assert done["caption"].to_pylist() == list(PERSONAL.values())
    assert done["reason"].to_pylist() == [None, Reason.CAPTION_EMPTY, Reason.BAD_URL, None]
    new = [hash128(url, caption) for url, caption in zip(urls, PERSONAL.values(), strict=True)]
    assert done["pair_id"].to_pylist() == [*new[:3], table["pair_id"][3].as_py()], "an unchanged caption keeps its id"
    assert done.schema == table.schema
    assert apply_rules(done, CaptionConfig(language="")) == done


def test_personal_data_can_be_dropped_or_kept() -> None:
    table = candidates(caption=list(PERSONAL), reason=[None, None, Reason.BAD_URL, None])
    dropped = apply_rules(table, CaptionConfig(language="", personal_data="drop"))
    personal = Reason.CAPTION_PERSONAL_DATA
    assert dropped["reason"].to_pylist() == [personal, personal, Reason.BAD_URL, None]
    assert dropped["caption"].to_pylist() == list(PERSONAL.values()), "dropped rows must not store personal data"
    kept = apply_rules(table, CaptionConfig(language="", personal_data="keep"))
    assert kept["caption"].to_pylist() == list(PERSONAL)
    assert kept["pair_id"] == table["pair_id"]


def test_spare_captions_have_no_personal_data() -> None:
    table = candidates(
        caption=["A red car of jane@a.example", "The red car, +49 30 1234567"],
        url=["http://a.example/x"] * 2,
        caption_source=["alt", "title"],
    )
    kept = drop_duplicate_urls(apply_rules(table, CaptionConfig(language="")))
    row = next(row for row in kept.to_pylist() if row["reason"] is None)
    assert sorted([row["caption"], *row["spare_captions"]]) == ["A red car of [...]", "The red car, [...]"]


@given(st.lists(st.text(st.characters(exclude_characters="@", exclude_categories=["Nd", "Cs"])), max_size=6))
def test_every_text_keeps_its_row(captions: list[str]) -> None:
    done = apply_rules(candidates(caption=captions), CaptionConfig())
    assert done["caption"].to_pylist() == captions
    assert set(done["reason"].to_pylist()) <= {None, *Reason}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "english"}, r"caption.language = 'english': .* '' takes captions of any language, .* de .* en "),
        ({"language": "EN"}, "caption.language = 'EN'"),
        ({"min_language_confidence": 1.5}, "caption.min_language_confidence = 1.5: must be a probability"),
        ({"min_language_odds": 0.5}, "caption.min_language_odds = 0.5: must be from 1 to 1,000"),
        ({"min_language_odds": 1e6}, "caption.min_language_odds"),
    ],
)
def test_invalid_limits_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CaptionConfig(**options)
