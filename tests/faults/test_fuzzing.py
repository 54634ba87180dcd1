"""Fuzz everything that reads input from outside, a minute each (tests/fuzz)."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

SECONDS = 60
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.faults, pytest.mark.timeout(4 * SECONDS)]


@pytest.mark.parametrize("target", TARGETS)
def test_a_minute_of_fuzzing_finds_nothing(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz", target, f"--seconds={SECONDS}", f"--findings={tmp_path}"]
    fuzzer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert fuzzer.returncode == 0, fuzzer.stderr[-5_000:] + "".join(
        str(file.read_bytes()) for file in tmp_path.iterdir()
    )
