"""Kill the driver of an export while it writes tars: existing tars are complete, and a rerun writes the rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from jobs import snapshot
from jobs.snapshot import SnapshotJob
from tests.crawls import Driver
from tests.pipeline.train.pairs import write_snapshot

pytestmark = [pytest.mark.faults, pytest.mark.cluster, pytest.mark.usefixtures("ray_local")]

NUM_SHARDS = 60


def tars(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.tar"))}


def test_a_killed_export_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    uri = write_snapshot(tmp_path / "pairs", 600, num_shards=NUM_SHARDS).uri
    snapshot.main(SnapshotJob(verb="export", uri=uri, output=str(tmp_path / "undisturbed")))
    expected = tars(tmp_path / "undisturbed")
    assert len(expected) == NUM_SHARDS
    folder, log = tmp_path / "killed", tmp_path / "export.log"
    address = ray.get_runtime_context().gcs_address
    options = [f"--output={folder}", f"--session.address={address}"]
    command = [sys.executable, "-m", "jobs.snapshot", "export", uri, *options]
    with log.open("wb") as sink:
        environment = os.environ | {"RAY_AUTH_MODE": "disabled"}  # as for a local Ray
        driver = Driver(subprocess.Popen(command, stdout=sink, stderr=sink, env=environment), log)
        driver.wait_until(lambda: any(folder.glob("*.tar")))
        driver.kill()
    complete = tars(folder)
    assert 0 < len(complete) < NUM_SHARDS
    assert complete.items() <= expected.items(), "existing tars are complete"
    assert not (folder / "sizes.json").exists()
    snapshot.main(SnapshotJob(verb="export", uri=uri, output=str(folder)))
    assert tars(folder) == expected
    assert (folder / "sizes.json").read_bytes() == (tmp_path / "undisturbed" / "sizes.json").read_bytes()
