"""Crawls of a list of addresses over a test's web: jobs.crawl in this process, or in one that may be killed."""

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

GONE_SECONDS = 10.0
"""So long the processes of a driver may outlive it."""
CRAWLERS, DECODERS = "MapBatches(_Actor)).submit", "pipeline.data.images.decoders"
"""What is on their command lines while they work. Ray's actors may hang when they have ended (2.60, in exit handlers of
its own), and do no harm then."""


def caption(number: int) -> str:
    """That no rule refuses and that has the only query."""
    return f"A photo of a circle near the old harbour, number {number}"


@dataclass(frozen=True)
class Crawl:
    """One run: its folder, and what it is run with."""

    folder: Path
    lists: Path
    """Where the addresses and the queries are."""
    options: Sequence[str]

    def arguments(self, site: Web, *more: str) -> list[str]:
        """The command line over a web."""
        names = {"input": self.lists / "addresses.parquet", "queries": self.lists / "queries.parquet"}
        named = [f"--{name}={path}" for name, path in (names | {"output": self.folder}).items()]
        return [*named, f"--fetch.connect_to={json.dumps(site.connect_to)}", *self.options, *more]

    def run(self, site: Web, *more: str) -> None:
        """The whole job, on the Ray of this process."""
        launch(CrawlJob, crawl.main, self.arguments(site, *more))

    @contextmanager
    def driver(self, site: Web, *more: str) -> Iterator["Driver"]:
        """The job in a process of its own, on the Ray of this process; nothing of it is left afterwards."""
        address = f"--session.address={ray.get_runtime_context().gcs_address}"
        command = [sys.executable, "-m", "jobs.crawl", *self.arguments(site, address, *more)]
        log = self.folder.parent / f"{self.folder.name}.log"
        with log.open("ab") as sink:
            environment = os.environ | {"RAY_AUTH_MODE": "disabled"}  # as that of a local Ray is
            driver = Driver(subprocess.Popen(command, stdout=sink, stderr=sink, env=environment), log)
            try:
                yield driver
            finally:
                driver.kill()

    def rows(self) -> dict[str, dict[str, Any]]:
        """All rows of fetched/, as anybody reads the folder, by address."""
        table = pq.read_table(self.folder / "fetched").to_pylist()
        found = {row["url"]: row for row in table}
        assert len(found) == len(table), "an address is there twice"
        return found

    def reasons(self) -> dict[str, str | None]:
        """What became of each address."""
        return {url: row["reason"] for url, row in self.rows().items()}


@dataclass(frozen=True)
class Driver:
    """A job's process."""

    process: subprocess.Popen[bytes]
    log: Path

    def wait_until(self, condition: Callable[[], object], seconds: float = 60.0) -> None:
        """Until something is so, while the job runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the job ended first: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"not within {seconds} s: {self.log.read_text()}"
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL, after which its crawlers and decoders go, too."""
        if self.process.poll() is not None:
            return
        workers = processes(CRAWLERS) + processes(DECODERS)
        self.process.kill()
        self.process.wait()
        deadline = time.monotonic() + GONE_SECONDS
        while alive := [pid for pid in workers if _parent(pid) is not None]:
            lines = [_command_line(pid) for pid in alive]
            assert time.monotonic() < deadline, f"{lines} outlive their driver"
            time.sleep(0.02)


def processes(title: str) -> list[int]:
    """The processes of this process's Ray that have something on their command lines."""
    parents = {pid: _parent(pid) for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*"))}
    family = [os.getpid()]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    return sorted(pid for pid in family[1:] if title in _command_line(pid))


def _parent(pid: int) -> int | None:
    """The parent of a process; None where it has ended."""
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
    """A crawl of some addresses, its run in `folder`/run."""
    folder.mkdir(parents=True, exist_ok=True)
    captions = [caption(number) for number in range(len(urls))]
    pq.write_table(pa.table({"url": list(urls), "caption": captions}), folder / "addresses.parquet")
    write_queries(folder)
    small = ("--num_buckets=1", "--image.image_size=64", "--image.num_decoders=1", "--match_pool.cpus=0.5")
    return Crawl(folder / "run", folder, (*small, *options))


def write_queries(folder: Path) -> Path:
    """The query list that every caption meets."""
    table = pa.table([[0], ["circle"], ["unigram"], [1.0], [0]], schema=QUERIES)
    pq.write_table(table, folder / "queries.parquet")
    return folder / "queries.parquet"
