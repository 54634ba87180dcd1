"""How far a run is, seen from anywhere that sees its folder: `python -m jobs.status runs/crawl`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cluster import storage
from cluster.progress import StageProgress, stage_progress
from cluster.runs import RUN_FILE, Run
from cluster.telemetry import duration
from jobs.options.launch import launch
from pipeline.train.telemetry.progress import TrainingProgress, training_progress


@dataclass(frozen=True, kw_only=True)
class StatusJob:
    """Show the stages of a run in the order of the flow, what runs now, and how far training is."""

    run: str
    """Folder of a run of any job, local or s3://; a folder of several runs, such as the demo's, shows all of them."""


def main(job: StatusJob) -> None:
    """Print the progress of a run, and of the runs in folders below it, oldest first."""
    for run in find_runs(job.run):
        print(f"{run.uri}  (run {run.run_id})")
        stages, training = stage_progress(run), training_progress(run.uri, run.configuration, storage)
        lines = [*map(stage_line, stages), *(training_lines(training) if training else [])]
        print("\n".join(lines or ["  nothing is recorded yet"]))


def find_runs(uri: str) -> list[Run]:
    """The runs in a folder and below it, in the order in which they were started.

    Raises:
        FileNotFoundError: there is none.
    """
    uri = storage.absolute(uri)
    records = [entry for entry in storage.entries(uri) if entry.uri.endswith(f"/{RUN_FILE}")]
    if not records:
        raise FileNotFoundError(f"run={uri}: no run is there ({RUN_FILE} is missing)")
    started = sorted(records, key=lambda entry: (entry.modified, entry.uri))
    return [Run.read(entry.uri.removesuffix(f"/{RUN_FILE}"), option="run") for entry in started]


def stage_line(stage: StageProgress) -> str:
    """One line about a stage, as it is shown to people."""
    if not stage.running:
        dropped = "" if stage.dropped is None else f"{stage.dropped:>14,} dropped"
        return (
            f"  {stage.name:22} {stage.num_parts:>6} parts {stage.kept:>14,} kept {dropped}  {duration(stage.seconds)}"
        )
    progress = [f"{stage.num_complete:>6}/{stage.num_parts} parts"]
    if stage.parts_per_second and stage.seconds_left is not None:
        progress.append(f"{stage.parts_per_second:,.2g} parts/s, {duration(stage.seconds_left)} left")
    if stage.idle_seconds is not None:
        progress.append(f"last part {duration(stage.idle_seconds)} ago")
    return f"> {stage.name:22} {', '.join(progress)}, started {duration(stage.seconds)} ago"


def training_lines(training: TrainingProgress) -> Iterator[str]:
    """The lines about a training run."""
    last, num_steps = training.last, training.num_steps
    mark, left = (" ", "finished") if training.finished else (">", f"{duration(training.seconds_left)} left")
    yield (
        f"{mark} step {last.step:,}/{num_steps:,} ({last.step / num_steps:.0%}), loss {last.loss:.3f}, "
        f"{last.samples_per_second:,.0f} pairs/s, {left}, trained for {duration(last.seconds)}"
    )
    if last.skipped_steps:
        yield f"  {last.skipped_steps:,} steps skipped, because their loss or gradient was not finite"
    if training.scores:
        yield f"  validation: {', '.join(f'{name} {value:.1%}' for name, value in training.scores.items())}"
    steps = ", ".join(f"{step:,}" for step in training.checkpoints)
    yield f"  checkpoints: {f'after step {steps}' if steps else 'none yet'}"


def arguments(argv: Sequence[str]) -> list[str]:
    """The command line, with a leading word as the run."""
    return [f"--run={argv[0]}", *argv[1:]] if argv and not argv[0].startswith("-") else list(argv)


if __name__ == "__main__":
    launch(StatusJob, main, arguments(sys.argv[1:]))
