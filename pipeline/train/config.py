"""The recipe of a pretraining run. Defaults come from the paper (section 2.5, tables 18 and 20)."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline import paper
from pipeline.resume_safe import RESUME_SAFE

Precision = Literal["bf16", "fp32"]
StoredPrecision = Literal["fp32", "bf16"]


def _resume_safe(default: Any) -> Any:
    """A field that changes how a run executes, not what it computes."""
    return field(default=default, metadata=RESUME_SAFE)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Hyperparameters of a training run, and how its work is divided.

    Resume-safe fields do not change the loss curve, so a run may be resumed with different values of them.
    """

    global_batch_size: int = paper.GLOBAL_BATCH_SIZE.value
    epochs: int = paper.EPOCHS.value
    learning_rate: float = paper.LEARNING_RATES["ViT-B/32"].value
    """The peak learning rate, reached at the end of the warm-up."""
    warmup_steps: int = paper.WARMUP_STEPS.value
    weight_decay: float = paper.WEIGHT_DECAY.value
    beta1: float = paper.ADAM_BETA1.value
    beta2: float = paper.ADAM_BETA2_VIT.value
    epsilon: float = paper.ADAM_EPSILON_VIT.value
    precision: Precision = "bf16"
    """Arithmetic of the towers. Features, loss and gradients are always float32."""
    moments: StoredPrecision = "fp32"
    """Storage of Adam's moments. bf16 halves their memory and uses stochastic rounding (bf16_adam.py)."""
    text_weights: StoredPrecision = "fp32"
    """Storage of the text tower's large weights. bf16 halves their memory and uses stochastic rounding
    (bf16_text_weights.py); it requires precision=bf16."""
    max_gradient_norm: float | None = None
    """Gradients with a larger norm are scaled down to this norm. Unset, as in the paper: no clipping."""
    seed: int = 0
    norm_group_size: int = 64
    """Number of images that a batch norm normalises together. Each global batch is cut into groups of this size in the
    plan's order, independently of the number of workers. Networks without batch norms ignore it. In the paper, each GPU
    held 55 images when training the largest ResNet."""
    crop_share: float = 0.875
    """Side of the random square crop as a share of the picture's shorter side: 224 / 256. The paper gives no value."""
    shuffle_row_groups: int = 256
    """Number of row groups whose rows are shuffled together. With 256 rows each, this is twice the paper's batch."""
    tokenizer_captions: int = 1_000_000
    """Maximum number of captions from which the vocabulary is learned."""

    num_workers: int = _resume_safe(1)
    min_workers: int | None = _resume_safe(None)
    """Minimum number of workers when nodes join and leave. Unset: num_workers."""
    max_workers: int | None = _resume_safe(None)
    """Maximum number of workers when nodes join and leave. Unset: num_workers."""
    cpus_per_worker: float = _resume_safe(1)
    gpus_per_worker: float = _resume_safe(0)
    read_cpus_per_worker: float = _resume_safe(1)
    """Logical CPUs per worker for reading and decoding, in addition to cpus_per_worker."""
    chunk_size: int | None = _resume_safe(None)
    """Number of samples in one forward pass of a worker. It changes memory use, not the gradient. Unset: the first step
    measures the fastest size, which may differ from run to run. A size that does not fit is halved, with a warning.
    Networks with batch norms use chunks of norm_group_size instead."""
    activation_budget_gib: float | None = _resume_safe(None)
    """Memory per worker for autograd graphs that are kept from the first forward pass. A chunk with a kept graph needs
    no second forward pass. Unset: the memory that is free after the first step. 0: only the last chunk of each tower
    keeps its graph."""
    checkpoint_activations: bool = _resume_safe(False)
    """Store only the inputs of residual blocks, and repeat their forward pass during the backward pass. This allows
    larger chunks and costs a third more computation."""
    compile: bool = _resume_safe(False)
    """Compile residual blocks without batch norms by torch.compile. Every worker needs a C++ compiler."""
    shard_weights: bool = _resume_safe(False)
    """Shard weights, gradients and the optimizer's moments over the workers (FSDP2)."""
    rows_per_read: int = _resume_safe(1024)
    """Minimum number of rows that one reading task decodes, rounded up to whole steps of a worker."""
    log_every_steps: int = _resume_safe(10)
    checkpoint_every_steps: int = _resume_safe(1000)
    checkpoint_every_minutes: float = _resume_safe(15)
    """Maximum time between checkpoints, independent of steps. This bounds the work that is lost when a node dies
    without notice. 0: only checkpoint_every_steps applies."""
    keep_checkpoints: int = _resume_safe(2)
    """Number of recent checkpoints to keep. With two, a run survives one damaged checkpoint."""
    keep_checkpoint_every_steps: int = _resume_safe(0)
    """Keep the first checkpoint of every interval of this many steps permanently. 0: keep none permanently."""
    keep_models_at: tuple[int, ...] = _resume_safe(())
    """Numbers of images seen after which the model is kept in the run's models/ folder. Each must be a multiple of
    global_batch_size."""
    max_skipped_steps: int = _resume_safe(10)
    """Consecutive steps that may be skipped because loss or gradient is not finite. One more ends the run."""
    max_failures: int = _resume_safe(2)
    """Maximum number of restarts from the last checkpoint after a worker has failed. Nodes that the cluster removes do
    not count."""

    def __post_init__(self) -> None:
        may_be_zero = {
            *("warmup_steps", "weight_decay", "beta1", "beta2", "seed"),
            *("gpus_per_worker", "max_failures", "max_skipped_steps", "activation_budget_gib"),
            *("checkpoint_every_minutes", "keep_checkpoint_every_steps"),
            *("checkpoint_activations", "compile", "shard_weights"),
        }
        for name, value in asdict(self).items():
            if isinstance(value, int | float) and (value < 0 or (value == 0 and name not in may_be_zero)):
                bound = "not be negative" if name in may_be_zero else "be above zero"
                raise ValueError(f"{name}={value}: must {bound}")
        if self.crop_share > 1:
            raise ValueError(f"crop_share={self.crop_share}: must be at most 1")
        if self.text_weights == "bf16" and self.precision != "bf16":
            raise ValueError(
                f"text_weights=bf16 with precision={self.precision}: half-precision weights need half-precision "
                "arithmetic; set precision=bf16 as well"
            )
        if self.text_weights == "bf16" and self.shard_weights:
            raise ValueError(
                "text_weights=bf16 with shard_weights=true: all weights of a sharded block must have one dtype; set "
                "text_weights=fp32 or shard_weights=false"
            )
        for num_images in self.keep_models_at:
            if num_images <= 0 or num_images % self.global_batch_size:
                raise ValueError(
                    f"keep_models_at={num_images}: must be a multiple of global_batch_size={self.global_batch_size}"
                )
        min_workers, max_workers = self.workers
        if min_workers > max_workers:
            raise ValueError(
                f"min_workers={min_workers} is more than max_workers={max_workers}; set both, as each defaults to "
                "num_workers"
            )
        if self.global_batch_size < max_workers:
            name = "num_workers" if self.max_workers is None else "max_workers"
            raise ValueError(
                f"global_batch_size={self.global_batch_size} cannot be divided among {name}={max_workers}; every "
                "worker needs at least one sample"
            )

    @property
    def activation_budget_bytes(self) -> int | None:
        """activation_budget_gib in bytes."""
        return None if self.activation_budget_gib is None else int(self.activation_budget_gib * 2**30)

    @property
    def workers(self) -> tuple[int, int]:
        """The minimum and the maximum number of workers; equal if the number is fixed."""
        return self.min_workers or self.num_workers, self.max_workers or self.num_workers

    def local_batch_sizes(self, num_workers: int, unit: int = 1) -> list[int]:
        """Divide a global batch among workers as evenly as possible.

        Args:
            num_workers: the number of workers.
            unit: samples per indivisible group; each worker gets whole groups.

        Returns:
            The number of samples of each worker, by rank.

        Raises:
            ValueError: the batch is not a multiple of the unit, or there are fewer units than workers.
        """
        num_units, remainder = divmod(self.global_batch_size, unit)
        if remainder or num_units < num_workers:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} cannot be divided among {num_workers} workers in groups "
                f"of norm_group_size={unit}, over which the model's batch norms normalise; choose a multiple of "
                "norm_group_size with at least one group per worker, or smaller groups"
            )
        ends = [unit * (num_units * (rank + 1) // num_workers) for rank in range(num_workers)]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]
