"""Run stages on Ray Data: read each part, process it in pools of actors, write it, and skip complete parts.

A part is one Ray Data block, marked with the number of the part. The function of a pool returns every row: it drops a
row by setting the row's `reason`. So a block is never empty and never mixes parts, and every row is accounted for. Ray
Data schedules and retries tasks and balances the load; manifests (cluster/parts.py) record which parts are complete.
"""

from __future__ import annotations

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.data

from cluster import storage
from cluster.orphans import remove_orphans
from cluster.part_file import ROW_GROUPS, RowGroups
from cluster.parts import Output, Stage
from cluster.resources import Pool
from cluster.runs import Run
from cluster.telemetry import Events, Progress

logger = logging.getLogger("clip")

T = TypeVar("T")

ReadPart = Callable[[int], pa.Table | None]
Transform = Callable[[pa.Table], pa.Table]
Bucketing = Callable[[pa.Table], np.ndarray[Any, np.dtype[np.int32]]]
Work = Callable[[pa.Table], pa.Table | Iterator[pa.Table]]
"""Processes the rows of a part. An iterator of tables is written one table at a time."""
Factory = Callable[[], Work]
"""Creates the function of an actor. Called once in each actor of a pool."""

GC_THRESHOLD = 20_000
"""The default threshold of 700 objects triggers many collections per image."""
_PART = "__part__"


def shared(value: T) -> Callable[[], T]:
    """Put a value into Ray's object store once. The returned function gets the value in any task or actor."""
    reference = ray.put(value)
    return lambda: ray.get(reference)


class Stages:
    """Runs the stages of one run. Keeps their outputs for the funnel, and records their times in events.jsonl.

    Args:
        run: the run.
        max_shares: for some reasons, the maximum share of a stage's rows that may be dropped for it.
    """

    def __init__(self, run: Run, max_shares: Mapping[str, float] | None = None) -> None:
        self.run = run
        self._max_shares = max_shares or {}
        self.outputs: dict[str, Output] = {}
        self.events = Events(storage.join(run.uri, "events.jsonl"))

    def __call__(
        self,
        name: str,
        num_parts: int,
        read: ReadPart,
        *,
        pools: Sequence[tuple[Factory, Pool]] = (),
        finish: Transform | None = None,
        bucketing: Bucketing | None = None,
        num_buckets: int = 1,
        row_groups: RowGroups = ROW_GROUPS,
        uri: str | None = None,
        generation: int = 0,
    ) -> Output:
        """Run the parts of a stage that are not complete yet.

        Args:
            name: name of the stage, and of its folder in the run.
            num_parts: number of parts.
            read: reads the rows of a part. None or a table without rows gives an empty part.
            pools: a factory of the actors' function for each pool. The function must return every row.
            finish: function applied last to the rows of a part. It may change the number of rows.
            bucketing: computes the bucket of each row. By default all rows are in one bucket.
            num_buckets: number of buckets.
            row_groups: limits of a row group.
            uri: folder of the stage, if it is outside the run's folder: that of a data set, which keeps all its files.
            generation: number of times that the stage has been redone.

        Raises:
            FileNotFoundError: a part was not written.
            ValueError: too many rows were dropped for a reason of `max_shares`. The stage is complete.
        """
        started = time.monotonic()
        stage = Stage(uri, num_parts) if uri else self.run.stage(name, num_parts, generation)
        listing = stage.listing()
        complete = stage.complete(listing)
        pending = sorted(set(range(num_parts)) - complete.keys())
        if pending:
            self.events.append(
                "stage_started", stage=name, uri=stage.uri, parts=num_parts, generation=generation, pending=len(pending)
            )
            writer = _Writer(stage, finish, bucketing, num_buckets, row_groups)
            dataset: Any = ray.data.from_arrow([pa.table({_PART: pa.array([index], pa.int32())}) for index in pending])
            dataset = dataset.map_batches(_Reader(read, writer), batch_size=1, batch_format="pyarrow")
            for number, (factory, pool) in enumerate(pools, 1):
                # The actors of the last pool write the part, so that images are not copied to another process
                arguments = (factory, writer if number == len(pools) else None)
                dataset = dataset.map_batches(_Actor, fn_constructor_args=arguments, **pool.map_batches_arguments())
            if not pools:
                dataset = dataset.map_batches(
                    writer.of_block, batch_size=None, batch_format="pyarrow", zero_copy_batch=True
                )
            with Progress(name, len(pending), "parts") as progress:
                for block in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                    progress.update(block.num_rows)
                progress.update(len(pending) - progress.done)  # empty parts, which have no block
            listing = stage.listing()
            complete = stage.complete(listing, complete)
        output = Output.of(stage, complete)
        if uri is None:  # a folder elsewhere belongs to a data set
            remove_orphans(output, listing)
        self._check_shares(name, output)
        self.outputs[name] = output
        num_dropped = output.num_rows - output.num_kept
        logger.info("%s: %s rows kept, %s dropped", name, f"{output.num_kept:,}", f"{num_dropped:,}")
        if pending:
            seconds = round(time.monotonic() - started, 3)
            self.events.append(
                "stage", stage=name, parts=len(pending), seconds=seconds, kept=output.num_kept, dropped=num_dropped
            )
        return output

    def _check_shares(self, name: str, output: Output) -> None:
        reasons = output.reasons()
        for reason, max_share in self._max_shares.items():
            count = reasons.get(reason, 0)
            if count > max_share * output.num_rows:
                raise ValueError(
                    f"{name}: {count:,} of {output.num_rows:,} rows have the reason {str(reason)!r}, more than the "
                    f"share of {max_share:g} that the job allows (max_unforeseen_share); see their messages in "
                    f"{output.stage.uri}. With a higher share, the job continues without these rows."
                )

    def funnel(self) -> list[dict[str, Any]]:
        """Rows kept, rows dropped by reason, and seconds over all resumes, for each stage in order; plain data."""
        seconds: Counter[str] = Counter()
        for event in self.events.read():
            if event["event"] == "stage":
                seconds[event["stage"]] += event["seconds"]
        return [
            {"stage": name, "kept": output.num_kept, "dropped": output.reasons(), "seconds": round(seconds[name], 3)}
            for name, output in self.outputs.items()
        ]


