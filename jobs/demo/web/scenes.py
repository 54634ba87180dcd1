"""Sample the scenes of the demo's pictures, and describe them in English.

A `Scene` is plain data that contains everything `jobs.demo.web.render.render` draws and `describe` mentions. A caption
uses only the fields of its scene, so it is true of the picture by construction.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import numpy as np

T = TypeVar("T")
Kind = Literal["shape", "digit", "word", "pattern"]

SHAPES: Final = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "arrow")
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (214, 38, 38),
    "orange": (246, 136, 20),
    "yellow": (250, 218, 36),
    "green": (38, 150, 58),
    "blue": (32, 86, 208),
    "purple": (126, 48, 172),
    "pink": (250, 138, 190),
    "brown": (122, 72, 34),
    "black": (18, 18, 20),
    "white": (250, 250, 250),
}
BACKGROUNDS: Final[dict[str, tuple[int, int, int]]] = {
    "light": (232, 232, 228),
    "dark": (44, 46, 54),
    "grey": (142, 142, 144),
    "sandy": (216, 198, 158),
    "misty": (176, 200, 206),
}
BACKDROPS: Final = ("plain", "gradient", "cloudy", "speckled", "grid", "lined")
TEXTURES: Final = ("solid", "striped", "dotted", "checkered")
DIGIT_TEXTURES: Final = ("solid", "outlined", "pixelated", "blurry")
PATTERNS: Final = ("horizontal stripes", "vertical stripes", "diagonal stripes", "polka dots", "checkerboard", "waves")
FONTS: Final = ("sans", "serif", "typewriter", "italic")
SIZES: Final = ("small", "medium", "large")
DIGITS: Final = tuple(range(10))
COUNTS: Final = (1, 2, 3, 4, 5)
NUMBER_WORDS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS: Final = (
    "apple", "bird", "boat", "book", "bread", "bridge", "cake", "candle", "cat", "chair", "cloud", "coffee", "dog",
    "door", "fish", "flag", "forest", "garden", "glass", "hat", "horse", "house", "island", "lake", "lamp", "leaf",
    "lion", "moon", "mountain", "music", "ocean", "paper", "pencil", "piano", "rabbit", "rain", "river", "road", "rose",
    "ship", "shoe", "snow", "spoon", "street", "sugar", "summer", "sun", "table", "tiger", "train", "tree", "water",
    "window",
)  # fmt: skip
POSITIONS: Final[dict[str, tuple[float, float]]] = {
    "centre": (0.0, 0.0),
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "top": (0.0, -1.0),
    "bottom": (0.0, 1.0),
    "top left": (-1.0, -1.0),
    "top right": (1.0, -1.0),
    "bottom left": (-1.0, 1.0),
    "bottom right": (1.0, 1.0),
}
ARRANGEMENTS: Final = ("row", "column", "scattered")

# Minimum Euclidean distance in RGB between the colour of a scene and its background.
_MIN_CONTRAST: Final = 105.0
_ASPECTS: Final = (1.0, 1.0, 1.0, 4 / 3, 3 / 4)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture as plain data. `seed` determines its jitter, lighting and noise.

    Fields that the kind does not use have neutral values: `count` 1; `text`, `direction` and `second_colour` empty.
    `position` is a key of POSITIONS for one object, and one of ARRANGEMENTS for several. `aspect` is width / height.
    """

    kind: Kind
    shape: str
    colour: str
    texture: str
    background: str
    backdrop: str
    font: str
    seed: int
    count: int = 1
    position: str = "centre"
    size: str = "large"
    text: str = ""
    direction: str = ""
    second_colour: str = ""
    aspect: float = 1.0


