"""Resumable runs: a folder of stages (parts.py) that belongs to one configuration. A rerun does only missing work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from cluster import storage
from cluster.parts import Output, Stage

RUN_FILE = "run.json"
"""The file that records the configuration of a run. It is written when the run begins."""


def identity(config: Any) -> Any:
    """A configuration as plain data, without the fields that do not change the output of a run.

    A dataclass marks such fields (pools, ports, connections) with `metadata={"resume_safe": True}`; the constant is
    pipeline.resume_safe.RESUME_SAFE.
    """
    if is_dataclass(config) and not isinstance(config, type):
        names = (f.name for f in fields(config) if not f.metadata.get("resume_safe"))
        return {name: identity(getattr(config, name)) for name in names}
    if isinstance(config, Mapping):
        return {str(key): identity(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [identity(value) for value in config]
    return config


@dataclass(frozen=True)
class Run:
    """A folder that belongs to one configuration. `run_id` is a hash of the configuration."""

    uri: str
    run_id: str
    configuration: Mapping[str, Any]

    @classmethod
    def open(cls, uri: str, configuration: Mapping[str, Any], *, option: str = "output") -> Run:
        """Start a run in a folder, or resume the run in it.

        Args:
            uri: the folder, a local path or s3://.
            configuration: plain data of everything that determines the output of the run, including its inputs.
            option: name of the option that sets the folder, for error messages.

        Raises:
            ValueError: the folder holds a run of another configuration, or is not writable.
        """
        uri = storage.absolute(uri)
        storage.ensure_writable(uri, option)
        requested = json.loads(json.dumps(configuration, sort_keys=True))
        record = json.dumps(requested, indent=1, sort_keys=True).encode()
        run_file = storage.join(uri, RUN_FILE)
        if not storage.put_if_absent(run_file, record):
            recorded = storage.read_twice(run_file, json.loads)
            differing = list(differences(recorded, requested))
            if differing:
                raise ValueError(
                    f"{option}={uri} holds a run of another configuration; it differs in "
                    f"{'; '.join(differing[:5])}. Choose another folder, or remove this one."
                )
        return cls(uri, _run_id(record), requested)

    @classmethod
    def read(cls, uri: str, *, option: str) -> Run:
        """The run in a folder.

        Raises:
            FileNotFoundError: the folder holds no run. The message names the option.
        """
        uri = storage.absolute(uri)
        run_file = storage.join(uri, RUN_FILE)
        if not storage.exists(run_file):
            raise FileNotFoundError(f"{option}={uri} holds no run ({RUN_FILE} is missing)")
        record, configuration = storage.read_twice(run_file, lambda data: (data, json.loads(data)))
        return cls(uri, _run_id(record), configuration)

    def output(self, name: str, num_parts: int) -> Output:
        """The newest complete generation of a stage of this run.

        Raises:
            FileNotFoundError: parts of the stage are missing.
        """
        return Output.of(self.stage(name, num_parts).newest())

    def stage(self, name: str, num_parts: int, generation: int = 0) -> Stage:
        """The stage with this name. Its number of parts depends only on the configuration, so it never changes."""
        return Stage(storage.join(self.uri, name), num_parts, generation)


def describe_files(uris: Sequence[str]) -> list[list[Any]]:
    """Name and size of each input file. A run records them, so that it is not resumed with other inputs."""

    def describe(uri: str) -> list[Any]:
        return [uri.rsplit("/", 1)[-1], storage.num_bytes(uri)]

    with ThreadPoolExecutor(32) as threads:  # one crawl of Common Crawl has 90,000 files on a web server
        return list(threads.map(describe, uris))


def hash_file(uri: str | None) -> str | None:
    """SHA-256 of an input file, or None without one. A run records it, so that it is not resumed with other content."""
    return hashlib.sha256(storage.read_bytes(uri)).hexdigest() if uri else None


def _run_id(record: bytes) -> str:
    return hashlib.sha256(record).hexdigest()[:16]


def differences(recorded: Any, requested: Any, path: str = "") -> Iterator[str]:
    """The differing values of two configurations, one line each, such as `model.width: 64 recorded, 32 requested`."""
    if isinstance(recorded, dict) and isinstance(requested, dict):
        # Keys of both configurations are more informative than keys of only one, so they come first
        shared = recorded.keys() & requested.keys()
        for key in sorted(recorded.keys() | requested.keys(), key=lambda key: (key not in shared, key)):
            yield from differences(recorded.get(key), requested.get(key), f"{path}.{key}" if path else key)
    elif recorded != requested:
        yield f"{path}: {_brief(recorded)} recorded, {_brief(requested)} requested"


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
