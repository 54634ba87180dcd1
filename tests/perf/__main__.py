"""Measure the performance table: `python -m tests.perf` (or `make bench`) prints it and updates docs/results.md."""

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
    """The rows as a Markdown table."""
    lines = ["| work | unit | ours | peer | peer's name | ratio | command |", "|---|---|---:|---:|---|---:|---|"]
    for row in rows:
        figures = f"{row.ours:,.0f} | {row.peer:,.0f} | {row.peer_name} | {row.ratio:.2f}"
        lines.append(f"| {row.work} | {row.unit} | {figures} | {COMMAND} |")
    return "\n".join(lines)


def insert(document: str, text: str) -> str:
    """The document with the text between the markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    if BEGIN not in document or END not in document:
        raise ValueError(f"docs/results.md: put the markers {BEGIN} and {END} around the table")
    head, rest = document.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """Run the measurements, print their table, and write it into docs/results.md."""
    measured = []
    on_real_data = (matching, counting, extraction, tokenizing) if DATA.exists() else ()
    if not on_real_data:
        print(
            f"matching, counting, extraction and tokenizing are skipped: no real data at {DATA} (CLIP_DATA)",
            file=sys.stderr,
        )
    for measure in (*ROWS, *on_real_data):
        print(f"{measure.__name__} ...", file=sys.stderr, flush=True)
        measured.append(measure())
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}; ours and the peer alternate in one run."
    text = f"{machine}\n\n{table(measured)}"
    print(text)
    RESULTS.write_text(insert(RESULTS.read_text(), text))


if __name__ == "__main__":
    main()
