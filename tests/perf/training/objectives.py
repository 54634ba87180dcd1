"""Reproduce figure 2 at laptop scale: `python -m tests.perf.training.objectives runs/figure2` prints Markdown tables.

There are two corpora. The first is the snapshot of `make demo` (runs/demo, or `--demo`), scored on newly rendered
pictures. The second is Flickr8k's photographs (folder CLIP_DATA). Three quarters of them are training pairs, with five
captions each. The others are the evaluation set: a photograph gets a class if at least three of its captions name the
class and no caption names another class. A rerun resumes unfinished runs.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.resources import Pool
from jobs import objectives
from jobs.demo.web.render import evaluation_sets
from jobs.objectives import ObjectivesJob
from pipeline.eval.flows.benchmark_flow import EncodeConfig
from pipeline.eval.report.objectives import Comparison, compare
from pipeline.eval.sets.evaluation_sets import Dataset, Kind, serialise
from pipeline.train.config import TrainConfig
from tests.perf.training.photographs import Photograph, photographs, write_pairs

CLASSES: Mapping[str, frozenset[str]] = {
    "dog": frozenset({"dog", "dogs", "puppy"}),
    "water": frozenset(
        {"water", "ocean", "sea", "lake", "river", "pool", "swimming", "beach", "surfer", "wave", "waves"}
    ),
    "snow": frozenset({"snow", "snowy", "ski", "skier", "skiing", "snowboarder", "snowboarding", "ice"}),
    "bike": frozenset({"bike", "bikes", "biker", "bicycle", "bicycles", "bicyclist", "motorcycle", "bmx", "cyclist"}),
    "street": frozenset({"street", "sidewalk", "city", "road", "building", "store"}),
}
TEMPLATES = ("{} .", "a {} .", "there is {} .", "a photo of {} .")
MIN_CAPTIONS = 3
SIDE = 72
"""Side of the resized photographs, in pixels. Training crops have 63 pixels, close to the model's 64."""
SEEDS = (0, 1, 2)
EPOCHS = {"demo": 16, "photographs": 4}
"""About 36,000 and 37,000 training images in total."""


def label(captions: Sequence[str]) -> str | None:
    """The class that the captions agree on, or None."""
    words = [set(re.findall("[a-z]+", caption.lower())) for caption in captions]
    counts = {name: sum(bool(own & forms) for own in words) for name, forms in CLASSES.items()}
    named = [name for name, count in counts.items() if count]
    return named[0] if len(named) == 1 and counts[named[0]] >= MIN_CAPTIONS else None


def write_set(folder: Path, held_out: Sequence[Photograph]) -> None:
    """Write the evaluation set `sets/photographs` into a folder."""
    samples = [
        (photograph.jpeg, list(CLASSES).index(name)) for photograph in held_out if (name := label(photograph.captions))
    ]
    scored, labels = zip(*samples, strict=True)
    dataset = Dataset(name="photographs", kind=Kind.CLASSIFICATION, classes=tuple(CLASSES), templates=TEMPLATES)
    set_folder = folder / "sets" / "photographs"
    set_folder.mkdir(parents=True)
    for name, data in serialise(dataset, pa.table({"image": scored, "label": np.array(labels, np.int32)})).items():
        (set_folder / name).write_bytes(data)


def prepare(folder: Path, demo: Path) -> list[ObjectivesJob]:
    """Create missing corpora, and return the jobs of both experiments."""
    recipe = TrainConfig(
        global_batch_size=64, learning_rate=1e-3, warmup_steps=50, shuffle_row_groups=16, num_workers=2,
        log_every_steps=20, checkpoint_every_steps=100_000,
    )  # fmt: skip
    encode = EncodeConfig(pool=Pool(size=2), batch_size=64)
    if not (folder / "demo" / "sets").exists():
        evaluation_sets(folder / "demo" / "sets", 1_000_003, 20)
        shutil.rmtree(folder / "demo" / "sets" / "rendered_pairs")
    photo_folder = folder / "photographs"
    learned, held_out = photographs(SIDE)
    if not (photo_folder / "sets").exists():
        write_set(photo_folder, held_out)
    corpora = {
        "demo": (demo / "curate" / "dataset", folder / "demo"),
        "photographs": (write_pairs(photo_folder, learned), photo_folder),
    }
    return [
        ObjectivesJob(
            snapshot=str(snapshot), datasets=str(parent / "sets"), output=str(parent / "objectives"), seeds=SEEDS,
            num_models=9, train=replace(recipe, epochs=EPOCHS[name]), encode=encode,
        )
        for name, (snapshot, parent) in corpora.items()
    ]  # fmt: skip


def tables(comparison: Comparison) -> str:
    """Markdown tables of the images needed per accuracy and of the final accuracies."""
    names = list(comparison.curves)
    lines = [f"| accuracy | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for row in comparison.needed:
        cells = []
        for name in names:
            images, times = row.images[name], row.times_faster(name)
            cells.append("–" if images is None else f"{images:,.0f}" + (f" ({times:.1f}x)" if times else ""))
        lines.append(f"| {row.accuracy:.0%} | {' | '.join(cells)} |")
    lines += ["", f"| set | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    for name, finals in comparison.finals.items():
        cells = [f"{mean:.1%} [{low:.1%}, {high:.1%}]" for mean, low, high in (finals[key] for key in names)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Execute missing runs, one at a time, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    options = parser.parse_args()
    for job in prepare(options.output.resolve(), options.demo.resolve()):
        objectives.main(job)
        print(tables(compare(pq.read_table(Path(job.output) / "curves.parquet"))), flush=True)


if __name__ == "__main__":
    main()
