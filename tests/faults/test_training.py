"""Kill or fail parts of a training run: it resumes from the last checkpoint by itself, with the same losses."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from cluster import storage
from pipeline.train.telemetry.metrics import Metrics, read_metrics
from pipeline.train.workers.run_lock import NAMESPACE, actor_name
from pipeline.train.workers.trainer import pretrain
from tests.faults.training import CONFIG, run_of, when_complete, workers
from tests.pipeline.train.pairs import write_snapshot
from tests.s3_faults import Fault, FaultyS3, at_random

pytestmark = [pytest.mark.faults, pytest.mark.cluster]
ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("training")
    write_snapshot(path / "set", 64)
    return path


@pytest.fixture(scope="module")
def undisturbed(folder: Path, ray_local: None) -> list[Metrics]:  # noqa: ARG001
    run = run_of(str(folder / "set"), str(folder / "undisturbed"))
    pretrain(run)
    return curve(run.output)


def curve(output: str) -> list[Metrics]:
    return read_metrics(output, storage)


def check_same_curve(found: list[Metrics], expected: list[Metrics]) -> None:
    assert [row.step for row in found] == list(range(1, NUM_STEPS + 1)), "every step is recorded once"
    for row, wanted in zip(found, expected, strict=True):
        assert row.loss == pytest.approx(wanted.loss, rel=1e-4), row.step


def start(folder: Path, output: str, *event: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.faults.training", str(folder), output, *event]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"} | (environment or {})
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def resumptions(text: str) -> list[int]:
    """The steps at which workers resumed, from the log."""
    return [int(step) for step in re.findall(r"resuming at step (\d+) with 2 workers", text)]


def test_a_killed_worker_and_a_killed_run_lock(
    folder: Path, undisturbed: list[Metrics], capfd: pytest.CaptureFixture[str]
) -> None:
    """A worker is killed first. The restart of the actor that asks workers to exit must not make them exit."""

    def kill_run_lock() -> None:
        ray.kill(ray.get_actor(actor_name(storage.absolute(run.output)), NAMESPACE), no_restart=False)

    run = run_of(str(folder / "set"), str(folder / "killed"), replace(CONFIG, max_failures=1))
    when_complete(run, 10, lambda: os.kill(workers(os.getpid())[0], signal.SIGKILL))
    when_complete(run, 30, kill_run_lock)
    pretrain(run)
    check_same_curve(curve(run.output), undisturbed)
    (step,) = resumptions("".join(capfd.readouterr()))
    assert step in (10, 20, 30), "training resumes from a checkpoint"


@pytest.mark.parametrize(("event", "earliest"), [("goes", 10), ("comes", 2)])
def test_a_node_leaves_with_a_notice_or_joins(
    folder: Path, undisturbed: list[Metrics], event: str, earliest: int
) -> None:
    """The workers save and exit, and two workers resume at the next step, although no failure is allowed."""
    process = start(folder, str(folder / event), event)
    printed, _ = process.communicate(timeout=400)
    assert process.returncode == 0, printed
    check_same_curve(curve(str(folder / event)), undisturbed)
    (step,) = (int(step) for step in re.findall(r"nodes were added or removed: saved at step (\d+)", printed))
    assert earliest <= step < NUM_STEPS
    assert resumptions(printed) == [step]


def test_failing_storage_and_a_kill_during_an_upload(
    folder: Path, s3: str, tmp_path: Path, undisturbed: list[Metrics]
) -> None:
    """One request in five fails, and the workers are killed between two files of their second checkpoint."""
    output = f"{s3}/{tmp_path.name}"
    begun = f"{output}/checkpoints/step-00000020/progress.json"
    process: subprocess.Popen[str]
    killed: list[int] = []

    def faults() -> Iterator[Fault]:
        for fault in at_random(0.2, (Fault.ERROR, Fault.UNAVAILABLE, Fault.RESET), seed=1):
            if not killed and storage.exists(begun):
                killed.extend(workers(process.pid))
                for worker in killed:
                    os.kill(worker, signal.SIGKILL)
            yield fault

    with FaultyS3(os.environ["AWS_ENDPOINT_URL"], None, faults()) as faulty:
        process = start(folder, output, environment={"AWS_ENDPOINT_URL": faulty.endpoint})
        printed, _ = process.communicate(timeout=500)
    assert process.returncode == 0, printed
    assert len(killed) == 2
    check_same_curve(curve(output), undisturbed)
    assert resumptions(printed) == [10], "the second checkpoint is incomplete"
    assert len(faulty.given) > 0.1 * faulty.num_requests
    found = {uri.split("/")[-2] for uri in storage.list_files(f"{output}/checkpoints")}
    assert found == {"step-00000030", "step-00000040"}
