import logging
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest
import ray.data

from cluster.resources import Pool
from jobs.options.launch import launch
from tests.jobs.options.greet import GreetJob
from tests.jobs.options.waiting import members_of_session
from tests.ray_head import ROOT


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    """launch() belongs to a process of its own: the level that it sets is put back."""
    level = logging.getLogger("clip").level
    yield
    logging.getLogger("clip").setLevel(level)


def launched(*argv: str) -> GreetJob:
    """The job that a command line makes."""
    jobs: list[GreetJob] = []
    launch(GreetJob, jobs.append, argv)
    return jobs[0]


def refusal(capsys: pytest.CaptureFixture[str], *argv: str, main: Callable[[GreetJob], None] | None = None) -> str:
    """The one line with which a command line is refused."""

    def unreached(_job: GreetJob) -> None:
        pytest.fail("the job ran")

    with pytest.raises(SystemExit) as stopped:
        launch(GreetJob, main or unreached, argv)
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err.removeprefix("error: ").rstrip()


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def write(folder: Path, text: str) -> str:
    place = folder / "job.toml"
    place.write_text(text)
    return str(place)


# What a command line makes


def test_options_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path, output: str) -> None:
    config = write(
        tmp_path,
        """
        names = ["Ada", "Alan"]
        tone = "cold"
        [voice]
        volume = 2
        accents = { "*.example" = "127.0.0.1:80" }
        [voice.pool]
        size = [1, 3]
        """,
    )
    job = launched("--config", config, "--output", output, "--voice.volume", "3.5", "--session.num_cpus=2")
    assert job.names == ("Ada", "Alan")
    assert job.tone == "cold"
    assert job.voice.volume == 3.5
    assert job.voice.accents == {"*.example": "127.0.0.1:80"}
    assert job.voice.pool == Pool(size=(1, 3))
    assert job.session.num_cpus == 2
    assert job.session.address is None


def test_print_config_can_be_read_again(tmp_path: Path, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--output",
        output,
        "--names",
        '["Ada"]',
        "--voice.pool.size",
        "[1, 3]",
        "--voice.accents",
        '{"a.b": "c"}',
    )
    with pytest.raises(SystemExit) as stopped:
        launched(*options, "--print_config")
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert tomllib.loads(printed)["voice"]["accents"] == {"a.b": "c"}
    assert launched("--config", write(tmp_path, printed)) == launched(*options)


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        launched("--help")
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for option in ("--config", "--output", "--voice.pool.size", "--session.address", "{warm,cold}"):
        assert option in said


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--names", "Ada", "Alan T."], ("Ada", "Alan T.")),
        (["--names", "Ada"], ("Ada",)),
        (["--names", '["Ada", "Alan"]'], ("Ada", "Alan")),
        (['--names=["Ada"]'], ("Ada",)),
        (["--names", "-x", "1", "true", "null", "", "[", 'a"b\\c\nd', "é\x7f"],
         ("-x", "1", "true", "null", "", "[", 'a"b\\c\nd', "é\x7f")),
        (["Ada", "--tone", "cold", "Alan", "--", "Grace", "-1"], ("Ada", "Alan", "Grace", "-1")),
        ([], ()),
    ],
)  # fmt: skip
def test_a_list_is_typed_as_words(words: list[str], names: tuple[str, ...], output: str) -> None:
    jobs: list[GreetJob] = []
    launch(GreetJob, jobs.append, [*words, "--output", output], words="names")
    assert jobs[0].names == names


def test_an_option_of_one_text_or_several_takes_both() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Inner:
        folders: list[str] | str = "."

    @dataclass(frozen=True, kw_only=True)
    class Job:
        inner: Inner = field(default_factory=Inner)

    jobs: list[Job] = []
    for argv in (["--inner.folders", "a", "b c"], ["--inner.folders", "a"], []):
        launch(Job, jobs.append, argv)
    assert [job.inner.folders for job in jobs] == [["a", "b c"], "a", "."]


