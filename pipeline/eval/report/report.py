"""Write the report of a run as one self-contained HTML page without scripts, for light and dark screens and for print.

All content from the web is untrusted. Texts are escaped, URLs are shown but never linked, pictures are decoded and
encoded again, and a Content-Security-Policy forbids the page all requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline import paper
from pipeline.eval.protocols.statistics import Score
from pipeline.eval.protocols.suite import DIRECTIONS, SUITE, Benchmark, benchmark_of
from pipeline.eval.report import display
from pipeline.eval.report.charts import NORMAL, SMALL, Axis, Points, Series, line_chart, smooth, thin
from pipeline.eval.report.link_rot import LinkCount, view_link_rot
from pipeline.eval.report.objectives import Comparison, draw_chart
from pipeline.eval.report.overlap import Contamination, draw_differences, summarise
from pipeline.eval.report.queries import QueryCount, view_queries

NUM_LARGE_CURVES = 2
_NUM_SMOOTHING_WINDOWS = 30


@dataclass(frozen=True)
class Stage:
    """A stage of the funnel: numbers of rows that entered, were kept, and were dropped for each reason."""

    name: str
    rows_in: int
    kept: int
    dropped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class KeptPair:
    """A pair of the snapshot. `image` is an encoded image."""

    image: bytes
    caption: str
    url: str


@dataclass(frozen=True)
class RejectedPair:
    """A pair that was dropped. `image` is None if none was fetched, and not shown if it cannot be decoded."""

    image: bytes | None
    caption: str
    url: str
    reason: str
    stage: str


@dataclass(frozen=True)
class Example:
    """A prediction: the image, its true class, and the most probable classes with probabilities, highest first."""

    image: bytes
    truth: str
    predictions: Sequence[tuple[str, float]]
    set_name: str = ""

    @property
    def right(self) -> bool:
        """Whether the most probable class is the true one."""
        return self.predictions[0][0] == self.truth


@dataclass(frozen=True, kw_only=True)
class SnapshotFacts:
    """The snapshot's id and size."""

    snapshot_id: str
    num_pairs: int
    num_shards: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class ReportInputs:
    """The content of a report. Every part is optional; the page omits the sections of missing parts."""

    title: str
    funnel: Sequence[Stage] = ()
    queries: Sequence[QueryCount] = ()
    link_rot: Sequence[LinkCount] = ()
    """Counts by domain and by the year of the page."""
    kept_pairs: Sequence[KeptPair] = ()
    rejected: Sequence[RejectedPair] = ()
    metrics: Sequence[Mapping[str, float]] = ()
    """Rows of the trainer's metrics.jsonl."""
    scores: Mapping[str, Score] = field(default_factory=dict)
    """Scores by name; the names are those of `suite`."""
    overlap: Sequence[Contamination] = ()
    """Overlap of each evaluation set with the training pairs."""
    objectives: Comparison | None = None
    """The comparison of objectives, as in figure 2."""
    examples: Sequence[Example] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)
    """The run's options, as nested plain values."""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds_by_stage: Mapping[str, float] = field(default_factory=dict)
    snapshot: SnapshotFacts | None = None


@dataclass(frozen=True)
class ResultView:
    """A row of the results table."""

    name: str
    score: Score

    @property
    def metric(self) -> str:
        """The name of the metric as shown on the page."""
        direction = next((text for key, text in DIRECTIONS.items() if f"/{key}_" in self.name), "")
        return f"{direction}, {self.score.metric.upper()}" if direction else self.score.metric

    @property
    def times_chance(self) -> float:
        """The score divided by the score of random guessing."""
        return self.score.value / self.score.chance

    @property
    def verdict(self) -> str:
        """Whether the whole interval is above or below chance."""
        if self.score.low > self.score.chance:
            return "above chance"
        return "below chance" if self.score.high < self.score.chance else "may be chance"


def write_report(inputs: ReportInputs, path: str | Path) -> None:
    """Write the page.

    Raises:
        ValueError: an image cannot be decoded, unless it belongs to a rejected pair.
    """
    Path(path).write_text(render_report(inputs), encoding="utf-8")


