"""The performance table: `python -m tests.perf` (or `make bench`) prints it and writes it into docs/results.md."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.perf.corpus.counting import counting
from tests.perf.corpus.rows import ROWS, Row
from tests.perf.crawl.extraction import extraction
from tests.perf.crawl.matching import DATA, matching
from tests.perf.training.tokenizing import tokenizing

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results.md"
BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
COMMAND = "`make bench`"


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| work | unit | ours | peer | peer's name | ratio | command |", "|---|---|---:|---:|---|---:|---|"]
    for row in rows:
        figures = f"{row.ours:,.0f} | {row.peer:,.0f} | {row.peer_name} | {row.ratio:.2f}"
        lines.append(f"| {row.work} | {row.unit} | {figures} | {COMMAND} |")
    return "\n".join(lines)


def insert(document: str, text: str) -> str:
    """The document with what is between the markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    if BEGIN not in document or END not in document:
        raise ValueError(f"docs/results.md: the markers {BEGIN} and {END} are needed around the table")
    head, rest = document.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """Measure, print, write."""
    measured = []
    of_data = (matching, counting, extraction, tokenizing) if DATA.exists() else ()
    if not of_data:
        print(
            f"matching, counting, extraction and tokenizing are left out: no real data at {DATA} (CLIP_DATA)",
            file=sys.stderr,
        )
    for measure in (*ROWS, *of_data):
        print(f"{measure.__name__} ...", file=sys.stderr, flush=True)
        measured.append(measure())
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}; ours and the peer in turns, in one run."
    text = f"{machine}\n\n{table(measured)}"
    print(text)
    RESULTS.write_text(insert(RESULTS.read_text(), text))


if __name__ == "__main__":
    main()
