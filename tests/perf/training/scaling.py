"""Estimate what the paper's nine models require of a cluster, and print the tables of docs/scaling.md.

Run `python -m tests.perf.training.scaling --picture docs/pictures/scaling.png`. Needs CLIP_DATA for the lengths of
captions and for photographs to decode. Operations and memory are counted from the networks
(pipeline/train/costs/flops.py, memory.py); settings come from jobs/configs. The constants below are assumptions;
nothing here was measured on a GPU.
"""

from __future__ import annotations

import argparse
import io
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from jobs.options.launch import launch
from jobs.pretrain import PretrainJob
from pipeline import paper
from pipeline.model.config import ModelConfig, model_config
from pipeline.model.images.random_crop import decode, random_square_crop
from pipeline.model.tokenizer.tokenizer import Tokenizer
from pipeline.train.config import TrainConfig
from pipeline.train.costs.flops import PEAK_FLOPS, ForwardFlops, forward_flops
from pipeline.train.costs.memory import RESERVED_SHARE, Footprint, footprint
from tests.perf.crawl.matching import DATA

RECIPES = ("rn50", "rn101", "rn50x4", "rn50x16", "rn50x64", "vit_b32", "vit_b16", "vit_l14", "vit_l14_336px")
LOW_MFU, MFU = 0.15, 0.3
"""Assumed model FLOPs utilisation: what open_clip users report for A100s (12 to 18%), and twice that."""
CHUNK_SIZE = 64
"""Assumed chunk size. In a run, probing in the first step chooses the size."""
GPUS_PER_NODE = 8
JPEG_BYTES = 28_000
"""Size of a photograph at 256 pixels (docs/results.md, reading for training). Other sizes are scaled by area."""
GIB, DAY = 2**30, 86_400
DEVICES = {gib: gib * GIB for gib in (40, 80)}
Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Title, header, rows."""


@dataclass(frozen=True)
class Needs:
    """The resources that one recipe requires."""

    train: TrainConfig
    name: str
    config: ModelConfig
    num_tokens: int
    """Average length to which captions are padded."""

    @cached_property
    def flops(self) -> ForwardFlops:
        """Operations of one pair at the full context length."""
        return forward_flops(self.config)

    @cached_property
    def executed(self) -> ForwardFlops:
        """Operations of one pair at the padded length of captions."""
        return forward_flops(self.config, self.num_tokens)

    @cached_property
    def memory(self) -> Footprint:
        """Memory of one GPU at the full context length."""
        return self._footprint(None)

    @cached_property
    def memory_of_short_texts(self) -> Footprint:
        """Memory of one GPU at the padded length of captions."""
        return self._footprint(self.num_tokens)

    def _footprint(self, num_tokens: int | None) -> Footprint:
        train = self.train
        return footprint(
            self.config, global_batch_size=train.global_batch_size, num_workers=train.num_workers, num_tokens=num_tokens
        )

    @property
    def images_of_a_chunk(self) -> int:
        """Images per chunk: the norm group size in networks with batch norms, otherwise CHUNK_SIZE."""
        return self.train.norm_group_size if self.name.startswith("RN") else CHUNK_SIZE

    @property
    def peak(self) -> int:
        """Peak bytes of a GPU."""
        return self.memory.peak(self.images_of_a_chunk, CHUNK_SIZE)

    def gpus_that_keep_all(self, device_bytes: int) -> float:
        """Number of GPUs that can hold the graphs of the whole global batch, so that no forward pass is repeated."""
        memory = self.memory_of_short_texts
        fixed = memory.state + memory.batch + memory.image.fixed + memory.text.fixed
        per_pair = memory.image.per_sample + memory.text.per_sample
        return math.ceil(self.train.global_batch_size * per_pair / ((1 - RESERVED_SHARE) * device_bytes - fixed))

    @property
    def total_flops(self) -> float:
        """Operations of the whole run, counted as for MFU."""
        return float(self.train.epochs) * paper.NUM_PAIRS.value * self.flops.training

    def gpu_days(self, gpu: str, mfu: float) -> float:
        """Days that one GPU would take for the whole run."""
        return self.total_flops / (dict(PEAK_FLOPS)[gpu] * mfu * DAY)

    @property
    def samples_per_second(self) -> float:
        """Pairs per second of one A100."""
        return dict(PEAK_FLOPS)["A100"] * MFU / self.flops.training

    @property
    def step_seconds(self) -> float:
        """Seconds of a step on the recipe's number of A100s."""
        return self.train.global_batch_size / self.train.num_workers / self.samples_per_second

    @property
    def work(self) -> tuple[float, float]:
        """Operations of a step relative to those that MFU counts: with every forward pass repeated, and with none."""
        done = self.executed.image + self.executed.text
        return 4 * done / self.flops.training, 3 * done / self.flops.training

    @property
    def stored_pixels(self) -> int:
        """Shorter side of stored pictures for which crops need not be enlarged."""
        return round(self.config.image.image_size / self.train.crop_share)

    @property
    def messages(self) -> tuple[float, float]:
        """Bytes that a GPU sends in a step: gradients, and features with their gradients.

        A ring all-reduce of B bytes over n GPUs sends 2 B (n - 1) / n, an all-gather half as much.
        """
        share = (self.train.num_workers - 1) / self.train.num_workers
        features = 4 * self.config.embed_dim * self.train.global_batch_size
        return 2 * share * 4 * self.memory.num_parameters, 3 * share * features


