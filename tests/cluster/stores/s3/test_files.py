"""S3 as a filesystem of pyarrow."""

import os
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from cluster import storage
from cluster.stores.errors import AccessDeniedError, NoSuchBucketError
from cluster.stores.s3.files import filesystem
from tests.stores.imitated import ImitatedStore, only
from tests.stores.refusals import refusing


def test_files_and_folders(s3: str, tmp_path: Path) -> None:
    files, folder = filesystem(), f"{s3.removeprefix('s3://')}/{tmp_path.name}"
    for name in ("a.bin", "below/b.bin"):
        storage.write_bytes(f"s3://{folder}/{name}", b"content")
    kinds = pyarrow.fs.FileType
    paths = [folder, f"{folder}/a.bin", f"{folder}/below", f"{folder}/missing"]
    assert [info.type for info in files.get_file_info(paths)] == [
        kinds.Directory, kinds.File, kinds.Directory, kinds.NotFound,
    ]  # fmt: skip
    listed = files.get_file_info(pyarrow.fs.FileSelector(folder, recursive=True))
    assert {(info.base_name, info.size if info.is_file else None) for info in listed} >= {("a.bin", 7), ("b.bin", 7)}
    with files.open_output_stream(f"{folder}/new.bin") as stream:
        stream.write(b"ne")
        stream.write(b"w")
    assert storage.read_bytes(f"s3://{folder}/new.bin") == b"new"
    files.delete_file(f"{folder}/new.bin")
    assert not storage.exists(f"s3://{folder}/new.bin")


def test_a_pickled_filesystem_reads(s3: str, tmp_path: Path) -> None:
    uri = f"{s3}/{tmp_path.name}/t.parquet"
    with pa.BufferOutputStream() as sink:
        pq.write_table(pa.table({"a": [1, 2, 3]}), sink)
        storage.write_bytes(uri, sink.getvalue().to_pybytes())
    again = pickle.loads(pickle.dumps(filesystem()))  # noqa: S301  # our own
    assert pq.read_table(uri.removeprefix("s3://"), filesystem=again).to_pydict() == {"a": [1, 2, 3]}


def test_errors_pass_through_pyarrow(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"{s3}/{tmp_path.name}/t.parquet"
    storage.write_bytes(uri, b"0123456789")
    path = uri.removeprefix("s3://")
    with pytest.raises(FileNotFoundError, match=f"nothing at '{uri}x'"):
        filesystem().open_input_file(path + "x")
    with pytest.raises(NoSuchBucketError, match="s3://no-such-bucket/x: the bucket does not exist"):
        filesystem().open_input_file("no-such-bucket/x")
    with ImitatedStore(os.environ["AWS_ENDPOINT_URL"], only(refusing(403, "AccessDenied"), "GetObject")) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
        with pytest.raises(AccessDeniedError, match=f"{uri}: access denied"):
            pq.read_table(path, filesystem=filesystem())
