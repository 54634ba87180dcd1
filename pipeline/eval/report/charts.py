"""Charts of the report as small inline SVG, drawn by hand: text stays text, and the page's style sheet gives the
colours, so a chart follows the reader's light or dark scheme. Every text put into a chart is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pipeline.eval.report.display import compact

# Width and height in the units of the picture; the page scales a chart to its column.
NORMAL, WIDE, SMALL = (520, 270), (1_080, 270), (255, 185)
MAX_POINTS = 240
_LEFT, _RIGHT, _BOTTOM = 50, 12, 40
_TOP_PLAIN, _TOP_WITH_LEGEND = 12, 32
_BAR_STEP, _BAR_HEIGHT, _NOTE_WIDTH = 25, 16, 110
_LINE_HEIGHT = 13
_CHARACTER_WIDTH, _MAX_LABEL_CHARACTERS = 6.7, 24
_DECADES_FOR_BARE_POWERS = 2.0
_SLACK = 1e-9

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart. `faint` is the same line before smoothing, drawn thinly behind it; `band` is the area that
    it varies in, as (x, low, high)."""

    label: str
    points: Points
    faint: Points = ()
    band: Sequence[tuple[float, float, float]] = ()

    @property
    def edge(self) -> Points:
        """The outline of the band: along its lower side, and back."""
        lower, upper = ([(x, low) for x, low, _ in self.band], [(x, high) for x, _, high in self.band])
        return [*lower, *reversed(upper)]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One row of a chart of stacked bars: shares in [0, 1] that lie one behind the other, and a text at its end."""

    label: str
    shares: Sequence[float]
    note: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One point of a chart with its interval; `strong` sets it apart from the others."""

    label: str
    x: float
    y: float
    low: float
    high: float
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """How one direction of a chart is scaled and labelled."""

    label: str = ""
    log: bool = False
    percent: bool = False
    from_zero: bool = False

    def place(self, value: float) -> float:
        """The value on the axis' own linear scale."""
        return math.log10(value) if self.log else value

    def format(self, value: float) -> str:
        """A tick's label."""
        return f"{100 * value:g}%" if self.percent else compact(value)


def smooth(points: Points, window: int) -> list[tuple[float, float]]:
    """The running mean of y over `window` points around each one, fewer at the ends."""
    half = window // 2
    smoothed = []
    for index, (x, _) in enumerate(points):
        near = points[max(0, index - half) : index + half + 1]
        smoothed.append((x, sum(y for _, y in near) / len(near)))
    return smoothed


def thin(points: Points, *, log: bool = False) -> list[tuple[float, float]]:
    """At most about MAX_POINTS of the points, the first and the last among them, even in x or (`log`) in log x."""
    if len(points) <= MAX_POINTS:
        return list(points)
    last = len(points) - 1
    shares = [index / (MAX_POINTS - 1) for index in range(MAX_POINTS)]
    chosen = {round(math.expm1(share * math.log1p(last))) if log else round(share * last) for share in shares}
    return [points[index] for index in sorted(chosen)]


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis, size: tuple[int, int] = NORMAL) -> Markup:
    """Lines over a common pair of axes, with a legend where there are several; empty without points.

    Points that an axis cannot show (not finite, or not positive on a logarithmic one) are left out.
    """
    shown = [line for line in (_visible(line, x, y) for line in series) if line.points]
    if not shown:
        return Markup("")
    everything = [point for line in shown for point in (*line.points, *line.faint, *line.edge)]
    width, height = size
    top, right, bottom = _TOP_WITH_LEGEND if len(shown) > 1 else _TOP_PLAIN, width - _RIGHT, height - _BOTTOM
    x_scale = _Scale(x, *_range([point[0] for point in everything], x), _LEFT, right)
    y_scale = _Scale(y, *_range([point[1] for point in everything], y), bottom, top)

    def path(points: Points) -> str:
        return " ".join(f"{x_scale.pixel(across):.1f},{y_scale.pixel(up):.1f}" for across, up in points)

    parts = _axes(x_scale, y_scale, size)
    parts.append(f'<path class="axis" d="M{_LEFT},{bottom}H{right}"/>')
    for index, line in enumerate(shown):
        if line.band:
            parts.append(f'<polygon class="band band-{index}" points="{path(line.edge)}"/>')
        if line.faint:
            parts.append(f'<polyline class="line line-{index} faint" points="{path(line.faint)}"/>')
    keys: list[str] = []
    for index, line in enumerate(shown):
        parts.append(f'<polyline class="line line-{index}" points="{path(line.points)}"/>')
        gap = ' dx="1.2em"' if keys else ""
        keys.append(f'<tspan class="key key-{index}"{gap}>{escape(line.label)}</tspan>')
    if len(keys) > 1:
        parts.append(f'<text x="{_LEFT}" y="14">{"".join(keys)}</text>')
    summary = f"{title}: " + "; ".join(_in_words(line, x, y) for line in shown)
    return _svg(summary, size, parts)


