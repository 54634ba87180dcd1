"""The main job: `python -m jobs.demo --output runs/demo` (or `make demo`).

It serves a small web on loopback and runs queries, crawl, curation, pretraining and benchmark over it, then writes a
report.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster.runs import Run, identity
from cluster.session import SessionConfig, session
from jobs.demo.chain import Chain
from jobs.options.launch import launch
from pipeline.train.config import TrainConfig


def tiny_recipe() -> TrainConfig:
    """The training configuration of jobs/configs/tiny.toml."""
    recipe = tomllib.loads((Path(__file__).parents[1] / "configs" / "tiny.toml").read_text())
    return TrainConfig(**recipe["train"])


@dataclass(frozen=True, kw_only=True)
class DemoJob:
    """Run the whole chain on this machine, without a network."""

    output: str
    """Folder of all results; report.html and summary.json are the summary."""
    seed: int = 0
    """Seed of the web, the balancing, the shuffle and the training."""
    num_images: int = 3000
    num_pages: int = 600
    train: TrainConfig = field(default_factory=tiny_recipe)
    session: SessionConfig = field(default_factory=SessionConfig)


def main(job: DemoJob) -> None:
    """Run the chain in one session of Ray, and print where the report is."""
    names = ("seed", "num_images", "num_pages", "train")
    run = Run.open(job.output, {name: identity(getattr(job, name)) for name in names})
    with session(job.session):
        chain = Chain(Path(run.uri), job.seed, job.session)
        report = chain.run(job.num_images, job.num_pages, replace(job.train, seed=job.seed))
    print(report)


if __name__ == "__main__":
    launch(DemoJob, main)
