"""Compare a step on one to four ranks with plain autograd on the whole batch in one process."""

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.model.config import Objective
from pipeline.model.objectives.clip import CLIP
from pipeline.model.objectives.networks import Network
from pipeline.model.towers.image_tower import normalise
from pipeline.train.step import gradients
from pipeline.train.step.gradients import Batch, set_gradients
from tests.pipeline.model.models import small_batch, small_clip
from tests.pipeline.model.plain import plain_contrastive
from tests.pipeline.train.ranks import (
    CASES,
    Case,
    network_of,
    num_state_bytes,
    run_ranks,
    state_after,
    take_step,
    train,
)

SIZE = 12
STEPS = 2
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def plain_step(case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, gradients and batch-norm statistics of a step, by autograd with all graphs kept.

    Images are embedded in the case's chunks, because batch norms normalise over a chunk.
    """
    network = network_of(case)
    images, tokens, _ = small_batch(sum(case.shares))
    pixels = normalise(images).to(case.dtype)
    measured = _measured_by_norms(network)
    if isinstance(network, CLIP):
        size = case.norm_group_size or case.chunk_size
        features = [network.encode_image(chunk, normalize=True) for chunk in torch.split(pixels, size)]
        texts = network.encode_text(tokens, normalize=True)
        loss = plain_contrastive(torch.cat(features), texts, network.logit_scale)
    else:
        size = case.norm_group_size or sum(case.shares)
        parts = zip(torch.split(pixels, size), torch.split(tokens, size), strict=True)
        total = torch.stack([network.summed_loss(*part) for part in parts]).sum()
        loss = total / network.num_targets(tokens)
    loss.backward()  # type: ignore[no-untyped-call]
    state = dict(state_after(network)) | _updated_once(network_of(case), measured)
    return loss.detach(), state


def _measured_by_norms(network: nn.Module) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """A dictionary that receives the mean and unbiased variance of each batch norm's input, one entry per chunk."""
    measured: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)

    def watch(name: str) -> Any:
        def hook(_norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach()
            measured[name].append((values.mean((0, 2, 3)), values.transpose(0, 1).flatten(1).var(1)))

        return hook

    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(watch(name))
    return measured


def _updated_once(before: Network, measured: dict[str, list[tuple[Tensor, Tensor]]]) -> dict[str, Tensor]:
    """The batch-norm statistics of `before` after one update by the mean over the measured chunks."""
    statistics = {}
    for name, chunks in measured.items():
        norm = before.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.momentum == 0.1
        for kind, parts in zip(("running_mean", "running_var"), zip(*chunks, strict=True), strict=True):
            statistics[f"{name}.{kind}"] = 0.9 * norm.get_buffer(kind) + 0.1 * torch.stack(parts).mean(0)
        statistics[f"{name}.num_batches_tracked"] = torch.tensor(1)
    return statistics


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        difference = (actual[name].double() - value.double()).norm()
        assert difference <= tolerance * value.double().norm() + tolerance / 100, name


def _is_nonfinite(case: Case, results: dict[str, Tensor]) -> bool:
    """Whether both the loss and the gradient norm of a rank are non-finite, so that it skips the step."""
    grads = [results[name] for name, _ in network_of(case).named_parameters()]
    return not (results["loss"].isfinite() or torch.nn.utils.get_total_norm(grads).isfinite())


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[dict[str, Tensor]], dict[str, Any]]]:
    return run_ranks(tmp_path_factory.mktemp("ranks"))


def test_ranks_compute_the_gradient_of_the_global_mean(
    by_rank: list[tuple[list[dict[str, Tensor]], dict[str, Any]]],
) -> None:
    """Includes the logit scale. Summed over the ranks, its gradient would be too large by their number."""
    for number, case in enumerate(CASES):
        first, *others = (results[number] for results, _ in by_rank[: len(case.shares)])
        if case.poisoned is not None:
            assert all(_is_nonfinite(case, results) for results in (first, *others)), case
            continue
        for other in others:
            assert other.keys() == first.keys(), case
            assert all(torch.equal(other[name], first[name]) for name in first), case
        loss, expected = plain_step(case)
        assert first.pop("loss").item() == pytest.approx(loss.item(), rel=TOLERANCE[case.dtype]), case
        accuracies = first.pop("accuracies", None)
        assert (accuracies is not None) == (case.objective == "contrastive"), case
        assert_same(first, expected, TOLERANCE[case.dtype])


@pytest.fixture
def _double_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "normalise", lambda images: normalise(images).double())


