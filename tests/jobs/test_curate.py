from pathlib import Path
from unittest.mock import Mock

import pyarrow.parquet as pq
import pytest

import jobs.curate
from cluster.runs import Run
from jobs.curate import CurateJob, main, read_crawls
from jobs.options.launch import launch
from pipeline.data.duplicates.overlap import OverlapConfig
from pipeline.schemas import FETCHED
from tests.pipeline.data.duplicates.test_overlap import index_rows


def write_crawl(folder: Path, name: str, **configuration: object) -> str:
    run = Run.open(str(folder / name), {"queries": "a", "fetch_parts": 4, "inputs": name, **configuration})
    return run.uri


def test_the_crawl_option_takes_one_folder_or_a_list(tmp_path: Path) -> None:
    made: list[CurateJob] = []
    for value in ("runs/a", '["runs/a", "runs/b"]'):
        launch(CurateJob, made.append, ["--crawl", value, "--output", str(tmp_path)])
    assert [job.crawl for job in made] == ["runs/a", ["runs/a", "runs/b"]]


def test_the_order_of_crawls_does_not_matter(tmp_path: Path) -> None:
    uris = [write_crawl(tmp_path, name) for name in ("a", "b", "c")]
    assert [run.uri for run in read_crawls(uris)] == [run.uri for run in read_crawls(uris[::-1])]
    assert [run.uri for run in read_crawls(uris[1])] == [uris[1]]


def test_a_changed_overlap_index_is_a_different_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class SessionStartedError(Exception):
        pass

    monkeypatch.setattr(jobs.curate, "session", Mock(side_effect=SessionStartedError))
    crawl = Run.read(write_crawl(tmp_path, "a"), option="crawl")
    (tmp_path / "a" / "funnel.json").write_text("[]")
    for part in range(4):
        crawl.stage("fetched", 4).write(part, FETCHED.empty_table())
    index = tmp_path / "index.parquet"
    job = CurateJob(crawl=crawl.uri, output=str(tmp_path / "out"), overlap=OverlapConfig(index=str(index)))
    pq.write_table(index_rows([1], ["a"]), index)
    for _ in range(2):
        with pytest.raises(SessionStartedError):
            main(job)
    pq.write_table(index_rows([2], ["a"]), index)
    with pytest.raises(ValueError, match="another configuration; it differs in overlap_index"):
        main(job)


def test_crawls_that_cannot_be_combined_are_refused(tmp_path: Path) -> None:
    uri = write_crawl(tmp_path, "a")
    with pytest.raises(ValueError, match="has a different query list than"):
        read_crawls([uri, write_crawl(tmp_path, "b", queries="other")])
    with pytest.raises(ValueError, match="a different number of fetch parts than"):
        read_crawls([uri, write_crawl(tmp_path, "c", fetch_parts=8)])
    for uris in ([], [uri, uri]):
        with pytest.raises(ValueError, match="give at least one crawl, and each crawl only once"):
            read_crawls(uris)
    with pytest.raises(FileNotFoundError, match=r"crawl=.*holds no run"):
        read_crawls([uri, str(tmp_path / "nowhere")])