@pytest.mark.parametrize(
    ("words", "seeds", "size"),
    [
        (["--seeds", "0", "1", "-2"], (0, 1, -2), 1),
        (["--seeds", "7"], (7,), 1),
        (["--seeds", "[7, 8]", "--size", "3"], (7, 8), 3),
        (["--size", "3", "5"], (0,), (3, 5)),
        (["--size=[3, 5]"], (0,), (3, 5)),
    ],
)
def test_a_list_of_numbers_is_typed_as_words(
    words: list[str], seeds: tuple[int, ...], size: int | tuple[int, int]
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Job:
        seeds: tuple[int, ...] = (0,)
        size: int | tuple[int, int] = 1

    jobs: list[Job] = []
    launch(Job, jobs.append, words)
    assert (jobs[0].seeds, jobs[0].size) == (seeds, size)


# What is refused


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "nowhere.toml"], "--config: no file 'nowhere.toml'"),
        (["--config=nowhere.toml"], "--config: no file 'nowhere.toml'"),
        (["--config"], "argument --config: expected one argument"),
        (["--outptu", "x"], "unrecognized arguments: --outptu x; did you mean --output?"),
        (
            ["--output", "x", "--voice.volmue", "1"],
            "unrecognized arguments: --voice.volmue 1; did you mean --voice.volume?",
        ),
        (["--output", "x", "--volume=1"], "unrecognized arguments: --volume=1; did you mean --voice.volume?"),
        (
            ["--output", "x", "--pool.num_cpus=1"],
            "unrecognized arguments: --pool.num_cpus=1; did you mean --session.num_cpus?",
        ),
        (["Ada", "--output", "x", "Alan"], "unrecognized arguments: Ada Alan"),
        (["--output", "x", "--names"], "argument --names: expected one argument"),
        (["--output", "x", "--voice.loud", "1"], "unrecognized arguments: --voice.loud 1"),
        ([], "the following arguments are required: output"),
        (["--output", "x", "--voice.volume", "loud"], "--voice.volume: expected float, got 'loud'"),
        (["--output", "x", "--session.num_cpus", "many"], "--session.num_cpus: expected one of int, got 'many'"),
        (
            ["--output", "x", "--voice.pool.size", "big"],
            "--voice.pool.size: expected one of int, tuple[int, int], got 'big'",
        ),
        (["--output", "x", "--tone", "shrill"], "--tone: expected one of ['warm', 'cold'], got 'shrill'"),
        (
            ["--output", "x", "--voice.pool.size", "0"],
            "size = 0: a pool needs at least one actor, and its minimum comes before its maximum",
        ),
        (["--output", "x", "--session.num_cpus", "-3"], "session.num_cpus = -3: must be positive"),
    ],
)
def test_a_wrong_option_is_refused(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(capsys, *argv) == message
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("naems = ['Ada']", "unknown option 'naems'; did you mean --names?"),
        ("[voice]\nvolme = 2", "unknown option 'voice.volme'; did you mean --voice.volume?"),
        ("zzz = 2", "unknown option 'zzz'"),
        ("names = 'Ada'", "--names: expected tuple, got 'Ada'"),
        ("voice = 3", "--voice: expected a table of options, got '3'"),
        ("voice.pool = []", "--voice.pool: expected a table of options, got '[]'"),
        ("[voice.pool]\nsize = 'big'", "--voice.pool.size: expected one of int, tuple[int, int], got 'big'"),
        ("output = ", "is not TOML: Invalid value (at end of document)"),
        ("\x00", "is not TOML"),
    ],
)
def test_a_wrong_file_is_refused(
    text: str, message: str, tmp_path: Path, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, "--output", output, "--config", write(tmp_path, text))


def test_a_folder_is_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "--config", str(tmp_path)).startswith(f"--config: '{tmp_path}' is not TOML")


