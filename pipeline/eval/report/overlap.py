"""Measure the effect of overlap with the training pairs on scores (CLIP paper, section 5 and figure 17).

Each set is split in two: Overlap, the pictures that were found among the training pairs, and Clean, all others. The
overlap may have raised a score by All - Clean. A one-tailed binomial test of Overlap's hits at Clean's accuracy, and an
exact 99.5% interval, show whether Overlap is more accurate than Clean by more than chance. If the detector misses
overlapping pictures, Clean still contains them.
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
"""A tenth of a percentage point. The paper counts larger changes of a score."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The share of correct predictions and its exact 99.5% interval."""

    value: float
    low: float
    high: float
    num_samples: int


@dataclass(frozen=True, kw_only=True)
class Contamination:
    """A set's accuracy on All, Overlap and Clean. Overlap or Clean is None if it has no samples."""

    benchmark: str
    whole: Accuracy
    overlapping: Accuracy | None
    clean: Accuracy | None
    p_value: float | None
    """Probability of at least Overlap's hits at Clean's accuracy; None if Overlap or Clean has no samples."""

    @property
    def share(self) -> float:
        """The share of the set's samples that are in Overlap."""
        return self.overlapping.num_samples / self.whole.num_samples if self.overlapping else 0.0

    @property
    def change(self) -> float:
        """All - Clean: the amount by which the overlap may have raised the score."""
        return self.whole.value - self.clean.value if self.clean else 0.0

    @property
    def difference(self) -> Accuracy | None:
        """Overlap - Clean, with Overlap's interval; None if Overlap or Clean has no samples."""
        if self.overlapping is None or self.clean is None:
            return None
        value, low, high = (
            bound - self.clean.value for bound in (self.overlapping.value, self.overlapping.low, self.overlapping.high)
        )
        return Accuracy(value=value, low=low, high=high, num_samples=self.overlapping.num_samples)


@dataclass(frozen=True, kw_only=True)
class OverlapSummary:
    """The summary of all sets that the paper gives."""

    num_sets: int
    num_without: int
    """Sets without overlap."""
    median_share: float
    mean_share: float
    num_moved: int
    """Sets whose score changes by more than 0.1 percentage points."""
    num_significant: int
    """Sets whose p-value is below 0.05 divided by the number of sets (Bonferroni correction)."""


def overlapping_items(overlaps: pa.Table, benchmark: str, set_sha256: str) -> frozenset[int]:
    """The indices of a set's samples that also occur in the training pairs.

    Args:
        overlaps: the overlaps of a snapshot, with the columns benchmark, set_sha256 and item.
        benchmark: name of the set.
        set_sha256: hash of the set that was scored.

    Raises:
        ValueError: the overlaps belong to another version of the set, in which the indices mean other samples.
    """
    columns = [overlaps[name].to_pylist() for name in ("benchmark", "set_sha256", "item")]
    rows = [(sha256, item) for name, sha256, item in zip(*columns, strict=True) if name == benchmark]
    if any(sha256 != set_sha256 for sha256, _ in rows):
        raise ValueError(
            f"overlaps: computed with another version of the set {benchmark}; compute its index and the overlaps again"
        )
    return frozenset(item for _, item in rows)


def contamination(benchmark: str, predictions: pa.Table, items: Collection[int]) -> Contamination:
    """Compute the accuracy of a set on All, Overlap and Clean.

    Args:
        benchmark: name of the set.
        predictions: a table of CLASSIFIED, scored by accuracy, or of RANKED, scored by R@1 from image to text.
        items: indices of the samples in Overlap.
    """
    samples, right = _hits(predictions)
    overlaps = np.isin(samples, np.fromiter(items, np.int64, len(items)))
    whole, overlapping, clean = (_accuracy(right[rows]) for rows in (np.full(len(right), True), overlaps, ~overlaps))
    assert whole is not None, f"{benchmark} has no samples"
    p_value = None
    if overlapping and clean:
        p_value = upper_tail(int(right[overlaps].sum()), overlapping.num_samples, clean.value)
    return Contamination(benchmark=benchmark, whole=whole, overlapping=overlapping, clean=clean, p_value=p_value)


def summarise(sets: Sequence[Contamination]) -> OverlapSummary:
    """Summarise all sets; at least one is needed."""
    return OverlapSummary(
        num_sets=len(sets),
        num_without=sum(result.overlapping is None for result in sets),
        median_share=median(result.share for result in sets),
        mean_share=fmean(result.share for result in sets),
        num_moved=sum(abs(result.change) > MOVED for result in sets),
        num_significant=sum(result.p_value is not None and result.p_value < SIGNIFICANT / len(sets) for result in sets),
    )


def draw_differences(sets: Sequence[Contamination], size: tuple[int, int] = WIDE) -> Markup:
    """Draw Overlap - Clean of each set with its interval against the share of overlap, as in the paper's figure 17.

    Sets with a p-value below 0.05, without correction, are highlighted.
    """
    marks = [
        Mark(
            label=benchmark_of(result.benchmark).title,
            x=result.share,
            y=difference.value,
            low=difference.low,
            high=difference.high,
            strong=result.p_value is not None and result.p_value < SIGNIFICANT,
        )
        for result in sets
        if (difference := result.difference)
    ]
    x, y = Axis(label="overlap, share of the set", percent=True, from_zero=True), Axis(percent=True)
    return interval_chart("Accuracy on overlapping pictures minus accuracy on clean pictures", marks, x, y, size)


def _hits(predictions: pa.Table) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The index of each sample, and whether its prediction is correct."""
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
