"""Every command on every imitated store: `python -m tests.perf.storage.stores` (about half an hour on two cores).

Prints a line for each finished cell, and then the table in Markdown: a command works, works around what the store lacks
and says so, or refuses in one line. Anything else FAILS, is printed with its output, and makes the status 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.stores.cells import Cell
from tests.faults.stores.commands import COMMANDS
from tests.faults.stores.matrix import Matrix
from tests.faults.stores.stores import STORES, Store
from tests.perf.storage.commits import s3_server

_SHORT = {"works": "yes", "around": "around", "refused": "line", "FAILS": "**FAILS**"}


def table(cells: Mapping[tuple[str, str], Cell], stores: Sequence[Store], commands: Sequence[str]) -> str:
    """The matrix in Markdown, with what is said on each store."""
    rows = [["store", *commands, "what is said"], ["---"] * (len(commands) + 2)]
    for store in stores:
        own = [cells[store.name, command] for command in commands]
        said = next((cell.line for cell in own if cell.line), "")
        rows.append([store.name, *(_SHORT[cell.outcome] for cell in own), said.replace("|", "\\|")])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Run the matrix, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", nargs="+", default=[store.name for store in STORES])
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--at_once", type=int, default=2, help="commands that run at once")
    options = parser.parse_args()
    stores = [store for store in STORES if any(name in store.name for name in options.stores)]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, s3_server() as bucket:
        os.environ["HOME"] = folder
        matrix = Matrix(Path(folder), bucket)
        for command in options.commands:
            matrix.expect(command)

        def cell_of(named: tuple[Store, str]) -> Cell:
            store, command = named
            cell = matrix.cell(store, command)
            print(f"{store.name} x {command}: {cell.outcome} in {cell.seconds:.0f} s", cell.problem, flush=True)
            return cell

        pairs = [(store, command) for store in stores for command in options.commands]
        with ThreadPoolExecutor(options.at_once) as threads:
            cells = list(threads.map(cell_of, pairs))
    found = {(store.name, command): cell for (store, command), cell in zip(pairs, cells, strict=True)}
    print(table(found, stores, options.commands))
    print(f"\n{len(found)} cells in {time.monotonic() - begun:.0f} s")
    sys.exit(any(cell.outcome == "FAILS" for cell in found.values()))


if __name__ == "__main__":
    main()
