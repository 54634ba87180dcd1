"""Predictions of a set for tests that define only which samples are correct."""

from collections.abc import Sequence

import pyarrow as pa

from pipeline.eval.protocols.suite import CLASSIFIED


def classified(right: Sequence[bool]) -> pa.Table:
    """A CLASSIFIED table with samples numbered from 0."""
    rows: list[dict[str, object]] = [
        {"sample": i, "truth": "a", "predicted": "a" if hit else "b", "labels": [], "probabilities": []}
        for i, hit in enumerate(right)
    ]
    return pa.Table.from_pylist(rows, schema=CLASSIFIED)
