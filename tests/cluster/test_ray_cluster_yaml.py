"""Check ray_cluster.yaml without a cloud: Ray's schema, its AWS provider with a fake AWS, and a real autoscaler.

Its image, cluster/Dockerfile, is checked without Docker: what it copies is enough to install what pyproject.toml names.
"""

import copy
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from email.parser import HeaderParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.test_session import run_python
from tests.docs.shell_blocks import CLUSTER_FILE, cluster_block, commands
from tests.ray_head import ROOT, ray_head

PROFILES = ("clip-on-ray", "clip-on-ray-head")
FAKE_PROVIDER = {
    "type": "external",
    "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
    "use_node_id_as_ip": True,
    "disable_node_updaters": True,
    "disable_launch_config_check": True,
}
FAKE_HEAD = {"id": "f" * 51 + "00000", "type": "ray.head.default"}
DOCKERFILE = "cluster/Dockerfile"
TAG = "REGISTRY/clip-on-ray:latest"
BUILD = "from setuptools import build_meta; print(build_meta.prepare_metadata_for_build_wheel('.'))"


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
    return loaded


# Ray's schema


def test_the_file_matches_rays_schema(config: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["available_node_types"].keys() == config["available_node_types"].keys()


@pytest.mark.parametrize("mistake", ["unknown key", "half a resource", "another head"])
def test_rays_schema_refuses_mistakes(config: dict[str, Any], mistake: str) -> None:
    if mistake == "unknown key":
        config["max_worker"] = 3
    elif mistake == "half a resource":
        config["available_node_types"]["crawl"]["resources"]["crawl"] = 0.5
    else:
        config["head_node_type"] = "boss"
    with pytest.raises(Exception, match=r"max_worker|0\.5 is not of type 'integer'|head_node_type"):
        validate_config(prepare_config(config))


def test_node_types_offer_the_right_resources(config: dict[str, Any]) -> None:
    kinds = config["available_node_types"]
    assert kinds["head"]["resources"] == {"CPU": 0}, "no task may run on the head"
    assert kinds["crawl"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert kinds["crawl"]["resources"]["crawl"] > 0
    assert [name for name, kind in kinds.items() if kind["resources"].get("GPU")] == ["gpu"]
    assert sum(kind.get("max_workers", 0) for kind in kinds.values()) == config["max_workers"]


def test_every_ray_requires_the_token_and_the_dashboard_is_local(config: dict[str, Any]) -> None:
    starts = [
        command
        for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all(command.startswith("RAY_AUTH_MODE=token ") for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in config["file_mounts"]


# The AWS provider


@pytest.fixture
def aws(config: dict[str, Any], _s3_server: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The configuration that `ray up` completes, in an account that has the instance profiles."""
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    iam = boto3.client("iam")
    existing = {profile["InstanceProfileName"] for profile in iam.list_instance_profiles()["InstanceProfiles"]}
    for name in PROFILES:
        if name not in existing:
            iam.create_instance_profile(InstanceProfileName=name)
    completed: dict[str, Any] = bootstrap_aws(prepare_config(config))  # type: ignore[no-untyped-call]
    return completed


def launch_node(config: dict[str, Any], kind: str) -> dict[str, Any]:
    provider = _get_node_provider(config["provider"], config["cluster_name"])
    tags = {"ray-node-type": "worker", "ray-user-node-type": kind, "ray-node-name": kind}
    created = provider.create_node(config["available_node_types"][kind]["node_config"], tags, 1)
    (instance,) = created
    found: dict[str, Any] = boto3.client("ec2").describe_instances(InstanceIds=[instance])["Reservations"][0][
        "Instances"
    ][0]
    return found


@pytest.mark.parametrize(
    ("kind", "instance_type", "lifecycle"),
    [
        ("head", "m6i.2xlarge", None),
        ("crawl", "c6in.4xlarge", "spot"),
        ("data", "m6i.8xlarge", None),
        ("gpu", "p4d.24xlarge", None),
    ],
)
def test_aws_starts_each_node_type(aws: dict[str, Any], kind: str, instance_type: str, lifecycle: str | None) -> None:
    instance = launch_node(aws, kind)
    assert instance["InstanceType"] == instance_type
    assert instance.get("InstanceLifecycle") == lifecycle
    assert instance["IamInstanceProfile"]["Arn"].rsplit("/", 1)[1] in PROFILES


def test_aws_refuses_an_unknown_key(aws: dict[str, Any]) -> None:
    aws["available_node_types"]["crawl"]["node_config"]["InstanceMarketOption"] = {"MarketType": "spot"}
    with pytest.raises(Exception, match="InstanceMarketOption"):
        launch_node(aws, "crawl")


# The image


def instructions() -> Iterator[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments, without comments."""
    lines = [line for line in (ROOT / DOCKERFILE).read_text().splitlines() if line and not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, arguments = line.partition(" ")
        yield name, " ".join(arguments.split())


def arguments_of(name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions() if instruction == name]


def project() -> dict[str, object]:
    loaded: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return loaded


def test_its_python_is_the_makefiles() -> None:
    (base,) = arguments_of("FROM")
    python = re.fullmatch(r"python:(3\.\d+)-bookworm", base)
    assert python is not None
    assert f"PYTHON ?= python{python[1]}\n" in (ROOT / "Makefile").read_text()
    assert SpecifierSet(str(project()["requires-python"])).contains(python[1])


@pytest.mark.skipif(int(version("setuptools").split(".")[0]) < 77, reason="pyproject.toml requires setuptools 77")
def test_what_it_copies_installs_what_pyproject_names(tmp_path: Path) -> None:
    for copied in arguments_of("COPY"):
        *sources, target = copied.split()
        for source in sources:
            folder = tmp_path / target
            folder.mkdir(exist_ok=True)
            shutil.copy(ROOT / source, folder)
    built = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    metadata = tmp_path / built.stdout.splitlines()[-1] / "METADATA"
    message = HeaderParser().parsestr(metadata.read_text())
    found = [Requirement(text) for text in message.get_all("Requires-Dist", [])]
    dependencies = project()["dependencies"]
    assert isinstance(dependencies, list)
    assert sorted(map(str, map(Requirement, dependencies))) == sorted(str(own) for own in found if not own.marker)
    assert "benchmark" in message.get_all("Provides-Extra", [])


def test_it_installs_the_versions_of_the_constraints_and_no_code() -> None:
    install, remove = (step.strip() for step in arguments_of("RUN")[-1].split("&&"))
    assert shlex.split(install) == [
        *["python", "-m", "pip", "install", "--no-cache-dir"],
        *["--constraint", "constraints.txt", ".[benchmark]"],
    ]
    assert remove == f"python -m pip uninstall --yes {project()['name']}"
    pinned = {
        line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()
    }
    dependencies = project()["dependencies"]
    assert isinstance(dependencies, list)
    assert {canonicalize_name(Requirement(text).name) for text in dependencies} <= set(map(canonicalize_name, pinned))


def test_it_has_what_rays_launcher_needs_in_a_container() -> None:
    """Ray copies files with `rsync -e 'docker exec -i'`, which runs rsync on both sides."""
    (packages,) = [step for step in arguments_of("RUN") if "apt-get install" in step]
    assert "rsync" in packages.split()
    assert not [base for base in arguments_of("FROM") if "slim" in base], "slim has no ssh and no compiler"


def test_the_documented_commands_build_the_image_of_the_cluster() -> None:
    cluster = yaml.safe_load((ROOT / CLUSTER_FILE).read_text())
    assert cluster["docker"]["image"] == TAG
    docker = [
        shlex.split(line, comments=True) for line in commands(cluster_block(CLUSTER_FILE)) if line.startswith("docker ")
    ]
    assert docker == [["docker", "build", "--file", DOCKERFILE, "--tag", TAG, "."], ["docker", "push", TAG]]
    comment = [line.removeprefix("#").strip() for line in (ROOT / DOCKERFILE).read_text().splitlines()]
    assert [line.split() for line in comment if line.startswith("docker ")] == docker


# The autoscaler


@pytest.mark.faults
@pytest.mark.cluster
def test_nodes_start_on_demand_and_stop_when_idle(config: dict[str, Any], tmp_path: Path) -> None:
    kinds = config["available_node_types"]
    kinds[FAKE_HEAD["type"]] = kinds.pop("head")  # the names that the fake node provider requires
    prepared = prepare_config({**config, "head_node_type": FAKE_HEAD["type"]})
    autoscaling = {**prepared, "provider": FAKE_PROVIDER, "idle_timeout_minutes": 0.1, "docker": {}, "file_mounts": {}}
    variables = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD["id"],
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(autoscaling))  # where `ray up` puts it
    with ray_head(num_cpus=0, autoscaling=autoscaling, variables=variables) as head:
        done = run_python(
            """
            import json, time
            from cluster.resources import Pool
            from cluster.session import SessionConfig, session

            with session(SessionConfig(), needs=[Pool(size=2, cpus=8), Pool(gpus=8)]):
                import ray

                def num_nodes():
                    return sum(node["Alive"] for node in ray.nodes())

                @ray.remote
                def where():
                    return ray.get_runtime_context().get_node_labels()["pool"]

                assert "CPU" not in ray.cluster_resources(), "only the head runs, which offers no CPUs"
                work = [where.options(resources={"crawl": 1}).remote(), where.options(num_gpus=8).remote()]
                pools = ray.get(work, timeout=120)
                most = num_nodes()
                deadline = time.monotonic() + 40
                while num_nodes() > 1 and time.monotonic() < deadline:
                    time.sleep(0.5)
                print(json.dumps([pools, most, num_nodes()]))
            """,
            tmp_path,
            RAY_ADDRESS=head.address,
            HOME=str(tmp_path),
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [["crawl", "gpu"], 3, 1]
