"""Invented scores of runs in which each objective learns twice as fast as the next one."""

import math

import pyarrow as pa

from pipeline.eval.report.objectives import CURVES
from pipeline.model.config import OBJECTIVES

IMAGES = (100, 200, 400, 800)
SPEED = {"contrastive": 8, "contrastive-bag": 4, "bag": 2, "caption": 1}


def score_rows(objectives: tuple[str, ...] = OBJECTIVES, seeds: int = 2) -> pa.Table:
    """Accuracies of two sets that increase by 0.1 per doubling of the images. The sets differ by 0.1."""
    rows = [
        {
            "objective": objective,
            "seed": seed,
            "images_seen": images,
            "set": name,
            "accuracy": 0.25 + 0.1 * math.log2(images / 100 * SPEED[objective]) + shift,
            "low": 0.0,
            "high": 1.0,
            "chance": 0.2 + shift,
            "num_samples": 40,
        }
        for objective in reversed(objectives)
        for seed in range(seeds)
        for images in reversed(IMAGES)
        for name, shift in (("colours", 0.05), ("shapes", -0.05))
    ]
    return pa.Table.from_pylist(rows, schema=CURVES)
