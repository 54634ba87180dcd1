"""What a pool of actors asks of the cluster."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A pool of identical actors of one Ray Data stage, and what each actor holds.

    Raises ValueError for a pool that could never run.
    """

    size: int | tuple[int, int] = 1
    """Actors: a fixed number, or (fewest, most) for a pool that grows with its queue."""
    cpus: float = 1
    """Logical CPUs of each actor."""
    gpus: float = 0
    """GPUs of each actor; fractions share one."""
    memory_gib: float = 0
    """Memory that each actor reserves, in GiB; 0 reserves none."""
    max_calls: int = 1
    """Blocks that an actor works on side by side, in threads; for actors that wait more than they work."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom resources of each actor, which keep it on the nodes that have them: {"crawl": 1}."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_size <= self.max_size:
            raise ValueError(f"size = {self.size}: a pool has at least one actor, and the fewest come first")
        if self.max_calls < 1:
            raise ValueError(f"max_calls = {self.max_calls}: must be at least 1")
        for name in ("cpus", "gpus", "memory_gib"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: cannot be negative")

    @property
    def min_size(self) -> int:
        """The fewest actors, which start with the stage and stay."""
        return self.size if isinstance(self.size, int) else self.size[0]

    @property
    def max_size(self) -> int:
        """The most actors."""
        return self.size if isinstance(self.size, int) else self.size[1]

    def map_batches_arguments(self, batch_size: int | None = None) -> dict[str, Any]:
        """The arguments of `Dataset.map_batches` for a class that runs in this pool.

        Batches are Arrow tables that share the block's memory (so read-only): a whole block each, or `batch_size` rows.
        """
        from ray.data import ActorPoolStrategy  # ray is slow to import, and configurations nest pools

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
        elif self.gpus:  # Ray Data 2.60 refuses whole blocks to pools that ask for GPUs by num_gpus
            gpus = self.gpus
            arguments["ray_remote_args_fn"] = lambda: {"num_gpus": gpus}
        if self.resources:
            arguments["resources"] = dict(self.resources)
        if self.memory_gib:
            arguments["memory"] = int(self.memory_gib * GIB)
        return arguments
