"""Fixtures of the tests of imitated stores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.stores.imitated import ImitatedStore, Opener, Quirk


@pytest.fixture
def open_store() -> Iterator[Opener]:
    """Open an imitated store with quirks, until the test ends."""
    with ExitStack() as stack:

        def open_it(*quirks: Quirk, **options: Any) -> ImitatedStore:
            return stack.enter_context(ImitatedStore(os.environ["AWS_ENDPOINT_URL"], *quirks, **options))

        yield open_it


@pytest.fixture
def bucket(s3: str) -> str:
    return s3.removeprefix("s3://")


@pytest.fixture
def key(tmp_path: Path) -> str:
    return f"{tmp_path.name}/a key/1%25+#&ä"
