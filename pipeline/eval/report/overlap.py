"""What overlap with the training pairs does to scores (CLIP paper, section 5 and figure 17).

Each set is cut in two: Overlap, the pictures that were found among the training pairs, and Clean, the others. What the
overlap may have added to a score is All - Clean; whether Overlap is more accurate than Clean by more than luck is told
by the binomial tail of its hits at Clean's accuracy (one-tailed), and by its exact 99.5% interval. Both are of the
pictures that were found: a detector that misses some makes Clean a little less clean.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from markupsafe import Markup

from pipeline import paper
from pipeline.eval.protocols.statistics import proportion_interval, upper_tail
from pipeline.eval.protocols.suite import DIRECTIONS, benchmark_of
from pipeline.eval.report.charts import WIDE, Axis, Mark, interval_chart

SIGNIFICANT = 0.05
MOVED = 0.001
"""A tenth of a point: from here on the paper says that a score moves."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A share of hits and its exact 99.5% interval."""

    value: float
    low: float
    high: float
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """One set: All, Overlap and Clean. Overlap is None where nothing was found, Clean where everything was."""

    benchmark: str
    whole: Accuracy
    overlapping: Accuracy | None
    clean: Accuracy | None
    p_value: float | None
    """How likely Overlap's hits, or more, are if it were as hard as Clean; None where there are not both."""

    @property
    def share(self) -> float:
        """Of the set's samples those in Overlap."""
        return self.overlapping.num_samples / self.whole.num_samples if self.overlapping else 0.0

    @property
    def change(self) -> float:
        """All - Clean: what the overlap may have added to the score."""
        return self.whole.value - self.clean.value if self.clean else 0.0

    @property
    def difference(self) -> Accuracy | None:
        """Overlap - Clean, with Overlap's interval; None where there are not both."""
        if self.overlapping is None or self.clean is None:
            return None
        value, low, high = (
            bound - self.clean.value for bound in (self.overlapping.value, self.overlapping.low, self.overlapping.high)
        )
        return Accuracy(value=value, low=low, high=high, num_samples=self.overlapping.num_samples)


@dataclass(frozen=True, kw_only=True)
class OverlapSummary:
    """All sets together, as the paper sums them up."""

    num_sets: int
    num_without: int
    """Sets of which nothing was found."""
    median_share: float
    mean_share: float
    num_moved: int
    """Sets whose score changes by more than 0.1 points."""
    num_significant: int
    """Sets whose p-value is below 0.05 shared out over all sets (Bonferroni)."""


def overlapping_items(overlaps: pa.Table, benchmark: str, set_sha256: str) -> frozenset[int]:
    """The numbers of a set's samples that the training pairs show.

    Args:
        overlaps: of a snapshot; the columns benchmark, set_sha256 and item are read.
        benchmark: name of the set.
        set_sha256: of the set that was scored.

    Raises:
        ValueError: the overlaps are of another version of the set, whose numbers would mean other samples.
    """
    columns = [overlaps[name].to_pylist() for name in ("benchmark", "set_sha256", "item")]
    rows = [(sha256, item) for name, sha256, item in zip(*columns, strict=True) if name == benchmark]
    if any(sha256 != set_sha256 for sha256, _ in rows):
        raise ValueError(f"overlaps: made with another version of the set {benchmark}; make its index again")
    return frozenset(item for _, item in rows)


def contamination(benchmark: str, predictions: pa.Table, items: Collection[int]) -> Contamination:
    """The scores of a set on All, Overlap and Clean.

    Args:
        benchmark: name of the set.
        predictions: CLASSIFIED, of which accuracy is taken, or RANKED, of which it is R@1 from image to text.
        items: numbers of the samples in Overlap.
    """
    samples, right = _hits(predictions)
    found = np.isin(samples, np.fromiter(items, np.int64, len(items)))
    whole, overlapping, clean = (_accuracy(right[rows]) for rows in (np.full(len(right), True), found, ~found))
    assert whole is not None, f"{benchmark} has no samples"
    p_value = None
    if overlapping and clean:
        p_value = upper_tail(int(right[found].sum()), overlapping.num_samples, clean.value)
    return Contamination(benchmark=benchmark, whole=whole, overlapping=overlapping, clean=clean, p_value=p_value)


def summarise(sets: Sequence[Contamination]) -> OverlapSummary:
    """All sets together; at least one."""
    return OverlapSummary(
        num_sets=len(sets),
        num_without=sum(one.overlapping is None for one in sets),
        median_share=median(one.share for one in sets),
        mean_share=fmean(one.share for one in sets),
        num_moved=sum(abs(one.change) > MOVED for one in sets),
        num_significant=sum(one.p_value is not None and one.p_value < SIGNIFICANT / len(sets) for one in sets),
    )


def draw_differences(sets: Sequence[Contamination], size: tuple[int, int] = WIDE) -> Markup:
    """Overlap - Clean of each set against its share of overlap, with intervals, as the paper's figure 17.

    A set stands out where its p-value is below 0.05, by itself.
    """
    marks = [
        Mark(
            label=benchmark_of(one.benchmark).title,
            x=one.share,
            y=difference.value,
            low=difference.low,
            high=difference.high,
            strong=one.p_value is not None and one.p_value < SIGNIFICANT,
        )
        for one in sets
        if (difference := one.difference)
    ]
    x, y = Axis(label="overlap, share of the set", percent=True, from_zero=True), Axis(percent=True)
    return interval_chart("Accuracy on overlapping pictures less that on clean ones", marks, x, y, size)


def _hits(predictions: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Number and outcome of each sample."""
    if "rank" in predictions.column_names:
        by_image = next(iter(DIRECTIONS))
        rows = predictions.filter(pa.array([name == by_image for name in predictions["direction"].to_pylist()]))
        return rows["sample"].to_numpy(), rows["rank"].to_numpy() < 1
    truth, predicted = (np.array(predictions[name].to_pylist(), dtype=object) for name in ("truth", "predicted"))
    return predictions["sample"].to_numpy(), np.asarray(truth == predicted, np.bool_)


def _accuracy(right: npt.NDArray[np.bool_]) -> Accuracy | None:
    if not len(right):
        return None
    low, high = proportion_interval(int(right.sum()), len(right), paper.OVERLAP_CONFIDENCE.value)
    return Accuracy(value=float(right.mean()), low=low, high=high, num_samples=len(right))
