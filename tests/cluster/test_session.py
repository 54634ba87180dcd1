import json
import logging
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import ray.data
from ray._common.tls_utils import generate_self_signed_tls_certs
from ray._private import services

from cluster import session as session_module
from cluster.ray_private.core import console_handlers
from cluster.resources import Pool
from cluster.session import SessionConfig, preflight, session
from tests.cluster.ray_private.free_cpus import wait_until_all_cpus_are_free
from tests.ray_head import ROOT, RayHead, ray_head

pytestmark = pytest.mark.cluster

TOKEN = "a-token-of-the-tests-0123456789"


def run_python(code: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a new process, which is not connected to Ray."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(token=TOKEN) as started:
        yield started


# A local Ray


def test_a_local_session_logs_nothing_and_restores_the_environment(tmp_path: Path) -> None:
    done = run_python(
        """
        import os, signal
        before = dict(os.environ)
        handler = lambda *_: None
        signal.signal(signal.SIGTERM, handler)
        from cluster.session import SessionConfig, session
        with session(SessionConfig(num_cpus=3)):
            import ray, ray.data
            assert ray.cluster_resources()["CPU"] == 3
            assert ray.data.range(10).map_batches(lambda batch: batch).count() == 10
            assert signal.getsignal(signal.SIGTERM) is handler
        assert not ray.is_initialized()
        for name in ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "WANDB_MODE"):
            assert os.environ.get(name) == before.get(name), name
        print("done")
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    assert done.stderr == "", "no warnings, neither of authentication nor of anything else"
    assert not (Path(os.environ["HOME"]) / ".ray" / "auth_token").exists()


@pytest.mark.usefixtures("ray_local")
def test_a_nested_session_uses_the_open_connection() -> None:
    node = ray.get_runtime_context().get_node_id()
    with session(SessionConfig()):
        assert ray.get_runtime_context().get_node_id() == node
    assert ray.is_initialized()


@pytest.mark.usefixtures("ray_local")
def test_a_block_is_exactly_what_a_task_returned() -> None:
    def grow(_batch: pa.Table) -> pa.Table:
        return pa.table({"bytes": pa.array([bytes(2**20)] * 150, pa.large_binary())})  # Ray Data splits at 128 MiB

    grown = ray.data.range(2, override_num_blocks=2).map_batches(grow, batch_format="pyarrow").materialize()
    assert grown.num_blocks() == 2
    assert grown.count() == 300


@pytest.mark.usefixtures("ray_local")
def test_the_error_of_a_task_keeps_its_type_and_message() -> None:
    def fail(_batch: pa.Table) -> pa.Table:
        raise FileNotFoundError("no file 'pages.warc.gz'")

    with pytest.raises(FileNotFoundError, match=r"no file 'pages\.warc\.gz'"):
        ray.data.range(1).map_batches(fail, batch_format="pyarrow").materialize()


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_actors_of_a_failed_dataset_release_their_cpus(seconds: float) -> None:
    """Also those that are busy, while the error is kept, and once for each of several errors."""

    class Fail:
        def __call__(self, rows: pa.Table) -> pa.Table:
            if rows["id"][0].as_py() < 5:
                raise ValueError("a broken image")
            time.sleep(seconds)
            return rows

    errors = []
    for _ in range(2):
        rows = ray.data.range(6, override_num_blocks=6)
        with pytest.raises(ValueError, match="a broken image") as caught:
            rows.map_batches(Fail, **Pool(size=3).map_batches_arguments()).materialize()
        errors.append(caught.value)
        wait_until_all_cpus_are_free()


def test_ray_data_logs_only_warnings_on_the_console() -> None:
    session_module.configure_data()
    (console,) = console_handlers()
    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
    records = [logging.LogRecord("ray.data", level, __file__, 1, "message", (), None) for level in levels]
    assert [record.levelno for record in records if console.filter(record)] == [logging.WARNING]


# Preflight


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(
    ("needs", "message"),
    [
        ([Pool(size=4)], "would take all 4 CPUs of the cluster and leave none to read"),
        ([Pool(size=3), Pool(size=2, cpus=0.5)], "would take all 4 CPUs"),
        ([Pool(size=5)], "need 5 CPUs and the cluster has 4"),
        ([Pool(gpus=1, cpus=0)], "need 1 GPUs and the cluster has 0"),
        ([Pool(memory_gib=1e6)], "need 1e[+]06 GiB of memory and the cluster has"),
        ([Pool(resources={"crwal": 1})], "need 1 of the resource 'crwal' and the cluster has 0"),
        ([Pool(), Pool(cpus=0, resources={"crawl": 0.5})], r"need 0\.5 of the resource 'crawl' and the cluster has 0"),
        ([Pool(resources={"cpu": 1})], "need 1 of the resource 'cpu' and the cluster has 0"),
    ],
)
def test_pools_that_the_cluster_cannot_hold_are_refused(needs: list[Pool], message: str) -> None:
    with pytest.raises(ValueError, match=message), session(SessionConfig(), needs=needs):
        pytest.fail("the session opened")
    assert ray.is_initialized()


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("needs", [[], [Pool(size=3)], [Pool(size=2), Pool(size=3, cpus=0.5)], [Pool(size=(1, 8))]])
def test_pools_that_leave_a_cpu_free_are_accepted(needs: list[Pool]) -> None:
    with session(SessionConfig(), needs=needs):
        assert ray.is_initialized()


@pytest.mark.usefixtures("ray_local")
def test_preflight_counts_nodes_that_the_autoscaler_may_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "data": {"resources": {"CPU": 32}, "max_workers": 2},
        "gpu": {"resources": {"CPU": 96, "GPU": 8}, "max_workers": 1},
    }
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps({"available_node_types": kinds}))
    monkeypatch.setenv("HOME", str(tmp_path))
    preflight([Pool(size=8, gpus=1, cpus=19)])
    with pytest.raises(ValueError, match="would take all 160 CPUs"):
        preflight([Pool(size=8, gpus=1, cpus=20)])
    with pytest.raises(ValueError, match="need 9 GPUs and the cluster has 8"):
        preflight([Pool(size=9, gpus=1)])
    with pytest.raises(ValueError, match=r"with 97 CPUs and 0 GPUs fits on no node .* at most 96 CPUs, 8 GPUs"):
        preflight([Pool(cpus=97)])


@pytest.mark.usefixtures("ray_local")
def test_preflight_counts_custom_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor that asks for a resource that no node offers waits for ever (ray-project/ray#1734, #18835, #19326)."""
    kinds = {
        "crawler": {"resources": {"CPU": 16, "crawl": 2, "disk": 1}, "max_workers": 3},
        "closed": {"resources": {"CPU": 16, "spot": 1}, "max_workers": 0},
        "large": {"resources": {"CPU": 64, "match": 1}, "max_workers": 1},
    }
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps({"available_node_types": kinds}))
    monkeypatch.setenv("HOME", str(tmp_path))
    preflight([Pool(size=4, resources={"crawl": 1}), Pool(size=2, resources={"crawl": 1, "disk": 0.5})])
    preflight([Pool(size=(1, 99), resources={"crawl": 2}), Pool(resources={"node:__internal_head__": 0.001})])
    with pytest.raises(ValueError, match=r"need 7 of the resource 'crawl' and the cluster has 6"):
        preflight([Pool(size=4, resources={"crawl": 1}), Pool(size=3, resources={"crawl": 1})])
    with pytest.raises(ValueError, match=r"'crwal' and the cluster has 0.*correct the name \(custom resources of the "):
        preflight([Pool(resources={"crwal": 1})])
    with pytest.raises(ValueError, match=r"\(custom resources of the cluster: crawl, disk, match\)"):
        preflight([Pool(resources={"spot": 1})])
    with pytest.raises(ValueError, match=r"an actor with 1 CPUs, 0 GPUs and 3 of the resource 'crawl' fits on no node"):
        preflight([Pool(resources={"crawl": 3})])
    with pytest.raises(ValueError, match=r"with 32 CPUs, 0 GPUs and 1 of the resource 'crawl' fits on no node"):
        preflight([Pool(cpus=32, resources={"crawl": 1})])
    with pytest.raises(ValueError, match=r"1 of the resource 'crawl' and 1 of the resource 'match' fits on no node"):
        preflight([Pool(resources={"crawl": 1, "match": 1})])


# Wrong addresses


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379"])
def test_an_unreachable_address_fails_within_seconds(address: str) -> None:
    started = time.monotonic()
    with (
        pytest.raises(
            ValueError, match=rf"session\.address = '{address}': no Ray answers at this address .* correct the address"
        ),
        session(SessionConfig(address=address)),
    ):
        pytest.fail("the session opened")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_port_without_ray_fails_within_seconds(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "PROBE_TIMEOUT_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"{scheme}127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ValueError, match="no Ray answers at this address"), session(SessionConfig(address=address)):
            pytest.fail("the session opened")


def test_auto_without_a_cluster_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "find_gcs_addresses", frozenset)
    monkeypatch.setattr(services, "find_bootstrap_address", lambda _folder: None)
    with (
        pytest.raises(ValueError, match=r"session\.address = 'auto': no Ray runs on this machine"),
        session(SessionConfig(address="auto")),
    ):
        pytest.fail("the session opened")


