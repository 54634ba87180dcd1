"""Every job's command line: defaults <- TOML <- options, into one frozen dataclass.

    python -m jobs.NAME --config jobs/configs/x.toml --some.option value --some.list one two three

Errors that a user can mend (an unknown key, a wrong type, a missing file, a full disk, no Ray at an address) end with
exit status 2 and one line on standard error. A bug ends with a traceback and status 1; with CLIP_TRACEBACK=1, so do the
errors of users. SIGTERM ends with 143 and Ctrl-C with 130, within seconds (stopping.py). The resolved configuration of
a job is written beside its output, as config.<job>.toml.
"""

import argparse
import dataclasses
import difflib
import json
import logging
import os
import re
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse
import tomli_w

from cluster import storage
from cluster.session import is_submitted
from cluster.stores.errors import StorageError
from jobs.options.stopping import Signals
from pipeline.data.sources.warc_records import ReadError

Job = TypeVar("Job")

logger = logging.getLogger("clip")

_WRITTEN = ("output", "dataset", "picture", "uri")
"""Options of jobs that name what is written. `uri` is the data set of jobs.snapshot, whose verbs write as well."""

_USER_ERRORS = (
    *(ValueError, FileNotFoundError, ConnectionError, PermissionError, StorageError),
    FloatingPointError,  # training that does not converge
    ReadError,  # storage that fails in the middle of an input file
)

_OUR_MODULES = {"builtins", "__main__", "cluster", "jobs", "pipeline"}
"""Packages whose errors are meant for the user. Libraries raise subclasses of ValueError, too (pyarrow's
ArrowInvalid)."""

_REWORDED = (
    (
        r"Does not validate against any of the Union.*?\[(.*)\]\n.*?Given value: (.*)",
        r"Expected one of \1. Got value: \2",
    ),
    (r'Parser key "([\w.]+)"', r"--\1"),
    (r"Option '(.*)' is not accepted", r"unknown option '\1'"),
    (r"Group '(.*)' does not accept option '(.*)'", r"unknown option '\1.\2'"),
    (r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1"),
    (r", NoneType", ""),
    (r"Expected an? typing\.Literal", "expected one of "),
    (r"Expected (an? )?", "expected "),
    (r"\. Got value: (.*)", r", got '\1'"),
)
"""Rewrites messages of jsonargparse into terms of the command line."""

_UNKNOWN_OPTION = re.compile(r"(?:unrecognized arguments: --|unknown option ')([\w.]+)")

_RAY_DATA_ADVICE = "\nFailed to apply UDF transform"
"""Beginning of Ray Data's advice about retries, which it appends to the message of an error that a task raised."""


def launch(
    job_class: type[Job],
    main: Callable[[Job], None],
    argv: Sequence[str] | None = None,
    *,
    words: str | None = None,
) -> None:
    """Run a job with the configuration of a command line.

    Args:
        job_class: the job's configuration, a dataclass.
        main: runs the job.
        argv: the command line; that of this process by default.
        words: the option (a list of texts) that takes the words that follow no option; without it, they are refused.

    Raises:
        SystemExit: with 2 for an error that the user can mend, with 0 after --help and --print_config, with 143 or 130
            after SIGTERM or Ctrl-C.
    """
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    signals = Signals()
    try:
        with signals:
            _run(job_class, main, sys.argv[1:] if argv is None else argv, words)
    except BaseException as error:
        if signals.status is None:  # otherwise Ray may have changed the exception, or cleaning up may have failed
            message = _message_to_user(error)
            if message is None:
                raise
            _fail(message)
    finally:
        if job_class.__module__ != "__main__":  # the process is not the job's own, and goes on
            signals.close()
    if signals.status is not None:
        sys.exit(signals.status)


def _run(job_class: type[Job], main: Callable[[Job], None], argv: Sequence[str], words: str | None) -> None:
    parser = _parser(job_class)
    options = _parse(parser, job_class, _gather(job_class, argv, words))
    job, text = job_class(**vars(parser.instantiate(options))), parser.dump(options)
    _refuse_relative_outputs(job)
    for option, uri in _uris(job).items():
        storage.check_reachable(uri, option)
    output = getattr(job, "output", None)
    if output is None:
        main(job)
        return
    storage.ensure_writable(output, "output")
    uri = storage.join(output, f"config.{_name(job_class)}.toml")
    storage.put_if_absent(uri, text.encode())  # if main refuses the folder, the folder keeps its configuration
    main(job)
    storage.write_bytes(uri, text.encode())


def _uris(config: Any, prefix: str = "") -> dict[str, str]:
    """The first URI in each bucket of S3, by the option that names it."""
    found: dict[str, str] = {}
    for field in dataclasses.fields(config):
        value, option = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            found |= _uris(value, f"{option}.")
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and storage.is_s3(text):
                found.setdefault(option, text)
    # A missing bucket counts as one here, and is refused with the name of its option
    first = {uri.split("/")[2]: option for option, uri in reversed(found.items())}
    return {option: uri for option, uri in found.items() if option in first.values()}


def _refuse_relative_outputs(job: object) -> None:
    """In a job that was submitted to a cluster, refuse relative paths of what is written.

    Its working directory is a copy that Ray unpacks on the node of the driver, and removes later.
    """
    if not is_submitted():
        return
    for option in _WRITTEN:
        path = getattr(job, option, None)
        if isinstance(path, str) and "://" not in path and not Path(path).is_absolute():
            raise ValueError(
                f"--{option} {path}: a submitted job runs in a copy of the working directory, which Ray removes; give "
                "an absolute path on a disk that all nodes share, or s3://bucket/prefix"
            )


def _parser(job_class: type[Job]) -> jsonargparse.ArgumentParser:
    jsonargparse.set_dumper("toml", _dump)
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=f"python -m jobs.{_name(job_class)}",
        parser_mode="toml",
        exit_on_error=False,
        description=job_class.__doc__,
    )
    parser.add_argument(
        "--config", action="config", help="a TOML file of options; options of the command line override it"
    )
    parser.add_class_arguments(job_class)
    return parser


