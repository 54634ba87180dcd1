import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import parquet
from cluster.stores import web
from jobs.options.inputs import ENCODER_KEY, list_inputs, read_overlap_index, read_queries
from pipeline.data.flows.input_files import check_inputs, read_input
from pipeline.data.sources.extract import ExtractConfig, read_archive
from pipeline.data.sources.warc_records import ReadError
from pipeline.schemas import OVERLAP_INDEX, QUERIES
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


PACKED = gzip.compress(b"a.warc.gz\n" * 99, mtime=0)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.paths", b"caf\xe9.warc.gz\n"),
        ("x.paths.gz", b"a.warc.gz\n"),
        ("x.paths.gz", PACKED[:-12]),
        ("x.paths.gz", PACKED[:-8] + bytes(8)),
        ("x.paths.gz", PACKED[:10] + b"\xff" * 30),
    ],
)
def test_a_list_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"input=.*{name}: cannot be read as a list of paths \("):
        list_inputs(str(tmp_path / name), BASE)


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.paths").write_bytes(b"\xef\xbb\xbfa.warc.gz\r\n")
    assert list_inputs(str(tmp_path / "x.paths"), "s3://b/") == ["s3://b/a.warc.gz"]


QUERY_LIST = pa.table([[0, 1], ["circle", "square"], ["unigram"] * 2, [2.0, 1.0], [0, 1]], schema=QUERIES)
NOT_UTF8 = pa.Array.from_buffers(pa.string(), 2, pa.array([b"caf\xe9", b"b"]).buffers())


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("text", NOT_UTF8, "column 'text' has values that are not string .*UTF8"),
        ("text", pa.array([1, 2]), "column 'text' has the type int64; it must be string"),
        ("text", pa.array([["a"], ["b"]]), "column 'text' has the type list"),
        ("text", pa.array(["a", None]), "not a query list, the column 'text' has nulls; make one"),
        ("query_id", pa.array([0, None], pa.int32()), "not a query list, the column 'query_id' has nulls"),
        ("query_id", pa.array([[0], [1]]), "column 'query_id' has the type list"),
        ("query_id", pa.array(["0", "1"]), "column 'query_id' has the type string"),
        ("rank", pa.array([0, 2**40]), "column 'rank' has values that are not int32"),
    ],
)
def test_a_query_list_with_other_values_is_refused(tmp_path: Path, column: str, values: pa.Array, message: str) -> None:
    """Such as text that another program wrote in Latin-1 (apache/arrow#29635, duckdb/duckdb#1932, parquet2#108)."""
    file = str(tmp_path / "queries.parquet")
    index = QUERY_LIST.schema.get_field_index(column)
    pq.write_table(QUERY_LIST.set_column(index, column, values), file)
    with pytest.raises(ValueError, match=f"queries={file}: {message}"):
        read_queries(file)


@pytest.mark.parametrize("content", [b"", b"a letter", b"PAR1" + b"\xff" * 60 + b"PAR1"])
def test_a_query_list_that_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=r"queries=.*/x: not a query list: cannot be read as Parquet .*jobs\.queries"):
        read_queries(str(tmp_path / "x"))


def test_a_damaged_page_of_a_query_list_is_refused(tmp_path: Path) -> None:
    data = bytearray(parquet.encode(QUERY_LIST))
    data[40] ^= 255
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=r"queries=.*/x: "):
        read_queries(str(tmp_path / "x"))


def test_a_query_list_of_other_widths_is_read(tmp_path: Path) -> None:
    wide = QUERY_LIST.set_column(1, "text", QUERY_LIST["text"].dictionary_encode())
    wide = wide.set_column(0, "query_id", QUERY_LIST["query_id"].cast(pa.int64()))
    pq.write_table(wide, tmp_path / "x")
    assert read_queries(str(tmp_path / "x")) == QUERY_LIST


INDEX = pa.table(
    [["set"] * 2, ["a" * 64] * 2, ["test"] * 2, [0, 1], [None, 7], [None, [0.5, 0.5]]], schema=OVERLAP_INDEX
)


def test_an_overlap_index_may_lack_hashes_and_embeddings(tmp_path: Path) -> None:
    pq.write_table(INDEX.replace_schema_metadata({ENCODER_KEY: b"ab"}), tmp_path / "x")
    found, encoder = read_overlap_index(str(tmp_path / "x"))
    assert found == INDEX
    assert encoder == "ab"


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("benchmark", pa.array(["set", None]), "not an overlap index, the column 'benchmark' has nulls; make one"),
        ("item", pa.array([0, None], pa.int64()), "the column 'item' has nulls"),
        ("phash", pa.array([-1, 7]), "column 'phash' has values that are not uint64"),
        ("embedding", pa.array([[0.5], [0.5, 0.5]], pa.list_(pa.float16())), r"embeddings have \[1, 2\] dimensions"),
        ("embedding", pa.array(["a", "b"]), "column 'embedding' has the type string"),
    ],
)
def test_an_overlap_index_with_other_values_is_refused(
    tmp_path: Path, column: str, values: pa.Array, message: str
) -> None:
    pq.write_table(INDEX.set_column(INDEX.schema.get_field_index(column), column, values), tmp_path / "x")
    with pytest.raises(ValueError, match=f"overlap.index=.*/x: .*{message}"):
        read_overlap_index(str(tmp_path / "x"))


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
    monkeypatch.setattr(web, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(web, "RETRY_ATTEMPTS", 2)
    web._pool.cache_clear()
    with RangeServer({"/x.warc.gz": archive()}, [fault] * 100) as server, pytest.raises(ReadError, match=server.url):
        read_input(f"{server.url}/x.warc.gz", ExtractConfig())
    web._pool.cache_clear()
