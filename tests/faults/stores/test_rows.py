"""Rows of the review of storage that only whole commands show: names, permissions, two jobs at once, small machines."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from cluster import storage
from pipeline.data.snapshots.snapshot import Snapshot, versions
from tests.faults.stores.cells import Run, environment, run
from tests.faults.stores.commands import RAY
from tests.faults.stores.inputs import copy_folder, make_inputs
from tests.ray_head import ROOT, ray_head
from tests.stores import conditions, refusals
from tests.stores.imitated import ImitatedStore, Quirk, only

pytestmark = [pytest.mark.faults, pytest.mark.cluster]

NAMES = ("a key", "100%25+#&", "dä/ta", "s p a c e s/ü")
"""Folders whose names have to be encoded in URLs and in listings."""
Start = Callable[..., Run]


@pytest.fixture(scope="module")
def bucket(s3: str) -> str:
    return s3.removeprefix("s3://")


@pytest.fixture(scope="module")
def inputs(s3: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of the inputs on S3."""
    make_inputs(tmp_path_factory.mktemp("inputs") / "made", f"{s3}/inputs")
    return f"{s3}/inputs"


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run a command with the server without quirks, or with those that are given."""

    def start_it(*words: str, quirks: Sequence[Quirk] = (), path: str = "") -> Run:
        with ImitatedStore(os.environ["AWS_ENDPOINT_URL"], *quirks) as store:
            return run(words, environment(str(tmp_path), {"AWS_ENDPOINT_URL": f"{store.endpoint}{path}"}))

    return start_it


def importing(source: str, folder: str, dataset: str | None = None) -> tuple[str, ...]:
    return ("import_pairs", f"--input={source}", f"--output={folder}/run", f"--dataset={dataset or folder}/set", *RAY)


def check_import(folder: str) -> Snapshot:
    """The one version of a data set, which is whole."""
    assert versions(f"{folder}/set") == ["v00000001"]
    found = Snapshot.open(f"{folder}/set")
    assert found.verify() == []
    return found


def refusal(done: Run) -> str:
    """The one line that a refused command ends with."""
    assert done.status == 2, done.err
    assert done.err[-1:] == done.errors
    assert done.others == []
    return done.errors[0]


def test_a_data_set_without_conditional_puts_is_refused_before_work(
    start: Start, inputs: str, s3: str, tmp_path: Path
) -> None:
    """Row 2: the output is local, and only the data set is on that store."""
    refuses = conditions.refuses("If-None-Match", 501, "NotImplemented")
    done = start(*importing(f"{inputs}/pairs", str(tmp_path), f"{s3}/row-2"), quirks=[refuses])
    assert "error: dataset: s3://" in refusal(done)
    assert "the store refuses conditional puts" in refusal(done)
    assert "INFO imported" not in "\n".join(done.err)


def test_a_resumed_import_without_permission_is_not_damaged(start: Start, inputs: str, s3: str) -> None:
    """Row 8: shards cannot be read, in the first run and in the next; with the permission it ends right."""
    command, folder = importing(f"{inputs}/pairs", f"{s3}/row-8"), f"{s3}/row-8"
    for _ in range(2):
        denied = only(refusals.access_denied, "GetObject", r"/(imported|data)/")
        line = refusal(start(*command, quirks=[denied]))
        assert "access denied" in line
        assert "damaged" not in line
    assert versions(f"{folder}/set") == []
    assert start(*command).status == 0
    check_import(folder)


@pytest.mark.parametrize("has_dots", [False, True])
def test_names_that_need_encoding(start: Start, inputs: str, bucket: str, has_dots: bool) -> None:
    """Row 19: markers of folders, spaces, percent signs and letters beyond ASCII in keys; dots in the bucket."""
    server: Any = boto3.client("s3")
    own = f"{bucket}.with.dots" if has_dots else bucket
    server.create_bucket(Bucket=own)
    folder = f"s3://{own}/{NAMES[2] if has_dots else '/'.join(NAMES)}"
    for file in storage.list_files(f"{inputs}/pairs"):
        storage.write_bytes(f"{folder}/pairs{file.removeprefix(f'{inputs}/pairs')}", storage.read_bytes(file))
    for marker in ("", "pairs/", "set/", "set/data/"):
        server.put_object(Bucket=own, Key=f"{folder.removeprefix(f's3://{own}/')}/{marker}", Body=b"")
    assert start(*importing(f"{folder}/pairs", folder)).status == 0
    num_pairs = check_import(folder).num_rows
    assert f" {num_pairs} pairs, all match" in start("snapshot", "verify", f"{folder}/set").out
    assert "shards " in start("status", f"{folder}/run").out
    if not has_dots:
        assert start("snapshot", "export", f"{folder}/set", f"--output={folder}/tars", *RAY).status == 0
        assert storage.num_bytes(f"{folder}/tars/00000.tar") > 0


def test_odd_local_names_and_links(start: Start, inputs: str, tmp_path: Path) -> None:
    """Row 20."""
    folder = tmp_path / "dä ta 100% #1?x"
    (tmp_path / "disk").mkdir()
    folder.symlink_to(tmp_path / "disk")
    assert start(*importing(f"{inputs}/pairs", str(folder))).status == 0
    check_import(str(folder))
    assert "all match the manifest" in start("snapshot", "verify", f"{folder}/set/").out


def test_permissions_on_one_prefix_are_enough(start: Start, inputs: str, s3: str) -> None:
    """Row 21: the bucket cannot be looked at, and only what is below two prefixes can be listed."""

    def elsewhere(request: Any, forward: Any) -> Any:
        allowed = request.parameters.get("prefix", "").startswith(("inputs/", "row-21/"))
        return forward(request) if allowed else refusals.access_denied(request, forward)

    quirks = [only(refusals.access_denied, "HeadBucket|GetBucketLocation|ListMultipartUploads")]
    quirks += [only(elsewhere, "ListObjects(V2)?")]
    assert start(*importing(f"{inputs}/pairs", f"{s3}/row-21"), quirks=quirks).status == 0
    check_import(f"{s3}/row-21")


def test_slashes_and_a_path_at_the_end(start: Start, inputs: str) -> None:
    """Row 21: of the endpoint and of the data set."""
    assert "all match the manifest" in start("snapshot", "verify", f"{inputs}/versions/", path="/").out
    line = refusal(start("snapshot", "list", f"{inputs}/versions", path="/some/path"))
    assert line.startswith("error: uri: s3://")


def test_two_imports_at_once_make_one_version(start: Start, inputs: str, s3: str) -> None:
    """Row 24: the same command twice at once."""
    command = importing(f"{inputs}/pairs", f"{s3}/row-24")
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda _: start(*command), range(2)))
    assert [done.status for done in both] == [0, 0], [done.err for done in both]
    check_import(f"{s3}/row-24")


def test_little_shared_memory_is_enough(inputs: str, s3: str, tmp_path: Path) -> None:
    """Row 26: 64 MB in /dev/shm, as containers have."""
    words = importing(f"{inputs}/pairs", f"{s3}/row-26")
    job = [sys.executable, "-m", f"jobs.{words[0]}", *(word for word in words[1:] if "object_store" not in word)]
    mount = ["sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh"]
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*own, *mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system allows no mounts of our own")
    done = subprocess.run(
        [*own, *mount, *job],
        cwd=ROOT,
        env=environment(str(tmp_path), {"AWS_ENDPOINT_URL": os.environ["AWS_ENDPOINT_URL"]}),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check_import(f"{s3}/row-26")


def test_an_input_that_git_ignores_is_missing_in_a_submitted_job(tmp_path: Path) -> None:
    """Row 22: Ray leaves out what .gitignore names; the job says in one line that it is not there, and Ray shows it."""
    words = ["python", "-m", "jobs.benchmark", "--model=runs/model", "--datasets=runs/sets", f"--output={tmp_path}"]
    with ray_head() as head:
        command = ["job", "submit", "--address", head.dashboard, "--working-dir", ".", "--", *words]
        done = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *command],
            cwd=ROOT,
            env=head.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 1
    assert "error: model=runs/model: does not exist" in done.stdout


def test_what_is_read_only_can_be_read(start: Start, inputs: str, bucket: str, s3: str) -> None:
    """Row 21: verify and list work without the permission to write; a tag is refused in a line, and changes nothing."""
    copy_folder(boto3.client("s3"), bucket, f"{inputs.removeprefix(f'{s3}/')}/versions", "row-21-read")
    read_only = only(refusals.access_denied, "PUT|POST|DELETE")
    uri = f"{s3}/row-21-read"
    for verb in ("verify", "list"):
        assert start("snapshot", verb, uri, quirks=[read_only]).status == 0
    assert "access denied" in refusal(start("snapshot", "tag", uri, "--tag=good", quirks=[read_only]))
    assert "refs/" not in " ".join(storage.list_files(uri))
