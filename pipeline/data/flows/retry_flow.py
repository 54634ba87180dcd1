"""Rounds of later attempts: a crawl's rows that had failed, or moved to another domain, asked for once more.

Every round is a new generation of the stage `fetched` (cluster/parts.py). What a round asks for is written down before
it begins, so a run that is killed in one goes on with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial

import pyarrow as pa

from cluster import storage
from cluster.parts import Output
from cluster.runs import Run
from cluster.stages import Stages
from pipeline.data.crawl.retries import Retry, as_answers, due, merge, reasons_of
from pipeline.data.flows.bucketing import by_domain
from pipeline.data.flows.crawl_flow import IMAGE_GROUPS, CrawlConfig, crawlers
from pipeline.data.safety.block_lists import BlockLists
from pipeline.reasons import Reason
from pipeline.schemas import FETCHED


def later_attempts(
    stages: Stages, fetched: Output, retry: Retry | None, config: CrawlConfig, lists: BlockLists
) -> Output:
    """Go on with the rounds that have begun, follow what has moved, and make the round that is asked for.

    Where the job has not ended since a round of the kind that is asked for began, that round is the one that is meant.
    """
    begun = _begun(stages.run)
    asked = [kind for kind in begun if kind != "moved"]
    if asked and asked[-1] == retry and not _has_ended(stages.run, len(begun)):
        retry = None
    while True:
        generation = fetched.stage.generation + 1
        if generation > len(begun):
            if Reason.MOVED in fetched.reasons():
                begun.append("moved")
            elif retry is not None and reasons_of(retry) & fetched.reasons().keys():
                begun.append(retry)
                retry = None
            else:
                return fetched
            storage.put_if_absent(_record(stages.run, generation), json.dumps(begun[-1]).encode())
        fetched = attempt_again(stages, fetched, begun[:generation], config, lists)


def _begun(run: Run) -> list[Retry]:
    rounds: list[Retry] = []
    while storage.exists(_record(run, len(rounds) + 1)):
        rounds.append(json.loads(storage.read_bytes(_record(run, len(rounds) + 1))))
    return rounds


def _has_ended(run: Run, generation: int) -> bool:
    """Whether the job has ended since that round: its funnel, the last thing that it writes, tells of it then."""
    place = storage.join(run.uri, "funnel.json")
    stages = json.loads(storage.read_bytes(place)) if storage.exists(place) else []
    return any(stage["stage"] == f"answers-{generation}" for stage in stages)


def _record(run: Run, generation: int) -> str:
    return storage.join(run.uri, f"attempts-{generation}.json")


def attempt_again(
    stages: Stages, fetched: Output, rounds: Sequence[Retry], config: CrawlConfig, lists: BlockLists
) -> Output:
    """The next generation of FETCHED: rows with reasons of a kind asked for once more, all others as they are.

    A row is asked for by the actor that has the registered domain where it is now, and then goes back to its part.

    Args:
        stages: of the run.
        fetched: the generation before.
        rounds: all rounds up to this one. Rows that have moved as often as `max_redirects` in a row move no more.
        config: of the crawl.
        lists: what must not get in.
    """
    parts, generation = config.fetch_parts, len(rounds)
    num_moves = next((number for number, kind in enumerate(reversed(rounds)) if kind != "moved"), generation)
    columns = [name for name in FETCHED.names if name != "jpg"]

    def open_rows(part: int) -> pa.Table | None:
        table = fetched.dropped(part, columns)
        return None if table is None else due(table, rounds[-1])

    asked = stages(
        f"attempts-{generation}",
        parts,
        open_rows,
        bucketing=by_domain("redirect_url", parts, "url"),
        num_buckets=parts,
    )
    answers = stages(
        f"answers-{generation}",
        parts,
        asked.bucket,
        pools=crawlers(config, lists),
        finish=partial(as_answers, may_move=num_moves < config.fetch.max_redirects),
        bucketing=by_domain("url", parts),
        num_buckets=parts,
        row_groups=IMAGE_GROUPS,
    )

    def merged(part: int) -> pa.Table | None:
        before = fetched.with_dropped(part)
        return None if before is None else merge(before, answers.bucket(part))

    after = stages("fetched", parts, merged, row_groups=IMAGE_GROUPS, generation=generation)
    after.delete_files_of(fetched)
    return after