def pick(rng: np.random.Generator, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
    """Draw one of `options`, uniformly or with `weights`, which sum to 1."""
    return options[int(rng.choice(len(options), p=weights))]


def sample_scene(
    rng: np.random.Generator,
    kind: Kind | None = None,
    *,
    shape: str | None = None,
    colour: str | None = None,
    count: int | None = None,
    text: str | None = None,
) -> Scene:
    """Draw a random scene. `kind` and the keyword arguments fix single properties, for balanced evaluation sets."""
    kind = kind or pick(rng, ("shape", "digit", "word", "pattern"), (0.7, 0.2, 0.05, 0.05))
    colour = colour or pick(rng, tuple(COLOURS))
    background = pick(rng, [name for name in BACKGROUNDS if contrast(colour, name) >= _MIN_CONTRAST])
    texture = pick(rng, DIGIT_TEXTURES, (0.82, 0.06, 0.06, 0.06)) if kind == "digit" else "solid"
    # Pixelating or blurring would remove fine lines and grain, but captions would still mention them.
    backdrop = pick(rng, BACKDROPS, (0.72, 0.12, 0.04, 0.04, 0.04, 0.04))
    if texture in ("pixelated", "blurry") and backdrop in BACKDROPS[3:]:
        backdrop = "plain"
    font = pick(rng, FONTS)
    seed = int(rng.integers(2**32))
    aspect = pick(rng, _ASPECTS)
    if kind == "pattern":
        second = pick(rng, [name for name in ("white", "black", "yellow", "blue") if contrast(colour, name) >= 150.0])
        return Scene(
            kind=kind, shape=shape or pick(rng, PATTERNS), colour=colour, second_colour=second, texture=texture,
            background=background, backdrop="plain", font=font, seed=seed, size=pick(rng, SIZES), aspect=aspect,
        )  # fmt: skip
    if kind == "word":
        position = pick(rng, ("centre", "top", "bottom"), (0.5, 0.25, 0.25))
        return Scene(
            kind=kind, shape="", colour=colour, texture=texture, background=background, backdrop=backdrop, font=font,
            seed=seed, text=text or pick(rng, WORDS), position=position, aspect=1.0 if position != "centre" else aspect,
        )  # fmt: skip
    if kind == "digit":
        return Scene(
            kind=kind, shape="", colour=colour, texture=texture, background=background, backdrop=backdrop, font=font,
            seed=seed, text=text or str(pick(rng, DIGITS)), size=pick(rng, ("medium", "large"), (0.25, 0.75)),
            aspect=aspect,
        )  # fmt: skip
    shape = shape or pick(rng, SHAPES)
    count = count or pick(rng, COUNTS, (0.72, 0.07, 0.07, 0.07, 0.07))
    size = pick(rng, SIZES, (0.04, 0.16, 0.8)) if count == 1 else "medium"
    if count > 1:
        position = pick(rng, ARRANGEMENTS, (0.3, 0.15, 0.55))
    else:
        position = "centre" if size == "large" else pick(rng, tuple(POSITIONS))
        # A corner of the central square is a corner of the picture only if the picture is square.
        aspect = 1.0 if position != "centre" else aspect
    if size != "small" and count <= 3:  # on smaller shapes, a texture cannot be recognised
        texture = pick(rng, TEXTURES, (0.88, 0.04, 0.04, 0.04))
    return Scene(
        kind="shape", shape=shape, colour=colour, texture=texture, background=background, backdrop=backdrop, font=font,
        seed=seed, count=count, position=position, size=size, aspect=aspect,
        direction=pick(rng, ("up", "down", "left", "right")) if shape == "arrow" else "",
    )  # fmt: skip


def contrast(colour: str, other: str) -> float:
    """Euclidean RGB distance between a colour and a background or second colour, given by their names."""
    return math.dist(COLOURS[colour], BACKGROUNDS.get(other) or COLOURS[other])


# {s}: the subject; {w}: its position; {g}: the background. The last two may be empty, and begin with their own space.
_TEMPLATES: Final = (
    "{s}{w}{g}", "{s}{g}{w}", "{s}{w}{g}", "{s}{g}", "{s}{w}", "photo of {s}{w}{g}", "photograph: {s}{w}",
    "a photo of {s}{w}{g}", "a photo of {s}{g}", "a picture of {s}{w}{g}", "a picture of {s}{g}",
    "a picture with {s}{w}", "a picture with {s}{g}",
    "an image of {s}{w}{g}", "an image showing {s}{w}{g}", "a drawing of {s}{w}{g}", "a drawing of {s}{g}",
    "an illustration of {s}{w}{g}", "a simple graphic of {s}{w}{g}", "clip art of {s}{w}{g}", "a print of {s}{g}",
    "a card with {s}{w}{g}", "a poster with {s}{w}{g}", "a postcard showing {s}{g}", "a colourful picture of {s}{w}",
    "this picture shows {s}{w}{g}", "this image has {s}{w}{g}", "the image shows {s}{g}", "a view of {s}{w}{g}",
    "here you see {s}{w}{g}", "we see {s}{w}{g}", "nothing but {s}{w}{g}", "just {s}{w}{g}", "only {s}{g}",
    "picture: {s}{w}{g}", "a design with {s}{w}{g}", "artwork of {s}{w}{g}", "a flat design of {s}{g}",
    "a close look at {s}{w}{g}", "computer graphics: {s}{w}{g}", "a rendering of {s}{w}{g}",
)  # fmt: skip
_SHAPE_SYNONYMS: Final = {"circle": "disc", "cross": "plus sign", "ring": "hoop"}
_TEXTURE_WORDS: Final = {
    "solid": ("solid", "filled", "plain"),
    "striped": ("striped",),
    "dotted": ("dotted", "spotted"),
    "checkered": ("checkered", "chequered"),
    "outlined": ("outlined", "hollow"),
    "pixelated": ("pixelated", "blocky"),
    "blurry": ("blurry", "blurred"),
}
_SIZE_WORDS: Final = {"small": ("small", "little", "tiny"), "medium": ("medium",), "large": ("large", "big", "huge")}
_FONT_WORDS: Final = {
    "sans": ("sans serif", "bold"),
    "serif": ("serif",),
    "typewriter": ("typewriter", "monospace"),
    "italic": ("italic", "slanted"),
}
_POSITION_PHRASES: Final = {
    "centre": (" in the centre", " in the middle"),
    "left": (" on the left", " on the left side"),
    "right": (" on the right", " on the right side"),
    "top": (" at the top", " near the top"),
    "bottom": (" at the bottom", " near the bottom"),
    "row": (" in a row", " side by side", " standing in a row"),
    "column": (" in a column", " below each other"),
    "scattered": (" scattered about", " spread around", ""),
}
_BACKGROUND_PHRASES: Final = (" on {}", " on {}", " against {}", " in front of {}", ", {}", " over {}")
_BACKDROP_WORDS: Final = {
    "plain": ("a plain {} background", "a {} background", "a simple {} background"),
    "gradient": ("a shaded {} background", "a {} gradient background", "a {} background with a soft gradient"),
    "cloudy": ("a cloudy {} background", "a {} background with clouds", "a mottled {} background"),
    "speckled": ("a speckled {} background", "a grainy {} background", "a {} background with a sandpaper texture"),
    "grid": ("a {} grid background", "{} graph paper", "a {} sheet with a grid"),
    "lined": ("{} lined paper", "a {} background with thin lines", "a {} page of a notebook"),
}


def describe(scene: Scene, rng: np.random.Generator, detail: float = 0.12) -> str:
    """Write an English caption that is true of the scene's picture.

    `detail` is the probability of mentioning each optional property (size, texture, position, background). The subject
    is always mentioned, and the colour in most captions.
    """

    def maybe(text: str) -> str:
        return text if rng.random() < detail else ""

    subject = {
        "shape": _describe_shape,
        "digit": _describe_digit,
        "word": _describe_word,
        "pattern": _describe_pattern,
    }[scene.kind](scene, rng, detail)
    position, background = "", ""
    if scene.kind != "pattern":
        background = maybe(
            pick(rng, _BACKGROUND_PHRASES).format(pick(rng, _BACKDROP_WORDS[scene.backdrop]).format(scene.background))
        )
    if scene.kind in ("shape", "word") and (scene.position != "centre" or rng.random() < 0.3):
        position = maybe(pick(rng, _POSITION_PHRASES.get(scene.position) or _corner(scene.position)))
    caption = pick(rng, _TEMPLATES).format(s=subject, w=position, g=background)
    if rng.random() < 0.4:
        caption = caption[0].upper() + caption[1:]
    return caption + ("." if rng.random() < 0.3 else "")


def _corner(position: str) -> tuple[str, ...]:
    upper = position.replace("top", "upper").replace("bottom", "lower")
    return f" in the {position} corner", f" in the {upper} corner", f" at the {position}"


def _adjectives(scene: Scene, rng: np.random.Generator, detail: float) -> list[str]:
    words = []
    if scene.size != "medium" and rng.random() < detail:
        words.append(pick(rng, _SIZE_WORDS[scene.size]))
    # A plain "solid" is mentioned less often than a visible texture
    if rng.random() < (detail / 3 if scene.texture == "solid" else (1 + detail) / 2):
        words.append(pick(rng, _TEXTURE_WORDS[scene.texture]))
    return words


def _article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou8" else "a ") + phrase


def _describe_shape(scene: Scene, rng: np.random.Generator, detail: float) -> str:
    noun = scene.shape
    if rng.random() < 0.1:
        noun = _SHAPE_SYNONYMS.get(noun, noun)
    plural = {"cross": "crosses"}.get(noun, noun + "s")
    front = _adjective_prefix(scene, rng, detail)
    pointing = f" pointing {scene.direction}" if scene.direction and rng.random() < detail else ""
    if scene.count == 1:
        forms = [f"{front}{noun}{pointing}"] * 6
        forms += [f"{noun} in {scene.colour}{pointing}", f"single {front}{noun}{pointing}"]
        return pick(rng, [*map(_article, forms), f"one {front}{noun}{pointing}"])
    number = NUMBER_WORDS[scene.count]
    forms = [f"{number} {front}{plural}{pointing}"] * 6
    forms.append(f"a group of {number} {front}{plural}{pointing}")
    forms.append(f"{number} shapes, all of them {front}{plural}{pointing}")
    if scene.count == 2:
        forms.append(f"a pair of {front}{plural}{pointing}")
    return pick(rng, forms)


def _adjective_prefix(scene: Scene, rng: np.random.Generator, detail: float) -> str:
    """The adjectives before the noun, each followed by a space. One third of the captions omit the colour, so that
    training learns the nouns: in those captions, only the noun distinguishes the pictures."""
    colour = [scene.colour] if rng.random() < 2 / 3 else []
    return "".join(f"{word} " for word in [*_adjectives(scene, rng, detail), *colour])


def _describe_digit(scene: Scene, rng: np.random.Generator, detail: float) -> str:
    word = NUMBER_WORDS[int(scene.text)]
    front = _adjective_prefix(scene, rng, detail)
    typeface = f" in {pick(rng, _FONT_WORDS[scene.font])} type" if rng.random() < detail / 2 else ""
    forms = [f"the {front}digit {scene.text}{typeface}"] * 3 + [f"the {front}number {scene.text}{typeface}"] * 3
    forms += [f"the {front}digit {word}{typeface}", f"the {front}number {word}{typeface}"] * 2
    forms += [f"{_article(f'{front}numeral {scene.text}')}{typeface}", f"{_article(f'{front}{word}')} set in type"]
    forms.append(f"the number {scene.text} in {scene.colour}")
    return pick(rng, forms)


def _describe_word(scene: Scene, rng: np.random.Generator, detail: float) -> str:
    look = f"{pick(rng, _FONT_WORDS[scene.font])} " if rng.random() < detail else ""
    forms = (
        f'the word "{scene.text}" in {scene.colour} {look}letters',
        f"the word {scene.text} in {look}{scene.colour} letters",
        f"the {scene.colour} word {scene.text}",
        f"the word {scene.text} set in {scene.colour} {look}type",
        f'a {look}sign that reads "{scene.text}" in {scene.colour}',
        f"the text “{scene.text}” written in {scene.colour} {look}letters",
        f"{scene.colour} {look}lettering that says {scene.text}",
    )
    return pick(rng, [_article(form[2:]) if form.startswith("a ") else form for form in forms])


def _describe_pattern(scene: Scene, rng: np.random.Generator, detail: float) -> str:
    first, second = (scene.colour, scene.second_colour) if rng.random() < 0.7 else (scene.second_colour, scene.colour)
    if scene.shape == "polka dots":
        dots = f"{scene.colour} polka dots on {scene.second_colour}"
        surface = _article(f"{scene.second_colour} surface")
        return pick(rng, (dots, f"a pattern of {dots}", f"{scene.colour} dots on {surface}"))
    if scene.shape == "checkerboard":
        board = f"{_article(first)} and {second} checkerboard"
        return pick(rng, (board, f"a checkered pattern in {first} and {second}"))
    noun = scene.shape.split()[-1] if rng.random() > detail + 0.2 else scene.shape
    return pick(rng, (
        f"{first} and {second} {noun}",
        f"a pattern of {first} and {second} {noun}",
        f"a texture of {noun} in {first} and {second}",
        f"{noun} in {first} and {second}",
    ))  # fmt: skip
