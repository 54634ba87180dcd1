"""The commands of the documentation: the same in all places, and with options that exist.

tests/faults/test_commands.py runs those for a cluster.
"""

import ast
import importlib
import shlex
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import boto3
import pytest

import jobs
from jobs.options.launch import launch
from tests.docs.shell_blocks import CLUSTER_FILE, PAGES, blocks, cluster_block, commands, job_commands
from tests.ray_head import ROOT

REPLACED = {
    "jobs.crawl ...": "jobs.crawl --input archives/ --output runs/crawl",
    "jobs.status RUN": "jobs.status runs/crawl",
    "URI": "s3://bucket/pairs",
    "--keep_last N": "--keep_last 3",
    "--grace_hours H": "--grace_hours 24",
    "[": "",
    "]": "",
    " | ": " ",
}
"""What stands for something in the commands of the documentation, and what the tests take for it."""

ABOUT_JOBS = ("python -m jobs.NAME", "python -m jobs.pretrain")
"""Code in the text that names a job and is no command line."""

COMMANDS = sorted({command for page in PAGES for command in job_commands(page)} - set(ABOUT_JOBS))


def job_of(command: str) -> tuple[str, list[str]]:
    """The module and the arguments of a command that starts a job."""
    for shown, meant in REPLACED.items():
        command = command.replace(shown, meant)
    _, _, module, *arguments = shlex.split(command, comments=True)
    return module, arguments


def started(module_name: str, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The job that a command line makes: what its module does under `if __name__ == "__main__"`, without running it."""
    if (ROOT / module_name.replace(".", "/")).is_dir():
        module_name += ".__main__"
    module = importlib.import_module(module_name)
    assert module.__file__ is not None
    *_, guard = ast.parse(Path(module.__file__).read_text()).body
    assert isinstance(guard, ast.If)
    made: list[Any] = []

    def parse(job_class: type, _main: Callable[[Any], None], argv: Sequence[str] = arguments, **options: Any) -> None:
        launch(job_class, made.append, argv, **options)

    monkeypatch.setattr("sys.argv", [module.__file__, *arguments])
    exec(compile(ast.Module(guard.body, []), module.__file__, "exec"), {**vars(module), "launch": parse})
    (job,) = made
    return job


@pytest.fixture(scope="module")
def bucket(_s3_server: str) -> None:
    """The bucket that the documentation writes to."""
    boto3.client("s3").create_bucket(Bucket="bucket")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that has the configurations of the project, where outputs may be made."""
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_are_found() -> None:
    found = {job_of(command)[0] for command in COMMANDS}
    own = {f"jobs.{path.stem}" for path in Path(jobs.__path__[0]).glob("*.py")} - {"jobs.__init__"}
    assert found == own, "every job is shown, and no other"


@pytest.mark.usefixtures("bucket", "folder")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_documentation_has_options_that_exist(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(*job_of(command), monkeypatch)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("python -m jobs.crawl --input a --output b --fetch.contcat x", 2),
        ("python -m jobs.snapshot lst s3://bucket/pairs", 2),
        ("python -m jobs.status", 2),
    ],
)
def test_a_command_with_an_unknown_option_is_found(
    command: str, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        started(*job_of(command), monkeypatch)
    assert stopped.value.code == status
    assert capsys.readouterr().err.startswith("error: ")


def test_the_commands_for_a_cluster_are_the_same_everywhere() -> None:
    expected = cluster_block("README.md")
    assert cluster_block("docs/operate.md") == expected
    assert cluster_block(CLUSTER_FILE) == expected


def test_every_block_that_runs_jobs_of_the_readme_activates_the_environment_first() -> None:
    """Otherwise `python`, and that of a Ray started by its path, is another one without this project's packages."""
    for block in blocks("README.md"):
        first, *others = commands(block)
        if any(line.startswith(("python ", "ray ")) for line in others):
            assert first.split("#")[0].strip() == ". .venv/bin/activate"


@pytest.mark.parametrize("page", ["README.md", "docs/operate.md", CLUSTER_FILE])
def test_every_submission_says_where_to(page: str) -> None:
    submissions = [line for line in commands(cluster_block(page)) if line.startswith("ray job submit ")]
    assert submissions
    for line in submissions:
        assert shlex.split(line)[3:7] == ["--address", "http://127.0.0.1:8265", "--working-dir", "."]


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in (line for block in blocks(page) for line in commands(block)):
        if line.startswith("make "):
            assert f"\n{line.split()[1]}: " in makefile, line


def test_the_commands_of_the_readme_name_files_that_exist() -> None:
    for command in job_commands("README.md"):
        words = job_of(command)[1]
        configurations = [value for option, value in pairwise(words) if option == "--config"]
        assert all((ROOT / name).exists() for name in configurations)
