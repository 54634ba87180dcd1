"""Runs that resume: a folder of stages (parts.py) that one configuration owns. A rerun does what is missing."""

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
"""What a run was configured with; it is there from the run's beginning."""


def identity(config: Any) -> Any:
    """A configuration as plain data, less what does not change what a run produces.

    A dataclass says so of a field (pools, ports, connections) with `metadata={"resume_safe": True}`, which pipeline has
    as pipeline.resume_safe.RESUME_SAFE.
    """
    if is_dataclass(config) and not isinstance(config, type):
        kept = (f.name for f in fields(config) if not f.metadata.get("resume_safe"))
        return {name: identity(getattr(config, name)) for name in kept}
    if isinstance(config, Mapping):
        return {str(key): identity(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [identity(value) for value in config]
    return config


@dataclass(frozen=True)
class Run:
    """A folder that one configuration owns. `run_id` is a hash of the configuration."""

    uri: str
    run_id: str
    configuration: Mapping[str, Any]

    @classmethod
    def open(cls, uri: str, configuration: Mapping[str, Any], *, option: str = "output") -> Run:
        """Start a run in a folder, or go on with the one it holds.

        Args:
            uri: the folder, local or s3://.
            configuration: plain data of everything that decides what the run produces, its inputs included.
            option: name of the option that gave the folder, for messages.

        Raises:
            ValueError: the folder holds a run of another configuration, or cannot be written.
        """
        uri = storage.absolute(uri)
        storage.ensure_writable(uri, option)
        wanted = json.loads(json.dumps(configuration, sort_keys=True))
        record = json.dumps(wanted, indent=1, sort_keys=True).encode()
        place = storage.join(uri, RUN_FILE)
        if not storage.put_if_absent(place, record):
            found = json.loads(storage.read_bytes(place))
            differing = list(differences(found, wanted))
            if differing:
                raise ValueError(
                    f"{option}={uri} holds a run of another configuration; it differs in "
                    f"{'; '.join(differing[:5])}. Choose another folder, or remove this one."
                )
        return cls(uri, _run_id(record), wanted)

    @classmethod
    def read(cls, uri: str, *, option: str) -> Run:
        """The run that a folder holds.

        Raises:
            FileNotFoundError: it holds none; the message names the option.
        """
        uri = storage.absolute(uri)
        place = storage.join(uri, RUN_FILE)
        if not storage.exists(place):
            raise FileNotFoundError(f"{option}={uri}: no run is there ({RUN_FILE} is missing)")
        record = storage.read_bytes(place)
        return cls(uri, _run_id(record), json.loads(record))

    def output(self, name: str, num_parts: int) -> Output:
        """The newest generation of a stage of this run that is complete.

        Raises:
            FileNotFoundError: parts of it are missing.
        """
        return Output.of(self.stage(name, num_parts).newest())

    def stage(self, name: str, num_parts: int, generation: int = 0) -> Stage:
        """The stage of that name. The number of parts is a function of the configuration, so it never changes."""
        return Stage(storage.join(self.uri, name), num_parts, generation)


def describe_files(uris: Sequence[str]) -> list[list[Any]]:
    """Name and bytes of each input file: what a run remembers of its inputs, so that it is not resumed on others."""

    def describe(uri: str) -> list[Any]:
        filesystem, path = storage.filesystem(uri)
        info = filesystem.get_file_info(path)
        return [info.base_name, info.size]

    with ThreadPoolExecutor(32) as threads:  # a crawl of Common Crawl has 90,000 files behind a web server
        return list(threads.map(describe, uris))


def hash_file(uri: str | None) -> str | None:
    """SHA-256 of an input that is read whole, where there is one: a run of other content is another run."""
    return hashlib.sha256(storage.read_bytes(uri)).hexdigest() if uri else None


def _run_id(record: bytes) -> str:
    return hashlib.sha256(record).hexdigest()[:16]


def differences(found: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """Where plain data is not what was asked for: a line for each place, as `model.width: 64 there, 32 asked for`."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        # What both have says more than what only one has, so it comes first
        for key in sorted(found.keys() | wanted.keys(), key=lambda key: (key not in found or key not in wanted, key)):
            yield from differences(found.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif found != wanted:
        yield f"{path}: {_brief(found)} there, {_brief(wanted)} asked for"


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