def interval_chart(title: str, marks: Sequence[Mark], x: Axis, y: Axis, size: tuple[int, int] = NORMAL) -> Markup:
    """Points with their intervals over a line at zero, each with its label; empty without points.

    A label is left out where it would lie on another mark's label; all are told where the pointer rests.
    """
    if not marks:
        return Markup("")
    width, height = size
    right, bottom = width - _RIGHT, height - _BOTTOM
    x_scale = _Scale(x, *_range([mark.x for mark in marks], x), _LEFT + 8, right - 8)
    heights = [0.0, *(value for mark in marks for value in (mark.low, mark.high))]
    y_scale = _Scale(y, *_range(heights, y), bottom, _TOP_PLAIN)
    parts = _axes(x_scale, y_scale, size)
    parts.append(f'<path class="axis" d="M{_LEFT},{y_scale.pixel(0):.1f}H{right}"/>')
    labels: list[tuple[float, float, float]] = []
    for mark in sorted(marks, key=lambda mark: (not mark.strong, mark.x)):
        across, up = x_scale.pixel(mark.x), y_scale.pixel(mark.y)
        kind = "mark strong" if mark.strong else "mark"
        values = f"{mark.label}: {y.format(mark.y)}, {y.format(mark.low)} to {y.format(mark.high)}"
        parts.append(f"<g><title>{escape(values)}</title>")
        whisker = f"M{across:.1f},{y_scale.pixel(mark.low):.1f}V{y_scale.pixel(mark.high):.1f}"
        parts.append(f'<path class="{kind}" d="{whisker}"/>')
        parts.append(f'<circle class="{kind}" cx="{across:.1f}" cy="{up:.1f}" r="3.5"/>')
        shown = _cut(mark.label)
        long = _CHARACTER_WIDTH * len(shown)
        before = across + 8 + long > right
        start = across - 8 - long if before else across + 8
        if all(abs(up - line) > _LINE_HEIGHT or start + long < begin or end < start for begin, end, line in labels):
            labels.append((start, start + long, up))
            place = f'class="end" x="{across - 8:.1f}"' if before else f'x="{across + 8:.1f}"'
            parts.append(f'<text {place} y="{up:.1f}" dy=".32em">{escape(shown)}</text>')
        parts.append("</g>")
    summary = f"{title}: " + "; ".join(
        f"{mark.label} {y.format(mark.y)} at {x.label} {x.format(mark.x)}" for mark in marks
    )
    return _svg(summary, size, parts)


def stacked_bars(title: str, bars: Sequence[Bar], width: int) -> Markup:
    """Bars one below the other, each cut into its shares; empty without bars. The page explains the colours.

    Share i is of class part-i. A label that is too long is cut, and told in full where the pointer rests on it.
    """
    if not bars:
        return Markup("")
    height = _BAR_STEP * len(bars) + _BOTTOM - 12
    left = 12 + _CHARACTER_WIDTH * min(max(len(bar.label) for bar in bars), _MAX_LABEL_CHARACTERS)
    scale = _Scale(Axis(percent=True), 0.0, 1.0, left, width - _NOTE_WIDTH)
    parts: list[str] = []
    for value in scale.ticks(4 if width < WIDE[0] else 10):
        place = f"{scale.pixel(value):.1f}"
        parts.append(f'<path class="grid" d="M{place},0V{height - 25}"/>')
        parts.append(f'<text class="middle" x="{place}" y="{height - 8}">{scale.axis.format(value)}</text>')
    for index, bar in enumerate(bars):
        top = index * _BAR_STEP + (_BAR_STEP - _BAR_HEIGHT) // 2
        middle = top + _BAR_HEIGHT / 2
        shown = _cut(bar.label)
        parts.append(f"<g><title>{escape(bar.label)}</title>")
        parts.append(f'<text class="end" x="{left - 8:.1f}" y="{middle}" dy=".32em">{escape(shown)}</text>')
        start = 0.0
        for number, share in enumerate(bar.shares):
            first, last = scale.pixel(start), scale.pixel(start + share)
            start += share
            if share:
                box = f'x="{first:.1f}" y="{top}" width="{last - first:.1f}" height="{_BAR_HEIGHT}"'
                parts.append(f'<rect class="part part-{number}" {box}/>')
        parts.append(f'<text x="{width - _NOTE_WIDTH + 9}" y="{middle}" dy=".32em">{escape(bar.note)}</text></g>')
    summary = f"{title}: " + "; ".join(f"{bar.label} {bar.note}" for bar in bars)
    return _svg(summary, (width, height), parts)


