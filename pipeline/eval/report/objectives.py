"""Objectives against each other (figure 2): zero-shot accuracy against images seen, and how many images each needs.

A point is one model kept along a run: its accuracy is the mean over the evaluation sets. Images needed for an accuracy
are read off the run's first crossing, between points by the logarithm of images, and averaged over seeds likewise.
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
"""A row for each set that a kept model was scored on."""
SLOWEST = "caption"
"""The objective that figure 2 measures the others against."""
_LEVEL = 0.05
_MAX_LEVELS = 8


@dataclass(frozen=True, kw_only=True)
class Needed:
    """How many images each objective needs to reach an accuracy."""

    accuracy: float
    images: Mapping[str, float | None]
    """By objective, the geometric mean over seeds; None where a seed never gets there."""

    def times_faster(self, objective: str) -> float | None:
        """How many times fewer images than the caption model; None where one of the two does not get there."""
        own, slowest = self.images[objective], self.images.get(SLOWEST)
        return slowest / own if own and slowest else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What figure 2 shows."""

    curves: Mapping[str, Mapping[int, Points]]
    """(images seen, accuracy) by objective and seed."""
    chance: float
    needed: Sequence[Needed]
    finals: Mapping[str, Mapping[str, tuple[float, float, float]]]
    """Mean, lowest and highest accuracy over seeds of the last models, by set and objective."""

    @property
    def num_seeds(self) -> int:
        """Runs of each objective, at least."""
        return min(len(seeds) for seeds in self.curves.values())


def compare(rows: pa.Table) -> Comparison:
    """From rows of CURVES, at least one. Objectives come in the order of OBJECTIVES."""
    found: dict[tuple[str, int], dict[int, list[float]]] = {}
    finals: dict[str, dict[str, list[float]]] = {}
    chances: dict[str, float] = {}
    last = max(rows["images_seen"].to_pylist())
    for row in sorted(rows.to_pylist(), key=lambda row: (OBJECTIVES.index(row["objective"]), row["seed"])):
        points = found.setdefault((row["objective"], row["seed"]), {})
        points.setdefault(row["images_seen"], []).append(row["accuracy"])
        chances[row["set"]] = row["chance"]
        if row["images_seen"] == last:
            finals.setdefault(row["set"], {}).setdefault(row["objective"], []).append(row["accuracy"])
    curves: dict[str, dict[int, Points]] = {}
    for (objective, seed), points in found.items():
        means = [(float(images), sum(points[images]) / len(points[images])) for images in sorted(points)]
        curves.setdefault(objective, {})[seed] = means
    chance = sum(chances.values()) / len(chances)
    return Comparison(
        curves=curves,
        chance=chance,
        needed=[
            Needed(accuracy=level, images={name: _mean_needed(own.values(), level) for name, own in curves.items()})
            for level in _levels(curves, chance)
        ],
        finals={
            name: {key: (sum(own) / len(own), min(own), max(own)) for key, own in by_objective.items()}
            for name, by_objective in sorted(finals.items())
        },
    )


def images_needed(points: Points, accuracy: float) -> float | None:
    """Images seen when a curve first reaches an accuracy; None if it never does, the first point's if it starts there.

    Args:
        points: (images seen, accuracy), in order of images.
        accuracy: to be reached.
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
    """(images seen, mean, lowest, highest) over the seeds that have a model there."""
    values: dict[float, list[float]] = {}
    for points in by_seed.values():
        for images, accuracy in points:
            values.setdefault(images, []).append(accuracy)
    return [(images, sum(own) / len(own), min(own), max(own)) for images, own in sorted(values.items())]


def draw_figure(comparison: Comparison) -> bytes:
    """The figure as a PNG: a line for the mean of each objective, a band from the lowest to the highest seed."""
    from matplotlib.figure import Figure  # slow to import, and only needed here
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
    """The figure for the report's page."""
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
    """Round accuracies well above chance that some objective reaches with all seeds."""
    best = max(
        min(max(accuracy for _, accuracy in points) for points in by_seed.values()) for by_seed in curves.values()
    )
    levels = [_LEVEL * step for step in range(math.ceil((chance + _LEVEL) / _LEVEL), math.floor(best / _LEVEL) + 1)]
    stride = math.ceil(len(levels) / _MAX_LEVELS)
    return [round(level, 2) for level in levels[:: max(1, stride)]]
