"""Draw pictures of scenes with Pillow, and write the held-out evaluation sets of such pictures.

A shape or glyph is drawn as a mask at twice the size, reduced, and pasted on an unevenly lit background. A picture
depends only on its size and its scene, whose seed determines jitter, lighting and noise; the same versions of Pillow
and the fonts give the same bytes. The fonts are DejaVu, STIX and Computer Modern, which are included in matplotlib.
"""

import io
import json
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from jobs.demo.web.scenes import (
    BACKGROUNDS,
    COLOURS,
    COUNTS,
    DIGITS,
    NUMBER_WORDS,
    POSITIONS,
    SHAPES,
    Scene,
    describe,
    sample_scene,
)

Points = list[tuple[float, float]]
Rgb = tuple[int, int, int]
Field = npt.NDArray[np.float32]

_FONT_FILES: Final = {
    "sans": ("DejaVuSans-Bold.ttf", "cmss10.ttf"),
    "serif": ("DejaVuSerif-Bold.ttf", "STIXGeneralBol.ttf", "cmb10.ttf"),
    "typewriter": ("DejaVuSansMono-Bold.ttf", "cmtt10.ttf"),
    "italic": ("DejaVuSerif-BoldItalic.ttf", "STIXGeneralBolIta.ttf", "DejaVuSans-BoldOblique.ttf"),
}
# Half-width of a single shape, as a share of the side of the central square.
_RADIUS: Final = {"small": 0.18, "medium": 0.28, "large": 0.4}
_SUPERSAMPLE: Final = 2


