"""Fixtures for locations of data sets."""

from pathlib import Path

import pytest


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """The URI of an empty data set in a local folder."""
    return str(tmp_path / "data set")


@pytest.fixture(params=["local", "file", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URI of an empty data set, once for each kind of storage."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    return str(tmp_path / "data set") if request.param == "local" else (tmp_path / "data-set").as_uri()
