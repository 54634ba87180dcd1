"""Evaluate the media queries of <source> elements (W3C Media Queries Level 4) as a desktop browser does.

The screen has one image pixel per CSS pixel, landscape format and a light scheme, and there is a mouse. Its height is
not known. A feature that is not known makes a query unknown, which does not match, and neither does its negation.
A query that is not grammatical does not match ("not all").
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from operator import eq, ge, gt, le, lt

MAX_CHARACTERS = 4_096
"""Longer attributes do not match."""
MAX_NESTING = 32
"""Attributes with more parentheses within one another do not match."""

_TOKEN = re.compile(r"[^\t\n\f\r (),]*+\(|\)|,|[^\t\n\f\r (),]++")
"""`name(` is the start of a function, also if the name is `and` or `not`."""
_COMMENT = re.compile(r"/\*(?:[^*]++|\*(?!/))*+(?:\*/)?+")
_QUANTITY = re.compile(r"([-+]?+(?:[0-9]++(?:\.[0-9]++)?+|\.[0-9]++)(?:e[-+]?+[0-9]++)?+)([a-z]*+)")
_PLAIN = re.compile(r"(-webkit-)?+(min-|max-)?+([a-z-]++)(?: ?: ?([^ ]++))?+")
_COMPARISON = re.compile(r" ?(<=?+|>=?+|=) ?")
_IDENTIFIER = re.compile(r"-?+[a-z_][a-z0-9_-]*+")

_TYPES = {"all": True, "screen": True}
_RESERVED = frozenset({"and", "layer", "not", "only", "or"})
_PIXELS = {"px": 1.0, "em": 16.0, "rem": 16.0, "pc": 16.0, "pt": 96 / 72}
_PIXELS |= {"in": 96.0, "cm": 96 / 2.54, "mm": 96 / 25.4, "q": 96 / 101.6}
"""CSS pixels per unit of length (CSS Values and Units Level 4, section 6.2; 16 pixels per em are what browsers set)."""
_DENSITIES = {"x": 1.0, "dppx": 1.0, "dpi": 1 / 96, "dpcm": 2.54 / 96}
_OPERATORS = {"<": lt, "<=": le, ">": gt, ">=": ge, "=": eq, "min-": ge, "max-": le, "": eq}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "="}
_KEYWORDS = {
    "any-hover": ("hover", "none"),
    "any-pointer": ("fine", "coarse", "none"),
    "color-gamut": ("srgb", "p3", "rec2020"),
    "display-mode": ("browser", "fullscreen", "minimal-ui", "picture-in-picture", "standalone"),
    "dynamic-range": ("standard", "high"),
    "forced-colors": ("none", "active"),
    "hover": ("hover", "none"),
    "inverted-colors": ("none", "inverted"),
    "orientation": ("landscape", "portrait"),
    "pointer": ("fine", "coarse", "none"),
    "prefers-color-scheme": ("light", "dark"),
    "prefers-contrast": ("no-preference", "more", "less", "custom"),
    "prefers-reduced-data": ("no-preference", "reduce"),
    "prefers-reduced-motion": ("no-preference", "reduce"),
    "prefers-reduced-transparency": ("no-preference", "reduce"),
    "scripting": ("enabled", "initial-only", "none"),
    "update": ("fast", "slow", "none"),
}
"""Values of a feature; the first one is true."""

Truth = bool | None
"""True, false or unknown."""


def matches(media: str, width: int) -> bool:
    """Whether a media attribute matches a screen that is `width` CSS pixels wide; an empty attribute does."""
    return len(media) <= MAX_CHARACTERS and _matches(media, width)


@lru_cache(maxsize=512)  # the pages of a site have the same queries
def _matches(media: str, width: int) -> bool:
    tokens = _TOKEN.findall(_COMMENT.sub(" ", media).lower())
    if not tokens:
        return True
    ends = _ends(tokens)
    if ends is None:
        return False
    start = position = 0
    bounds = []
    while position < len(tokens):
        if tokens[position] == ",":
            bounds.append((start, position))
            start = position + 1
        position = ends.get(position, position) + 1
    bounds.append((start, len(tokens)))
    return any(_Query(tokens, ends, *query, width).matches() for query in bounds)


def _ends(tokens: list[str]) -> dict[int, int] | None:
    """The position of the ) for every ( and function, which may be the end of the text; None if nested too deeply."""
    ends, stack = {}, []
    for position, token in enumerate(tokens):
        if token.endswith("("):
            stack.append(position)
            if len(stack) > MAX_NESTING:
                return None
        elif token == ")" and stack:
            ends[stack.pop()] = position
    return ends | dict.fromkeys(stack, len(tokens))


class _NotGrammaticalError(Exception):
    pass


class _Query:
    """One query: the tokens from `start` up to `end`."""

    def __init__(self, tokens: list[str], ends: dict[int, int], start: int, end: int, width: int) -> None:
        self._tokens, self._ends, self._width = tokens, ends, width
        self._position, self._end = start, end

    def matches(self) -> bool:
        try:
            truth = self._query()
            return truth is True and self._position == self._end
        except _NotGrammaticalError:
            return False

    def _peek(self) -> str:
        return self._tokens[self._position] if self._position < self._end else ""

    def _skip(self, token: str) -> bool:
        is_next = self._peek() == token
        self._position += is_next
        return is_next

    def _query(self) -> Truth:
        position = self._position
        is_negated = self._skip("not")
        if not is_negated:
            self._skip("only")
        media_type = self._peek()
        if media_type.endswith("("):
            self._position = position
            return self._condition(may_have_or=True)
        if media_type in _RESERVED or not _IDENTIFIER.fullmatch(media_type):
            raise _NotGrammaticalError
        self._position += 1
        truth: Truth = _TYPES.get(media_type, False)
        if self._skip("and"):
            truth = _all([truth, self._condition(may_have_or=False)])
        return _negated(truth) if is_negated else truth

    def _condition(self, *, may_have_or: bool) -> Truth:
        if self._skip("not"):
            return _negated(self._in_parentheses())
        truths = [self._in_parentheses()]
        word = "or" if self._peek() == "or" and may_have_or else "and"
        while self._skip(word):
            truths.append(self._in_parentheses())
        return _any(truths) if word == "or" else _all(truths)

    def _in_parentheses(self) -> Truth:
        """A condition or a feature in parentheses; anything else in parentheses is unknown."""
        opening = self._peek()
        if not opening.endswith("("):
            raise _NotGrammaticalError
        start, end = self._position + 1, min(self._ends[self._position], self._end)
        outer_end, self._end, self._position = self._end, end, start
        truth: Truth = None
        if opening == "(":
            if self._peek().endswith("(") or self._peek() == "not":
                try:
                    truth = self._condition(may_have_or=True)
                    truth = truth if self._position == end else None
                except _NotGrammaticalError:
                    truth = None
            else:
                truth = _feature(" ".join(self._tokens[start:end]), self._width)
        self._position, self._end = min(end + 1, outer_end), outer_end
        return truth


def _all(truths: list[Truth]) -> Truth:
    return False if False in truths else None if None in truths else True


def _any(truths: list[Truth]) -> Truth:
    return True if True in truths else None if None in truths else False


def _negated(truth: Truth) -> Truth:
    return None if truth is None else not truth


def _feature(text: str, width: int) -> Truth:
    """A feature without its parentheses, as `name`, `name: value` or a comparison; None if it is not known."""
    measures = {
        "width": (width, _PIXELS),
        "device-width": (width, _PIXELS),
        "resolution": (1.0, _DENSITIES),
        "-webkit-device-pixel-ratio": (1.0, {"": 1.0}),
    }
    if match := _PLAIN.fullmatch(text):
        prefix, bound, name, value = match.groups("")
        if name in _KEYWORDS and not prefix and not bound:
            return _keyword(_KEYWORDS[name], value)
        measure = measures.get(prefix + name)
        if measure is None:
            return None
        return _compared(measure, _OPERATORS[bound], value) if value else None if bound else True
    parts = _COMPARISON.split(text)
    if len(parts) == 3:
        left, operator, right = parts
        if left in measures:
            return _compared(measures[left], _OPERATORS[operator], right)
        return _compared(measures[right], _OPERATORS[_MIRRORED[operator]], left) if right in measures else None
    if len(parts) == 5 and parts[2] in measures and parts[1][0] == parts[3][0] != "=":
        left, first, name, second, right = parts
        measure = measures[name]
        return _all(
            [
                _compared(measure, _OPERATORS[_MIRRORED[first]], left),
                _compared(measure, _OPERATORS[second], right),
            ]
        )
    return None


def _keyword(values: tuple[str, ...], value: str) -> Truth:
    if not value:
        return values[0] not in {"none", "no-preference"}
    return value == values[0] if value in values else None


def _compared(measure: tuple[float, dict[str, float]], operator: Callable[[float, float], bool], text: str) -> Truth:
    """The comparison of a number and its possible units with a quantity; None if that is not one."""
    number, units = measure
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    quantity, unit = float(match[1]), match[2]
    if quantity == 0 and not unit and units is _PIXELS:
        unit = "px"
    return operator(number, quantity * units[unit]) if unit in units else None