def recipe(name: str, num_tokens: int) -> Needs:
    """Load a recipe as jobs.pretrain does."""
    jobs: list[PretrainJob] = []
    with tempfile.TemporaryDirectory() as folder:
        launch(
            PretrainJob, lambda job: jobs.append(job),
            [f"--config=jobs/configs/{name}.toml", "--snapshot=set", f"--output={folder}"],
        )  # fmt: skip
    return Needs(jobs[0].train, jobs[0].model, model_config(jobs[0].model), num_tokens)


def padded_length(share: int, chunk_size: int) -> tuple[float, float]:
    """Average tokens of real captions, without padding and padded in chunks of captions sorted by length."""
    captions = pq.read_table(DATA / "captions.parquet", columns=["text"])["text"].to_pylist()
    _, lengths = Tokenizer.released().encode_arrays(captions)
    shares = np.sort(np.random.default_rng(0).choice(lengths, (100, share)))
    chunks = shares.reshape(100, -1, chunk_size)
    return float(lengths.mean()), float(chunks.max(axis=2).mean())


def images_per_core_second(side: int, size: int, num_images: int = 500) -> float:
    """Images decoded and cropped per CPU second of this process."""
    photographs = pq.read_table(DATA / "photos.parquet", columns=["image"])["image"].to_pylist()[:num_images]
    stored = []
    for data in photographs:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(data)).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        stored.append(buffer.getvalue())
    began = time.process_time()
    for data in stored:
        random_square_crop(decode(data), size, size / side, (0.5, 0.5))
    return num_images / (time.process_time() - began)


def samples(all_needs: Sequence[Needs]) -> Table:
    """The table of operations per pair."""
    length = all_needs[0].num_tokens
    header = ["model", "image", "caption of 77", f"of {length}", "MFU counts", "done, all twice", "done, none twice"]
    rows = [
        [
            n.name,
            *(f"{flops / 1e9:.1f}" for flops in (n.flops.image, n.flops.text, n.executed.text, n.flops.training)),
            *(f"{share:.0%}" for share in n.work),
        ]
        for n in all_needs
    ]
    return "A pair, GFLOPs", header, rows


def memory(all_needs: Sequence[Needs]) -> Table:
    """The table of memory per GPU."""
    length = all_needs[0].num_tokens
    header = [
        *("model", "parameters, M", "state, GiB", "batch and loss, GiB", "an image, MiB", "a caption of 77, MiB"),
        *(f"of {length}, MiB", "largest chunk: 40 GB", "80 GB", f"peak with chunks of {CHUNK_SIZE}, GiB"),
        "GPUs of 80 GB that keep all graphs",
    ]
    rows = [
        [
            n.name,
            f"{n.memory.num_parameters / 1e6:.1f}",
            *(f"{size / GIB:.1f}" for size in (n.memory.state, n.memory.batch)),
            *(f"{g.per_sample / 2**20:.1f}" for g in (n.memory.image, n.memory.text, n.memory_of_short_texts.text)),
            *(str(n.memory.largest_chunk(size)) for size in DEVICES.values()),
            f"{n.peak / GIB:.1f}",
            f"{n.gpus_that_keep_all(DEVICES[80]):,.0f}",
        ]
        for n in all_needs
    ]
    return "Memory of a GPU", header, rows


def times(all_needs: Sequence[Needs]) -> Table:
    """The table of training times."""
    header = [
        *("model", "pairs seen, billions", "EFLOPs", "A100-days at 15%", "at 30%", "H100-days at 30%", "recipe's GPUs"),
        *("days, A100 at 30%", "paper's V100-days", "their MFU"),
    ]
    rows = []
    for n in all_needs:
        own = paper.TRAINING_TIMES.get(n.name)
        v100_days = own.value.days * own.value.num_gpus if own else None
        rows.append(
            [
                n.name,
                f"{n.train.epochs * paper.NUM_PAIRS.value / 1e9:.1f}",
                f"{n.total_flops / 1e18:,.0f}",
                *(f"{n.gpu_days(*at):,.0f}" for at in (("A100", LOW_MFU), ("A100", MFU), ("H100", MFU))),
                str(n.train.num_workers),
                f"{n.gpu_days('A100', MFU) / n.train.num_workers:.1f}",
                f"{v100_days:,}" if v100_days else "",
                f"{n.gpu_days('V100', 1) / v100_days:.1%}" if v100_days else "",
            ]
        )
    return "Time", header, rows


