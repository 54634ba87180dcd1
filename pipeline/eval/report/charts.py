"""Draw the report's charts as small inline SVG.

Text in a chart remains text. The page's style sheet sets the colours, so charts follow the light or dark colour scheme.
All text in a chart is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pipeline.eval.report.display import compact

# Width and height in SVG units; the page scales a chart to its column.
NORMAL, WIDE, SMALL = (520, 270), (1_080, 270), (255, 185)
MAX_POINTS = 240
_LEFT, _RIGHT, _BOTTOM = 50, 12, 40
_TOP_PLAIN, _TOP_WITH_LEGEND = 12, 32
_BAR_STEP, _BAR_HEIGHT, _NOTE_WIDTH = 25, 16, 110
_LINE_HEIGHT = 13
_CHARACTER_WIDTH, _MAX_LABEL_CHARACTERS = 6.7, 24
_MIN_DECADES_FOR_POWERS_ONLY = 2.0
_SLACK = 1e-9

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart.

    `faint` is the line before smoothing, drawn thinly behind it. `band` is the range of the line as (x, low, high).
    """

    label: str
    points: Points
    faint: Points = ()
    band: Sequence[tuple[float, float, float]] = ()

    @property
    def edge(self) -> Points:
        """The outline of the band: its lower side, then its upper side in reverse."""
        lower, upper = ([(x, low) for x, low, _ in self.band], [(x, high) for x, _, high in self.band])
        return [*lower, *reversed(upper)]


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One row of a chart of stacked bars: shares in [0, 1], drawn one after the other, and a note at the end."""

    label: str
    shares: Sequence[float]
    note: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One point of a chart with its interval; `strong` highlights it."""

    label: str
    x: float
    y: float
    low: float
    high: float
    strong: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The scale and label of an axis."""

    label: str = ""
    log: bool = False
    percent: bool = False
    from_zero: bool = False

    def position(self, value: float) -> float:
        """The value on a linear scale: its logarithm on a logarithmic axis."""
        return math.log10(value) if self.log else value

    def format(self, value: float) -> str:
        """Format a value of this axis."""
        return f"{100 * value:g}%" if self.percent else compact(value)


def smooth(points: Points, window: int) -> list[tuple[float, float]]:
    """The running mean of y over about `window` points around each point, fewer at the ends."""
    half = window // 2
    smoothed = []
    for index, (x, _) in enumerate(points):
        neighbours = points[max(0, index - half) : index + half + 1]
        smoothed.append((x, sum(y for _, y in neighbours) / len(neighbours)))
    return smoothed


def thin(points: Points, *, log: bool = False) -> list[tuple[float, float]]:
    """Select at most MAX_POINTS points, evenly spaced in x or, with `log`, in log x. Keeps the first and the last."""
    if len(points) <= MAX_POINTS:
        return list(points)
    last = len(points) - 1
    shares = [index / (MAX_POINTS - 1) for index in range(MAX_POINTS)]
    chosen = {round(math.expm1(share * math.log1p(last))) if log else round(share * last) for share in shares}
    return [points[index] for index in sorted(chosen)]


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis, size: tuple[int, int] = NORMAL) -> Markup:
    """Draw lines on common axes, with a legend if there are several; empty without points.

    Omits points that an axis cannot show: those that are not finite, or not positive on a logarithmic axis.
    """
    shown = [line for line in (_visible(line, x, y) for line in series) if line.points]
    if not shown:
        return Markup("")
    all_points = [point for line in shown for point in (*line.points, *line.faint, *line.edge)]
    width, height = size
    top, right, bottom = _TOP_WITH_LEGEND if len(shown) > 1 else _TOP_PLAIN, width - _RIGHT, height - _BOTTOM
    x_scale = _Scale(x, *_range([point[0] for point in all_points], x), _LEFT, right)
    y_scale = _Scale(y, *_range([point[1] for point in all_points], y), bottom, top)

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
    """Draw labelled points with their intervals, and a line at zero; empty without points.

    Omits a label that would overlap another mark's label. Every mark shows its label and values as a tooltip.
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
        length = _CHARACTER_WIDTH * len(shown)
        is_left = across + 8 + length > right
        start = across - 8 - length if is_left else across + 8
        if all(abs(up - line) > _LINE_HEIGHT or start + length < begin or end < start for begin, end, line in labels):
            labels.append((start, start + length, up))
            anchor = f'class="end" x="{across - 8:.1f}"' if is_left else f'x="{across + 8:.1f}"'
            parts.append(f'<text {anchor} y="{up:.1f}" dy=".32em">{escape(shown)}</text>')
        parts.append("</g>")
    summary = f"{title}: " + "; ".join(
        f"{mark.label} {y.format(mark.y)} at {x.label} {x.format(mark.x)}" for mark in marks
    )
    return _svg(summary, size, parts)