def render(scene: Scene, size_px: int) -> Image.Image:
    """Draw `scene` as an RGB image whose shorter side is `size_px` pixels. Its objects are in the central square."""
    width = round(size_px * max(scene.aspect, 1.0))
    height = round(size_px * max(1 / scene.aspect, 1.0))
    rng = np.random.default_rng(scene.seed)
    colour = _jitter(COLOURS[scene.colour], 14, rng)
    if scene.kind == "pattern":
        image = Image.new("RGB", (width, height), _jitter(COLOURS[scene.second_colour], 14, rng))
        image.paste(colour, mask=_pattern(scene, width, height, rng))
        return image
    image = _background(scene, width, height, rng)
    side = size_px * _SUPERSAMPLE
    draw = {"shape": _shapes, "digit": _digit, "word": _word}[scene.kind]
    mask = draw(scene, side, rng).reduce(_SUPERSAMPLE)
    corner = ((width - size_px) // 2, (height - size_px) // 2)
    image.paste(colour, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)
    if scene.texture in ("pixelated", "blurry"):
        coarse = image.resize((round(11 * width / size_px), round(11 * height / size_px)), Image.Resampling.BOX)
        smooth = Image.Resampling.BICUBIC if scene.texture == "blurry" else Image.Resampling.NEAREST
        image = coarse.resize((width, height), smooth)
    return image


def _jitter(colour: Rgb, max_shift: int, rng: np.random.Generator) -> Rgb:
    shift = rng.integers(-max_shift, max_shift + 1, 3)
    red, green, blue = (min(255, max(0, channel + int(offset))) for channel, offset in zip(colour, shift, strict=True))
    return red, green, blue


def _background(scene: Scene, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """An unevenly lit background. The lighting gives two pictures of similar scenes different perceptual hashes."""
    amplitude = 42.0 if scene.backdrop == "cloudy" else 11.0
    grid = rng.uniform(-amplitude, amplitude, (5, 5)).astype(np.float32)
    light = np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    if scene.backdrop == "gradient":
        angle = rng.uniform(0, 2 * math.pi)
        x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
        light = light + 46 * (math.cos(angle) * x[None, :] + math.sin(angle) * y[:, None])
    elif scene.backdrop == "speckled":
        light = light + 18 * rng.standard_normal((height, width), np.float32)
    elif scene.backdrop in ("grid", "lined"):
        step, first = max(8, min(width, height) // int(rng.integers(8, 14))), int(rng.integers(8))
        lines = np.zeros((height, width), np.float32)
        lines[first::step, :] = 1
        if scene.backdrop == "grid":
            lines[:, first::step] = 1
        light = light + lines * (38 if scene.background == "dark" else -38)
    bands = [light + np.float32(channel) for channel in _jitter(BACKGROUNDS[scene.background], 7, rng)]
    return Image.merge("RGB", [Image.fromarray(band).convert("L") for band in bands])


def _outline(shape: str) -> Points:
    """The outline of a shape, within about 1.15 of the origin, y downwards. A ring is cut open into one polygon."""

    def arc(radius: float, start: float = 0.0, turn: float = 2 * math.pi, num: int = 48) -> Points:
        angles = [start + turn * i / num for i in range(num + 1)]
        return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]

    match shape:
        case "circle":
            return arc(1.0)
        case "ring":
            return arc(1.0) + arc(0.55, turn=-2 * math.pi)
        case "square":
            return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
        case "triangle":
            return [(0.0, -0.92), (0.92, 0.68), (-0.92, 0.68)]
        case "star":
            radii = [1.08 if i % 2 == 0 else 0.45 for i in range(10)]
            turns = [-math.pi / 2 + math.pi * i / 5 for i in range(10)]
            return [(r * math.cos(a), 0.06 + r * math.sin(a)) for r, a in zip(radii, turns, strict=True)]
        case "heart":
            turns = [2 * math.pi * i / 48 for i in range(48)]
            wave = [13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a) for a in turns]
            return [(math.sin(a) ** 3, -w / 16 - 0.1) for a, w in zip(turns, wave, strict=True)]
        case "cross":
            a, b = 0.34, 1.0
            quarter = [(-a, -b), (a, -b), (a, -a)]
            turned = [
                quarter,
                [(-y, x) for x, y in quarter],
                [(-x, -y) for x, y in quarter],
                [(y, -x) for x, y in quarter],
            ]
            return [point for part in turned for point in part]
        case "arrow":
            return [(0.0, -1.0), (0.8, 0.0), (0.32, 0.0), (0.32, 1.0), (-0.32, 1.0), (-0.32, 0.0), (-0.8, 0.0)]
    raise AssertionError(f"no outline for {shape!r}")


def _layout(scene: Scene, rng: np.random.Generator) -> tuple[Points, float]:
    """The centres and the common radius of the scene's shapes, in the unit square."""
    num = scene.count
    if num == 1:
        radius = _RADIUS[scene.size] * rng.uniform(0.9, 1.08)
        margin = 0.5 - radius - 0.03
        x, y = POSITIONS[scene.position]
        wobble = 0.05 * rng.uniform(-1, 1, 2)
        return [tuple(0.5 + np.clip(np.array((x, y)) * margin * 0.92 + wobble, -margin, margin))], radius
    if scene.position == "scattered":
        radius = {2: 0.2, 3: 0.165, 4: 0.155, 5: 0.135}[num] * rng.uniform(0.9, 1.05)
        return _scatter(num, radius, rng), radius
    radius = {2: 0.2, 3: 0.145, 4: 0.11, 5: 0.09}[num] * rng.uniform(0.92, 1.02)
    across = 0.5 + rng.uniform(-0.2, 0.2)
    along = [(i + 0.5) / num for i in range(num)]
    return [(a, across) if scene.position == "row" else (across, a) for a in along], radius


def _scatter(num: int, radius: float, rng: np.random.Generator) -> Points:
    """`num` random centres in the unit square, at least 2.35 radii apart, that do not form a row or a column."""
    while True:
        points: Points = []
        for _ in range(60):
            x, y = rng.uniform(radius + 0.02, 0.98 - radius, 2)
            if all(math.hypot(x - p[0], y - p[1]) > 2.35 * radius for p in points):
                points.append((float(x), float(y)))
            if len(points) == num:
                if min(np.ptp([p[0] for p in points]), np.ptp([p[1] for p in points])) > 0.12:
                    return points
                break


def _shapes(scene: Scene, side: int, rng: np.random.Generator) -> Image.Image:
    centres, radius = _layout(scene, rng)
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    quarter = {"": 0.0, "up": 0.0, "right": 0.5, "down": 1.0, "left": 1.5}[scene.direction]
    for x, y in centres:
        turn = quarter * math.pi + rng.uniform(-0.15, 0.15)
        cos, sin = radius * math.cos(turn), radius * math.sin(turn)
        corners = [(x + u * cos - v * sin, y + u * sin + v * cos) for u, v in _outline(scene.shape)]
        pen.polygon([(side * u, side * v) for u, v in corners], fill=255)
    if scene.texture == "solid":
        return mask
    # The background shows through the gaps of the texture, except on a rim along the outline. The cost of the erosion
    # grows with the fourth power of the resolution, so it runs at a quarter of it.
    rim = max(3, round(radius * side * 0.035) | 1)
    inner = mask.reduce(4).filter(ImageFilter.MinFilter(rim)).resize(mask.size, Image.Resampling.BILINEAR)
    gaps = _tiling(scene.texture, side, max(6.0, radius * side * 0.42), rng)
    return ImageChops.subtract(mask, ImageChops.multiply(inner, gaps))


def _tiling(texture: str, side: int, period: float, rng: np.random.Generator) -> Image.Image:
    """A square mask of the gaps of a texture (255). `period` is in pixels."""
    angle = rng.uniform(0.2, 1.3) if texture == "striped" else rng.uniform(-0.3, 0.3)
    u, v = _rotated(side, side, angle, period)
    match texture:
        case "striped":
            gaps = u % 1 < 0.45
        case "dotted":
            gaps = np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3
        case "checkered":
            gaps = (u % 1 < 0.5) ^ (v % 1 < 0.5)
        case _:
            raise AssertionError(f"no tiling for {texture!r}")
    return Image.fromarray(gaps.astype(np.uint8) * 255)


def _rotated(width: int, height: int, angle: float, period: float) -> tuple[Field, Field]:
    """Two height x width fields of coordinates, rotated by `angle` radians, in units of `period` pixels."""
    x = np.arange(width, dtype=np.float32)[None, :] / period
    y = np.arange(height, dtype=np.float32)[:, None] / period
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return x * cos + y * sin, y * cos - x * sin


def _pattern(scene: Scene, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    period = min(width, height) * {"small": 0.14, "medium": 0.22, "large": 0.32}[scene.size] * rng.uniform(0.9, 1.1)
    tilt = rng.uniform(-0.08, 0.08)
    angle = {"horizontal stripes": math.pi / 2, "diagonal stripes": math.pi / 4 * rng.choice((-1, 1))}
    u, v = _rotated(width, height, angle.get(scene.shape, 0.0) + tilt, period)
    u, v = u + np.float32(rng.uniform()), v + np.float32(rng.uniform())
    match scene.shape:
        case "polka dots":
            on = np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.33
        case "checkerboard":
            on = (u % 1 < 0.5) ^ (v % 1 < 0.5)
        case "waves":
            on = (v + 0.35 * np.sin(u * (math.pi * 0.9))) % 1 < 0.5
        case _:
            on = u % 1 < 0.5
    return Image.fromarray(on.astype(np.uint8) * 255)


@lru_cache(maxsize=256)
def _font(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    # The basic layout engine gives the same glyph positions with and without Raqm.
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size_px, layout_engine=ImageFont.Layout.BASIC)


def _text_mask(text: str, font: ImageFont.FreeTypeFont, stroke: int = 0, hollow: bool = False) -> Image.Image:
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text, stroke_width=stroke))
    mask = Image.new("L", (right - left, bottom - top), 0)
    pen = ImageDraw.Draw(mask)
    pen.text((-left, -top), text, fill=0 if hollow else 255, font=font, stroke_width=stroke, stroke_fill=255)
    return mask


