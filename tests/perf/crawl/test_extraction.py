from pathlib import Path

import pytest

from tests.perf.crawl import extraction


@pytest.mark.realdata
def test_both_readers_find_the_same_fields(clip_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "DATA", clip_data)
    assert extraction.write_wat(tmp_path / "x.warc.wat.gz", 1) > 4_000_000
    found = extraction.ours(tmp_path / "x.warc.wat.gz")
    assert found == extraction.peer(tmp_path / "x.warc.wat.gz")
    assert sum(len(fields.images) for fields in found) > 1000
