"""Rounds of later attempts: a crawl's rows that had failed, or moved to another domain, asked for once more.

Every round is a new generation of the stage `fetched` (cluster/parts.py). What a round asks for is written down before
it begins, so a run that is killed in one goes on with it.
"""

from __future__ import annotations

import json

import pyarrow as pa

from cluster import storage
from cluster.parts import Output
from cluster.runs import Run
from cluster.stages import Stages
from pipeline.data.attempts import Retry, as_answers, due, merge
from pipeline.data.block_lists import BlockLists
from pipeline.data.flow import IMAGES_PER_ROW_GROUP, CrawlConfig, crawlers
from pipeline.data.places import by_domain
from pipeline.schemas import FETCHED, Reason


def later_attempts(
    stages: Stages, fetched: Output, retry: Retry | None, config: CrawlConfig, lists: BlockLists
) -> Output:
    """Go on with the rounds that have begun; then follow what has moved, and make the round that is asked for.

    A round of the kind that is asked for and that has not ended yet is the one that is meant.
    """
    begun = _begun(stages.run)
    if begun and begun[-1] == retry and not _is_complete(stages, fetched, len(begun)):
        retry = None
    for kind in begun:
        fetched = attempt_again(stages, fetched, kind, config, lists)
    while True:
        num_hops = next((number for number, kind in enumerate(reversed(begun)) if kind != "moved"), len(begun))
        if Reason.MOVED in fetched.reasons() and num_hops < config.fetch.max_redirects:
            begun.append("moved")
        elif retry is not None:
            begun.append(retry)
            retry = None
        else:
            return fetched
        storage.put_if_absent(_record(stages.run, len(begun)), json.dumps(begun[-1]).encode())
        fetched = attempt_again(stages, fetched, begun[-1], config, lists)


def _begun(run: Run) -> list[Retry]:
    rounds: list[Retry] = []
    while storage.exists(_record(run, len(rounds) + 1)):
        rounds.append(json.loads(storage.read_bytes(_record(run, len(rounds) + 1))))
    return rounds


def _is_complete(stages: Stages, fetched: Output, generation: int) -> bool:
    num_parts = len(fetched.parts)
    return len(stages.run.stage("fetched", num_parts, generation).complete()) == num_parts


def _record(run: Run, generation: int) -> str:
    return storage.join(run.uri, f"attempts-{generation}.json")


def attempt_again(stages: Stages, fetched: Output, retry: Retry, config: CrawlConfig, lists: BlockLists) -> Output:
    """The next generation of FETCHED: rows with reasons of a kind asked for once more, all others as they are.

    A row is asked for by the actor that has the registered domain where it is now, and then goes back to its part.
    """
    parts, generation = config.fetch_parts, fetched.stage.generation + 1
    columns = [name for name in FETCHED.names if name != "jpg"]

    def open_rows(part: int) -> pa.Table | None:
        table = fetched.dropped(part, columns)
        return None if table is None else due(table, retry)

    asked = stages(
        f"attempts-{generation}",
        parts,
        open_rows,
        place=by_domain("redirect_url", parts, "image_url"),
        num_buckets=parts,
    )
    answers = stages(
        f"answers-{generation}",
        parts,
        asked.bucket,
        pools=crawlers(config, lists),
        finish=as_answers,
        place=by_domain("url", parts),
        num_buckets=parts,
        row_group_size=IMAGES_PER_ROW_GROUP,
    )

    def merged(part: int) -> pa.Table | None:
        before = fetched.everything(part)
        return None if before is None else merge(before, answers.bucket(part))

    after = stages("fetched", parts, merged, row_group_size=IMAGES_PER_ROW_GROUP, generation=generation)
    after.delete_files_of(fetched)
    return after
