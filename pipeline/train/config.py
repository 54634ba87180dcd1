"""The recipe of a pretraining run. Defaults are the paper's (section 2.5, tables 18 and 20)."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline import paper
from pipeline.resume_safe import RESUME_SAFE

Precision = Literal["bf16", "fp32"]
StoredPrecision = Literal["fp32", "bf16"]


def _resume_safe(default: Any) -> Any:
    """A field that decides how a run is carried out, not what it computes."""
    return field(default=default, metadata=RESUME_SAFE)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What is trained for how long, and how the work is cut up.

    Runs that differ only in operational fields follow the same loss curve, so a run may be resumed with others.
    """

    global_batch_size: int = paper.GLOBAL_BATCH_SIZE.value
    epochs: int = paper.EPOCHS.value
    learning_rate: float = paper.LEARNING_RATES["ViT-B/32"].value
    """The highest rate, at the end of the warm-up."""
    warmup_steps: int = paper.WARMUP_STEPS.value
    weight_decay: float = paper.WEIGHT_DECAY.value
    beta1: float = paper.ADAM_BETA1.value
    beta2: float = paper.ADAM_BETA2_VIT.value
    epsilon: float = paper.ADAM_EPSILON_VIT.value
    precision: Precision = "bf16"
    """Arithmetic of the towers; features, the loss and gradients are float32 always."""
    moments: StoredPrecision = "fp32"
    """How Adam's moments are stored: bf16 halves their memory, with stochastic rounding (bf16_adam.py)."""
    text_weights: StoredPrecision = "fp32"
    """How the text tower's large weights are stored: bf16 halves their memory, with stochastic rounding
    (bf16_text_weights.py); needs precision bf16."""
    max_gradient_norm: float | None = None
    """Gradients of a greater norm are scaled down to it; unset, as in the paper: none are."""
    seed: int = 0
    norm_group_size: int = 64
    """Images that batch norms normalise over together, in networks that have them: each global batch is cut into such
    groups in the plan's order, whatever the workers. The paper's GPUs had 55 images each of the largest ResNet."""
    crop_share: float = 0.875
    """Side of the random square crop as a share of the picture's shorter side: 224 of 256; the paper states none."""
    shuffle_row_groups: int = 256
    """Row groups whose rows are shuffled together; with 256 rows each, twice the paper's batch."""
    tokenizer_captions: int = 1_000_000
    """How many captions, at most, the vocabulary is learned from."""

    num_workers: int = _resume_safe(1)
    min_workers: int | None = _resume_safe(None)
    """The fewest workers to train with, where nodes come and go; unset: num_workers."""
    max_workers: int | None = _resume_safe(None)
    """The most workers to train with; unset: num_workers."""
    cpus_per_worker: float = _resume_safe(1)
    gpus_per_worker: float = _resume_safe(0)
    read_cpus_per_worker: float = _resume_safe(1)
    """Logical CPUs for reading and decoding, beside the worker's own."""
    chunk_size: int | None = _resume_safe(None)
    """Samples that one forward pass of a worker holds: memory grows with it, the gradient does not change. Unset: what
    the first step's probe finds best, which may differ from run to run. Halved, with a warning, where it does not fit.
    Images of networks with batch norms come in groups of norm_group_size instead."""
    activation_budget_gib: float | None = _resume_safe(None)
    """Memory of a worker for chunks whose first forward pass keeps its graph, so that they need no second one. Unset:
    what is free after the first step; 0: only the last chunk of each tower keeps its graph."""
    checkpoint_activations: bool = _resume_safe(False)
    """Graphs hold the inputs of residual blocks only, whose forward pass is computed once more for each backward one:
    larger chunks for a third more work."""
    compile: bool = _resume_safe(False)
    """Residual blocks are compiled by torch.compile, but for those with batch norms. Every worker needs a compiler."""
    shard_weights: bool = _resume_safe(False)
    """Weights, gradients and the optimizer's moments are shared out to the workers (FSDP2)."""
    rows_per_read: int = _resume_safe(1024)
    """Rows that one reading task decodes, at least (whole steps of a worker)."""
    log_every_steps: int = _resume_safe(10)
    checkpoint_every_steps: int = _resume_safe(1000)
    checkpoint_every_minutes: float = _resume_safe(15)
    """A checkpoint is due so long after the one before, whatever the steps; what a node takes with it that dies without
    notice is no more than that. 0: by steps only."""
    keep_checkpoints: int = _resume_safe(2)
    """Checkpoints kept, the newest first; with two, a damaged one can be done without."""
    keep_checkpoint_every_steps: int = _resume_safe(0)
    """Of each so many steps the first checkpoint is kept for good; 0: none is."""
    keep_models_at: tuple[int, ...] = _resume_safe(())
    """Images seen, whole steps, after which the model is kept in the run's models/."""
    max_skipped_steps: int = _resume_safe(10)
    """Steps in a row that may be skipped because the loss or the gradient is not finite; one more ends the run."""
    max_failures: int = _resume_safe(2)
    """How often the workers are started again, from the last checkpoint, when one of them fails. Nodes that are taken
    away do not count."""

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
                "arithmetic, set precision=bf16 as well"
            )
        if self.text_weights == "bf16" and self.shard_weights:
            raise ValueError(
                "text_weights=bf16 with shard_weights=true: shards of a block have weights of one type only, set one "
                "of them back"
            )
        for num_images in self.keep_models_at:
            if num_images <= 0 or num_images % self.global_batch_size:
                raise ValueError(
                    f"keep_models_at={num_images}: must be a multiple of global_batch_size={self.global_batch_size}"
                )
        fewest, most = self.workers
        if fewest > most:
            raise ValueError(
                f"min_workers={fewest} is more than max_workers={most} (num_workers is what the other stands at)"
            )
        if self.global_batch_size < most:
            name = "num_workers" if self.max_workers is None else "max_workers"
            raise ValueError(f"global_batch_size={self.global_batch_size} cannot be shared out to {name}={most}")

    @property
    def activation_budget_bytes(self) -> int | None:
        """The budget in bytes."""
        return None if self.activation_budget_gib is None else int(self.activation_budget_gib * 2**30)

    @property
    def workers(self) -> tuple[int, int]:
        """The fewest workers and the most; the same number where they are fixed."""
        return self.min_workers or self.num_workers, self.max_workers or self.num_workers

    def local_batch_sizes(self, num_workers: int, unit: int = 1) -> list[int]:
        """How many samples of each global batch each of so many workers gets: as even as can be.

        Args:
            num_workers: how many there are.
            unit: so many samples stay together.

        Raises:
            ValueError: the batch is no multiple of the unit, or there are fewer units than workers.
        """
        num_units, rest = divmod(self.global_batch_size, unit)
        if rest or num_units < num_workers:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} cannot be shared out to {num_workers} workers in groups "
                f"of norm_group_size={unit}, over which the model's batch norms normalise; make it a multiple, or the "
                "groups smaller"
            )
        ends = [unit * (num_units * (rank + 1) // num_workers) for rank in range(num_workers)]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]
