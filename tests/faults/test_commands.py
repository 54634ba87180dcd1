"""Run the commands for a cluster, which README.md, docs/operate.md and ray_cluster.yaml show, word for word.

The cloud is moto's AWS over HTTP. The machines that it "starts" do not exist, so `ssh` and `rsync` are programs that
write down what Ray asks of a machine. `ray job submit` talks to a real head that has the token of `ray get-auth-token`.
Two commands are not run, because they need Docker: tests/cluster/test_ray_cluster_yaml.py checks them.
"""

import base64
import io
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import boto3
import numpy as np
import pytest
from PIL import Image

from cluster import storage
from cluster.progress import stage_progress
from cluster.runs import Run
from tests.cluster.test_ray_cluster_yaml import PROFILES
from tests.crawls import crawl_of
from tests.docs.shell_blocks import cluster_block, commands
from tests.ray_head import ROOT, ray_head

pytestmark = [pytest.mark.faults, pytest.mark.cluster]

RECORDER = """#!/bin/bash
printf '%s\\n' "$(basename "$0") $*" >> {log}
case "$*" in
    *Config.Env*) echo '[]' ;;
    *"command -v docker"*) echo /usr/bin/docker ;;
    *"printenv HOME"*) echo /root ;;
esac
"""
"""Stands for `ssh` and `rsync`: writes down its arguments, and answers what Ray asks about Docker."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder of somebody who types the commands."""
    return tmp_path_factory.mktemp("user")


@pytest.fixture
def recorded(home: Path) -> Path:
    """A file of what machines are asked to do. `ssh` and `rsync` in the folder bin write to it."""
    log = home / "recorded.txt"
    (home / "bin").mkdir()
    for name in ("ssh", "rsync"):
        (home / "bin" / name).write_text(RECORDER.format(log=shlex.quote(str(log))))
        (home / "bin" / name).chmod(0o755)
    return log


def command(start: str) -> str:
    """The command of the documentation that starts like this, as it is shown."""
    (found,) = [line for line in commands(cluster_block("README.md")) if line.startswith(start)]
    return found


def typed(
    line: str, home: Path, answers: str = "", replaced: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Type a command into a new terminal, after those that README.md wants in every terminal.

    Args:
        line: the command.
        home: the home folder.
        answers: what is typed on its questions.
        replaced: what stands for something in the commands, and what it is here.
    """
    first = [command(". "), command("export ")]
    script = "\n".join(["set -e", *first, line])
    for shown, meant in {".venv/bin/activate": f"{sys.prefix}/bin/activate", **(replaced or {})}.items():
        assert shown in script
        script = script.replace(shown, meant)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "VIRTUAL_ENV"))}
    environment |= {"HOME": str(home), "TMPDIR": str(home), "PATH": f"{home}/bin:/usr/bin:/bin"}
    terminal, keyboard = pty.openpty()  # Ray asks its questions only in a terminal
    try:
        os.write(terminal, answers.encode())
        return subprocess.run(
            ["bash", "-c", script],
            cwd=ROOT,
            env=environment,
            stdin=keyboard,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    finally:
        os.close(terminal)
        os.close(keyboard)


def states() -> list[tuple[str, str]]:
    """The type and the state of every instance of the cloud."""
    reservations = boto3.client("ec2").describe_instances()["Reservations"]
    return [(found["InstanceType"], found["State"]["Name"]) for group in reservations for found in group["Instances"]]


@pytest.fixture(scope="module")
def token(home: Path) -> str:
    done = typed(command("ray get-auth-token"), home)
    assert done.returncode == 0, done.stderr
    return (home / ".ray" / "auth_token").read_text().strip()


@pytest.mark.usefixtures("token", "_s3_server")
def test_a_cluster_is_started_reached_and_stopped(home: Path, recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    iam = boto3.client("iam")
    existing = {profile["InstanceProfileName"] for profile in iam.list_instance_profiles()["InstanceProfiles"]}
    for name in set(PROFILES) - existing:
        iam.create_instance_profile(InstanceProfileName=name)
    before = states()

    done = typed(command("ray up "), home, answers="y\nn\n")  # launch it; no usage statistics
    assert done.returncode == 0, done.stdout + done.stderr
    assert states()[len(before) :] == [("m6i.2xlarge", "running")], "only the head"
    asked = recorded.read_text().splitlines()
    assert any("docker pull REGISTRY/clip-on-ray:latest" in line for line in asked)
    assert any(line.startswith("rsync ") and f"{home}/.ray/auth_token" in line for line in asked), "the token"
    assert any(":/root/.ray/auth_token " in line and "docker run " in line for line in asked), "mounted as Ray reads it"
    assert "RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 ray start --head" in asked[-1]

    done = typed(command("ray dashboard "), home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "-L 8265:localhost:8265" in recorded.read_text().splitlines()[-1]

    done = typed(command("ray down "), home, answers="y\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert states()[len(before) :] == [("m6i.2xlarge", "terminated")]


def test_a_job_is_submitted(home: Path, token: str, s3: str, tmp_path: Path) -> None:
    """The image is in its URL, so that the crawler needs no network."""
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    Image.fromarray(pixels).save(image := io.BytesIO(), "PNG")
    crawl_of(tmp_path, [f"data:image/png;base64,{base64.b64encode(image.getvalue()).decode()}"])
    for name in ("archives/addresses.parquet", "queries.parquet"):
        storage.write_bytes(f"{s3}/{name}", (tmp_path / Path(name).name).read_bytes())
    with ray_head(token=token) as head:
        replaced = {"http://127.0.0.1:8265": head.dashboard, "s3://bucket": s3}
        done = typed(command("ray job submit "), home, replaced=replaced)
        assert done.returncode == 0, done.stdout + done.stderr
        (fetched,) = [
            stage for stage in stage_progress(Run.read(f"{s3}/crawl", option="run")) if stage.name == "fetched"
        ]
        assert fetched.kept == 1

        relative = {"http://127.0.0.1:8265": head.dashboard, "s3://bucket/crawl": "runs/relative"}
        done = typed(command("ray job submit "), home, replaced=relative)
        assert done.returncode == 1
        assert "error: --output runs/relative: a submitted job runs in a copy of the working directory" in done.stdout
