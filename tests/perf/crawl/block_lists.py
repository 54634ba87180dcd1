"""Measure the cost of block lists: `python -m tests.perf.crawl.block_lists`.

Reads a long list of each kind and looks up entries that it does not contain; prints the rows of docs/safety.md. Each
list is read in a separate process, and its size is that of its pickle, as Ray would share it.
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
"""Duration of the lookups."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of list: its option, its entries, and the lookup of an entry."""

    option: str
    entry: Callable[[int], str]
    look_up: Callable[[BlockLists, int], object]
    phash_radius: int = 3


def _digest(number: int) -> str:
    return sha256(str(number).encode()).hexdigest()


def _phash(number: int) -> str:
    return _digest(number)[:16]


def _url(number: int) -> str:
    return f"https://images-{number % 9_973}.example.org/pictures/{number}.jpg"


def _domain(number: int) -> str:
    return f"shop-{number}.example.org"


def _look_up_picture(lists: BlockLists, number: int) -> object:
    return lists.picture_block_reason(int(_phash(number), 16))


KINDS: Mapping[str, Kind] = {
    "sha256": Kind(option="block_sha256", entry=_digest, look_up=lambda lists, n: lists.file_block_reason(_digest(n))),
    "phash, radius 3": Kind(option="block_phash", entry=_phash, look_up=_look_up_picture),
    "phash, radius 10": Kind(option="block_phash", entry=_phash, look_up=_look_up_picture, phash_radius=10),
    "domains": Kind(
        option="block_domains",
        entry=_domain,
        look_up=lambda lists, n: lists.url_block_reason(f"http://www.{_domain(n)}/x.jpg"),
    ),
    "addresses": Kind(option="block_urls", entry=_url, look_up=lambda lists, n: lists.url_block_reason(_url(n))),
}


def measure(name: str, num_entries: int) -> str:
    """One row of the table: bytes in memory, seconds to read, lookups per second on one core."""
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
    started, num_lookups = time.perf_counter(), 0
    for number in count(num_entries):
        kind.look_up(lists, number)
        num_lookups += 1
        if time.perf_counter() - started > SECONDS:
            break
    return f"| {name} | {size / 1e6:,.0f} MB | {read_seconds:,.0f} s | {num_lookups / SECONDS:,.0f} |"


def main() -> None:
    """Measure every kind and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_entries", type=int, default=10_000_000)
    options = parser.parse_args()
    print(f"| list of {options.num_entries:,} | in memory | read in | lookups per second |\n|---|---:|---:|---:|")
    for name in KINDS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            print(pool.submit(measure, name, options.num_entries).result(), flush=True)


if __name__ == "__main__":
    main()
