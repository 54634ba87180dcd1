"""Charts of the report as small inline SVG, drawn by hand: text stays text, and the page's style sheet gives the
colours, so a chart follows the reader's light or dark scheme. Every text put into a chart is escaped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from pipeline.eval.display import compact

WIDTH, HEIGHT = 520, 270
MAX_POINTS = 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 30, 40
_TICKS_WANTED = 5
_DECADES_FOR_BARE_POWERS = 2.0

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart. `faint` is the same line before smoothing, drawn thinly behind it."""

    label: str
    points: Points
    faint: Points = ()


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


def line_chart(title: str, series: Sequence[Series], x: Axis, y: Axis) -> Markup:
    """Lines over a common pair of axes. Points that an axis cannot show (zero on a logarithmic one) are left out."""
    shown = [_visible(line, x, y) for line in series]
    everything = [point for line in shown for point in (*line.points, *line.faint)]
    if not everything:
        return Markup("")
    x_low, x_high = _range([point[0] for point in everything], x)
    y_low, y_high = _range([point[1] for point in everything], y)

    def pixel(point: tuple[float, float]) -> str:
        across = (x.place(point[0]) - x.place(x_low)) / (x.place(x_high) - x.place(x_low))
        up = (y.place(point[1]) - y.place(y_low)) / (y.place(y_high) - y.place(y_low))
        return (
            f"{_LEFT + across * (WIDTH - _LEFT - _RIGHT):.1f},{HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM):.1f}"
        )

    parts = []
    for value in _ticks(y_low, y_high, y):
        height = pixel((x_low, value)).split(",")[1]
        parts.append(f'<path class="grid" d="M{_LEFT},{height}H{WIDTH - _RIGHT}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 8}" y="{height}" dy=".32em" text-anchor="end">{y.format(value)}</text>'
        )
    for value in _ticks(x_low, x_high, x):
        across = pixel((value, y_low)).split(",")[0]
        parts.append(
            f'<text class="tick" x="{across}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{x.format(value)}</text>'
        )
    parts.append(f'<path class="axis" d="M{_LEFT},{HEIGHT - _BOTTOM}H{WIDTH - _RIGHT}"/>')
    parts.append(
        f'<text class="label" x="{WIDTH - _RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x.label)}</text>'
    )
    legend: list[str] = []
    for index, line in enumerate(shown):
        if line.faint:
            parts.append(f'<polyline class="line line-{index} faint" points="{" ".join(map(pixel, line.faint))}"/>')
    for index, line in enumerate(shown):
        parts.append(f'<polyline class="line line-{index}" points="{" ".join(map(pixel, line.points))}"/>')
        gap = ' dx="1.2em"' if legend else ""
        legend.append(f'<tspan class="key key-{index}"{gap}>{escape(line.label)}</tspan>')
    parts.append(f'<text class="legend" x="{_LEFT}" y="14">{"".join(legend)}</text>')
    summary = f"{title}: " + "; ".join(_in_words(line, x, y) for line in shown if line.points)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(summary)}">'
        f"{''.join(parts)}</svg>"
    )


def _visible(line: Series, x: Axis, y: Axis) -> Series:
    def shows(point: tuple[float, float]) -> bool:
        return all(math.isfinite(v) and not (axis.log and v <= 0) for v, axis in zip(point, (x, y), strict=True))

    return Series(
        label=line.label,
        points=[point for point in line.points if shows(point)],
        faint=[point for point in line.faint if shows(point)],
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


def _ticks(low: float, high: float, axis: Axis) -> list[float]:
    """Round values between low and high: powers of ten on a logarithmic axis, steps of 1, 2 or 5 elsewhere."""
    if axis.log:
        steps = (1,) if math.log10(high / low) > _DECADES_FOR_BARE_POWERS else (1, 2, 5)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        candidates = [step * 10.0**power for power in powers for step in steps]
        return [value for value in candidates if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    raw = (high - low) / _TICKS_WANTED
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _in_words(line: Series, x: Axis, y: Axis) -> str:
    (x_first, y_first), (x_last, y_last) = line.points[0], line.points[-1]
    return (
        f"{line.label} goes from {y.format(y_first)} at {x.label} {x.format(x_first)} "
        f"to {y.format(y_last)} at {x.label} {x.format(x_last)}"
    )
