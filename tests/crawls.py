"""Crawl a list of URLs on the web of a test: run jobs.crawl in this process, or in a process that can be killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from jobs import crawl
from jobs.crawl import CrawlJob
from jobs.options.launch import launch
from pipeline.schemas import QUERIES
from tests.web import Web

EXIT_SECONDS = 10.0
"""Maximum time that the workers of a driver may outlive it."""
CRAWLERS, DECODERS = "MapBatches(_Actor)).submit", "pipeline.data.images.decoders"
"""Text on the command lines of working crawlers and decoders. Actors that have ended no longer show it; they may hang
in exit handlers of Ray 2.60, which is harmless."""


def caption(number: int) -> str:
    """A caption that passes every rule and contains the only query."""
    return f"A photo of a circle near the old harbour, number {number}"


@dataclass(frozen=True)
class Crawl:
    """A crawl: the folder of its run, its inputs and its options."""

    folder: Path
    lists: Path
    """The folder of the tables of URLs and queries."""
    options: Sequence[str]

    def arguments(self, site: Web, *more: str) -> list[str]:
        """The command-line arguments for a crawl of a web."""
        inputs = {"input": self.lists / "addresses.parquet", "queries": self.lists / "queries.parquet"}
        paths = [f"--{name}={path}" for name, path in (inputs | {"output": self.folder}).items()]
        return [*paths, f"--fetch.connect_to={json.dumps(site.connect_to)}", *self.options, *more]

    def run(self, site: Web, *more: str) -> None:
        """Run the whole job in this process."""
        launch(CrawlJob, crawl.main, self.arguments(site, *more))

    @contextmanager
    def driver(self, site: Web, *more: str) -> Iterator["Driver"]:
        """Run the job in a separate process, on the Ray of this process. Its processes are killed at the end."""
        address = f"--session.address={ray.get_runtime_context().gcs_address}"
        command = [sys.executable, "-m", "jobs.crawl", *self.arguments(site, address, *more)]
        log = self.folder.parent / f"{self.folder.name}.log"
        with log.open("ab") as sink:
            environment = os.environ | {"RAY_AUTH_MODE": "disabled"}  # as for a local Ray
            driver = Driver(subprocess.Popen(command, stdout=sink, stderr=sink, env=environment), log)
            try:
                yield driver
            finally:
                driver.kill()

    def rows(self) -> dict[str, dict[str, Any]]:
        """All rows of fetched/ by URL, read as one table."""
        table = pq.read_table(self.folder / "fetched").to_pylist()
        by_url = {row["url"]: row for row in table}
        assert len(by_url) == len(table), "a URL has two rows"
        return by_url

    def reasons(self) -> dict[str, str | None]:
        """The reason of each URL; None if its image was kept."""
        return {url: row["reason"] for url, row in self.rows().items()}


@dataclass(frozen=True)
class Driver:
    """The process of a job."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait for a condition. Fails if the job ends first."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the job ended first: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"condition not met within {seconds} s: {self.log.read_text()}"
            time.sleep(0.01)

    def kill(self) -> None:
        """Kill the job, and wait until its crawlers and decoders have ended."""
        if self.process.poll() is not None:
            return
        workers = processes(CRAWLERS) + processes(DECODERS)
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + EXIT_SECONDS
        while alive := [pid for pid in workers if _parent(pid) is not None]:
            lines = [_command_line(pid) for pid in alive]
            assert time.monotonic() < deadline, f"{lines} outlive their driver"
            time.sleep(0.02)


def processes(title: str) -> list[int]:
    """The descendants of this process whose command lines contain this text, by id."""
    parents = {pid: _parent(pid) for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*"))}
    family = [os.getpid()]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    return sorted(pid for pid in family[1:] if title in _command_line(pid))


def _parent(pid: int) -> int | None:
    """The id of the parent of a process, or None if the process has ended."""
    try:
        state, parent = (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
        )
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(parent)


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def crawl_of(folder: Path, urls: Sequence[str], *options: str) -> Crawl:
    """A crawl of these URLs, whose run is in `folder`/run."""
    folder.mkdir(parents=True, exist_ok=True)
    captions = [caption(number) for number in range(len(urls))]
    pq.write_table(pa.table({"url": list(urls), "caption": captions}), folder / "addresses.parquet")
    write_queries(folder)
    small = ("--num_buckets=1", "--image.image_size=64", "--image.num_decoders=1", "--match_pool.cpus=0.5")
    return Crawl(folder / "run", folder, (*small, *options))


def write_queries(folder: Path) -> Path:
    """Write a query list that matches every caption."""
    table = pa.table([[0], ["circle"], ["unigram"], [1.0], [0]], schema=QUERIES)
    pq.write_table(table, folder / "queries.parquet")
    return folder / "queries.parquet"