@pytest.mark.usefixtures("_double_images")
def test_a_run_in_shards_equals_a_run_in_one_process(
    by_rank: list[tuple[list[dict[str, Tensor]], dict[str, Any]]],
) -> None:
    """Steps on three ranks, resumed on two, all with sharded weights, against one process with whole weights."""
    whole = Case((SIZE,), SIZE, "transformer")
    first = train(whole)
    halfway = {"weights": first.model.network.state_dict(), "optimizer": first.optimizer.state_dict()}
    second = train(whole, saved=halfway)
    of_first_rank = by_rank[0][1]
    assert of_first_rank["norms"] == pytest.approx(first.norms + second.norms, rel=1e-10)
    assert_same(of_first_rank["weights"], second.model.network.state_dict(), 1e-10)
    moments = second.optimizer.state_dict()["state"]
    assert of_first_rank["optimizer"]["state"].keys() == moments.keys()
    for number, expected in moments.items():
        assert_same(of_first_rank["optimizer"]["state"][number], expected, 1e-9)
    for part, num_ranks in enumerate((3, 2)):
        rank_bytes = [run["bytes"][part] for _, run in by_rank[:num_ranks]]
        assert max(rank_bytes) < num_state_bytes(second) / num_ranks * 1.2, "a rank holds more than its share"
    assert "weights" not in by_rank[1][1]


@pytest.mark.usefixtures("_double_images")
@pytest.mark.parametrize("tower", ["convnext", "resnet"])
@pytest.mark.parametrize("budget_bytes", [10_000, 400_000, 10**9], ids=["few", "some", "all"])
def test_kept_graphs_do_not_change_the_gradient(tower: str, budget_bytes: int) -> None:
    case = Case((SIZE,), 2, tower, budget_bytes=budget_bytes, norm_group_size=3 if tower == "resnet" else None)
    plain = case._replace(budget_bytes=0)
    network, expected = network_of(case), network_of(plain)
    take_step(case, network, 0, None)
    for _ in range(STEPS):
        take_step(plain, expected, 0, None)
    assert_same(dict(state_after(network)), dict(state_after(expected)), 1e-12)


@pytest.mark.parametrize("objective", ["contrastive", "bag", "caption"])
def test_bf16_keeps_the_gradients_direction(objective: Objective) -> None:
    case = Case((SIZE,), 5, objective=objective, dtype=torch.float32)
    network = network_of(case)
    set_gradients(network, Batch(*small_batch(SIZE)), chunk_size=5, bf16=True)
    actual, (_, expected) = dict(state_after(network)), plain_step(case)
    first, second = (
        torch.cat([tensors[name].flatten().double() for name in expected]) for tensors in (actual, expected)
    )
    assert all(tensor.dtype == torch.float32 for tensor in actual.values())
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.99


def test_dropout_is_replayed() -> None:
    """Pass 2 draws the random numbers of pass 1: the gradient equals that of one pass with all graphs kept."""
    images, tokens, lengths = small_batch(SIZE)
    model = small_clip().train()
    torch.manual_seed(5)
    result = set_gradients(model, Batch(images, tokens, lengths), chunk_size=4, bf16=False)
    after = torch.rand(3)
    gradient = dict(state_after(model))

    torch.manual_seed(5)
    model = small_clip().train()
    torch.manual_seed(5)
    text_features = model.encode_text(tokens, normalize=True)
    image_features = torch.cat([model.encode_image(normalise(chunk), normalize=True) for chunk in images.split(4)])  # type: ignore[no-untyped-call]
    loss = plain_contrastive(image_features, text_features, model.logit_scale)
    loss.backward()  # type: ignore[no-untyped-call]
    assert result.loss == pytest.approx(loss.item(), rel=1e-6)
    assert torch.equal(torch.rand(3), after), "the second pass advanced the random state"
    assert_same(gradient, dict(state_after(model)), 2e-5)
    torch.manual_seed(6)
    other = set_gradients(small_clip().train(), Batch(images, tokens, lengths), chunk_size=4, bf16=False)
    assert other.loss != pytest.approx(result.loss, rel=1e-4), "dropout is not active, so this test proves nothing"


def test_captions_without_words_give_a_bag_predictor_no_gradient() -> None:
    network = network_of(Case((2,), 2, objective="bag", dtype=torch.float32))
    images, tokens, lengths = small_batch(2)
    tokens[:] = 0
    tokens[:, :2] = torch.tensor([598, 599])
    result = set_gradients(network, Batch(images, tokens, lengths.fill_(2)), chunk_size=2, bf16=False)
    assert result.loss == 0
    assert all(not p.grad.any() for p in network.parameters() if p.grad is not None)
