"""How far a run is, seen from elsewhere: `python -m jobs.status runs/crawl`."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cluster import storage
from cluster.parts import Stage
from cluster.runs import Run
from cluster.telemetry import Events
from jobs.options.launch import launch

_FIRST_GENERATION = re.compile(r"/_part-\d+\.json$")


@dataclass(frozen=True, kw_only=True)
class StatusJob:
    """What a run has done so far."""

    run: str
    """Folder of a run of jobs.queries, jobs.crawl or jobs.curate, local or s3://."""


def main(job: StatusJob) -> None:
    """Print each stage's complete parts and rows, and how long it took."""
    run = Run.read(job.run, option="run")
    seconds = {event["stage"]: event["seconds"] for event in Events(storage.join(run.uri, "events.jsonl")).read()}
    manifests = [uri for uri in storage.list_files(run.uri, suffixes=(".json",)) if _FIRST_GENERATION.search(uri)]
    num_parts = Counter(_FIRST_GENERATION.split(uri.removeprefix(run.uri).strip("/"))[0] for uri in manifests)
    print(f"{run.uri}  run {run.run_id}")
    for name in num_parts:
        parts = Stage(storage.join(run.uri, name), num_parts[name]).newest().complete().values()
        kept, rows = sum(part.num_kept for part in parts), sum(part.num_rows for part in parts)
        state = f"done in {seconds[name]:.1f} s" if name in seconds else "under way"
        print(f"{name:28}  {len(parts):>6} parts  {kept:>14,} rows kept  {rows - kept:>14,} dropped  {state}")


def arguments(argv: Sequence[str]) -> list[str]:
    """The command line with a leading word as the run."""
    return [f"--run={argv[0]}", *argv[1:]] if argv and not argv[0].startswith("-") else list(argv)


if __name__ == "__main__":
    launch(StatusJob, main, arguments(sys.argv[1:]))
