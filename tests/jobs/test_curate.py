from pathlib import Path

import pytest

from cluster.runs import Run
from jobs.curate import CurateJob, read_crawls
from jobs.launch import launch


def crawled(folder: Path, name: str, **configuration: object) -> str:
    run = Run.open(str(folder / name), {"queries": "a", "fetch_parts": 4, "inputs": name, **configuration})
    return run.uri


def test_one_crawl_or_several_can_be_named(tmp_path: Path) -> None:
    jobs: list[CurateJob] = []
    for value in ("runs/a", '["runs/a", "runs/b"]'):
        launch(CurateJob, jobs.append, ["--crawl", value, "--output", str(tmp_path)])
    assert [job.crawl for job in jobs] == ["runs/a", ["runs/a", "runs/b"]]


def test_crawls_are_the_same_in_whatever_order(tmp_path: Path) -> None:
    uris = [crawled(tmp_path, name) for name in ("a", "b", "c")]
    assert [run.uri for run in read_crawls(uris)] == [run.uri for run in read_crawls(uris[::-1])]
    assert [run.uri for run in read_crawls(uris[1])] == [uris[1]]


def test_crawls_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    uri = crawled(tmp_path, "a")
    with pytest.raises(ValueError, match="is of another query list than"):
        read_crawls([uri, crawled(tmp_path, "b", queries="other")])
    with pytest.raises(ValueError, match="another number of parts than"):
        read_crawls([uri, crawled(tmp_path, "c", fetch_parts=8)])
    for uris in ([], [uri, uri]):
        with pytest.raises(ValueError, match="name one crawl or several different ones"):
            read_crawls(uris)
    with pytest.raises(FileNotFoundError, match=r"crawl=.*no run is there"):
        read_crawls([uri, str(tmp_path / "nowhere")])
