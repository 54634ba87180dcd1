"""Generate English text about the demo's pictures: paragraphs for the pages, and the corpus for the query list."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np

from jobs.demo.web.scenes import COLOURS, DIGITS, NUMBER_WORDS, SHAPES, WORDS, pick

_TEMPLATES: Final[dict[str, tuple[str, ...]]] = {
    "shape": (
        "The {t} is a shape that everybody can draw.",
        "A {t} may be large or small, and it stays a {t} when you turn it.",
        "Children cut a {t} out of paper and paint it in a bright colour.",
        "In this gallery the {t} is striped, dotted, checkered or solid.",
        "Two drawings of a {t} are seldom alike: look at the corners and at the outline.",
        "Draw a row of shapes, and let every second one be a {t}.",
        "Our collection has a {t} in each colour, on a light background and on a dark background.",
        "A single {t} in the centre of a picture is easy to find; a small {t} in a corner is not.",
    ),
    "colour": (
        "The colour {t} is used for shapes, for letters and for numbers.",
        "Mix the paint until it is {t}, then fill the shape.",
        "A {t} picture hangs on the left side of the wall, another {t} picture on the right side.",
        "On grey paper the colour {t} looks different than on a sandy or misty background.",
        "Some drawings here are {t} all over, others have only a {t} pattern of stripes or dots.",
        "Printers call a {t} like this one a strong colour.",
        "Is the shape in the middle {t}, or does the light make it look {t}?",
        "A poster in {t} letters can be read from far away.",
    ),
    "number": (
        "The number {t} is printed as a digit in several kinds of type.",
        "A digit {t} may be outlined, pixelated or blurry, and still be the number {t}.",
        "Typewriter, italic, serif and sans serif: each typeface has its own numeral {t}.",
        "Which number comes before {t}, and which number comes after {t}?",
        "Write the digit {t} on lined paper, then on graph paper.",
        "A group of {t} shapes is easy to count when they stand in a row.",
    ),
    "look": (
        "A {t} picture is a good exercise for the eye.",
        "Many a design in this collection is {t}.",
        "This is what we call {t}: look at the picture and you will see it.",
        "Drawings that are {t} come in all the colours of the paint box.",
        "A {t} background, a {t} shape, a {t} number: all of them are in the gallery.",
        "Next to the {t} one hangs another illustration, and it is {t} too.",
    ),
    "thing": (
        "A {t} can fill a whole picture.",
        "Here is a drawing with a {t}, and below it another {t}.",
        "The artist began with the {t} and added the colour last.",
        "Every {t} in the gallery was made by a computer.",
        "Look at the {t} from near and from far.",
        "We have one {t} on each page, and on some pages more than one {t}.",
    ),
    "word": (
        "The word {t} is written in bold letters.",
        "A sign that reads {t} hangs above the door of the shop.",
        "Spell {t} aloud, then write {t} with a pencil.",
        "In the picture the word {t} is set in italic type, in the print it is set in typewriter type.",
        "You find {t} in every dictionary.",
        "The lettering says {t}, and nothing else.",
    ),
}
_TERMS: Final[dict[str, tuple[str, ...]]] = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "number": (*NUMBER_WORDS, *map(str, DIGITS)),
    "look": (
        "striped", "dotted", "spotted", "checkered", "chequered", "solid", "outlined", "hollow", "pixelated", "blocky",
        "blurry", "blurred", "large", "big", "huge", "small", "little", "tiny", "plain", "shaded", "cloudy", "mottled",
        "speckled", "grainy", "light", "dark", "grey", "sandy", "misty", "serif", "sans serif", "italic", "slanted",
        "bold", "typewriter", "monospace", "diagonal", "horizontal", "vertical", "colourful", "simple", "lined",
    ),
    "thing": (
        "disc", "hoop", "plus sign", "pattern", "texture", "checkerboard", "grid", "gradient", "background", "picture",
        "photo", "image", "drawing", "illustration", "poster", "postcard", "card", "print", "design", "graphic",
        "number", "digit", "numeral", "letter", "word", "sign", "row", "column", "pair", "group", "corner", "notebook",
        "cloud", "wave", "polka dot", "stripe", "graph paper", "rendering", "shape", "type",
    ),
    "word": WORDS,
}  # fmt: skip
_DOCUMENTS_PER_TERM: Final = 4


def sentences_about(term: str, rng: np.random.Generator, num_sentences: int) -> list[str]:
    """Up to `num_sentences` sentences about a term of the corpus, each from a different template.

    Raises:
        KeyError: `term` is not a term of the corpus.
    """
    kind = next((kind for kind, terms in _TERMS.items() if term in terms), None)
    if kind is None:
        raise KeyError(term)
    templates = _TEMPLATES[kind]
    order = rng.permutation(len(templates))[:num_sentences]
    return [re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", templates[i].format(t=term)) for i in order]


def corpus(page_texts: Iterable[str], rng: np.random.Generator) -> Iterator[str]:
    """The documents of corpus.txt, one line each: a few about each term, then the text of each page."""
    for terms in _TERMS.values():
        for term in terms:
            for _ in range(_DOCUMENTS_PER_TERM):
                yield " ".join(sentences_about(term, rng, 6))
    for text in page_texts:
        yield " ".join(text.split())


def page_prose(terms: list[str], rng: np.random.Generator) -> list[str]:
    """Two paragraphs for a page, each about a shape, colour, number or word of its pictures."""
    known = [term for term in terms if any(term in group for group in _TERMS.values())] or ["picture"]
    return [" ".join(sentences_about(pick(rng, known), rng, int(rng.integers(1, 4)))) for _ in range(2)]
