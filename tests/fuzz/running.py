"""Run the fuzzer from tests, each target in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"page": 60, "headers": 60, "robots": 60, "warc": 60, "wat": 60, "urls": 10, "caption": 10}
FILES = {"wikitext": 60, "csv": 60, "parquet": 60, "image": 60, "exif": 60, "dump": 10, "views": 10, "tar": 10}
"""Seconds of each target, in two groups that run side by side."""


def fuzz(target: str, seconds: int, findings: Path) -> str:
    """Fuzz a target. Returns the fuzzer's last lines and the input if it finds something, else an empty string."""
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz", target, f"--seconds={seconds}", f"--findings={findings}"]
    fuzzer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    inputs = [file.read_bytes() for file in findings.iterdir()]
    return f"{fuzzer.stderr[-5_000:]}\ninputs: {inputs}" if fuzzer.returncode else ""
