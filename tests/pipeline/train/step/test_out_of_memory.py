import pytest
import torch
from torch import nn

from pipeline.train.step.out_of_memory import by_all_or_none, of_one_type


def test_what_a_cpu_says_when_it_has_no_room_is_known() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="you tried to allocate"), of_one_type():
        torch.empty(10**15)


@pytest.mark.parametrize(
    "message",
    [
        "GET was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_so_is_what_libraries_of_a_gpu_say(message: str) -> None:
    with pytest.raises(torch.OutOfMemoryError), of_one_type():
        raise RuntimeError(message)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), of_one_type():
        torch.ones(2, 3) @ torch.ones(2, 3)
    with pytest.raises(RuntimeError) as raised, by_all_or_none(nn.Linear(1, 1), None):
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert raised.type is RuntimeError
