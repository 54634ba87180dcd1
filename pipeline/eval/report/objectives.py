"""Compare training objectives as in figure 2: zero-shot accuracy against images seen, and images needed.

A point of a curve is one model saved during a run; its accuracy is the mean over the evaluation sets. The images needed
to reach an accuracy are those where the curve first crosses it. They are interpolated between points, and averaged over
seeds, in the logarithm of images.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from markupsafe import Markup

from pipeline.eval.report.charts import WIDE, Axis, Points, Series, line_chart
from pipeline.model.config import OBJECTIVES

CURVES = pa.schema(
    [
        ("objective", pa.string()),
        ("seed", pa.int64()),
        ("images_seen", pa.int64()),
        ("set", pa.string()),
        ("accuracy", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("chance", pa.float64()),
        ("num_samples", pa.int64()),
    ]
)
"""Schema with one row for each saved model and evaluation set."""
SLOWEST = "caption"
"""The objective that figure 2 measures the others against."""
_LEVEL = 0.05
_MAX_LEVELS = 8


@dataclass(frozen=True, kw_only=True)
class ImagesNeeded:
    """The images that each objective needs to reach an accuracy."""

    accuracy: float
    images: Mapping[str, float | None]
    """Geometric mean over seeds by objective; None if a seed never reaches the accuracy."""

    def times_faster(self, objective: str) -> float | None:
        """The caption model's images divided by this objective's; None if either never reaches the accuracy."""
        images, slowest = self.images[objective], self.images.get(SLOWEST)
        return slowest / images if images and slowest else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The data of figure 2."""

    curves: Mapping[str, Mapping[int, Points]]
    """Curves of (images seen, accuracy) by objective and seed."""
    chance: float
    needed: Sequence[ImagesNeeded]
    finals: Mapping[str, Mapping[str, tuple[float, float, float]]]
    """Mean, lowest and highest accuracy over the seeds' last models, by set and objective."""

    @property
    def num_seeds(self) -> int:
        """The smallest number of runs of any objective."""
        return min(len(seeds) for seeds in self.curves.values())


def compare(rows: pa.Table) -> Comparison:
    """Compute the comparison from a non-empty table of CURVES. Objectives come in the order of OBJECTIVES."""
    accuracies: dict[tuple[str, int], dict[int, list[float]]] = {}
    finals: dict[str, dict[str, list[float]]] = {}
    chances: dict[str, float] = {}
    last = max(rows["images_seen"].to_pylist())
    for row in sorted(rows.to_pylist(), key=lambda row: (OBJECTIVES.index(row["objective"]), row["seed"])):
        points = accuracies.setdefault((row["objective"], row["seed"]), {})
        points.setdefault(row["images_seen"], []).append(row["accuracy"])
        chances[row["set"]] = row["chance"]
        if row["images_seen"] == last:
            finals.setdefault(row["set"], {}).setdefault(row["objective"], []).append(row["accuracy"])
    curves: dict[str, dict[int, Points]] = {}
    for (objective, seed), points in accuracies.items():
        means = [(float(images), sum(points[images]) / len(points[images])) for images in sorted(points)]
        curves.setdefault(objective, {})[seed] = means
    chance = sum(chances.values()) / len(chances)
    return Comparison(
        curves=curves,
        chance=chance,
        needed=[
            ImagesNeeded(
                accuracy=level, images={name: _mean_needed(by_seed.values(), level) for name, by_seed in curves.items()}
            )
            for level in _levels(curves, chance)
        ],
        finals={
            name: {key: (sum(values) / len(values), min(values), max(values)) for key, values in by_objective.items()}
            for name, by_objective in sorted(finals.items())
        },
    )


def images_needed(points: Points, accuracy: float) -> float | None:
    """The images seen when a curve first reaches an accuracy; None if it never does.

    A curve that starts at or above the accuracy needs the images of its first point.

    Args:
        points: (images seen, accuracy), in order of images.
        accuracy: the accuracy to reach.
    """
    for index, (images, reached) in enumerate(points):
        if reached >= accuracy:
            if index == 0:
                return images
            before, lower = points[index - 1]
            share = (accuracy - lower) / (reached - lower)
            return float(math.exp(math.log(before) + share * (math.log(images) - math.log(before))))
    return None


def band(by_seed: Mapping[int, Points]) -> list[tuple[float, float, float, float]]:
    """(images seen, mean, lowest, highest accuracy) over the seeds with a model at these images."""
    values: dict[float, list[float]] = {}
    for points in by_seed.values():
        for images, accuracy in points:
            values.setdefault(images, []).append(accuracy)
    return [(images, sum(seeds) / len(seeds), min(seeds), max(seeds)) for images, seeds in sorted(values.items())]


def draw_figure(comparison: Comparison) -> bytes:
    """Draw the figure as a PNG: per objective, a line at the mean and a band from the lowest to the highest seed."""
    from matplotlib.figure import Figure  # slow to import and needed only here
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, by_seed in comparison.curves.items():
        images, mean, low, high = np.array(band(by_seed)).T
        (line,) = axes.plot(images, 100 * mean, label=name, marker="o", markersize=3)
        axes.fill_between(images, 100 * low, 100 * high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axhline(100 * comparison.chance, color="grey", linestyle=":", linewidth=1, label="chance")
    axes.set(xscale="log", xlabel="images seen", ylabel="zero-shot accuracy, mean over sets (%)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def draw_chart(comparison: Comparison) -> Markup:
    """Draw the figure as SVG for the report's page."""
    lines = []
    for name, by_seed in comparison.curves.items():
        points = band(by_seed)
        lines.append(
            Series(
                label=name,
                points=[(images, mean) for images, mean, _, _ in points],
                band=[(images, low, high) for images, _, low, high in points],
            )
        )
    return line_chart("Zero-shot accuracy", lines, Axis(label="images seen", log=True), Axis(percent=True), WIDE)


def _mean_needed(curves: Iterable[Points], accuracy: float) -> float | None:
    needed = [images_needed(points, accuracy) for points in curves]
    reached = [images for images in needed if images is not None]
    return math.exp(sum(map(math.log, reached)) / len(reached)) if len(reached) == len(needed) else None


def _levels(curves: Mapping[str, Mapping[int, Points]], chance: float) -> list[float]:
    """Round accuracies clearly above chance that at least one objective reaches with all seeds."""
    best = max(
        min(max(accuracy for _, accuracy in points) for points in by_seed.values()) for by_seed in curves.values()
    )
    levels = [_LEVEL * step for step in range(math.ceil((chance + _LEVEL) / _LEVEL), math.floor(best / _LEVEL) + 1)]
    stride = math.ceil(len(levels) / _MAX_LEVELS)
    return [round(level, 2) for level in levels[:: max(1, stride)]]
