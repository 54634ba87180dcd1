import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster import storage
from pipeline.data.snapshots.commit import ConflictError, commit, overlaps_uri, put_overlaps, tag
from pipeline.data.snapshots.snapshot import Shard, Snapshot, tags, versions
from pipeline.schemas import OVERLAPS
from tests.pipeline.data.datasets import add_shard, counts, make, readable


def test_committing_the_same_shards_again_returns_the_same_version(dataset: str) -> None:
    first = make(dataset, range(5))
    assert make(dataset, range(5), metadata={"run": "another"}) == first
    assert make(dataset + "/", range(5), parent="v00000001") == first
    assert versions(dataset) == ["v00000001"]


def test_other_shards_make_the_next_version_and_the_old_version_is_kept(dataset: str) -> None:
    made = [make(dataset, [i]) for i in range(3)]
    assert versions(dataset) == [snapshot.name for snapshot in made] == ["v00000001", "v00000002", "v00000003"]
    assert [snapshot.metadata["parent"] for snapshot in made] == [None, "v00000001", "v00000002"]
    assert len({snapshot.snapshot_id for snapshot in made}) == 3
    assert Snapshot.open(dataset) == made[2]
    assert Snapshot.open(dataset, "v00000001") == made[0]


def test_committing_older_content_makes_a_new_version_with_the_old_id(dataset: str) -> None:
    first, second, third = make(dataset, [1]), make(dataset, [2]), make(dataset, [1])
    assert (third.name, third.metadata["parent"]) == ("v00000003", second.name)
    assert third.snapshot_id == first.snapshot_id
    assert readable(Snapshot.open(dataset)) == [1]


def test_the_id_depends_on_the_order_of_shards_but_not_on_the_location_of_the_data_set(
    dataset: str, tmp_path: Path
) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    assert make(elsewhere, [1], [2]).snapshot_id == make(dataset, [1], [2]).snapshot_id
    assert make(dataset, [2], [1]).name == "v00000002"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_bytes": 7}, ValueError, "7 bytes expected, .* found; write it again"),
        ({"path": "data/run/gone.parquet"}, FileNotFoundError, "gone.parquet: this shard does not exist"),
    ],
)
def test_wrong_or_missing_shards_are_not_committed(
    anywhere: str, change: Mapping[str, Any], error: type[Exception], message: str
) -> None:
    shard = add_shard(anywhere, range(3))
    wrong = Shard(**{**vars(shard), **change})
    with pytest.raises(error, match=message):
        commit(anywhere, [wrong], counts([]), {})
    assert versions(anywhere) == []


def test_a_commit_on_an_older_version_raises_and_names_the_latest(anywhere: str) -> None:
    make(anywhere, [1])
    make(anywhere, [2])
    with pytest.raises(ConflictError, match="v00000002 is the latest now, not v00000001"):
        make(anywhere, [3], parent="v00000001")
    assert make(anywhere, [3], parent="v00000002").name == "v00000003"


def test_a_commit_on_a_parent_in_an_empty_data_set_raises(dataset: str) -> None:
    with pytest.raises(ConflictError, match="no version is the latest now, not v00000001"):
        make(dataset, [3], parent="v00000001")


def race(dataset: str, shards: list[Shard], parent: str | None = None) -> list[Snapshot | ConflictError]:
    """Commit all shards at the same time, each as its own version."""
    barrier = threading.Barrier(len(shards))

    def commit_shard(number: int) -> Snapshot | ConflictError:
        barrier.wait()
        try:
            return commit(dataset, [shards[number]], counts([]), {"run": str(number)}, parent=parent)
        except ConflictError as error:
            return error

    with ThreadPoolExecutor(len(shards)) as threads:
        return list(threads.map(commit_shard, range(len(shards))))


def test_racing_commits_all_get_their_own_version(anywhere: str) -> None:
    rounds, writers = 2, 4
    for number in range(rounds):
        made = race(anywhere, [add_shard(anywhere, [10 * number + writer]) for writer in range(writers)])
        names = versions(anywhere)
        assert names == [f"v{i:08d}" for i in range(1, (number + 1) * writers + 1)]
        won = [snapshot for snapshot in made if isinstance(snapshot, Snapshot)]
        assert sorted(snapshot.name for snapshot in won) == names[-writers:]
        for writer, snapshot in enumerate(won):
            assert readable(snapshot) == [10 * number + writer]
            assert Snapshot.open(anywhere, snapshot.name) == snapshot
    parents = [Snapshot.open(anywhere, name).metadata["parent"] for name in versions(anywhere)]
    assert parents == [None, *versions(anywhere)[:-1]], "each version has the previous one as its parent"


