"""Run the cells of the matrix on one S3 server, with one set of inputs."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import boto3

from cluster import storage
from tests.faults.stores.cells import Cell, Run, environment, judge, run
from tests.faults.stores.commands import COMMANDS, Place
from tests.faults.stores.inputs import make_inputs
from tests.faults.stores.stores import Site, Store, Variables


class Matrix:
    """The server, its inputs, and the results of commands on the server itself.

    Args:
        folder: an empty local folder.
        bucket: the URI of an empty bucket on the server of AWS_ENDPOINT_URL.
    """

    def __init__(self, folder: Path, bucket: str) -> None:
        self._server = boto3.client("s3")
        self._bucket = bucket.removeprefix("s3://")
        self._folder = folder
        (folder / "sites").mkdir()
        (folder / "home").mkdir()
        self._site = Site(self._server.meta.endpoint_url, folder / "sites")
        self._expected: dict[str, object] = {}
        make_inputs(folder / "inputs", storage.join(bucket, "inputs"))

    def expect(self, command: str) -> object:
        """The result of a command on the server itself."""
        if command not in self._expected:
            place, found = self._place(f"expected/{command}"), COMMANDS[command]
            found.prepare(place)
            done = self._run(place, command, {"AWS_ENDPOINT_URL": self._site.server})
            assert done.status == 0, "\n".join(done.err)
            self._expected[command] = found.result(place, done.out)
        return self._expected[command]

    def cell(self, store: Store, command: str) -> Cell:
        """Run a command on a store, and judge it."""
        wanted = self.expect(command)
        found, place = COMMANDS[command], self._place(f"{re.sub('[^a-zA-Z0-9]+', '-', store.name)}/{command}")
        found.prepare(place)
        before = place.files()
        with store.open(self._site) as variables:
            done = self._run(place, command, variables)
        cell = judge(found, place, done, before, wanted)
        problems = [cell.problem] if cell.problem else []
        expected = store.expected.get(command, "works")
        if cell.outcome not in (expected, "FAILS"):
            problems.append(f"{cell.outcome} and not {expected}: {cell.line}")
        if cell.line and not re.search(store.cause or "$^", cell.line):
            problems.append(f"'{store.cause}' is not said: {cell.line}")
        if not problems:
            return cell
        output = "\n".join(["", *done.err[-20:]])
        return replace(cell, outcome="FAILS", problem="; ".join(problems) + output)

    def _place(self, prefix: str) -> Place:
        return Place(self._server, self._bucket, prefix)

    def _run(self, place: Place, command: str, variables: Variables) -> Run:
        words = COMMANDS[command].words(place)
        return run(words, environment(str(self._folder / "home"), variables))
