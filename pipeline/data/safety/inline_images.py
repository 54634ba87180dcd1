"""Screen the images that candidates already contain (data: URLs, tables of images) before they are written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.reasons import SAFETY
from pipeline.schemas import with_reasons

Transform = Callable[[pa.Table], pa.Table]


class InlineImages:
    """Removes blocked and unsafe images from CANDIDATES, and the images of dropped rows.

    Args:
        crawl: maps CANDIDATES to FETCHED and applies the block lists (crawler.py).
        screen: maps FETCHED to FETCHED and applies the classifier (screening.py).
    """

    def __init__(self, crawl: Transform, screen: Transform) -> None:
        self._crawl, self._screen = crawl, screen

    def __call__(self, table: pa.Table) -> pa.Table:
        """CANDIDATES; a row whose image is blocked or unsafe has that reason, and no image."""
        to_screen = pc.and_(table["image"].is_valid(), table["reason"].is_null())
        rows = np.flatnonzero(to_screen.to_numpy())
        reasons: list[str | None] = table["reason"].to_pylist()
        if len(rows):
            for row, reason in zip(
                rows, self._screen(self._crawl(table.take(rows)))["reason"].to_pylist(), strict=True
            ):
                reasons[row] = reason if reason in SAFETY else None
        table = with_reasons(table, reasons)
        image = pc.if_else(table["reason"].is_null(), table["image"], pa.scalar(None, pa.large_binary()))
        return table.set_column(table.schema.get_field_index("image"), "image", image)
