import torch

from pipeline.train.config import TrainConfig
from pipeline.train.network.prepare import prepare
from tests.pipeline.train.ranks import Case, network_of


def test_preparing_turns_off_tf32() -> None:
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")
    prepare(network_of(Case((12,), 5)), TrainConfig())
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