def stacked_bars(title: str, bars: Sequence[Bar], width: int) -> Markup:
    """Draw horizontal bars, each divided into its shares; empty without bars. The page explains the colours.

    Share i has the class part-i. Long labels are cut; every bar shows its full label as a tooltip.
    """
    if not bars:
        return Markup("")
    height = _BAR_STEP * len(bars) + _BOTTOM - 12
    left = 12 + _CHARACTER_WIDTH * min(max(len(bar.label) for bar in bars), _MAX_LABEL_CHARACTERS)
    scale = _Scale(Axis(percent=True), 0.0, 1.0, left, width - _NOTE_WIDTH)
    parts: list[str] = []
    for value in scale.ticks(4 if width < WIDE[0] else 10):
        across = f"{scale.pixel(value):.1f}"
        parts.append(f'<path class="grid" d="M{across},0V{height - 25}"/>')
        parts.append(f'<text class="middle" x="{across}" y="{height - 8}">{scale.axis.format(value)}</text>')
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
    """Converts values of an axis to pixels."""

    axis: Axis
    low: float
    high: float
    first_pixel: float
    last_pixel: float

    def pixel(self, value: float) -> float:
        low, high = self.axis.position(self.low), self.axis.position(self.high)
        share = (self.axis.position(value) - low) / (high - low)
        return self.first_pixel + share * (self.last_pixel - self.first_pixel)

    def ticks(self, wanted: int) -> list[float]:
        """Round values between low and high: only powers of ten on a long logarithmic axis, else steps of 1, 2 or 5."""
        low, high = self.low, self.high
        if self.axis.log:
            factors = (1,) if math.log10(high / low) > _MIN_DECADES_FOR_POWERS_ONLY else (1, 2, 5)
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            candidates = [factor * 10.0**power for power in powers for factor in factors]
            return [value for value in candidates if low * (1 - _SLACK) <= value <= high * (1 + _SLACK)]
        raw = (high - low) / wanted
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - _SLACK))
        first, last = math.ceil(low / step - _SLACK), math.floor(high / step + _SLACK)
        return [index * step for index in range(first, last + 1)]


def _axes(x_scale: _Scale, y_scale: _Scale, size: tuple[int, int]) -> list[str]:
    """Draw the ticks of both axes and the label of the x axis."""
    width, height = size
    right, bottom = width - _RIGHT, height - _BOTTOM
    parts: list[str] = []
    for value in y_scale.ticks(max(2, height // 45)):
        level = f"{y_scale.pixel(value):.1f}"
        parts.append(f'<path class="grid" d="M{_LEFT},{level}H{right}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 7}" y="{level}" dy=".32em">{y_scale.axis.format(value)}</text>')
    for value in x_scale.ticks(max(2, width // 85)):
        across = f"{x_scale.pixel(value):.1f}"
        parts.append(f'<text class="middle" x="{across}" y="{bottom + 17}">{x_scale.axis.format(value)}</text>')
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
        band=[(across, low, high) for across, low, high in line.band if shows((across, low)) and shows((across, high))],
    )


def _range(values: Sequence[float], axis: Axis) -> tuple[float, float]:
    """The range of an axis; never empty."""
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