@dataclass(frozen=True)
class _Writer:
    """Finishes and writes a part, and returns one row with the number of the part."""

    stage: Stage
    finish: Transform | None
    bucketing: Bucketing | None
    num_buckets: int
    row_groups: RowGroups

    def __call__(self, index: int, pieces: Iterable[pa.Table]) -> pa.Table:
        if self.finish or self.num_buckets > 1:
            table = pa.concat_tables(pieces)
            self.write(index, self.finish(table) if self.finish else table)
        else:
            self.stage.write_pieces(index, [pieces], row_groups=self.row_groups)
        return pa.table({_PART: pa.array([index], pa.int32())})

    def of_block(self, block: pa.Table) -> pa.Table:
        index, table = _unmark(block)
        return self(index, [table])

    def write(self, index: int, table: pa.Table) -> None:
        buckets = self.bucketing(table) if self.bucketing and table.num_rows else None
        self.stage.write(index, table, buckets=buckets, num_buckets=self.num_buckets, row_groups=self.row_groups)


@dataclass(frozen=True)
class _Reader:
    """Reads a part. Ray Data has no blocks without rows, so a part without rows is written here."""

    read: ReadPart
    writer: _Writer

    def __call__(self, block: pa.Table) -> pa.Table:
        index = block[_PART][0].as_py()
        table = self.read(index)
        if table is None or table.num_rows == 0:
            table = pa.table({}) if table is None else table
            self.writer.write(index, table)
        return _mark(index, table)


class _Actor:
    """Applies the function of a pool, checks that it returned every row, and writes the part in the last pool."""

    def __init__(self, factory: Factory, writer: _Writer | None) -> None:
        self._function, self._writer = factory(), writer
        # Existing objects are permanent; scanning them in every collection takes a crawler 15% of its time
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)

    def __call__(self, block: pa.Table) -> pa.Table:
        index, table = _unmark(block)
        pieces = self._pieces(table)
        return self._writer(index, pieces) if self._writer else _mark(index, pa.concat_tables(pieces))

    def _pieces(self, table: pa.Table) -> Iterator[pa.Table]:
        result = self._function(table)
        num_rows = 0
        for piece in [result] if isinstance(result, pa.Table) else result:
            num_rows += piece.num_rows
            yield piece
        assert num_rows == table.num_rows, f"{self._function}: {table.num_rows} rows in, {num_rows} out"


def _mark(index: int, table: pa.Table) -> pa.Table:
    return table.append_column(_PART, pa.array(np.full(table.num_rows, index, np.int32)))


def _unmark(block: pa.Table) -> tuple[int, pa.Table]:
    numbers = block[_PART].unique()
    assert len(numbers) == 1, (
        f"a block of parts {numbers}: Ray Data merged parts despite the settings in cluster/session.py"
    )
    return numbers[0].as_py(), block.drop_columns([_PART])