def _parse(parser: jsonargparse.ArgumentParser, job_class: type, argv: Sequence[str]) -> jsonargparse.Namespace:
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    files.add_argument("--config", action="append", default=[], type=Path)
    try:
        for path in files.parse_known_args(argv)[0].config:
            _check_groups(job_class, _read_toml(path))
        options = parser.parse_args(list(argv))
    except argparse.ArgumentError as error:
        message = str(error)
        for theirs, ours in _REWORDED:
            message = re.sub(theirs, ours, message, flags=re.DOTALL)
        raise ValueError(
            message + _suggestion(message, list(parser.get_defaults(skip_validation=True).keys()))
        ) from error
    del options["config"]
    return options


def _suggestion(message: str, options: Sequence[str]) -> str:
    """The option that an unknown one was probably meant to be, as the end of a sentence; "" where none is close.

    Args:
        message: names the unknown option.
        options: all options of the job, nested ones with dots.
    """
    unknown = _UNKNOWN_OPTION.search(message)
    if unknown is None:
        return ""
    group, _, name = unknown[1].rpartition(".")
    same_name = [option for option in options if option.rpartition(".")[2] == name]
    names = {option.rpartition(".")[2]: option for option in options if option.rpartition(".")[0] == group}
    similar = [names[found] for found in difflib.get_close_matches(name, names)]
    # With a group that exists, only its own options are near: "voice.loud" resembles "voice.volume" by its group alone
    close = same_name or similar or ([] if names else difflib.get_close_matches(unknown[1], options))
    return f"; did you mean --{close[0]}?" if close else ""


def _gather(job_class: type, argv: Sequence[str], words: str | None) -> list[str]:
    """Turn lists as people type them (--labels "a dog" "a cat") into the single JSON argument that jsonargparse
    expects.

    Words after `--` follow no option.
    """
    lists = {option: (takes_only_lists, is_text) for option, takes_only_lists, is_text in _lists(job_class)}
    runs: list[list[str]] = [["--"]]
    for word in argv:
        if word.startswith("--") or word == "-h":
            runs.append([word])
        else:
            runs[-1].append(word)
    gathered: list[str] = []
    loose: list[str] = []
    for option, *values in runs:
        takes_only_lists, is_text = lists.get(option, (False, False))
        if option in lists and (len(values) > 1 or (len(values) == 1 and takes_only_lists and not _is_list(values[0]))):
            gathered.append(f"{option}={json.dumps(values) if is_text else '[' + ', '.join(values) + ']'}")
            continue
        num_own = 0 if option == "--" or "=" in option else 1
        gathered += [*([] if option == "--" else [option]), *values[:num_own]]
        loose += values[num_own:]
    if words is None:
        return gathered + loose
    return gathered + ([f"--{words}={json.dumps(loose)}"] if loose else [])


def _lists(config_class: type, prefix: str = "--") -> Iterator[tuple[str, bool, bool]]:
    """Yield each option that takes a list of texts or of numbers, whether it takes only lists, and whether of texts."""
    for name, hint in typing.get_type_hints(config_class).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _lists(hint, f"{prefix}{name}.")
            continue
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        for items in ({str}, {int}, {float}):
            if any(
                typing.get_origin(kind) in (list, tuple) and {*typing.get_args(kind)} <= {*items, ...} for kind in kinds
            ):
                yield f"{prefix}{name}", not items & {*kinds}, str in items


def _is_list(value: str) -> bool:
    return value.startswith("[") and value.endswith("]")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--config: no file '{path}'") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"--config: '{path}' is not TOML: {error}") from error


def _check_groups(config_class: type, options: dict[str, Any], prefix: str = "--") -> None:
    """Refuse a plain value for a table of options, which jsonargparse would ignore silently."""
    for name, kind in typing.get_type_hints(config_class).items():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type) and name in options:
            if not isinstance(options[name], dict):
                raise ValueError(f"{prefix}{name}: expected a table of options, got '{options[name]}'")
            _check_groups(kind, options[name], f"{prefix}{name}.")


def _name(job_class: type) -> str:
    """The name of a job: "crawl" for jobs.crawl, "demo" for jobs.demo.__main__, whether run with -m or imported."""
    module = sys.modules[job_class.__module__]
    name: str = module.__spec__.name if module.__spec__ else Path(module.__file__ or "job").stem
    return name.removesuffix(".__main__").removeprefix("jobs.")


def _dump(options: dict[str, Any]) -> str:
    return tomli_w.dumps(_without_none(options))


def _without_none(value: Any) -> Any:
    """Leave out options that are None, because TOML has no null."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def _message_to_user(error: BaseException) -> str | None:
    """What to print about an error that the user can mend. None for others."""
    cause = _cause(error)
    ours = type(cause).__module__.split(".")[0] in _OUR_MODULES
    if not (ours and isinstance(cause, _USER_ERRORS)) or os.environ.get("CLIP_TRACEBACK"):
        return None
    return str(cause).split(_RAY_DATA_ADVICE)[0]


def _fail(message: str) -> NoReturn:
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _cause(error: BaseException) -> BaseException:
    """The error that a task or an actor raised, without Ray's wrappers."""
    cause: object = getattr(error, "cause", error.args[0] if error.args else None)
    return _cause(cause) if isinstance(cause, Exception) else error
