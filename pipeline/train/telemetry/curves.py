"""Draw the curves of a run as one image: loss, accuracies, learning rate, logit scale, gradient norm, validation."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.train.telemetry.metrics import Metrics, ValidationRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHED_ROWS = 100
"""A curve of more points than this is drawn faintly, with its smoothed mean (`smoothed`) on top."""
MAX_LABELS = 12
VALIDATION = "Validation"
_INK, _GRID = "#3c4043", "#dadce0"
_COLOURS = ("#1a73e8", "#e8710a", "#188038", "#a142f4", "#d01884", "#12858d", "#b3261e", "#7a6a00")

Points = tuple[list[float], list[float]]


def draw_curves(rows: Sequence[Metrics], validation: Sequence[ValidationRow] = ()) -> bytes:
    """Draw a PNG with a panel for each quantity that the run has, two panels per row, against images seen.

    Args:
        rows: the rows of metrics.jsonl, at least one.
        validation: the rows of validation.jsonl.
    """
    from matplotlib.figure import Figure  # slow to import, and needed only at the end of a run

    panels = _panels(rows, validation)
    columns = min(2, len(panels))
    figure = Figure(figsize=(5.6 * columns, 3.5 * math.ceil(len(panels) / columns)), layout="constrained")
    grid = figure.subplots(math.ceil(len(panels) / columns), columns, squeeze=False).flat
    for axes, title in zip(grid, [*panels, *[""] * (len(panels) % columns)], strict=True):
        if not title:
            axes.set_axis_off()
            continue
        lines = {name: points for name, points in panels[title].items() if points[0]}
        if title == VALIDATION:
            _draw_scores(axes, lines)
        else:
            _draw_lines(axes, lines, noisy=title not in ("Learning rate", "Logit scale"))
        _dress(axes, title, shares="ccuracy" in title or title == VALIDATION, num_lines=len(lines))
        axes.set_xlim(0, 1.02 * max([row.images_seen for row in rows]))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def _panels(rows: Sequence[Metrics], validation: Sequence[ValidationRow]) -> dict[str, dict[str, Points]]:
    """Map each panel's title to its curves by label; a panel without any values is left out."""
    panels = {
        "Loss": {"": _points((row.images_seen, row.loss) for row in rows)},
        "Accuracy within the batch": {
            "image to text": _points((row.images_seen, row.accuracy_image_to_text) for row in rows),
            "text to image": _points((row.images_seen, row.accuracy_text_to_image) for row in rows),
        },
        "Learning rate": {"": _points((row.images_seen, row.learning_rate) for row in rows)},
        "Logit scale": {"": _points((row.images_seen, row.logit_scale) for row in rows)},
        "Gradient norm": {"": _points((row.images_seen, row.gradient_norm) for row in rows)},
        VALIDATION: {
            name.replace("_", " "): _points((row.images_seen, row.scores.get(name)) for row in validation)
            for name in dict.fromkeys(name for row in validation for name in row.scores)
        },
    }
    return {title: lines for title, lines in panels.items() if any(points[0] for points in lines.values())}


def _points(pairs: Iterable[tuple[int, float | None]]) -> Points:
    known = [(float(images), value) for images, value in pairs if value is not None and math.isfinite(value)]
    return [images for images, _ in known], [value for _, value in known]


def _draw_lines(axes: Axes, lines: Mapping[str, Points], *, noisy: bool) -> None:
    for (label, (images, values)), colour in zip(lines.items(), _COLOURS, strict=False):
        if noisy and len(values) > SMOOTHED_ROWS:
            axes.plot(images, values, color=colour, linewidth=0.6, alpha=0.25)
            values = smoothed(values)
        axes.plot(images, values, color=colour, linewidth=1.6, label=label)


def _draw_scores(axes: Axes, lines: Mapping[str, Points]) -> None:
    """Draw the curves that end highest, at most MAX_LABELS of them: more cannot be distinguished."""
    best = sorted(lines, key=lambda name: lines[name][1][-1], reverse=True)[:MAX_LABELS]
    for number, name in enumerate(best):
        style = "-" if number < len(_COLOURS) else "--"
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(*lines[name], style, color=colour, linewidth=1.3, marker="o", markersize=3, label=name)


def _dress(axes: Axes, title: str, *, shares: bool, num_lines: int) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.set_xlabel("images seen", color=_INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.tick_params(colors=_INK, length=0)
    axes.grid(color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)
    if shares:
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    elif title in ("Learning rate", "Gradient norm"):
        axes.set_ylim(bottom=0)
    if num_lines > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=_INK, ncols=1 + num_lines // 7)


def smoothed(values: Sequence[float]) -> list[float]:
    """Smooth a curve without lag: the average of an exponential moving average in each direction.

    The weight of a point decays by a factor e over 1/80 of the curve.
    """
    decay = 1 - 80 / len(values)
    forwards, backwards = _moving_average(values, decay), _moving_average(values[::-1], decay)[::-1]
    return [(before + after) / 2 for before, after in zip(forwards, backwards, strict=True)]


def _moving_average(values: Sequence[float], decay: float) -> list[float]:
    """The exponential moving average, divided by the sum of its weights."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        means.append(total / weight)
    return means
