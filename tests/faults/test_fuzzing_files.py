"""Fuzz files of others: wikitext, page views, tables, tars, images (tests/fuzz)."""

from pathlib import Path

import pytest

from tests.fuzz.running import FILES, PAGES, fuzz
from tests.fuzz.targets import TARGETS

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]


@pytest.mark.parametrize("target", FILES)
def test_fuzzing_finds_nothing(target: str, tmp_path: Path) -> None:
    assert fuzz(target, FILES[target], tmp_path) == ""


def test_every_target_is_fuzzed() -> None:
    assert {*PAGES, *FILES} == {*TARGETS}
