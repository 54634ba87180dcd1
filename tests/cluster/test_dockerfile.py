"""Check cluster/Dockerfile without Docker: what it copies is enough to install what pyproject.toml names."""

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

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.ray_head import ROOT
from tests.shell_blocks import CLUSTER_FILE, cluster_block, commands

FILE = "cluster/Dockerfile"
TAG = "REGISTRY/clip-on-ray:latest"
BUILD = "from setuptools import build_meta; print(build_meta.prepare_metadata_for_build_wheel('.'))"


def instructions() -> Iterator[tuple[str, str]]:
    """The instructions of the Dockerfile and their arguments, without comments."""
    lines = [line for line in (ROOT / FILE).read_text().splitlines() if line and not line.startswith("#")]
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
    for copy in arguments_of("COPY"):
        *sources, target = copy.split()
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
    assert docker == [["docker", "build", "--file", FILE, "--tag", TAG, "."], ["docker", "push", TAG]]
    comment = [line.removeprefix("#").strip() for line in (ROOT / FILE).read_text().splitlines()]
    assert [line.split() for line in comment if line.startswith("docker ")] == docker
