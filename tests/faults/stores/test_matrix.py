"""A part of the matrix: a store whose lacks are worked around, one that is refused, one that fails in the middle.

`python -m tests.perf.storage.stores` runs all of it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.faults.stores.cells import Cell
from tests.faults.stores.commands import COMMANDS
from tests.faults.stores.matrix import Matrix
from tests.faults.stores.stores import STORES, Store

pytestmark = [pytest.mark.faults, pytest.mark.cluster]

PART = {
    "needs Content-MD5 to delete": tuple(COMMANDS),
    "ignores If-None-Match": tuple(COMMANDS),
    "denies contents": tuple(COMMANDS),
    "private authority, unknown": ("import", "verify"),
    "behind a proxy, bucket in the host name, TLS": ("import", "verify", "status"),
    "everything in a profile, with TLS": ("verify", "status"),
    "is silent": ("list",),
}
"""What is run here of the matrix, by store."""


@pytest.fixture(scope="module")
def cells(s3: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Cell]]:
    """The cells by store and command; two commands run at once."""
    matrix = Matrix(tmp_path_factory.mktemp("matrix"), s3)
    stores = {store.name: store for store in STORES}
    pairs = [(stores[name], command) for name, commands in PART.items() for command in commands]
    found: dict[str, dict[str, Cell]] = {name: {} for name in PART}
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(matrix.expect, COMMANDS))

        def cell_of(pair: tuple[Store, str]) -> Cell:
            return matrix.cell(*pair)

        for (store, command), cell in zip(pairs, threads.map(cell_of, pairs), strict=True):
            found[store.name][command] = cell
    return found


@pytest.mark.parametrize("name", PART)
def test_every_command_works_says_what_it_does_instead_or_refuses(cells: dict[str, dict[str, Cell]], name: str) -> None:
    problems = {command: cell.problem for command, cell in cells[name].items() if cell.outcome == "FAILS"}
    assert problems == {}


def test_the_stores_of_the_part_differ(cells: dict[str, dict[str, Cell]]) -> None:
    """Cells are not all of one kind, as they would be if the quirks did nothing."""
    outcomes = [cell.outcome for by_command in cells.values() for cell in by_command.values()]
    assert set(outcomes) == {"works", "around", "refused"}
