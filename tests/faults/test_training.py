"""Training where something dies or fails: it goes on by itself, from the last checkpoint, on the same curve."""

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

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("training")
    write_snapshot(place / "set", 64)
    return place


@pytest.fixture(scope="module")
def undisturbed(folder: Path, ray_local: None) -> list[Metrics]:  # noqa: ARG001
    run = run_of(str(folder / "set"), str(folder / "undisturbed"))
    pretrain(run)
    return curve(run.output)


def curve(output: str) -> list[Metrics]:
    return read_metrics(output, storage)


def check_same_curve(found: list[Metrics], expected: list[Metrics]) -> None:
    assert [row.step for row in found] == list(range(1, NUM_STEPS + 1)), "every step once"
    for row, wanted in zip(found, expected, strict=True):
        assert row.loss == pytest.approx(wanted.loss, rel=1e-4), row.step


def start(folder: Path, output: str, *words: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.faults.training", str(folder), output, *words]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"} | (environment or {})
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def resumptions(said: str) -> list[int]:
    """The steps at which workers went on."""
    return [int(step) for step in re.findall(r"going on at step (\d+) with 2 workers", said)]


def test_a_rank_that_is_killed(folder: Path, undisturbed: list[Metrics], capfd: pytest.CaptureFixture[str]) -> None:
    """And later the actor that tells workers to leave, which they do not take for its word."""

    def kill_stop() -> None:
        ray.kill(ray.get_actor(actor_name(storage.absolute(run.output)), NAMESPACE), no_restart=False)

    run = run_of(str(folder / "set"), str(folder / "killed"), replace(CONFIG, max_failures=1))
    when_complete(run, 10, lambda: os.kill(workers(os.getpid())[0], signal.SIGKILL))
    when_complete(run, 30, kill_stop)
    pretrain(run)
    check_same_curve(curve(run.output), undisturbed)
    (step,) = resumptions("".join(capfd.readouterr()))
    assert step in (10, 20, 30), "from a checkpoint"


@pytest.mark.parametrize(("happens", "earliest"), [("goes", 10), ("comes", 2)])
def test_a_node_goes_away_with_a_notice_or_comes(
    folder: Path, undisturbed: list[Metrics], happens: str, earliest: int
) -> None:
    """Two workers, or the one there is, save, leave, and two go on at the next step; no failure is to spare."""
    process = start(folder, str(folder / happens), happens)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    check_same_curve(curve(str(folder / happens)), undisturbed)
    (step,) = (int(step) for step in re.findall(r"nodes come or go: saved at step (\d+)", said))
    assert earliest <= step < NUM_STEPS
    assert resumptions(said) == [step]


def test_storage_that_fails_and_a_kill_during_an_upload(
    folder: Path, s3: str, tmp_path: Path, undisturbed: list[Metrics]
) -> None:
    """One request in five; the workers die between two files of their second checkpoint."""
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
        said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said
    assert len(killed) == 2
    check_same_curve(curve(output), undisturbed)
    assert resumptions(said) == [10], "the second checkpoint was never finished"
    assert len(faulty.given) > 0.1 * faulty.num_requests
    found = {uri.split("/")[-2] for uri in storage.list_files(f"{output}/checkpoints")}
    assert found == {"step-00000030", "step-00000040"}
