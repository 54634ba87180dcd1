"""Private parts of Ray Train V2: the policies and settings of its controller."""

from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import PREEMPTION_POLL_INTERVAL_S_ENV_VAR
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    NoopDecision,
    ResizeDecision,
    ScalingDecision,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroupPollStatus, WorkerGroupState

__all__ = [
    "PREEMPTION_POLL_INTERVAL_S_ENV_VAR",
    "DefaultFailurePolicy",
    "ElasticScalingPolicy",
    "FailureDecision",
    "NoopDecision",
    "PlacementGroupCleanerCallback",
    "ResizeDecision",
    "ScalingDecision",
    "UserExceptionWithTraceback",
    "WorkerGroupPollStatus",
    "WorkerGroupState",
]
