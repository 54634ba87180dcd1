"""Measure the import and export commands: `python -m tests.perf.storage.exchange`; needs CLIP_DATA.

The 12,000 pairs of tests.perf.storage.reading are imported from webdataset tars as a snapshot (decoded for their
hashes, shuffled, committed) and exported to tars again. The images and captions must be the same bytes. Memory is the
proportional set size of all processes of a command.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from tests.perf.storage.reading import NUM_PAIRS, make
from tests.perf.training.memory import PeakMemory


def run(name: str, *arguments: str) -> None:
    """Run a job, and print its row of the table."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with PeakMemory(process.pid) as memory:
        output, _ = process.communicate()
    seconds = time.monotonic() - started
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}:\n{output[-3000:]}")
    print(f"| {name} | {seconds:.1f} | {NUM_PAIRS / seconds:,.0f} | {memory.peak_bytes / 2**20:,.0f} |", flush=True)


def contents(folder: Path) -> list[tuple[bytes, ...]]:
    """The image and caption of every pair, sorted."""
    found: dict[str, dict[str, bytes]] = {}
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                data = tar.extractfile(member)
                assert data is not None
                found.setdefault(key, {})[extension] = data.read()
    return sorted((parts["jpg"], parts["txt"]) for parts in found.values())


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        tars, run_folder, again = (str(folder / name) for name in ("tars", "run", "again"))
        print("| command | s | pairs/s | peak, MiB |\n|---|---:|---:|---:|")
        run("import", "jobs.import_pairs", f"--input={tars}", f"--output={run_folder}")
        run("export", "jobs.snapshot", "export", f"{run_folder}/dataset", f"--output={again}")
        assert contents(folder / "tars") == contents(folder / "again")


if __name__ == "__main__":
    main()