def test_the_address_of_a_dashboard_is_refused() -> None:
    with (
        pytest.raises(ValueError, match=r"is the address of a dashboard: .*ray job submit --address http://head:8265"),
        session(SessionConfig(address="http://head:8265")),
    ):
        pytest.fail("the session opened")


@pytest.mark.parametrize("name", ["num_cpus", "object_store_gib"])
def test_sizes_must_be_positive(name: str) -> None:
    with pytest.raises(ValueError, match=rf"session\.{name} = 0: must be positive"):
        SessionConfig(**{name: 0})  # type: ignore[arg-type]


# A cluster with a token

CONNECT = """
import json, os, sys
from cluster.session import SessionConfig, session
try:
    with session(SessionConfig(address=sys.argv[1] if len(sys.argv) > 1 else None)):
        import ray

        @ray.remote
        def report():
            import pipeline
            return pipeline.__file__, os.environ.get("AWS_ENDPOINT_URL_S3"), os.environ.get("AWS_SECRET_ACCESS_KEY")

        print(json.dumps([ray.cluster_resources()["CPU"], *ray.get(report.remote())]))
except ValueError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("source", ["variable", "profile"])
def test_a_session_on_a_cluster_sends_code_and_storage_endpoint(head: RayHead, tmp_path: Path, source: str) -> None:
    config = tmp_path / "config"
    config.write_text("[profile store]\nendpoint_url = http://store:9000\n")
    of_profile = {"AWS_CONFIG_FILE": str(config), "AWS_PROFILE": "store", "AWS_ENDPOINT_URL": ""}
    done = run_python(
        CONNECT,
        tmp_path,
        RAY_ADDRESS=head.address,
        RAY_AUTH_TOKEN=TOKEN,
        AWS_SECRET_ACCESS_KEY="of the driver",
        **(of_profile if source == "profile" else {"AWS_ENDPOINT_URL": "http://store:9000"}),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    num_cpus, code, endpoint, secret = json.loads(done.stdout)
    assert num_cpus == 4
    assert "py_modules" in code
    assert endpoint == "http://store:9000"
    assert secret != "of the driver"


@pytest.mark.parametrize(
    ("variables", "state_of_token"),
    [
        ({}, "is missing"),
        ({"RAY_AUTH_MODE": "token"}, "is missing"),
        ({"RAY_AUTH_TOKEN": "another-token-0123456789"}, "is refused"),
    ],
)
def test_a_missing_or_wrong_token_is_reported_within_seconds(
    head: RayHead, tmp_path: Path, variables: dict[str, str], state_of_token: str
) -> None:
    started = time.monotonic()
    done = run_python(CONNECT, tmp_path, RAY_ADDRESS=head.address, **variables)
    assert done.stdout.startswith(f"refused: session.address = '{head.address}': the cluster requires a token")
    assert state_of_token in done.stdout
    assert "~/.ray/auth_token" in done.stdout
    assert time.monotonic() - started < 19, "Ray itself would take 20 seconds"


# Proxies and certificates, by Ray's own rules

DEAD_PROXY = dict.fromkeys(
    ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "grpc_proxy"), "http://127.0.0.1:1"
)


@pytest.mark.parametrize("client", [False, True])
def test_a_cluster_is_reached_past_a_proxy_as_ray_does(head: RayHead, tmp_path: Path, client: bool) -> None:
    address = head.client_address if client else head.address
    done = run_python(CONNECT, tmp_path, RAY_ADDRESS=address, RAY_AUTH_TOKEN=TOKEN, **DEAD_PROXY)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0] == 4


def test_a_proxy_is_used_where_ray_is_told_to(head: RayHead, tmp_path: Path) -> None:
    variables = {"RAY_AUTH_TOKEN": TOKEN, "RAY_grpc_enable_http_proxy": "1", **DEAD_PROXY}
    started = time.monotonic()
    done = run_python(CONNECT, tmp_path, RAY_ADDRESS=head.address, **variables)
    assert done.stdout.startswith(f"refused: session.address = '{head.address}': no Ray answers at this address")
    assert done.stdout.count("\n") == 1
    assert time.monotonic() - started < 19


def test_certificates_that_are_missing_are_named(tmp_path: Path) -> None:
    done = run_python(CONNECT, tmp_path, RAY_ADDRESS="127.0.0.1:1", RAY_USE_TLS="1")
    assert done.stdout.startswith("refused: session.address = '127.0.0.1:1': RAY_USE_TLS is set, but ")
    assert "RAY_TLS_CA_CERT must also be set" in done.stdout
    variables = dict.fromkeys(("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"), str(tmp_path / "none"))
    done = run_python(CONNECT, tmp_path, RAY_ADDRESS="127.0.0.1:1", RAY_USE_TLS="1", **variables)
    assert "RAY_USE_TLS is set, but [Errno 2] No such file or directory" in done.stdout


@pytest.mark.faults
def test_a_cluster_with_tls_is_reached_with_its_certificates_only(tmp_path: Path) -> None:
    certificate, key = (tmp_path / name for name in ("certificate.pem", "key.pem"))
    for file, content in zip((certificate, key), generate_self_signed_tls_certs(), strict=True):
        file.write_text(content)
    names = {"RAY_TLS_SERVER_CERT": certificate, "RAY_TLS_SERVER_KEY": key, "RAY_TLS_CA_CERT": certificate}
    variables = {"RAY_USE_TLS": "1", **{name: str(file) for name, file in names.items()}}
    with ray_head(variables=variables) as head:
        done = run_python(CONNECT, tmp_path, RAY_ADDRESS=head.address, RAY_AUTH_MODE="disabled", **variables)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)[0] == 4
        done = run_python(CONNECT, tmp_path, RAY_ADDRESS=head.address, RAY_AUTH_MODE="disabled")
        assert done.stdout.startswith(f"refused: session.address = '{head.address}': no Ray answers at this address")


# The runtime environment of workers


def test_credentials_are_not_sent_to_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    environment = session_module._runtime_environment()
    assert environment["env_vars"]["AWS_ENDPOINT_URL_S3"] == "http://store:9000"
    assert not [name for name in environment["env_vars"] if "KEY" in name or "TOKEN" in name]
    assert {Path(module).name for module in environment["py_modules"]} == {"cluster", "jobs", "pipeline"}


def test_a_submitted_job_keeps_its_runtime_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = {"runtime_env": {"working_dir": "gcs://package.zip", "env_vars": {"WANDB_MODE": "online"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    environment = session_module._runtime_environment()
    assert "py_modules" not in environment
    assert "WANDB_MODE" not in environment["env_vars"], "Ray refuses variables that are set twice"
