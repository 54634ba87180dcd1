import time
from typing import Any

import numpy as np
import pytest
import ray
from ray.data import DataContext, ExecutionResources

from cluster.pacing import Rest

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_local")]


@pytest.mark.parametrize("resting", [True, False])
def test_a_pipeline_that_waits_for_its_reader_leaves_the_processor_alone(resting: bool) -> None:
    """Also that Ray Data still needs the rest: a version that does not spin makes cluster/pacing.py superfluous."""
    context = DataContext.get_current()
    assert context.custom_execution_callback_classes == [Rest]
    dataset = ray.data.range(40, override_num_blocks=40).map_batches(_megabyte, batch_size=None)
    dataset.context.custom_execution_callback_classes = [Rest] if resting else []
    dataset.context.execution_options.resource_limits = ExecutionResources(cpu=1, object_store_memory=8_000_000)
    rows = iter(dataset.iter_batches(batch_size=1, prefetch_batches=1))
    next(rows)
    time.sleep(1)  # until as much is read ahead as may be
    started, used = time.monotonic(), time.process_time()
    time.sleep(2)
    share = (time.process_time() - used) / (time.monotonic() - started)
    assert (share < 0.4) == resting, share


def _megabyte(_block: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    return {"data": np.zeros((1, 1_000_000), np.uint8)}
