"""Describe pools of actors and the resources that they need."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GIB = 1024**3
_NOT_CUSTOM = frozenset({"CPU", "GPU", "memory", "object_store_memory"})


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A pool of identical actors of one Ray Data stage, and the resources of each actor.

    Raises ValueError for invalid values.
    """

    size: int | tuple[int, int] = 1
    """Number of actors: fixed, or (minimum, maximum) for a pool that grows with its queue."""
    cpus: float = 1
    """Logical CPUs per actor."""
    gpus: float = 0
    """GPUs per actor. Actors with fractions share a GPU."""
    memory_gib: float = 0
    """Memory reserved per actor, in GiB; 0 reserves none."""
    max_calls: int = 1
    """Blocks that an actor processes concurrently, in threads. Useful for actors that mostly wait."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom resources per actor, such as {"crawl": 1}. Actors run only on nodes that offer them."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_size <= self.max_size:
            raise ValueError(
                f"size = {self.size}: a pool needs at least one actor, and its minimum comes before its maximum"
            )
        if self.max_calls < 1:
            raise ValueError(f"max_calls = {self.max_calls}: must be at least 1")
        if not_custom := sorted(set(self.resources) & _NOT_CUSTOM):
            raise ValueError(
                f"resources = {dict(self.resources)}: {', '.join(not_custom)} is no custom resource; set cpus, gpus or "
                "memory_gib"
            )
        amounts = {name: getattr(self, name) for name in ("cpus", "gpus", "memory_gib")}
        for name, amount in (
            amounts | {f"resources.{name}": amount for name, amount in self.resources.items()}
        ).items():
            if not amount >= 0:  # refuses NaN too
                raise ValueError(f"{name} = {amount}: cannot be negative")
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus = {self.gpus}: must be a fraction of one GPU or a whole number")

    @property
    def min_size(self) -> int:
        """The minimum number of actors. They run from the beginning of the stage to its end."""
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def max_size(self) -> int:
        """The maximum number of actors."""
        return self.size if isinstance(self.size, int) else self.size[1]

    def map_batches_arguments(self, batch_size: int | None = None) -> dict[str, Any]:
        """The arguments of `Dataset.map_batches` for a class that runs in this pool.

        A batch is a whole block, or `batch_size` rows of it. Batches are Arrow tables that share the memory of their
        block, so they are read-only.
        """
        from ray.data import ActorPoolStrategy  # importing ray is slow, and configurations import this module

        size: dict[str, Any] = (
            {"size": self.min_size}
            if self.min_size == self.max_size
            else {"min_size": self.min_size, "max_size": self.max_size}
        )
        strategy = ActorPoolStrategy(
            **size,
            max_concurrent_calls_per_actor=self.max_calls,
            enable_true_multi_threading=self.max_calls > 1,
        )
        arguments: dict[str, Any] = {
            "compute": strategy,
            "num_cpus": self.cpus,
            "batch_size": batch_size,
            "batch_format": "pyarrow",
            "zero_copy_batch": True,
        }
        if self.gpus and batch_size:
            arguments["num_gpus"] = self.gpus
        elif self.gpus:  # Ray Data 2.60 refuses num_gpus for batches of whole blocks
            gpus = self.gpus
            arguments["ray_remote_args_fn"] = lambda: {"num_gpus": gpus}
        if self.resources:
            arguments["resources"] = dict(self.resources)
        if self.memory_gib:
            arguments["memory"] = int(self.memory_gib * GIB)
        return arguments
