"""The verbs of jobs.snapshot, run through its command line."""

import json
import time
from pathlib import Path

import pytest

from jobs.options.launch import launch
from jobs.snapshot import SnapshotJob, _lines, arguments, main
from pipeline.data.snapshots.leases import Lease
from pipeline.data.snapshots.snapshot import Snapshot, versions
from tests.pipeline.data.datasets import add_shard, make, pair_id, readable


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """A data set with two versions."""
    uri = str(tmp_path / "set")
    make(uri, range(6), metadata={"configuration": {"seed": 1}, "funnel": [{"stage": "placed", "kept": 6}]})
    make(uri, range(2, 9))
    return uri


def run(*words: str) -> None:
    launch(SnapshotJob, main, arguments(words))


def refuse(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*words)
    assert stopped.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def write_lines(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n\n")
    return str(path)


def test_list_prints_one_line_per_version(dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("tag", dataset, "--version=v00000001", "--tag=first")
    run("tombstone", dataset, f"--pairs={write_lines(tmp_path / 'ids', pair_id(3))}")
    capsys.readouterr()
    run("list", dataset)
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["version", "created", "parent", "pairs"]
    size = f"{Snapshot.open(dataset, 'first').num_bytes:,}"
    assert first.split()[0::2][:3] == ["v00000001", "-", "1"]
    assert [first.split()[column] for column in (3, 5, 6, 8)] == ["5", "1", size, "first"]
    assert [second.split()[column] for column in (0, 2, 3, 4)] == ["v00000002", "v00000001", "6", "1"]


def test_show_prints_the_record(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("show", dataset, "--version=v00000001")
    record = json.loads(capsys.readouterr().out)
    assert record["funnel"] == [{"stage": "placed", "kept": 6}]
    assert (record["num_pairs"], record["taken_down"], record["tags"]) == (6, 0, [])
    assert record["configuration"] == {"seed": 1}


@pytest.mark.parametrize(
    ("option", "content", "line"),
    [
        ("urls", b"http://a.example/1.jpg\nhttp://a.example/caf\xe9.jpg\n", 2),
        ("pairs", "a\nb\n".encode("utf-16"), 1),
        ("files", b"\x1f\x8b\x08\x00", 1),
    ],
)
def test_a_list_that_is_not_utf8_is_named(
    dataset: str, tmp_path: Path, option: str, content: bytes, line: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list").write_bytes(content)
    message = refuse(capsys, "tombstone", dataset, f"--{option}={tmp_path / 'list'}")
    assert message.startswith(f"error: --{option}={tmp_path / 'list'}: line {line} is not UTF-8")


def test_only_line_feeds_and_carriage_returns_end_a_line_of_a_list(tmp_path: Path) -> None:
    """`str.splitlines` also splits at U+2028 and U+0085 (datalad/datalad#3523, gluonts#920, wbolster/jsonlines#53)."""
    names = ["http://a.example/1\u2028x.jpg", "http://a.example/2\x85x.jpg", "http://a.example/3\x0bx.jpg"]
    text = "\r\n".join([names[0], "", f" {names[1]}\t"]) + "\r" + names[2]
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert _lines("urls", str(tmp_path / "list")) == names


def test_verify_ends_with_2_and_names_the_shard(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("verify", dataset)
    assert "v00000002: 1 shards, 7 pairs, all match the manifest" in capsys.readouterr().out
    shard = Path(Snapshot.open(dataset).shards[0].path)
    shard.write_bytes(shard.read_bytes()[:-1])
    line = refuse(capsys, "verify", dataset)
    assert line.startswith("error: v00000002 of ")
    assert shard.name in line
    run("verify", dataset, "--version=v00000001")


def test_diff_counts_added_removed_and_changed_pairs(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("diff", dataset, "--version=v00000001")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "v00000001 -> v00000002: 1 and 1 shards, 0 in both"
    assert [line.split()[:2] for line in lines[1:]] == [["added", "3"], ["removed", "2"], ["changed", "0"]]
    assert set(lines[2].split()[2:]) == {pair_id(0), pair_id(1)}
    run("diff", dataset, "--version=v00000002", "--against=v00000001")
    assert "v00000002 -> v00000001" in capsys.readouterr().out


def test_a_take_down_hides_a_pair_and_gc_deletes_its_bytes(
    dataset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    urls = write_lines(tmp_path / "urls", "http://a.example/3.jpg", " http://a.example/99.jpg ")
    run("tombstone", dataset, f"--urls={urls}", "--reason=asked for")
    assert "1 pairs have been taken down from all versions" in capsys.readouterr().out
    message = "1 entries match no pair; later pairs that match them will be taken down as well: http://a.example/99.jpg"
    assert message in caplog.text
    assert readable(Snapshot.open(dataset, "v00000001")) == [0, 1, 2, 4, 5]
    run("tombstone", dataset, "--compact=true")
    assert "v00000003: 6 pairs" in capsys.readouterr().out
    run("gc", dataset, "--keep_last=1", "--grace_hours=0")
    output = capsys.readouterr().out
    assert "8 files" in output
    assert "no version needs them; give --delete true to delete them" in output
    assert versions(dataset) == ["v00000001", "v00000002", "v00000003"]
    run("gc", dataset, "--keep_last=1", "--grace_hours=0", "--delete=true")
    assert "deleted" in capsys.readouterr().out
    assert versions(dataset) == ["v00000003"]
    assert not [path for path in Path(dataset, "data").rglob("*.parquet") if b"image of 3 " in path.read_bytes()]
    run("verify", dataset)


def test_gc_measures_ages_by_the_clock_of_the_storage(
    dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A machine whose clock is a year ahead would otherwise take every file for old."""
    add_shard(dataset, [77])
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 365 * 86400)
    run("gc", dataset, "--keep_last=1", "--grace_hours=1")
    assert "5 files" in capsys.readouterr().out, "a mere list goes by the clock of this machine"
    run("gc", dataset, "--keep_last=1", "--grace_hours=1", "--delete=true")
    assert "0 files, 0 bytes, 0 unfinished uploads: deleted" in capsys.readouterr().out
    assert versions(dataset) == ["v00000001", "v00000002"]


def test_gc_during_a_commit_ends_with_one_line(dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    add_shard(dataset, [77])
    with Lease(dataset, "commit"):
        line = refuse(capsys, "gc", dataset, "--grace_hours=0", "--delete=true")
    assert line.startswith(f"error: {dataset}: a version or a tag is being made")
    assert line.endswith("0 of 1 files are deleted, run gc again for the others")
    run("gc", dataset, "--grace_hours=0", "--delete=true")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "--keep_last=3"], "--keep_last: this option belongs to gc, not to list; remove it"),
        (
            ["gc", "--version=v00000001"],
            "--version: this option belongs to show, verify, diff, export, tag, not to gc; remove it",
        ),
        (["diff"], "--version: give the older version"),
        (["tag"], "--tag: give a name for the version"),
        (["tombstone"], "--pairs, --urls, --files: give a file"),
        (["tombstone", "--pairs=/no/such/file"], "/no/such/file"),
        (["gc", "--keep_last=0"], "keep_last=0: the latest version is always kept"),
        (["show", "--version=v00000007"], "no snapshot v00000007; there are ['v00000001', 'v00000002']"),
    ],
)
def test_invalid_requests_end_with_one_line(
    dataset: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refuse(capsys, words[0], dataset, *words[1:])
