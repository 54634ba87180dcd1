import gzip
from pathlib import Path

import pytest

from cluster import http
from jobs.options.inputs import list_inputs
from pipeline.data.flows.input_files import check_inputs, read_input
from pipeline.data.sources.extract import ExtractConfig, read_archive
from pipeline.data.sources.warc_records import ReadError
from tests.pipeline.data.archives import Archive, image_page, open_file
from tests.range_server import Fault, RangeServer

PATHS = [f"crawl-data/CC-MAIN-2024-22/segments/1/warc/{number}.warc.gz" for number in range(2)]
BASE = "https://data.commoncrawl.org/"


def archive(num_pages: int = 3) -> bytes:
    made = Archive()
    for number in range(num_pages):
        made.add(image_page(str(number)))
    return made.data


@pytest.mark.parametrize("name", ["warc.paths.gz", "warc.paths"])
def test_paths_of_a_list_are_joined_to_the_base(tmp_path: Path, name: str) -> None:
    text = "\n".join([*PATHS, "s3://elsewhere/x.warc.wat.gz", ""]).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    found = list_inputs(str(tmp_path / name), "s3://commoncrawl/")
    assert found == [*(f"s3://commoncrawl/{path}" for path in PATHS), "s3://elsewhere/x.warc.wat.gz"]


@pytest.mark.parametrize(
    ("text", "message"), [("a.warc.gz\nb.warc.wet.gz", "'b.warc.wet.gz' is not an archive"), ("", "no paths")]
)
def test_invalid_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.paths").write_text(text)
    with pytest.raises(ValueError, match=f"x.paths: .*{message}"):
        list_inputs(str(tmp_path / "x.paths"), BASE)


def test_a_folder_lists_each_pair_once(tmp_path: Path) -> None:
    for name in ("00000.tar", "00000.parquet", "00000_stats.json", "00001.parquet", "x.csv", "y.warc.wat.gz", "z.wat"):
        (tmp_path / name).write_bytes(b"")
    names = [Path(uri).name for uri in list_inputs(str(tmp_path), BASE)]
    assert names == ["00000.tar", "00001.parquet", "x.csv", "y.warc.wat.gz", "z.wat"]


def test_archives_on_a_web_server_give_the_same_rows_as_local_ones(tmp_path: Path) -> None:
    data = archive()
    (tmp_path / "x.warc.gz").write_bytes(data)
    files = {f"/{path}": data for path in PATHS} | {"/warc.paths.gz": gzip.compress("\n".join(PATHS).encode())}
    with RangeServer(files, [Fault.CUT]) as server:
        inputs = list_inputs(f"{server.url}/warc.paths.gz", server.url)
        check_inputs(inputs)
        found = read_input(inputs[1], ExtractConfig())
    local = read_archive(str(tmp_path / "x.warc.gz"), open_file, ExtractConfig())
    assert found.drop_columns(["archive", "crawl_id"]) == local.drop_columns(["archive", "crawl_id"])
    assert set(found["archive"].to_pylist()) == {f"{server.url}/{PATHS[1]}"}
    assert set(found["crawl_id"].to_pylist()) == {"CC-MAIN-2024-22"}


@pytest.mark.parametrize("fault", [Fault.SLOW_DOWN, Fault.CUT, Fault.SHORT], ids=lambda fault: fault.name)
def test_a_failed_download_is_not_read_as_a_short_archive(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(http, "RETRY_ATTEMPTS", 2)
    http._pool.cache_clear()
    with RangeServer({"/x.warc.gz": archive()}, [fault] * 100) as server, pytest.raises(ReadError, match=server.url):
        read_input(f"{server.url}/x.warc.gz", ExtractConfig())
    http._pool.cache_clear()
