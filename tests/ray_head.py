"""Start a real one-node Ray cluster with `ray start`, for tests that connect or submit jobs to a cluster."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from ray.util import get_node_ip_address

_PORTS = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class RayHead:
    """The addresses of a head. `environment` holds the variables that a process needs to connect."""

    address: str
    client_address: str
    dashboard: str
    environment: dict[str, str]


@contextlib.contextmanager
def ray_head(
    *,
    num_cpus: int = 4,
    token: str | None = None,
    autoscaling: Mapping[str, Any] | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[RayHead]:
    """Run `ray start --head` with its own ports and folder, and stop it at the end.

    Args:
        num_cpus: logical CPUs of the head.
        token: token that the cluster requires; None disables authentication.
        autoscaling: configuration of the autoscaler.
        variables: environment variables in addition to those of this process.
    """
    mode = {"RAY_AUTH_MODE": "disabled"} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for the `python` of submitted jobs
    environment = {**os.environ, "PATH": path, "RAY_USAGE_STATS_ENABLED": "0", **mode, **(variables or {})}
    ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short, because paths of Unix sockets are limited
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--num-cpus={num_cpus}", f"--temp-dir={folder}", "--dashboard-host=127.0.0.1"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    if autoscaling is not None:
        gcs = f"{get_node_ip_address()}:{ports['port']}"  # type: ignore[no-untyped-call]
        provider = {**autoscaling["provider"], "gcs_address": gcs}
        file = folder / "autoscaling.yaml"
        file.write_text(yaml.safe_dump({**autoscaling, "provider": provider}))
        command += [f"--autoscaling-config={file}"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            output.append(line)
            if "Ray runtime started" in line:
                break
        else:
            raise RuntimeError(f"ray start failed: {''.join(output)}")
        yield RayHead(
            address=f"127.0.0.1:{ports['port']}",
            client_address=f"ray://127.0.0.1:{ports['ray-client-server-port']}",
            dashboard=f"http://127.0.0.1:{ports['dashboard-port']}",
            environment=environment,
        )
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
