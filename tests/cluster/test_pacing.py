import time
from typing import Any

import numpy as np
import pytest
import ray
from ray.data import DataContext, ExecutionResources

from cluster.pacing import SchedulerPause

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_local")]


@pytest.mark.parametrize("pausing", [True, False])
def test_a_pipeline_that_waits_for_its_consumer_uses_little_cpu(pausing: bool) -> None:
    """Without the pause Ray Data spins. If a newer version does not, cluster/pacing.py can be deleted."""
    context = DataContext.get_current()
    assert SchedulerPause in context.custom_execution_callback_classes
    dataset = ray.data.range(40, override_num_blocks=40).map_batches(_megabyte, batch_size=None)
    dataset.context.custom_execution_callback_classes = [SchedulerPause] if pausing else []
    dataset.context.execution_options.resource_limits = ExecutionResources(cpu=1, object_store_memory=8_000_000)
    rows = iter(dataset.iter_batches(batch_size=1, prefetch_batches=1))
    next(rows)
    time.sleep(1)  # until the read-ahead buffer is full
    started, used = time.monotonic(), time.process_time()
    time.sleep(2)
    share = (time.process_time() - used) / (time.monotonic() - started)
    assert (share < 0.4) == pausing, share


def _megabyte(_block: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    return {"data": np.zeros((1, 1_000_000), np.uint8)}
