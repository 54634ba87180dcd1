import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster import storage
from cluster.runs import Run, describe_files, identity
from tests.cluster.rows import SCHEMA, buckets, table_of

CONFIGURATION = {"seed": 0, "balance": {"mode": "paper", "margin": 3.0}, "inputs": [["a.warc.gz", 10]]}


class TestRun:
    """A folder belongs to exactly one configuration."""

    def test_the_same_configuration_resumes(self, tmp_path: Path) -> None:
        uri = str(tmp_path / "run")
        first = Run.open(uri, CONFIGURATION)
        again = Run.open(uri, dict(reversed(CONFIGURATION.items())))
        assert first == again == Run.read(uri, option="crawl")
        assert first.configuration == CONFIGURATION
        assert len(first.run_id) == 16
        stage = first.stage("fetched", 2)
        stage.write(0, table_of([None]))
        stage.write(1, table_of([None]))
        assert again.output("fetched", 2).num_kept == 2

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seed": 1}, "it differs in seed: 0 recorded, 1 requested"),
            ({"balance": {"mode": "metaclip", "margin": 3.0}}, 'balance.mode: "paper" recorded, "metaclip" requested'),
            (
                {"inputs": [["a.warc.gz", 11]]},
                r'inputs: \[\["a.warc.gz", 10\]\] recorded, \[\["a.warc.gz", 11\]\] requested',
            ),
            ({"new": 5}, "new: null recorded, 5 requested"),
            ({"balance": None}, "balance: .* recorded, null requested"),
            (
                {"seed": 1, "balance": {"mode": "paper", "margin": 2.0}},
                r"balance\.margin: 3\.0 recorded.*; seed: 0 recorded",
            ),
        ],
    )
    def test_another_configuration_is_refused_naming_the_differences(
        self, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        uri = str(tmp_path / "run")
        Run.open(uri, CONFIGURATION)
        with pytest.raises(ValueError, match=rf"output={uri} holds a run of another configuration; .*{message}"):
            Run.open(uri, CONFIGURATION | change)
        assert Run.open(uri, CONFIGURATION).configuration == CONFIGURATION, "the recorded configuration is unchanged"

    def test_long_differences_are_truncated(self, tmp_path: Path) -> None:
        Run.open(str(tmp_path), {"inputs": ["x" * 50] * 50, **{f"key{i}": i for i in range(20)}})
        with pytest.raises(ValueError, match="another configuration") as caught:
            Run.open(str(tmp_path), {"inputs": [], **{f"key{i}": -i for i in range(20)}})
        assert len(str(caught.value)) < 1000

    def test_the_run_id_depends_only_on_the_configuration(self, tmp_path: Path) -> None:
        runs = [Run.open(str(tmp_path / str(i)), {"seed": seed}) for i, seed in enumerate([0, 0, 1])]
        assert runs[0].run_id == runs[1].run_id != runs[2].run_id

    def test_a_folder_without_a_run_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=rf"crawl={tmp_path} holds no run"):
            Run.read(str(tmp_path), option="crawl")

    def test_an_unwritable_folder_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"dataset: .*/proc/run"):
            Run.open("/proc/run", {}, option="dataset")

    def test_exactly_one_of_racing_configurations_gets_the_folder(self, tmp_path: Path) -> None:
        def attempt(seed: int) -> bool:
            try:
                return Run.open(str(tmp_path), {"seed": seed}).configuration == {"seed": seed}
            except ValueError:
                return False

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(attempt, range(8))).count(True) == 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fetch:
    attempts: int = 2
    connect_to: dict[str, str] = dataclasses.field(default_factory=dict, metadata={"resume_safe": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    sizes: tuple[int, ...] = (1, 2)
    fetch: Fetch = dataclasses.field(default_factory=Fetch)


def test_identity_is_plain_data_without_resume_safe_fields() -> None:
    job = Job(fetch=Fetch(connect_to={"*.example": "127.0.0.1:80"}))
    plain = identity(job)
    assert plain == {"sizes": [1, 2], "fetch": {"attempts": 2}} == identity(Job())
    assert json.loads(json.dumps(plain)) == plain
    assert identity({"jobs": [job], 1: None}) == {"jobs": [plain], "1": None}
    assert identity(Job(fetch=Fetch(attempts=3))) != plain


def test_describe_files_gives_names_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "a.warc.gz").write_bytes(b"123")
    (tmp_path / "b.csv").write_bytes(b"")
    assert describe_files(storage.list_files(str(tmp_path))) == [["a.warc.gz", 3], ["b.csv", 0]]


def test_a_run_on_s3(s3: str, tmp_path: Path) -> None:
    uri = f"{s3}/{tmp_path.name}/run"
    run = Run.open(uri, CONFIGURATION)
    table = table_of([None, None, "broken", None])
    stage = run.stage("unique", 2)
    first = stage.write(0, table, buckets=buckets([1, 0, 0, 1]), num_buckets=2)
    assert stage.write(0, table_of([None]), num_buckets=2) == first
    stage.write(1, SCHEMA.empty_table(), num_buckets=2)
    output = Run.read(uri, option="crawl").output("unique", 2)
    assert output.bucket(1) == table.take([0, 3])
    assert output.bucket(0) == table.take([1])
    assert output.dropped(0) == table.take([2])
    assert output.reasons() == {"broken": 1}
    assert len(storage.list_files(stage.uri)) == 3
    with pytest.raises(ValueError, match="seed: 0 recorded, 1 requested"):
        Run.open(uri, CONFIGURATION | {"seed": 1})
    file = storage.join(stage.uri, first.file or "")
    storage.write_bytes(file, storage.read_bytes(file)[:-1])
    with pytest.raises(ValueError, match="bytes expected"):
        output.bucket(1)