def test_an_unwritable_output_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, "--output", "/dev/null/runs")
    assert message.startswith("output: '/dev/null/runs")
    assert "A part of this path is a file, not a folder; use another path" in message


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("s3://", "output: 's3://': no bucket; write s3://bucket/key"),
        ("s3:///run", "output: 's3:///run': no bucket; write s3://bucket/key"),
        ("s3:/bucket/run", "output: 's3:/bucket/run': write s3://bucket/key"),
        ("gs://bucket/run", "output: 'gs://bucket/run': unknown scheme 'gs'; use a local path, file:// or s3://"),
        ("s3a://bucket/run", "output: 's3a://bucket/run': unknown scheme 's3a'; use a local path, file:// or s3://"),
        ("hdfs://name/run", "output: 'hdfs://name/run': unknown scheme 'hdfs'; use a local path, file:// or s3://"),
        ("http://a.example/run", "output: 'http://a.example/run': files on web servers are read-only"),
    ],
)
def test_an_output_without_a_store_is_refused(
    output: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal(capsys, "--output", output).startswith(message)
    assert not list(tmp_path.iterdir()), "no folder 's3:' is made"


@dataclass(frozen=True, kw_only=True)
class WritingJob:
    """What jobs write, but for the output: jobs.curate and jobs.search, and jobs.snapshot changes a data set."""

    dataset: str | None = None
    picture: str | None = None
    uri: str | None = None


@pytest.mark.parametrize("option", ["output", "dataset", "picture", "uri"])
@pytest.mark.parametrize("value", ["runs/rel", "rel", "./rel", "../rel"])
def test_a_submitted_job_refuses_relative_paths_of_what_it_writes(
    option: str, value: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(SystemExit) as stopped:
        launch(
            GreetJob if option == "output" else WritingJob,
            lambda _job: pytest.fail("the job ran"),
            [f"--{option}={value}"],
        )
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --{option} {value}: a submitted job runs in a copy of the working directory")
    assert said.endswith("give an absolute path on a disk that all nodes share, or s3://bucket/prefix\n")
    assert not list(tmp_path.iterdir()), "nothing is written"


@pytest.mark.parametrize("output", ["{}/out", "file://{}/out", "{}//out/"])
def test_a_submitted_job_accepts_absolute_paths(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert launched("--output", output.format(tmp_path)).output == output.format(tmp_path)
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("kind", [ValueError, FileNotFoundError, ConnectionRefusedError, PermissionError])
def test_what_a_job_says_to_its_user_is_one_line(
    kind: type[Exception], output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_job: GreetJob) -> None:
        raise kind("names: nobody to greet;\n  give at least one")

    assert refusal(capsys, "--output", output, main=main) == "names: nobody to greet; give at least one"


@pytest.mark.parametrize("kind", [KeyError, AssertionError, pa.ArrowInvalid, OSError])
def test_a_bug_keeps_its_traceback(kind: type[Exception], output: str) -> None:
    def main(_job: GreetJob) -> None:
        raise kind("ours")

    with pytest.raises(kind, match="ours"):
        launch(GreetJob, main, ["--output", output])


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("where", ["task", "constructor of an actor"])
def test_what_a_task_says_to_the_user_is_one_line(where: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    def task(_batch: pa.Table) -> pa.Table:
        raise ValueError("warcs: 'a.txt' is no WARC file")

    class Actor:
        def __init__(self) -> None:
            task(None)

        def __call__(self, batch: pa.Table) -> pa.Table:
            return batch

    def main(_job: GreetJob) -> None:
        rows = ray.data.range(1)
        if where == "task":
            rows.map_batches(task).materialize()
        rows.map_batches(Actor, **Pool().map_batches_arguments()).materialize()

    with pytest.raises(SystemExit) as stopped:
        launch(GreetJob, main, ["--output", output])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: warcs: 'a.txt' is no WARC file"


# What is kept


def test_the_resolved_configuration_is_kept(output: str) -> None:
    launched("--output", output, "--voice.volume", "2")
    kept = Path(output) / "config.tests.jobs.options.greet.toml"
    assert [path.name for path in Path(output).iterdir()] == [kept.name]
    assert tomllib.loads(kept.read_text())["voice"]["volume"] == 2
    assert launched("--config", str(kept)).voice.volume == 2


def test_a_refused_run_keeps_the_configuration_of_the_folder(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_job: GreetJob) -> None:
        raise ValueError("output: holds a run of another configuration")

    launched("--output", output, "--voice.volume", "2")
    refusal(capsys, "--output", output, "--voice.volume", "3", main=refuse)
    (kept,) = Path(output).iterdir()
    assert tomllib.loads(kept.read_text())["voice"]["volume"] == 2
    launched("--output", output, "--voice.volume", "3")
    assert tomllib.loads(kept.read_text())["voice"]["volume"] == 3


# As a process


def start(*argv: str, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.jobs.options.greet", *argv]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_process_that_its_user_must_put_right_ends_with_2(output: str) -> None:
    unreachable = start("--output", output, RAY_ADDRESS="127.0.0.1:1")
    wrong = start("--output", output, "--nope", "1")
    out, err = unreachable.communicate(timeout=120)
    assert (unreachable.returncode, out) == (2, "")
    assert err.startswith("error: session.address = '127.0.0.1:1': no Ray answers at this address")
    assert err.count("\n") == 1
    assert wrong.communicate(timeout=120) == ("", "error: unrecognized arguments: --nope 1\n")
    assert wrong.returncode == 2


def test_a_process_with_a_bug_ends_with_1_and_a_traceback(output: str) -> None:
    process = start("--output", output, "--fail", "bug")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" in err
    assert err.endswith("KeyError: 'ours'\n")


@pytest.mark.faults
@pytest.mark.cluster
def test_sigterm_cleans_up_and_ends_with_143(output: str) -> None:
    process = start("--output", output, "--fail", "wait", "--names", '["Ada"]')
    assert process.stdout is not None
    assert process.stdout.readline() == "hello Ada\n"
    assert len(members_of_session(process.pid)) > 2, "Ray runs"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert out == "bye\n"
    assert err == ""
    deadline = time.monotonic() + 5
    while members_of_session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert members_of_session(process.pid) == {}, "Ray's processes are gone"
