"""Run the jobs of the demo in order, from building the web to the report. Each step is resumable."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.session import SessionConfig
from cluster.telemetry import Events
from jobs import benchmark, crawl, curate, pretrain, queries
from jobs.demo import gather
from jobs.demo.web.render import evaluation_sets
from jobs.demo.web.server import SiteServer
from jobs.demo.web.site import build_site
from pipeline.data.balance.balancing import BalanceConfig
from pipeline.data.crawl.fetch import FetchConfig
from pipeline.data.images.image_header import ImageConfig
from pipeline.data.queries.query_list import QueriesConfig
from pipeline.data.snapshots.shard import ShardConfig
from pipeline.data.snapshots.snapshot import Snapshot
from pipeline.eval.protocols.statistics import Score
from pipeline.eval.report.report import ReportInputs, SnapshotFacts, write_report
from pipeline.train.config import TrainConfig

logger = logging.getLogger("clip")

NUM_BUCKETS = 4
IMAGE_SIZE = 64
MAX_PAIRS_PER_QUERY = 60
HELD_OUT_SEED = 1_000_003
"""Added to the seed of the evaluation sets, so that they share no image with the web."""
NUM_PER_CLASS = 40
WORDNET = Path("/usr/share/wordnet")
"""Folder of Debian's wordnet-base. If it does not exist, the query list contains only words of the text."""


