"""User errors end with one line that names the option or file and the remedy, and with exit status 2."""

import gzip
import json
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.runs import Run
from jobs import crawl, curate, queries, snapshot
from jobs.crawl import CrawlJob
from jobs.curate import CurateJob
from jobs.options.launch import launch
from jobs.queries import QueriesJob
from jobs.snapshot import SnapshotJob
from pipeline.schemas import QUERIES


@pytest.fixture
def query_list(tmp_path: Path) -> str:
    table = pa.table([[0, 1], ["circle", "square"], ["unigram"] * 2, [2.0, 1.0], [0, 1]], schema=QUERIES)
    pq.write_table(table, tmp_path / "queries.parquet")
    return str(tmp_path / "queries.parquet")


def refuse_crawl(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a crawl that must fail, and return its error line."""
    with pytest.raises(SystemExit) as stopped:
        launch(CrawlJob, crawl.main, arguments)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in "\n".join(lines)
    return lines[-1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.warc.gz", b"", "the archive is empty (0 bytes)"),
        ("no_record.warc.gz", gzip.compress(b"", mtime=0), "has no WARC record"),
        ("text.warc.gz", b"This is a letter, not an archive.\n" * 9, "not a web archive"),
        ("letter.warc.gz", gzip.compress(b"This is a letter.\n" * 9, mtime=0), "not a web archive"),
        ("broken.parquet", b"PAR1 and then nothing", "cannot be read as Parquet"),
        ("encrypted.parquet", b"PARE" + bytes(100) + b"\x10\0\0\0PARE", "cannot be read as Parquet"),
        ("none.csv", b"url,width\nhttp://a.example/x.jpg,5\n", "no caption column"),
    ],
)
def test_input_whose_content_does_not_match_its_suffix(
    name: str, content: bytes, message: str, tmp_path: Path, query_list: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    line = refuse_crawl(capsys, f"--input={tmp_path / name}", f"--queries={query_list}", f"--output={tmp_path / 'run'}")
    assert f"input={tmp_path / name}" in line
    assert message in line


def test_parquet_without_a_caption_column_lists_its_columns(
    tmp_path: Path, query_list: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"url": ["http://a.example/x.jpg"], "alt": ["a circle"]}), tmp_path / "list.parquet")
    line = refuse_crawl(
        capsys, f"--input={tmp_path / 'list.parquet'}", f"--queries={query_list}", f"--output={tmp_path / 'run'}"
    )
    assert "no caption column" in line
    assert "'alt'" in line


def test_missing_input_or_configuration_file(
    tmp_path: Path, query_list: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = f"--output={tmp_path / 'run'}"
    assert "nothing at" in refuse_crawl(capsys, f"--input={tmp_path / 'no'}", f"--queries={query_list}", run)
    assert "no file" in refuse_crawl(capsys, f"--config={tmp_path / 'no.toml'}")


def test_unknown_option_and_wrong_type(tmp_path: Path, query_list: str, capsys: pytest.CaptureFixture[str]) -> None:
    good = (f"--input={tmp_path}", f"--queries={query_list}", f"--output={tmp_path / 'run'}")
    assert "fetch.atempts" in refuse_crawl(capsys, *good, "--fetch.atempts=3")
    assert "image.image_size" in refuse_crawl(capsys, *good, "--image.image_size=large")
    line = refuse_crawl(capsys, *good, "--caption.language=english")
    assert "caption.language = 'english'" in line
    assert "'' takes captions of any language" in line
    assert not (tmp_path / "run").exists()


def test_output_with_a_run_of_a_different_configuration(
    tmp_path: Path, query_list: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"url": ["http://a.example/x.jpg"], "caption": ["a circle"]}), tmp_path / "list.parquet")
    run = tmp_path / "run"
    Run.open(str(run), {"num_buckets": 5})
    line = refuse_crawl(capsys, f"--input={tmp_path / 'list.parquet'}", f"--queries={query_list}", f"--output={run}")
    assert "holds a run of another configuration" in line
    assert "num_buckets: 5 recorded, 64 requested" in line
    assert Run.read(str(run), option="output").configuration == {"num_buckets": 5}


def test_file_that_is_not_a_query_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"url": ["http://a.example/x.jpg"], "caption": ["a circle"]}), tmp_path / "list.parquet")
    name = str(tmp_path / "list.parquet")
    assert "not a query list" in refuse_crawl(
        capsys, f"--input={name}", f"--queries={name}", f"--output={tmp_path / 'run'}"
    )


@pytest.mark.parametrize(
    ("texts", "ids", "message"),
    [
        ([], [], "the list is empty"),
        (["circle", "Circle"], [0, 1], "query 'circle' is repeated in the list, at indices [0, 1]"),
        (["circle", " \u3000"], [0, 1], "query 1 is empty once normalised"),
        (["circle", "square"], [0, 2], "query_id must count from 0 to 1"),
    ],
)
def test_invalid_query_lists_are_refused(
    texts: list[str], ids: list[int], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"url": ["http://a.example/x.jpg"], "caption": ["a circle"]}), tmp_path / "list.parquet")
    columns = [ids, texts, ["unigram"] * len(ids), [1.0] * len(ids), ids]
    pq.write_table(pa.table(columns, schema=QUERIES), tmp_path / "queries.parquet")
    arguments = ("--input=list.parquet", "--queries=queries.parquet", "--output=run")
    line = refuse_crawl(capsys, *(argument.replace("=", f"={tmp_path}/") for argument in arguments))
    assert message in line
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("path", ["/proc/no", "file"])
def test_output_that_cannot_be_written(
    path: str, tmp_path: Path, query_list: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    output = str(tmp_path / path) if path == "file" else path
    line = refuse_crawl(capsys, f"--input={tmp_path}", f"--queries={query_list}", f"--output={output}")
    assert "output" in line
    assert output in line


def test_unreachable_ray(tmp_path: Path, query_list: str, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"url": ["http://a.example/x.jpg"], "caption": ["a circle"]}), tmp_path / "list.parquet")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        line = refuse_crawl(
            capsys,
            f"--input={tmp_path / 'list.parquet'}",
            f"--queries={query_list}",
            f"--output={tmp_path / 'run'}",
            f"--session.address={address}",
        )
    assert "session.address" in line
    assert address in line


def test_errors_of_other_jobs_name_their_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        launch(CurateJob, curate.main, [f"--crawl={tmp_path}", f"--output={tmp_path / 'out'}"])
    assert "error: crawl=" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        launch(SnapshotJob, snapshot.main, ["--verb=show", f"--uri={tmp_path}"])
    assert "no snapshot" in capsys.readouterr().err
    (tmp_path / "words.txt").write_text("circle square\n")
    options = [f"--text={tmp_path / 'words.txt'}", f"--output={tmp_path / 'list'}", f"--wordnet={tmp_path}"]
    with pytest.raises(SystemExit, match="2"):
        launch(QueriesJob, queries.main, options)
    assert "wordnet=" in capsys.readouterr().err


def test_snapshot_takes_verb_and_uri_as_positional_arguments() -> None:
    assert snapshot.arguments(["list", "s3://bucket/pairs", "--version=v00000001"]) == [
        "--verb=list", "--uri=s3://bucket/pairs", "--version=v00000001",
    ]  # fmt: skip
    assert snapshot.arguments(["--help"]) == ["--help"]


def test_unknown_class_of_reasons_to_retry(tmp_path: Path, query_list: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refuse_crawl(
        capsys, f"--input={tmp_path}", f"--queries={query_list}", f"--output={tmp_path / 'run'}", "--retry=other"
    )
    assert "--retry: expected one of " in line
    assert all(name in line for name in ("transient", "permanent", "policy", "'other'"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "has no entry; remove it from the option, or give the right file"),
        ("not a hash\n", "line 1: not a SHA-256 of 64 hexadecimal digits"),
    ],
)
def test_invalid_block_list(
    content: str | None, message: str, tmp_path: Path, query_list: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table({"url": ["http://a.example/x"], "caption": ["a circle"]}), tmp_path / "list.parquet")
    if content is not None:
        (tmp_path / "files.txt").write_text(content)
    line = refuse_crawl(
        capsys,
        f"--input={tmp_path / 'list.parquet'}",
        f"--queries={query_list}",
        f"--output={tmp_path / 'run'}",
        f"--safety.block_sha256={json.dumps([str(tmp_path / 'files.txt')])}",
    )
    assert f"safety.block_sha256: {tmp_path / 'files.txt'}" in line
    assert message in line
    assert "not a hash" not in line
    assert not (tmp_path / "run" / "run.json").exists()
