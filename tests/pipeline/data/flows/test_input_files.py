"""Input files on storage that fails: no reader takes that for damage, or for the end of a file."""

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster import storage
from cluster.stores.errors import AccessDeniedError
from pipeline.data.flows.input_files import check_inputs, open_uri, read_input
from pipeline.data.queries.page_views import read_views
from pipeline.data.sources.extract import ExtractConfig
from pipeline.data.sources.warc_records import ReadError
from tests.stores.imitated import ImitatedStore, only
from tests.stores.refusals import refusing

DENIED = only(refusing(403, "AccessDenied"), "GetObject")


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as file:
        file.addfile(tarfile.TarInfo("0.txt"), io.BytesIO())
    return sink.getvalue()


def table() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table({"url": ["https://a.example/1.jpg"], "caption": ["a cat"]}), sink)
    return sink.getvalue()


FILES = {
    "a.warc": b"WARC/1.0\r\n\r\n",
    "a.tar": tar(),
    "a.parquet": table(),
    "a.csv": b"url,caption\nhttps://a.example/1.jpg,a cat\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_denied_file_is_neither_empty_nor_damaged(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    uri = f"{s3}/{tmp_path.name}/{name}"
    storage.write_bytes(uri, FILES[name])
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"], DENIED) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        with pytest.raises((AccessDeniedError, ReadError), match=f"{uri}: access denied"):
            read_input(uri, ExtractConfig())
        if name != "a.tar":
            with pytest.raises((AccessDeniedError, ReadError), match=f"{uri}: access denied"):
                check_inputs([uri])


def test_denied_page_views_are_not_truncated(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{s3}/{tmp_path.name}/pageviews.gz"
    storage.write_bytes(uri, b"some bytes")
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"], DENIED) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        with pytest.raises(ReadError, match=f"{uri}: access denied"):
            read_views(open_uri(uri), uri, "en", 1, capital_titles=True)
