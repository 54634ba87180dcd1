"""Rows of tables with image URLs or images and captions, and the names of their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.printable import printable
from pipeline.reasons import Reason

URL_COLUMNS = ("url", "URL")
CAPTION_COLUMNS = ("caption", "text", "TEXT", "captions")
IMAGE_COLUMNS = ("image", "jpg", "png", "webp")
_MAX_SHOWN = 50


class Row(NamedTuple):
    """One row of a table, or the reason why it cannot be read."""

    number: int
    """Index in the table."""
    values: Mapping[str, Any]
    """Values by column. Strings of Parquet tables are bytes, because nothing guarantees that they are valid UTF-8."""
    reason: Reason | None = None
    message: str | None = None


def pair_columns(names: Sequence[str]) -> tuple[str | None, str | None, str | None]:
    """The names of the columns that contain URLs, captions and images; None for a missing column."""
    url, caption, image = (
        next((name for name in accepted if name in names), None)
        for accepted in (URL_COLUMNS, CAPTION_COLUMNS, IMAGE_COLUMNS)
    )
    return url, caption, image


def reason_of_row(error: Exception) -> Reason:
    """The reason of a row that raised an error when it was read: only text that is not UTF-8 is foreseen."""
    return Reason.BROKEN_RECORD if isinstance(error, UnicodeDecodeError) else Reason.UNFORESEEN


def shown(names: Sequence[str]) -> str:
    """The names of columns for an error message."""
    first = str([printable(name) for name in names[:_MAX_SHOWN]])
    return first if len(names) <= _MAX_SHOWN else f"{first[:-1]}, ...] ({len(names)} columns)"
