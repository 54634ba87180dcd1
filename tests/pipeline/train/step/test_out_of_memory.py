import pytest
import torch
from torch import nn

from pipeline.train.step.out_of_memory import raise_on_all_ranks, unify_out_of_memory_errors


def test_an_allocation_error_on_a_cpu_is_converted() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="you tried to allocate"), unify_out_of_memory_errors():
        torch.empty(10**15)


@pytest.mark.parametrize(
    "message",
    [
        "GET was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_out_of_memory_errors_of_gpu_libraries_are_converted(message: str) -> None:
    with pytest.raises(torch.OutOfMemoryError), unify_out_of_memory_errors():
        raise RuntimeError(message)


def test_other_errors_are_not_converted() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), unify_out_of_memory_errors():
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(RuntimeError) as raised, raise_on_all_ranks(nn.Linear(1, 1), None):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert raised.type is RuntimeError
