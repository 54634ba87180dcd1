import pytest

from cluster.runs import identity
from pipeline.train.config import TrainConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0: must be above zero"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0: must be above zero"),
        ({"warmup_steps": -1}, "warmup_steps=-1: must not be negative"),
        ({"crop_share": 1.5}, "crop_share=1.5: must be at most 1"),
        ({"max_skipped_steps": -1}, "max_skipped_steps=-1: must not be negative"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm=0.0: must be above zero"),
        ({"text_weights": "bf16", "shard_weights": True}, "text_weights=bf16 with shard_weights=true"),
        ({"text_weights": "bf16", "precision": "fp32"}, "text_weights=bf16 with precision=fp32: .* precision=bf16"),
        ({"global_batch_size": 3, "num_workers": 4}, "global_batch_size=3 cannot be divided among num_workers=4"),
        ({"global_batch_size": 3, "max_workers": 4}, "global_batch_size=3 cannot be divided among max_workers=4"),
        ({"min_workers": 2}, "min_workers=2 is more than max_workers=1"),
        ({"min_workers": 0}, "min_workers=0: must be above zero"),
        ({"checkpoint_every_minutes": -1}, "checkpoint_every_minutes=-1: must not be negative"),
    ],
)
def test_errors_about_invalid_options_name_the_option(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        ({}, (4, 4)),
        ({"min_workers": 2}, (2, 4)),
        ({"max_workers": 8}, (4, 8)),
        ({"min_workers": 1, "max_workers": 2}, (1, 2)),
    ],
)
def test_workers_are_fixed_unless_a_bound_is_given(options: dict[str, int], workers: tuple[int, int]) -> None:
    assert TrainConfig(num_workers=4, **options).workers == workers  # type: ignore[arg-type]


def test_a_batch_is_divided_evenly_among_workers() -> None:
    config = TrainConfig(global_batch_size=10)
    assert config.local_batch_sizes(1) == [10]
    assert config.local_batch_sizes(3) == [3, 3, 4]
    assert config.local_batch_sizes(3, 2) == [2, 4, 4]


@pytest.mark.parametrize(("num_workers", "unit"), [(1, 3), (6, 2), (1, 20)])
def test_a_batch_that_cannot_be_divided_into_norm_groups_is_refused(num_workers: int, unit: int) -> None:
    with pytest.raises(
        ValueError, match=rf"global_batch_size=10 .* among {num_workers} workers .* norm_group_size={unit},"
    ):
        TrainConfig(global_batch_size=10).local_batch_sizes(num_workers, unit)


def test_options_that_do_not_change_the_result_are_not_part_of_a_runs_identity() -> None:
    small = identity(TrainConfig(num_workers=1, chunk_size=8, checkpoint_every_steps=5))
    assert small == identity(TrainConfig(num_workers=4, chunk_size=64, log_every_steps=1))
    assert small == identity(TrainConfig(max_skipped_steps=0))
    assert small != identity(TrainConfig(seed=1))
    assert small != identity(TrainConfig(moments="bf16"))
