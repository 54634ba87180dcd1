"""Draw images with a model's label probabilities as bars, and the results of a search as a contact sheet."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from pipeline.eval.own_pictures.own_images import ImageFile, open_image
from pipeline.eval.own_pictures.own_texts import Guess, Match
from pipeline.model.images.preprocess import eight_bits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_IMAGES = 24
"""Maximum number of images on one sheet; nobody would look at more."""
SUFFIXES = (".png", ".jpg", ".pdf", ".svg")
_PAPER, _INK, _SOFT, _TRACK, _ACCENT, _ACCENT_SOFT = "#fcfbf8", "#1c1e21", "#62656b", "#e9e6dc", "#0d6a63", "#a9d3cd"
_DPI = 160
_MARGIN = 0.42


def check_picture(path: str) -> None:
    """Check that a picture can be written to a path, before anything is computed.

    Raises:
        ValueError: the path does not end with one of SUFFIXES.
        FileNotFoundError: the folder of the path does not exist.
    """
    if not path.lower().endswith(SUFFIXES):
        raise ValueError(f"picture={path}: must end with one of {', '.join(SUFFIXES)}")
    if not Path(path).absolute().parent.is_dir():
        raise FileNotFoundError(f"picture={path}: the folder '{Path(path).parent}' does not exist")


def draw_guesses(path: str, files: Sequence[ImageFile], guesses: Sequence[Sequence[Guess]]) -> None:
    """Write a sheet of the first MAX_IMAGES images, each beside its labels with bars for their probabilities."""
    shown = list(zip(files, guesses, strict=True))[:MAX_IMAGES]
    num_columns = 1 if len(shown) < 3 else 2
    num_labels = max(len(labels) for _, labels in shown)
    side, width, gap, step = 1.9, 3.3, 0.26, 0.4
    cell = max(side, 0.22 + num_labels * step)
    sheet = _Sheet(num_columns, len(shown), (side + gap + width, cell), gap=0.4, top=_MARGIN)
    for (left, upper), (file, labels) in zip(sheet.corners(), shown, strict=True):
        sheet.image(file, left, upper, side)
        begin, end = left + side + gap, left + side + gap + width
        sheet.text(begin, upper + 0.12, _shorten(file.path.name, 42, middle=True), size=8, colour=_SOFT)
        for row, guess in enumerate(labels):
            level, best = upper + 0.42 + row * step, row == 0
            weight = "bold" if best else "normal"
            sheet.text(begin, level, _shorten(guess.label, 34), weight=weight)
            sheet.text(end, level, f"{guess.probability:.1%}", align="right", weight=weight)
            sheet.bar(begin, level + 0.13, width, guess.probability, _ACCENT if best else _ACCENT_SOFT)
    sheet.save(path)


def draw_matches(path: str, text: str, files: Sequence[ImageFile], matches: Sequence[Match]) -> None:
    """Write a contact sheet of the first MAX_IMAGES matches, most similar first, with their cosine similarities."""
    shown = matches[:MAX_IMAGES]
    side = 1.75
    sheet = _Sheet(min(5, len(shown)), len(shown), (side, side + 0.25), gap=0.3, top=_MARGIN + 0.5, min_width=4.5)
    title = textwrap.shorten(text, int(6.2 * sheet.width), placeholder="…")
    sheet.text(_MARGIN, _MARGIN + 0.1, f"“{title}”", size=17, family="serif")
    for (left, upper), match in zip(sheet.corners(), shown, strict=True):
        file = files[match.image]
        sheet.image(file, left, upper, side)
        sheet.text(left, upper + side + 0.15, f"{match.similarity:.3f}", size=9, weight="bold")
        name = _shorten(file.path.name, 20, middle=True)
        sheet.text(left + side, upper + side + 0.15, name, size=7.5, align="right", colour=_SOFT)
    sheet.save(path)


class _Sheet:
    """A figure with a grid of cells of equal (width, height). Positions are inches from its upper left corner."""

    def __init__(
        self,
        num_columns: int,
        num_cells: int,
        cell: tuple[float, float],
        *,
        gap: float,
        top: float,
        min_width: float = 0.0,
    ) -> None:
        from matplotlib.figure import Figure  # takes a second

        self._num_columns, self._num_cells, self._top = num_columns, num_cells, top
        self._steps = (cell[0] + gap, cell[1] + gap)
        self.width = max(min_width, 2 * _MARGIN + num_columns * self._steps[0] - gap)
        height = top + -(-num_cells // num_columns) * self._steps[1] - gap + _MARGIN
        self._figure: Figure = Figure(figsize=(self.width, height), facecolor=_PAPER)
        self._axes: Axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set(xlim=(0, self.width), ylim=(height, 0))
        self._axes.axis("off")

    def corners(self) -> Iterator[tuple[float, float]]:
        """Yield the upper left corner of every cell."""
        for index in range(self._num_cells):
            row, column = divmod(index, self._num_columns)
            yield _MARGIN + column * self._steps[0], self._top + row * self._steps[1]

    def image(self, file: ImageFile, left: float, upper: float, side: float) -> None:
        """Draw the whole image in the centre of a square."""
        picture = eight_bits(open_image(file.path)).convert("RGB")
        scale = side * _DPI / max(picture.size)
        pixels = tuple(max(1, round(length * scale)) for length in picture.size)
        picture = picture.resize((pixels[0], pixels[1]), Image.Resampling.LANCZOS)
        width, height = (length / _DPI for length in pixels)
        x, y = left + (side - width) / 2, upper + (side - height) / 2
        self._rounded(left, upper, side, side, _TRACK, 0.07)
        drawn = self._axes.imshow(picture, extent=(x, x + width, y + height, y), aspect="auto", zorder=2)
        drawn.set_clip_path(self._rounded(left, upper, side, side, "none", 0.07))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 10,
        align: Literal["left", "right"] = "left",
        colour: str = _INK,
        **font: Any,
    ) -> None:
        """Draw a line of text, vertically centred at y."""
        font |= {"fontsize": size, "color": colour}
        self._axes.text(x, y, text, ha=align, va="center", parse_math=False, **font)

    def bar(self, left: float, upper: float, width: float, share: float, colour: str) -> None:
        """Draw a bar of the given width, filled to a share in [0, 1]."""
        self._rounded(left, upper, width, 0.07, _TRACK, 0.035)
        if share * width > 0.01:
            self._rounded(left, upper, share * width, 0.07, colour, min(0.035, share * width / 2))

    def save(self, path: str) -> None:
        """Write the figure, in the format of the path's suffix."""
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the figure shows a box in place of the glyph
            self._figure.savefig(content, format=Path(path).suffix[1:].lower(), dpi=_DPI, facecolor=_PAPER)
        Path(path).write_bytes(content.getvalue())

    def _rounded(self, left: float, upper: float, width: float, height: float, colour: str, radius: float) -> Any:
        from matplotlib.patches import FancyBboxPatch

        style = f"round,pad=0,rounding_size={radius}"
        patch = FancyBboxPatch((left, upper), width, height, boxstyle=style, facecolor=colour, edgecolor="none")
        return self._axes.add_patch(patch)


def _shorten(text: str, max_characters: int, *, middle: bool = False) -> str:
    """Cut a text to `max_characters`, on one line: at its end, or in its `middle` so that a file keeps its suffix."""
    line = " ".join(text.encode(errors="replace").decode().split())
    if len(line) <= max_characters:
        return line
    kept = max_characters - 1
    tail = kept // 3 if middle else 0
    return f"{line[: kept - tail]}…{line[len(line) - tail :]}"