def _digit(scene: Scene, side: int, rng: np.random.Generator) -> Image.Image:
    hollow = scene.texture == "outlined"
    # All digits use one font size and are scaled afterwards, so that a font is loaded once.
    name = str(rng.choice(_FONT_FILES[scene.font]))
    thin = name.startswith("cm")
    stroke = 3 if hollow else int(rng.integers(2, 7)) if thin else int(rng.integers(0, 3))
    glyph = _text_mask(scene.text, _font(name, 128), stroke, hollow)
    height = side * {"medium": 0.5, "large": 0.76}[scene.size] * rng.uniform(0.92, 1.06)
    width = min(height * glyph.width / glyph.height * rng.uniform(0.85, 1.25), side * 0.86)
    glyph = glyph.resize((round(width), round(height)), Image.Resampling.BILINEAR)
    free_x, free_y = side - glyph.width, side - glyph.height
    mask = Image.new("L", (side, side), 0)
    mask.paste(glyph, (round(free_x * rng.uniform(0.4, 0.6)), round(free_y * rng.uniform(0.4, 0.6))))
    turn, shear = rng.uniform(-0.16, 0.16), rng.uniform(-0.16, 0.16)
    half = side / 2
    a, b, d, e = math.cos(turn), -math.sin(turn) + shear, math.sin(turn), math.cos(turn)
    matrix = (a, b, half - a * half - b * half, d, e, half - d * half - e * half)
    return mask.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _word(scene: Scene, side: int, rng: np.random.Generator) -> Image.Image:
    glyphs = _text_mask(scene.text, _font(str(rng.choice(_FONT_FILES[scene.font])), 72), stroke=1)
    scale = min(side * rng.uniform(0.78, 0.94) / glyphs.width, side * 0.42 / glyphs.height)
    glyphs = glyphs.resize((round(glyphs.width * scale), round(glyphs.height * scale)), Image.Resampling.BILINEAR)
    glyphs = glyphs.rotate(rng.uniform(-6, 6), Image.Resampling.BILINEAR, expand=True)
    y = 0.5 + 0.42 * POSITIONS[scene.position][1] + rng.uniform(-0.06, 0.06)
    mask = Image.new("L", (side, side), 0)
    x_px = round((side - glyphs.width) * rng.uniform(0.3, 0.7))
    mask.paste(glyphs, (x_px, round(np.clip(y, 0.04, 0.96) * (side - glyphs.height))))
    return mask


