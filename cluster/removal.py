"""Remove files that nobody needs any more: a failure is logged, and the work goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cluster import storage

NUM_SHOWN = 3

logger = logging.getLogger("clip")


def remove_if_possible(uris: Sequence[str], consequence: str) -> None:
    """Delete files, many in one request. Logs one warning that names files which could not be deleted.

    Args:
        uris: the files. A missing file is not an error.
        consequence: what follows from files that are left, for the end of the warning.
    """
    errors = storage.delete_files(uris)
    if errors:
        shown = ", ".join(list(errors)[:NUM_SHOWN]) + (", ..." if len(errors) > NUM_SHOWN else "")
        message = "%d of %d files could not be removed (%s): %s; %s"
        logger.warning(message, len(errors), len(uris), next(iter(errors.values())), shown, consequence)
