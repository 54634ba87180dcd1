"""Remove files that killed writers left in the folder of a complete stage, which users read as one table.

A worker that is killed after it has written the file of a part, and before it has written the manifest, leaves a file
that no manifest names. The part is then written again, often under another name, because a fetched image or a page
differs from time to time. Readers that go by the manifests never see such an orphan, but `pq.read_table(folder)` counts
its rows. So orphans are removed when their stage ends, and when a finished stage is found again at a resume.

Cost for 16,384 parts: the listing of 32,768 files in 33 requests, which `Stages` needs anyway to find the manifests,
and one request for up to 1,000 orphans. Without orphans, there is no further request.

What is not removed:

- a file that a manifest names;
- anything while a later generation of the stage is being written, because its writers put files before manifests;
- a file that is younger than the newest manifest, until it is LEFTOVER_SECONDS old: it may be the first one of a later
  generation that another job writes;
- unfinished uploads to S3.

The folders of data sets are left to garbage collection (pipeline/data/snapshots/garbage.py), because older versions may
name files that no manifest names any more.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from cluster import storage
from cluster.parts import Output
from cluster.removal import remove_if_possible
from cluster.storage import Entry

LEFTOVER_SECONDS = 24 * 3600.0
"""Age at which a file without a manifest, or a temporary file, certainly has no living writer. The clocks of machines
and storage differ by much less."""
_PART_FILE = re.compile(r"part-\d{5,}-[0-9a-f]{16}\.parquet")
_TEMPORARY_FILE = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_MANIFEST = re.compile(r"_part-\d{5,}(?:\.(\d+))?\.json")


def remove_orphans(output: Output, listing: Sequence[Entry]) -> None:
    """Remove the files of a complete stage that no manifest names. Files that cannot be removed are logged.

    Args:
        output: the stage.
        listing: the files in its folder, listed after it was complete.
    """
    remove_if_possible(
        [entry.uri for entry in orphans(output, listing, time.time())],
        "pq.read_table reads their rows as part of the stage, which they are not; the next run of the same command "
        "tries again",
    )


def orphans(output: Output, listing: Sequence[Entry], now: float) -> list[Entry]:
    """The files in the folder of a complete stage that killed writers left.

    Args:
        output: the stage.
        listing: the files in its folder, listed after it was complete.
        now: the current time in seconds since 1970.
    """
    folder = storage.join(storage.absolute(output.stage.uri), "")
    by_name = {entry.uri.removeprefix(folder): entry for entry in listing}
    modified_by_generation = [
        (int(match[1] or 0), entry.modified) for name, entry in by_name.items() if (match := _MANIFEST.fullmatch(name))
    ]
    generation = output.stage.generation
    if any(other > generation for other, _ in modified_by_generation):
        return []
    complete_at = max((modified for other, modified in modified_by_generation if other == generation), default=0.0)
    named = {part.file for part in output.parts}
    return [
        entry
        for name, entry in by_name.items()
        if (
            _PART_FILE.fullmatch(name)
            and name not in named
            and entry.modified <= max(complete_at, now - LEFTOVER_SECONDS)
        )
        or (_TEMPORARY_FILE.fullmatch(name) and entry.modified <= now - LEFTOVER_SECONDS)
    ]