def encode_jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """Encode an RGB image as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def evaluation_sets(folder: Path, seed: int, per_class: int) -> None:
    """Write the held-out sets rendered_{shape,colour,count,digit,pairs} below `folder`, one folder each.

    A classification set has `dataset.json` {name, kind, classes, templates} and `test.parquet` (image large_binary
    JPEG, label int32) with `per_class` rows of each class. rendered_pairs has 10 x `per_class` rows (image, captions
    list<string>) with two captions per image; no caption occurs twice. `seed` must differ from the seed of the web,
    because otherwise the sets are not held out.
    """
    rng = np.random.default_rng([seed, 0xE7A1])

    def classification(
        name: str, classes: Sequence[str], templates: Sequence[str], draw: Callable[[int], Scene]
    ) -> None:
        labels = [label for label in range(len(classes)) for _ in range(per_class)]
        images = [encode_jpeg(render(draw(label), int(rng.integers(96, 201)))) for label in labels]
        table = pa.table({"image": pa.array(images, pa.large_binary()), "label": pa.array(labels, pa.int32())})
        record: dict[str, object] = {"kind": "classification", "classes": list(classes), "templates": list(templates)}
        _write_set(folder / name, record, table)

    colours = tuple(COLOURS)
    classification(
        "rendered_shape", SHAPES, ("a photo of a {}.", "a picture of a {}.", "an image of a {}.", "a drawing of a {}."),
        lambda label: sample_scene(rng, "shape", shape=SHAPES[label], count=1),
    )  # fmt: skip
    classification(
        "rendered_colour", colours,
        ("a photo of a {} shape.", "a picture of a {} shape.", "a drawing of a {} shape.", "a picture in {}."),
        lambda label: sample_scene(rng, "shape", colour=colours[label], count=1),
    )  # fmt: skip
    classification(
        "rendered_count", [NUMBER_WORDS[count] for count in COUNTS],
        ("a photo of {} shapes.", "a picture of {} shapes.", "a group of {} shapes.", "{} shapes on a background."),
        lambda label: sample_scene(rng, "shape", count=COUNTS[label]),
    )  # fmt: skip
    classification(
        "rendered_digit", [str(digit) for digit in DIGITS],
        ('a photo of the number: "{}".', "the digit {}.", "the number {}.", "a picture of the digit {}."),
        lambda label: sample_scene(rng, "digit", text=str(DIGITS[label])),
    )  # fmt: skip

    images: list[bytes] = []
    captions: list[list[str]] = []
    used: set[str] = set()
    while len(images) < 10 * per_class:
        scene = sample_scene(rng)
        texts = [describe(scene, rng, detail=0.9) for _ in range(2)]
        keys = {text.lower().rstrip(".") for text in texts}
        if len(keys) == 2 and not keys & used:
            used |= keys
            images.append(encode_jpeg(render(scene, int(rng.integers(96, 201)))))
            captions.append(texts)
    columns = {"image": pa.array(images, pa.large_binary()), "captions": pa.array(captions, pa.list_(pa.string()))}
    _write_set(folder / "rendered_pairs", {"kind": "retrieval"}, pa.table(columns))


def _write_set(folder: Path, record: dict[str, object], table: pa.Table) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"name": folder.name, **record}, indent=1) + "\n", encoding="utf-8")
    pq.write_table(table, folder / "test.parquet")
