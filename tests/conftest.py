"""Fixtures that tests share: a local Ray, an S3 server on loopback, the folder of real data."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run one process per core; more threads would only contend

import socket
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from cluster.session import SessionConfig, session


@pytest.fixture(scope="session", autouse=True)
def _environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set the environment before any worker inherits it: a new home folder, no other Ray, the address of the S3 server.

    Idle Ray worker processes wait two minutes for work, instead of one second. Starting one takes two CPU seconds, and
    70 of the 190 workers of the whole suite used to be stopped for being idle.
    """
    with socket.socket() as reserved, pytest.MonkeyPatch.context() as patch:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the S3 server binds it too
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "120000")
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray with 4 logical CPUs. Sessions that this process opens meanwhile use it."""
    with session(SessionConfig(address="local", num_cpus=4)):
        yield


@pytest.fixture(scope="session")
def _s3_server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer  # takes a second to import

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(endpoint.rsplit(":", 1)[1]), verbose=False)
    server.start()
    yield endpoint
    server.stop()


@pytest.fixture(scope="module")
def s3(_s3_server: str, request: pytest.FixtureRequest) -> str:
    """The URI of a bucket on the S3 server. Each test module has its own, empty bucket."""
    bucket = request.module.__name__.rsplit(".", 1)[-1].replace("_", "-")
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture(scope="session")
def clip_data() -> Path:
    """The folder of real data (shared/data/README.md)."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CLIP_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"CLIP_DATA: no real data at {folder}")
    return folder
