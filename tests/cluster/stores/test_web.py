import io
import os
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from cluster import storage
from cluster.runs import describe_files
from cluster.stores import web
from tests.range_server import Fault, RangeServer

DATA = os.urandom(3_000_000)
TRANSIENT = [Fault.SLOW_DOWN, Fault.RESET, Fault.CUT]
PERMANENT = [Fault.SHORT, Fault.WHOLE, Fault.CHANGED]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(web, "PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(web, "RETRY_ATTEMPTS", 4)
    web._pool.cache_clear()
    yield
    web._pool.cache_clear()


def test_storage_functions_read_a_web_file() -> None:
    with RangeServer({"/a/data.bin": DATA}) as server:
        uri = f"{server.url}/a/data.bin"
        assert storage.exists(uri)
        assert storage.list_files(uri) == [uri] == [storage.absolute(uri)]
        assert describe_files([uri]) == [["data.bin", len(DATA)]]
        assert storage.read_bytes(uri) == DATA
        assert server.ranges == [(0, len(DATA) - 1)]
        filesystem, path = storage.filesystem(uri)
        with filesystem.open_input_file(path) as file:
            assert file.size() == len(DATA)
            file.seek(1_500_000)
            assert file.read(10) == DATA[1_500_000:1_500_010]
            file.seek(len(DATA) - 3)
            assert file.read(10) == DATA[-3:]
            assert file.read(10) == b""


def test_requested_ranges_do_not_exceed_what_is_read() -> None:
    with RangeServer({"/x": DATA}) as server:
        filesystem, path = storage.filesystem(f"{server.url}/x")
        with io.BufferedReader(filesystem.open_input_file(path), 2**21) as file:
            file.seek(100)
            assert file.read(1000) == DATA[100:1100]
        assert sum(last + 1 - first for first, last in server.ranges) <= 2**21


def test_pyarrow_reads_a_parquet_file_from_a_web_server() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"url": ["x"]}), sink)
    with RangeServer({"/x.parquet": sink.getvalue()}) as server:
        filesystem, path = storage.filesystem(f"{server.url}/x.parquet")
        assert pq.read_table(path, filesystem=filesystem)["url"].to_pylist() == ["x"]


@pytest.mark.parametrize("fault", TRANSIENT, ids=lambda fault: fault.name)
def test_transient_faults_are_retried(fault: Fault) -> None:
    with RangeServer({"/x": DATA}, [fault] * 3) as server:
        assert storage.read_bytes(f"{server.url}/x") == DATA


@pytest.mark.parametrize("fault", [*TRANSIENT, *PERMANENT], ids=lambda fault: fault.name)
def test_permanent_faults_are_errors_and_never_short_reads(fault: Fault) -> None:
    with RangeServer({"/x": DATA}, [fault] * 100) as server:
        filesystem, path = storage.filesystem(f"{server.url}/x")
        with filesystem.open_input_file(path) as file, pytest.raises(OSError, match=f"{server.url}/x"):
            file.read(1000)


def test_missing_files_and_writes_are_errors() -> None:
    with RangeServer({}) as server:
        uri = f"{server.url}/missing.warc.gz"
        assert not storage.exists(uri)
        with pytest.raises(FileNotFoundError, match=r"nothing at .*missing"):
            storage.read_bytes(uri)
        with pytest.raises(FileNotFoundError, match=r"nothing at .*missing"):
            storage.list_files(uri)
        with pytest.raises(ValueError, match=r"unknown scheme 'http'; use a local path, file:// or s3://"):
            storage.write_bytes(uri, b"x")
    with pytest.raises(OSError, match=server.url):
        storage.read_bytes(uri)