def supplies(all_needs: Sequence[Needs]) -> Table:
    """The table of network traffic, reading and decoding of nodes with eight A100s, and of storage."""
    header = [
        *("model", "step, s", "gradients, GB", "features, GB", "Gbit/s of a GPU", "pairs/s of a node", "stored side"),
        *("MB/s of a node", "images/s/core", "cores of a node", "400M pairs, TB", "checkpoint, GiB"),
    ]
    rates = {
        pixels: images_per_core_second(pixels, size)
        for pixels, size in {(n.stored_pixels, n.config.image.image_size) for n in all_needs}
    }
    rows = []
    for n in all_needs:
        node, rate = GPUS_PER_NODE * n.samples_per_second, rates[n.stored_pixels]
        jpeg_bytes = JPEG_BYTES * (n.stored_pixels / 256) ** 2
        rows.append(
            [
                n.name,
                f"{n.step_seconds:.1f}",
                *(f"{num_bytes / 1e9:.2f}" for num_bytes in n.messages),
                f"{8 * sum(n.messages) / n.step_seconds / 1e9:.1f}",
                f"{node:,.0f}",
                str(n.stored_pixels),
                f"{node * jpeg_bytes / 1e6:,.0f}",
                f"{rate:,.0f}",
                f"{node / rate:.1f}",
                f"{paper.NUM_PAIRS.value * jpeg_bytes / 1e12:.0f}",
                f"{12 * n.memory.num_parameters / GIB:.1f}",
            ]
        )
    return "Network, reading, storage", header, rows


def draw(all_needs: Sequence[Needs], path: Path) -> None:
    """Plot the memory of a GPU by its uses, and GPU-days next to those of the paper."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [needs.name for needs in all_needs]
    parts = {
        "weights and gradients": [8 * n.memory.num_parameters for n in all_needs],
        "Adam's moments": [n.memory.moments for n in all_needs],
        "the share of the batch, the loss": [n.memory.batch for n in all_needs],
        "graph of an image chunk": [n.memory.image.num_bytes(n.images_of_a_chunk) for n in all_needs],
        "graph of a caption chunk": [n.memory.text.num_bytes(CHUNK_SIZE) for n in all_needs],
    }
    start = np.zeros(len(names))
    for (label, sizes), colour in zip(
        parts.items(), ("#1b4965", "#5fa8d3", "#bee9e8", "#ee6c4d", "#f7b267"), strict=True
    ):
        widths = np.array(sizes) / GIB
        left.barh(names, widths, left=start, label=label, color=colour)
        start += widths
    for gib in DEVICES:
        left.axvline(gib, color="grey", linestyle=":", linewidth=1)
    left.set(xlabel=f"GiB on each GPU of the recipes, with chunks of {CHUNK_SIZE}", xlim=(0, 84))
    left.legend(frameon=False, fontsize=8, loc="upper right")
    left.invert_yaxis()
    right.hlines(
        names, [n.gpu_days("A100", MFU) for n in all_needs], [n.gpu_days("A100", LOW_MFU) for n in all_needs],
        color="#1b4965", linewidth=7, label=f"A100, {MFU:.0%} to {LOW_MFU:.0%} of its peak (assumed)",
    )  # fmt: skip
    own = {name: time.value.days * time.value.num_gpus for name, time in paper.TRAINING_TIMES.items()}
    right.plot(list(own.values()), list(own), "D", color="#ee6c4d", label="V100, from the paper")
    right.set(xscale="log", xlabel="GPU-days of the whole run")
    right.grid(axis="x", alpha=0.3)
    right.legend(frameon=False, fontsize=8, loc="upper right")
    figure.savefig(path, dpi=130)


def main() -> None:
    """Print the tables, and draw the picture if requested."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    mean, padded = padded_length(512, CHUNK_SIZE)
    print(f"captions: {mean:.1f} tokens on average, {padded:.1f} when 512 are cut into chunks of {CHUNK_SIZE}")
    all_needs = [recipe(name, round(padded)) for name in RECIPES]

    for title, header, rows in (samples(all_needs), memory(all_needs), times(all_needs), supplies(all_needs)):
        print(f"\n## {title}\n\n| {' | '.join(header)} |\n|---|{'---:|' * (len(header) - 1)}")
        for row in rows:
            print(f"| {' | '.join(row)} |")
    if options.picture:
        draw(all_needs, options.picture)


if __name__ == "__main__":
    main()