@dataclass(frozen=True)
class Chain:
    """The steps of a demo run, and the time that each step took, summed over all resumes."""

    folder: Path
    seed: int
    session: SessionConfig

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Log the name of a step, and record its duration."""
        logger.info("== %s", name)
        started = time.monotonic()
        yield
        self.events.append("step", step=name, seconds=round(time.monotonic() - started, 3))

    @property
    def events(self) -> Events:
        """The event log of finished steps."""
        return Events(str(self.folder / "events.jsonl"))

    def seconds_by_stage(self) -> dict[str, float]:
        """The total duration of each step in seconds, in the order of the steps."""
        seconds: Counter[str] = Counter()
        for event in self.events.read():
            seconds[event["step"]] += event["seconds"]
        return {name: round(value, 1) for name, value in seconds.items()}

    def at(self, *parts: str) -> str:
        """The path of a file or folder of the demo."""
        return str(self.folder.joinpath(*parts))

    def run(self, num_images: int, num_pages: int, train: TrainConfig) -> Path:
        """Run all steps, and return the path of the report."""
        with self.step("site"):
            build_once(self.folder / "site", lambda path: build_site(path, self.seed, num_images, num_pages))
            build_once(
                self.folder / "sets", lambda path: evaluation_sets(path, self.seed + HELD_OUT_SEED, NUM_PER_CLASS)
            )
        with self.step("queries"):
            queries.main(self.queries_job())
        with self.step("crawl"), SiteServer(self.folder / "site") as server:
            crawl.main(self.crawl_job(server.port))
        with self.step("curate"):
            curate.main(self.curate_job())
        with self.step("pretrain"):
            pretrain.main(self.pretrain_job(train))
        with self.step("benchmark"):
            benchmark.main(self.benchmark_job())
        with self.step("report"):
            return self.report(train)

    def queries_job(self) -> queries.QueriesJob:
        """Configure the query list, with low thresholds because the demo's text is short."""
        return queries.QueriesJob(
            text=self.at("site", "corpus.txt"),
            output=self.at("queries"),
            wordnet=str(WORDNET) if WORDNET.is_dir() else None,
            num_buckets=NUM_BUCKETS,
            queries=QueriesConfig(min_word_count=20, min_bigram_count=10),
            session=self.session,
        )

    def crawl_job(self, port: int) -> crawl.CrawlJob:
        """Configure the crawl. 100 requests per second and host are acceptable only because all hosts are our own."""
        return crawl.CrawlJob(
            input=self.at("site", "warc"),
            queries=self.at("queries", "queries.parquet"),
            output=self.at("crawl"),
            num_buckets=NUM_BUCKETS,
            balance=self.balance,
            fetch=FetchConfig(connect_to={"*.example": f"127.0.0.1:{port}"}, min_interval_seconds=0.01),
            image=ImageConfig(image_size=IMAGE_SIZE),
            session=self.session,
        )

    def curate_job(self) -> curate.CurateJob:
        """Configure the curation, with small shards so that there are several of them."""
        return curate.CurateJob(
            crawl=self.at("crawl"),
            output=self.at("curate"),
            num_buckets=NUM_BUCKETS,
            balance=self.balance,
            shard=ShardConfig(target_bytes=2**21, seed=self.seed),
            session=self.session,
        )

    def pretrain_job(self, train: TrainConfig) -> pretrain.PretrainJob:
        """Configure the pretraining on the snapshot."""
        return pretrain.PretrainJob(
            snapshot=self.at("curate", "dataset"), output=self.at("pretrain"), train=train, session=self.session
        )

    def benchmark_job(self) -> benchmark.BenchmarkJob:
        """Configure the benchmark on the held-out sets and scikit-learn's digits."""
        return benchmark.BenchmarkJob(
            model=self.at("pretrain", "model"),
            datasets=self.at("sets"),
            output=self.at("benchmark"),
            session=self.session,
        )

    @property
    def balance(self) -> BalanceConfig:
        """The balancing options, with a limit low enough that the demo's frequent words exceed it."""
        return BalanceConfig(max_pairs_per_query=MAX_PAIRS_PER_QUERY, seed=self.seed)

    def report(self, train: TrainConfig) -> Path:
        """Write summary.json and report.html."""
        snapshot = Snapshot.open(self.at("curate", "dataset"))
        results = read_json(self.folder / "benchmark" / "results.json")
        trained = read_json(self.folder / "pretrain" / "result.json")
        metrics = (self.folder / "pretrain" / "metrics.jsonl").read_text().splitlines()
        funnel = gather.funnel(self.folder)
        summary = {
            "funnel": [asdict(stage) for stage in funnel],
            "snapshot": snapshot.snapshot_id,
            "num_pairs": snapshot.num_rows,
            "samples_per_second": trained["samples_per_second"],
            "seconds_by_stage": self.seconds_by_stage(),
            "scores": {
                name: {key: score[key] for key in ("value", "low", "high", "chance")}
                for name, score in results["scores"].items()
            },
        }
        (self.folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        inputs = ReportInputs(
            title="A small web, from pages to a model",
            funnel=funnel,
            queries=gather.query_counts(self.folder, snapshot),
            link_rot=gather.link_rot(self.folder),
            kept_pairs=gather.kept_pairs(snapshot),
            rejected=gather.rejected_pairs(self.folder),
            metrics=[json.loads(line) for line in metrics],
            scores={name: Score(**score) for name, score in results["scores"].items()},
            examples=gather.examples(self.folder, ("rendered_shape", "rendered_colour", "rendered_digit")),
            configuration={
                "seed": self.seed,
                "corpus": snapshot.metadata["configuration"],
                "train": asdict(train),
            },
            versions=gather.versions(),
            seconds_by_stage=self.seconds_by_stage(),
            snapshot=SnapshotFacts(
                snapshot_id=snapshot.snapshot_id,
                num_pairs=snapshot.num_rows,
                num_shards=len(snapshot.shards),
                num_bytes=snapshot.num_bytes,
            ),
        )
        path = self.folder / "report.html"
        write_report(inputs, path)
        return path


def build_once(folder: Path, build: Callable[[Path], object]) -> None:
    """Build a folder unless it exists. It appears under its name only when it is complete."""
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}-partial")
        shutil.rmtree(partial, ignore_errors=True)
        build(partial)
        partial.rename(folder)


def read_json(path: Path) -> Mapping[str, Any]:
    """Read a JSON object from a file."""
    record: Mapping[str, Any] = json.loads(path.read_text())
    return record
