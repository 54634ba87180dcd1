"""Retry rows of a crawl that failed or moved to another domain, in rounds.

Every round writes a new generation of the stage `fetched` (cluster/parts.py). The kind of a round is recorded before
the round begins, so a run that is killed resumes the round.
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
from pipeline.data.crawl.retries import Retry, as_answers, due, merge, reasons_to_retry
from pipeline.data.flows.bucketing import by_domain
from pipeline.data.flows.crawl_flow import IMAGE_GROUPS, CrawlConfig, crawlers
from pipeline.data.safety.block_lists import BlockLists
from pipeline.reasons import Reason
from pipeline.schemas import FETCHED


def later_attempts(
    stages: Stages, fetched: Output, retry: Retry | None, config: CrawlConfig, lists: BlockLists
) -> Output:
    """Resume rounds that have begun, run rounds that follow moved rows, and run the requested round.

    If an unfinished job already began a round of the requested kind, that round is resumed.
    """
    begun = _begun(stages.run)
    requested = [kind for kind in begun if kind != "moved"]
    if requested and requested[-1] == retry and not _has_ended(stages.run, len(begun)):
        retry = None
    while True:
        generation = fetched.stage.generation + 1
        if generation > len(begun):
            if Reason.MOVED in fetched.reasons():
                begun.append("moved")
            elif retry is not None and reasons_to_retry(retry) & fetched.reasons().keys():
                begun.append(retry)
                retry = None
            else:
                return fetched
            storage.put_if_absent(_record(stages.run, generation), json.dumps(begun[-1]).encode())
        fetched = attempt_again(stages, fetched, begun[:generation], config, lists)


def _begun(run: Run) -> list[Retry]:
    """The kinds of all rounds that have begun, in order."""
    rounds: list[Retry] = []
    while storage.exists(_record(run, len(rounds) + 1)):
        rounds.append(json.loads(storage.read_bytes(_record(run, len(rounds) + 1))))
    return rounds


def _has_ended(run: Run, generation: int) -> bool:
    """Whether the job has ended since that round. The job writes funnel.json last, with the stages of the round."""
    funnel = storage.join(run.uri, "funnel.json")
    stages = json.loads(storage.read_bytes(funnel)) if storage.exists(funnel) else []
    return any(stage["stage"] == f"answers-{generation}" for stage in stages)


def _record(run: Run, generation: int) -> str:
    """The URI of the file that records the kind of a round."""
    return storage.join(run.uri, f"attempts-{generation}.json")


def attempt_again(
    stages: Stages, fetched: Output, rounds: Sequence[Retry], config: CrawlConfig, lists: BlockLists
) -> Output:
    """Write the next generation of FETCHED: retry the rows of the last round's kind, and copy all other rows.

    A row is fetched by the actor that owns its current registered domain, and is then written to its original part.

    Args:
        stages: the stages of the run.
        fetched: the previous generation.
        rounds: the kinds of all rounds up to this one. A row is no longer followed after `max_redirects` consecutive
            "moved" rounds.
        config: the options of the crawl.
        lists: URLs, domains, files and pictures to block.
    """
    parts, generation = config.fetch_parts, len(rounds)
    num_moves = next((number for number, kind in enumerate(reversed(rounds)) if kind != "moved"), generation)
    columns = [name for name in FETCHED.names if name != "jpg"]

    def open_rows(part: int) -> pa.Table | None:
        table = fetched.dropped(part, columns)
        return None if table is None else due(table, rounds[-1])

    attempts = stages(
        f"attempts-{generation}",
        parts,
        open_rows,
        bucketing=by_domain("redirect_url", parts, "url"),
        num_buckets=parts,
    )
    answers = stages(
        f"answers-{generation}",
        parts,
        attempts.bucket,
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
    after.delete_replaced_files(fetched)
    return after
