"""What block lists cost: `python -m tests.perf.crawl.block_lists` reads long ones of each kind and asks for other
entries.

The rows of docs/safety.md. Each list is read in a process of its own, and pickled as Ray would share it.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipeline.data.safety.block_lists import BlockLists, read_block_lists
from pipeline.data.safety.screening import SafetyConfig

SECONDS = 2.0
"""Of lookups."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of list: its option, its entries, and how one is asked for."""

    option: str
    entry: Callable[[int], str]
    ask: Callable[[BlockLists, int], object]
    phash_radius: int = 3


def _digest(number: int) -> str:
    return sha256(str(number).encode()).hexdigest()


def _phash(number: int) -> str:
    return _digest(number)[:16]


def _address(number: int) -> str:
    return f"https://images-{number % 9_973}.example.org/pictures/{number}.jpg"


def _domain(number: int) -> str:
    return f"shop-{number}.example.org"


def _ask_picture(lists: BlockLists, number: int) -> object:
    return lists.why_not_picture(int(_phash(number), 16))


KINDS: Mapping[str, Kind] = {
    "sha256": Kind(option="block_sha256", entry=_digest, ask=lambda lists, n: lists.why_not_file(_digest(n))),
    "phash, radius 3": Kind(option="block_phash", entry=_phash, ask=_ask_picture),
    "phash, radius 10": Kind(option="block_phash", entry=_phash, ask=_ask_picture, phash_radius=10),
    "domains": Kind(
        option="block_domains", entry=_domain, ask=lambda lists, n: lists.why_not_url(f"http://www.{_domain(n)}/x.jpg")
    ),
    "addresses": Kind(option="block_urls", entry=_address, ask=lambda lists, n: lists.why_not_url(_address(n))),
}


def measure(name: str, num_entries: int) -> str:
    """A row of the table: bytes in memory, seconds of reading, lookups a second of one core."""
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "list.txt"
        with file.open("w") as lines:
            lines.writelines(f"{kind.entry(number)}\n" for number in range(num_entries))
        options: dict[str, Any] = {kind.option: [str(file)], "phash_radius": kind.phash_radius}
        started = time.perf_counter()
        lists = read_block_lists(SafetyConfig(**options), partial(open, mode="rb"))
        read_seconds = time.perf_counter() - started
    size = len(pickle.dumps(lists, 5))
    started, asked = time.perf_counter(), 0
    for number in count(num_entries):
        kind.ask(lists, number)
        asked += 1
        if time.perf_counter() - started > SECONDS:
            break
    return f"| {name} | {size / 1e6:,.0f} MB | {read_seconds:,.0f} s | {asked / SECONDS:,.0f} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_entries", type=int, default=10_000_000)
    options = parser.parse_args()
    print(f"| list of {options.num_entries:,} | in memory | read in | lookups a second |\n|---|---:|---:|---:|")
    for name in KINDS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            print(pool.submit(measure, name, options.num_entries).result(), flush=True)


if __name__ == "__main__":
    main()