@dataclass(frozen=True)
class _Scale:
    """From values of an axis to pixels."""

    axis: Axis
    low: float
    high: float
    first_pixel: float
    last_pixel: float

    def pixel(self, value: float) -> float:
        low, high = self.axis.place(self.low), self.axis.place(self.high)
        return self.first_pixel + (self.axis.place(value) - low) / (high - low) * (self.last_pixel - self.first_pixel)

    def ticks(self, wanted: int) -> list[float]:
        """Round values between low and high: powers of ten on a logarithmic axis, steps of 1, 2 or 5 elsewhere."""
        low, high = self.low, self.high
        if self.axis.log:
            factors = (1,) if math.log10(high / low) > _DECADES_FOR_BARE_POWERS else (1, 2, 5)
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            candidates = [factor * 10.0**power for power in powers for factor in factors]
            return [value for value in candidates if low * (1 - _SLACK) <= value <= high * (1 + _SLACK)]
        raw = (high - low) / wanted
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - _SLACK))
        first, last = math.ceil(low / step - _SLACK), math.floor(high / step + _SLACK)
        return [index * step for index in range(first, last + 1)]


def _axes(x_scale: _Scale, y_scale: _Scale, size: tuple[int, int]) -> list[str]:
    """Ticks of both axes, and what the lower one shows."""
    width, height = size
    right, bottom = width - _RIGHT, height - _BOTTOM
    parts: list[str] = []
    for value in y_scale.ticks(max(2, height // 45)):
        level = f"{y_scale.pixel(value):.1f}"
        parts.append(f'<path class="grid" d="M{_LEFT},{level}H{right}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 7}" y="{level}" dy=".32em">{y_scale.axis.format(value)}</text>')
    for value in x_scale.ticks(max(2, width // 85)):
        place = f"{x_scale.pixel(value):.1f}"
        parts.append(f'<text class="middle" x="{place}" y="{bottom + 17}">{x_scale.axis.format(value)}</text>')
    parts.append(f'<text class="end" x="{right}" y="{height - 5}">{escape(x_scale.axis.label)}</text>')
    return parts


def _cut(label: str) -> str:
    return label if len(label) <= _MAX_LABEL_CHARACTERS else label[: _MAX_LABEL_CHARACTERS - 1] + "…"


def _svg(summary: str, size: tuple[int, int], parts: Sequence[str]) -> Markup:
    width, height = size
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(summary)}">'
        f"{''.join(parts)}</svg>"
    )


def _visible(line: Series, x: Axis, y: Axis) -> Series:
    def shows(point: tuple[float, float]) -> bool:
        return all(math.isfinite(v) and not (axis.log and v <= 0) for v, axis in zip(point, (x, y), strict=True))

    return Series(
        label=line.label,
        points=[point for point in line.points if shows(point)],
        faint=[point for point in line.faint if shows(point)],
        band=[(at, low, high) for at, low, high in line.band if shows((at, low)) and shows((at, high))],
    )


def _range(values: Sequence[float], axis: Axis) -> tuple[float, float]:
    """The span of an axis, never empty."""
    low, high = min(values), max(values)
    if axis.from_zero:
        low = min(low, 0.0)
    if axis.log:
        return (low, high) if high > low else (low / 2, high * 2)
    if low == high:
        return low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    return low, high


def _in_words(line: Series, x: Axis, y: Axis) -> str:
    (x_first, y_first), (x_last, y_last) = line.points[0], line.points[-1]
    return (
        f"{line.label} goes from {y.format(y_first)} at {x.label} {x.format(x_first)} "
        f"to {y.format(y_last)} at {x.label} {x.format(x_last)}"
    )
