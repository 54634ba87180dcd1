import torch
from timm.layers.activations import QuickGELU as TimmQuickGELU

from pipeline.model.towers.activation import QuickGELU


def test_values_and_gradients_equal_those_of_timm() -> None:
    x = torch.linspace(-30, 30, 601, dtype=torch.float64, requires_grad=True)
    found, expected = QuickGELU()(x), TimmQuickGELU()(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    weights = torch.randn(601, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (gradient,), (wanted,) = (torch.autograd.grad((y * weights).sum(), x) for y in (found, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-14)


def test_only_the_input_is_saved_for_the_backward_pass() -> None:
    x = torch.randn(8, requires_grad=True)
    saved: list[torch.Tensor] = []

    def record(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        QuickGELU()(x)
    assert [tensor.data_ptr() for tensor in saved] == [x.data_ptr()]