def test_exactly_one_of_racing_commits_on_one_parent_wins(anywhere: str) -> None:
    parent = make(anywhere, [0]).name
    made = race(anywhere, [add_shard(anywhere, [writer]) for writer in range(1, 5)], parent)
    assert versions(anywhere) == ["v00000001", "v00000002"]
    (winner,) = [snapshot for snapshot in made if isinstance(snapshot, Snapshot)]
    assert winner == Snapshot.open(anywhere)
    assert len([error for error in made if "v00000002 is the latest now" in str(error)]) == 3


def test_racing_commits_of_the_same_shards_make_one_version(dataset: str) -> None:
    made = [found for found in race(dataset, [add_shard(dataset, [7])] * 8) if isinstance(found, Snapshot)]
    assert {snapshot.name for snapshot in made} == {"v00000001"}
    assert len({snapshot.metadata["commit_id"] for snapshot in made}) == 1
    assert versions(dataset) == ["v00000001"]


def test_a_tag_cannot_be_moved(anywhere: str) -> None:
    first, second = make(anywhere, [1]), make(anywhere, [2])
    tag(anywhere, "paper-run", first.name)
    tag(anywhere, "paper-run", first.name)
    assert Snapshot.open(anywhere, "paper-run") == first
    assert tags(anywhere) == {"paper-run": "v00000001"}
    with pytest.raises(ValueError, match="tag=paper-run already names v00000001"):
        tag(anywhere, "paper-run", second.name)
    with pytest.raises(
        FileNotFoundError, match=r"no snapshot other; there are \['v00000001', 'v00000002', 'paper-run'\]"
    ):
        Snapshot.open(anywhere, "other")


@pytest.mark.parametrize("name", ["v00000001", "", ".x", "a/b", "../x", "x" * 65])
def test_a_tag_is_a_plain_name(dataset: str, name: str) -> None:
    make(dataset, [1])
    with pytest.raises(ValueError, match="tag="):
        tag(dataset, name, "v00000001")


@pytest.mark.parametrize("name", ["PAPER-run", "paper-Run"])
def test_a_tag_that_differs_only_in_case_is_refused(anywhere: str, name: str) -> None:
    """On a disk that does not distinguish them, the two would be the same file."""
    version = make(anywhere, [1]).name
    tag(anywhere, "Paper-run", version)
    with pytest.raises(ValueError, match=f"tag={name}: the tag Paper-run differs from it only in case"):
        tag(anywhere, name, version)
    assert tags(anywhere) == {"Paper-run": version}


def test_a_tag_that_another_writer_makes_at_the_same_time(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is put between the check and the put. On some disks, its name differs in case."""
    make(dataset, [1])
    put = storage.put_if_absent
    for other, message in (
        ("paper", "the tag paper differs"),
        ("Paper", "already names v00000009"),
        (None, "exists al"),
    ):

        def lose(uri: str, data: bytes, other: str | None = other) -> bool:
            if other is not None:
                put(uri.replace("Paper", other), data.replace(b"v00000001", b"v00000009"))
            return False

        with monkeypatch.context() as patch:
            patch.setattr(storage, "put_if_absent", lose)
            with pytest.raises(ValueError, match=f"tag=Paper.*{message}"):
                tag(dataset, "Paper", "v00000001")
        shutil.rmtree(Path(dataset, "refs"), ignore_errors=True)


def test_overlaps_that_are_gone_are_not_committed(dataset: str) -> None:
    """A garbage collection may have deleted them, because no version named them before."""
    shard = add_shard(dataset, [1])
    sha256 = put_overlaps(dataset, OVERLAPS.empty_table())
    storage.delete(overlaps_uri(dataset, sha256))
    with pytest.raises(FileNotFoundError, match=f"overlaps/{sha256}.parquet: these overlaps do not exist; run the job"):
        commit(dataset, [shard], counts([1]), {"overlap": {"sha256": sha256}})
    assert versions(dataset) == []
    put_overlaps(dataset, OVERLAPS.empty_table())
    assert commit(dataset, [shard], counts([1]), {"overlap": {"sha256": sha256}}).name == "v00000001"


def test_a_wrong_uri_leaves_nothing_behind(dataset: str) -> None:
    with pytest.raises(FileNotFoundError):
        tag(dataset, "paper", "v00000001")
    assert not Path(dataset).exists()
