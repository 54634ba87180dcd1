"""An export whose driver is killed while its tars are written: what is there is whole, and the rest follows."""

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

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_local")]

NUM_SHARDS = 60


def tars(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.tar"))}


def test_an_export_that_was_killed_ends_with_the_same_bytes(tmp_path: Path) -> None:
    uri = write_snapshot(tmp_path / "pairs", 600, num_shards=NUM_SHARDS).uri
    snapshot.main(SnapshotJob(verb="export", uri=uri, output=str(tmp_path / "undisturbed")))
    expected = tars(tmp_path / "undisturbed")
    assert len(expected) == NUM_SHARDS
    folder, log = tmp_path / "killed", tmp_path / "export.log"
    address = ray.get_runtime_context().gcs_address
    options = [f"--output={folder}", f"--session.address={address}"]
    command = [sys.executable, "-m", "jobs.snapshot", "export", uri, *options]
    with log.open("wb") as sink:
        environment = os.environ | {"RAY_AUTH_MODE": "disabled"}  # as that of a local Ray is
        driver = Driver(subprocess.Popen(command, stdout=sink, stderr=sink, env=environment), log)
        driver.wait_until(lambda: any(folder.glob("*.tar")))
        driver.kill()
    left = tars(folder)
    assert 0 < len(left) < NUM_SHARDS
    assert left.items() <= expected.items(), "each is whole"
    assert not (folder / "sizes.json").exists()
    snapshot.main(SnapshotJob(verb="export", uri=uri, output=str(folder)))
    assert tars(folder) == expected
    assert (folder / "sizes.json").read_bytes() == (tmp_path / "undisturbed" / "sizes.json").read_bytes()
