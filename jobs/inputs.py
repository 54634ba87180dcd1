"""The files that a crawl reads: those of a folder, or those of one of Common Crawl's lists of paths."""

from __future__ import annotations

import gzip

from cluster import storage
from pipeline.data.extract import ARCHIVE_SUFFIXES
from pipeline.data.img2dataset import SHARD_SUFFIX
from pipeline.data.tables import TABLE_SUFFIXES

PATHS_SUFFIXES = (".paths", ".paths.gz")


def list_inputs(uri: str, paths_base: str) -> list[str]:
    """Every archive and table of a file, a folder or a list of paths, in a fixed order.

    Args:
        uri: a file; a folder; or a list (`warc.paths.gz`, `wat.paths.gz`) with a path on each line.
        paths_base: what the paths of a list are relative to; a line that is a whole URI stands for itself.

    Raises:
        ValueError: a line of the list names no archive, or the list has no line.
        FileNotFoundError: nothing is there.
    """
    if not uri.endswith(PATHS_SUFFIXES):
        found = storage.list_files(uri, suffixes=(*ARCHIVE_SUFFIXES, *TABLE_SUFFIXES, SHARD_SUFFIX))
        # img2dataset's table beside a shard is read with the shard
        beside = {file.removesuffix(SHARD_SUFFIX) + ".parquet" for file in found if file.endswith(SHARD_SUFFIX)}
        return [file for file in found if file not in beside]
    data = storage.read_bytes(uri)
    lines = (gzip.decompress(data) if uri.endswith(".gz") else data).decode().split()
    wrong = [line for line in lines if not line.endswith(ARCHIVE_SUFFIXES)]
    if wrong:
        raise ValueError(f"input={uri}: '{wrong[0]}' is no archive; lists of WARC or WAT paths are read")
    if not lines:
        raise ValueError(f"input={uri}: the list has no paths")
    return [line if "://" in line else storage.join(paths_base, line) for line in lines]
