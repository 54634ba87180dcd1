import re

import pytest

from tests.perf.crawl.block_lists import KINDS, measure


@pytest.mark.parametrize("name", KINDS)
def test_measuring_a_row(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.perf.crawl.block_lists.SECONDS", 0.005)
    assert re.fullmatch(rf"\| {name} \| [\d,]+ MB \| \d+ s \| [\d,]+ \|", measure(name, 1_000))