def render_report(inputs: ReportInputs) -> str:
    """Render the page as text. Raises the errors of `write_report`."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        name: getattr(display, name)
        for name in ("compact", "percent", "duration", "size", "host", "picture", "picture_if_readable")
    }
    environment.filters["benchmark"] = benchmark_of
    return environment.get_template("report.html.j2").render(
        inputs=inputs,
        style=Markup((folder / "report.css").read_text(encoding="utf-8")),
        figures=key_figures(inputs),
        queries=view_queries(inputs.queries) if inputs.queries else None,
        link_rot=view_link_rot(inputs.link_rot),
        curves=learning_curves(inputs.metrics),
        num_large_curves=NUM_LARGE_CURVES,
        results=group_results(inputs.scores),
        overlap=summarise(inputs.overlap) if inputs.overlap else None,
        objectives=inputs.objectives,
        objectives_chart=draw_chart(inputs.objectives) if inputs.objectives else None,
        paper=paper,
        differences=draw_differences(inputs.overlap),
        rejected=group_rejected(inputs.rejected),
        right=[example for example in inputs.examples if example.right],
        wrong=[example for example in inputs.examples if not example.right],
        configuration=dict(display.flatten(inputs.configuration)),
    )


def key_figures(inputs: ReportInputs) -> list[tuple[str, str]]:
    """The available figures for the head of the page, as (value, label)."""
    figures = []
    if inputs.funnel:
        figures.append((display.compact(inputs.funnel[0].rows_in), "rows read"))
    if inputs.snapshot:
        figures.append((display.compact(inputs.snapshot.num_pairs), "pairs kept"))
    if inputs.queries:
        figures.append((display.compact(len(inputs.queries)), "queries"))
    steps = [row["step"] for row in inputs.metrics if "step" in row]
    if steps:
        figures.append((display.compact(max(steps)), "training steps"))
    speeds = sorted(row["samples_per_second"] for row in inputs.metrics if "samples_per_second" in row)
    if speeds:
        figures.append((display.compact(round(speeds[len(speeds) // 2])), "pairs per second"))
    if inputs.seconds_by_stage:
        figures.append((display.duration(sum(inputs.seconds_by_stage.values())), "total time"))
    return figures


def learning_curves(metrics: Sequence[Mapping[str, float]]) -> list[tuple[str, Markup]]:
    """(heading, chart) for each quantity in the trainer's metrics. Loss and accuracy come first."""
    accuracies = {"accuracy_image_to_text": "image to text", "accuracy_text_to_image": "text to image"}
    charts = [
        ("Loss", {"loss": "loss"}, Axis()),
        ("Accuracy within the batch", accuracies, Axis(percent=True, from_zero=True)),
        ("Learning rate", {"learning_rate": "learning rate"}, Axis(from_zero=True)),
        ("Logit scale", {"logit_scale": "logit scale"}, Axis()),
        ("Gradient norm", {"gradient_norm": "gradient norm"}, Axis(from_zero=True)),
        ("Pairs per second", {"samples_per_second": "pairs per second"}, Axis(from_zero=True)),
    ]
    drawn: list[tuple[str, Markup]] = []
    for heading, names, y in charts:
        lines = [_curve(metrics, name, label) for name, label in names.items()]
        size = NORMAL if len(drawn) < NUM_LARGE_CURVES else SMALL
        chart = line_chart(heading, lines, Axis(label="step"), y, size)
        if chart:
            drawn.append((heading, chart))
    return drawn


def group_results(scores: Mapping[str, Score]) -> list[tuple[Benchmark, list[ResultView]]]:
    """The rows of the results table by benchmark, in the order of the suite; unknown benchmarks come last."""
    order = {row.name: index for index, row in enumerate(SUITE)}
    rows = [ResultView(name, score) for name, score in scores.items()]
    rows.sort(key=lambda row: order.get(benchmark_of(row.name).name, len(order)))
    return [(row, list(group)) for row, group in groupby(rows, key=lambda result: benchmark_of(result.name))]


def group_rejected(pairs: Sequence[RejectedPair]) -> dict[str, list[RejectedPair]]:
    """The rejected pairs by stage. Stages come in the order of their first pair."""
    stages: dict[str, list[RejectedPair]] = {}
    for pair in pairs:
        stages.setdefault(pair.stage, []).append(pair)
    return stages


def _curve(metrics: Sequence[Mapping[str, float]], name: str, label: str) -> Series:
    points: Points = [(row["step"], row[name]) for row in metrics if name in row and "step" in row]
    window = len(points) // _NUM_SMOOTHING_WINDOWS
    if window < 2:
        return Series(label=label, points=thin(points))
    return Series(label=label, points=thin(smooth(points, window)), faint=thin(points))
