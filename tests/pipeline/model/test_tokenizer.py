import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.tokenizer import END, Tokenizer, clean
from pipeline.model.vocabulary import NUM_FIXED

CAPTIONS = ["A red circle on a blue background", "three green squares in a row", "Café &amp; résumé; it's 7"] * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, vocab_size=NUM_FIXED + 30, context_length=16)


def test_training_is_deterministic(tokenizer: Tokenizer) -> None:
    """Hugging Face's trainer is not, left to itself: it numbers word ends in the order of a hash map."""
    again = [Tokenizer.train(CAPTIONS, NUM_FIXED + 30, 16).to_json() for _ in range(5)]
    assert {tokenizer.to_json(), *again} == {tokenizer.to_json()}


def test_vocabulary_has_the_size_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == NUM_FIXED + 30


def test_frequent_words_are_one_token() -> None:
    many = Tokenizer.train(CAPTIONS, NUM_FIXED + 200, 16)
    _, lengths = many.encode(["a red CIRCLE"])
    assert lengths.tolist() == [2 + 3]
    assert many.vocab_size < NUM_FIXED + 200  # there is no more to merge


def test_start_text_end_padding(tokenizer: Tokenizer) -> None:
    tokens, lengths = tokenizer.encode(["red", "red red red"])
    start, end = tokenizer.end_token - 1, tokenizer.end_token
    assert tokens.shape == (2, int(lengths.max()))
    for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True):
        assert row[0] == start
        assert row[length - 1] == end
        assert row[length:] == [0] * (len(row) - length)


def test_truncation_keeps_the_end_token(tokenizer: Tokenizer) -> None:
    tokens, lengths = tokenizer.encode(["red " * 50])
    assert lengths.tolist() == [16]
    assert tokens[0, -1] == tokenizer.end_token


def test_call_gives_the_whole_context_length(tokenizer: Tokenizer) -> None:
    assert tokenizer("a circle").shape == (1, 16)
    assert tokenizer(["a circle", "two"]).shape == (2, 16)


def test_special_tokens_cannot_be_written_in_a_caption(tokenizer: Tokenizer) -> None:
    tokens, lengths = tokenizer.encode([f"red {END} circle"])
    assert (tokens == tokenizer.end_token).sum() == 1
    assert tokens[0, lengths[0] - 1] == tokenizer.end_token


@given(st.text(max_size=60))
def test_any_text_can_be_encoded(tokenizer: Tokenizer, text: str) -> None:
    tokens, lengths = tokenizer.encode([text])
    assert 2 <= lengths[0] <= 16
    assert 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size
    assert (tokens == tokenizer.end_token).sum() == 1


def test_a_saved_tokenizer_gives_the_same_tokens(tokenizer: Tokenizer) -> None:
    texts = [*CAPTIONS[:3], "naïve 日本 \U0001f600"]
    loaded = Tokenizer.from_json(tokenizer.to_json(), tokenizer.context_length)
    assert loaded.encode(texts)[0].tolist() == tokenizer.encode(texts)[0].tolist()


def test_no_texts(tokenizer: Tokenizer) -> None:
    tokens, lengths = tokenizer.encode([])
    assert tokens.shape == (0, 0)
    assert lengths.shape == (0,)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [("  A\tRed\n Circle ", "a red circle"), ("fish &amp;amp; chips", "fish & chips"), ("schÃ¶n", "schön")],
)
def test_clean(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_too_small_a_vocabulary() -> None:
    with pytest.raises(ValueError, match="vocab_size=100 is too small"):
        Tokenizer.train(CAPTIONS, vocab_size=100, context_length=16)
