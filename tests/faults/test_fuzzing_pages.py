"""Fuzz what the web sends: pages, headers, robots.txt, archives (tests/fuzz)."""

from pathlib import Path

import pytest

from tests.fuzz.running import PAGES, fuzz

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]


@pytest.mark.parametrize("target", PAGES)
def test_fuzzing_finds_nothing(target: str, tmp_path: Path) -> None:
    assert fuzz(target, PAGES[target], tmp_path) == ""
