"""Test a curation on faulty storage: `python -m tests.perf.storage.storage_faults` (several minutes).

A small web is crawled once. Then `jobs.curate` makes its snapshot three times. On a local disk, as the reference. On S3
over HTTP, where one request in ten gets a 500, a 503, a connection reset, or half of the body and then nothing. And on
a full disk, where the same command is repeated after space is freed. All three snapshots must have the same id.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from cluster.session import SessionConfig, session
from jobs import crawl, queries
from jobs.demo.web.server import SiteServer
from jobs.demo.web.site import build_site
from pipeline.data.snapshots.snapshot import Snapshot
from tests.perf.storage.commits import s3_server
from tests.s3_faults import Fault, FaultyS3, at_random
from tests.test_end_to_end import crawl_job, queries_job

KINDS = (Fault.ERROR, Fault.UNAVAILABLE, Fault.RESET, Fault.STALLED)
DISK_MB = 64
FREE_BYTES = 150_000
"""Free space on the full disk: enough for the first stages, but not for the last."""


def curate(folder: Path, output: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would."""
    command = [sys.executable, "-m", "jobs.curate", f"--crawl={folder / 'crawl'}", f"--output={output}"]
    command += ["--num_buckets=3", "--shard.target_bytes=100000", "--session.address=local"]
    return subprocess.run(command, capture_output=True, text=True)


def prepare(folder: Path) -> None:
    """Build the small web and crawl it."""
    build_site(folder / "site", seed=7, num_images=200, num_pages=40)
    queries.main(queries_job(folder))
    with session(SessionConfig(address="local", num_cpus=4)), SiteServer(folder / "site") as server:
        crawl.main(crawl_job(folder, folder / "crawl", server.port))


def through_faults(folder: Path) -> Snapshot:
    """Curate on an S3 server with faults in one of ten responses."""
    with s3_server() as bucket:
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        with FaultyS3(endpoint, None, at_random(0.1, KINDS, seed=0)) as faulty:
            os.environ["AWS_ENDPOINT_URL"] = faulty.endpoint
            started = time.monotonic()
            done = curate(folder, f"{bucket}/curate")
            seconds = time.monotonic() - started
            assert done.returncode == 0, done.stderr
            os.environ["AWS_ENDPOINT_URL"] = endpoint
            found = Snapshot.open(f"{bucket}/curate/dataset")
            assert found.verify() == []
            given = Counter(fault.name for fault in faulty.given)
            print(f"S3: {len(faulty.given)} of {faulty.num_requests} requests faulty, {dict(given)}; {seconds:.0f} s")
            return found


def on_a_full_disk(folder: Path, disk: Path) -> None:
    """Curate on a full disk, then again with free space. `disk` must be on a small file system."""
    filler = disk / "filler"
    status = os.statvfs(disk)
    filler.write_bytes(bytes(status.f_bavail * status.f_frsize - FREE_BYTES))
    done = curate(folder, str(disk / "curate"))
    assert done.returncode == 2, done.stderr
    print("full disk, status 2:", done.stderr.strip().splitlines()[-1])
    hidden = [path for path in disk.rglob(".*") if path.is_file()]
    assert not hidden, hidden
    assert not list(disk.rglob("v0*.json"))
    filler.unlink()
    done = curate(folder, str(disk / "curate"))
    assert done.returncode == 0, done.stderr
    found = Snapshot.open(str(disk / "curate" / "dataset"))
    assert found.verify() == []
    print(found.snapshot_id)


def main() -> None:
    """Crawl, curate three times, compare."""
    if len(sys.argv) > 1:
        on_a_full_disk(Path(sys.argv[1]), Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder, disk = Path(name), Path(name, "disk")
        disk.mkdir()
        prepare(folder)
        started = time.monotonic()
        assert (done := curate(folder, str(folder / "curate"))).returncode == 0, done.stderr
        expected = Snapshot.open(str(folder / "curate" / "dataset"))
        print(
            f"local disk: {expected.num_rows} pairs, {len(expected.shards)} shards; {time.monotonic() - started:.0f} s"
        )
        assert through_faults(folder).snapshot_id == expected.snapshot_id
        mount = f"mount -t tmpfs -o size={DISK_MB}m tmpfs {disk}"
        again = f"{mount} && exec {sys.executable} -m tests.perf.storage.storage_faults {folder} {disk}"
        namespace = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", again]
        done = subprocess.run(namespace, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        *output_lines, snapshot_id = done.stdout.splitlines()
        print(*output_lines, sep="\n")
        assert snapshot_id == expected.snapshot_id
        print("the same snapshot each time")


if __name__ == "__main__":
    main()
