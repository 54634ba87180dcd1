"""A part of the matrix of stores and commands; `python -m tests.perf.storage.stores` runs all of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.stores.matrix import Matrix
from tests.faults.stores.stores import STORES
from tests.perf.storage.commits import s3_server

pytestmark = pytest.mark.faults

COMMANDS = ("verify", "tag", "compact", "gc")
NAMES = (
    *("has weak ETags", "flips a bit once", "refuses checksums (501)", "needs Content-MD5 to delete"),
    *("denies deletions", "has no list type 2, small pages", "ignores If-None-Match", "lists late"),
    *("private authority, AWS_CA_BUNDLE", "private authority, unknown", "nothing listens", "is a page"),
)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """A matrix whose commands have run on the server without quirks."""
    folder, before = tmp_path_factory.mktemp("matrix"), dict(os.environ)
    try:
        with s3_server() as bucket:
            os.environ["HOME"] = str(folder)
            made = Matrix(Path(folder), bucket)
            for command in COMMANDS:
                made.expect(command)
            yield made
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_command_works_or_works_around_or_refuses_in_a_line(matrix: Matrix, name: str, command: str) -> None:
    (store,) = (store for store in STORES if store.name == name)
    cell = matrix.cell(store, command)
    assert cell.outcome != "FAILS", cell.problem
