"""A step against plain autograd on the whole batch in one process, on one to four ranks."""

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
    bytes_held,
    network_of,
    run_ranks,
    state_after,
    take_step,
    train,
)

SIZE = 12
STEPS = 2
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def plain_step(case: Case) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss, and gradients and statistics, by autograd with all graphs kept; images in the case's chunks, which are what
    batch norms normalise over."""
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
    found = dict(state_after(network)) | _moved_once(network_of(case), measured)
    return loss.detach(), found


def _measured_by_norms(network: nn.Module) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Filled with the mean and the unbiased variance of what each batch norm is given, chunk by chunk."""
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


def _moved_once(before: Network, measured: dict[str, list[tuple[Tensor, Tensor]]]) -> dict[str, Tensor]:
    found = {}
    for name, chunks in measured.items():
        norm = before.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.momentum == 0.1
        for kind, parts in zip(("running_mean", "running_var"), zip(*chunks, strict=True), strict=True):
            found[f"{name}.{kind}"] = 0.9 * norm.get_buffer(kind) + 0.1 * torch.stack(parts).mean(0)
        found[f"{name}.num_batches_tracked"] = torch.tensor(1)
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        difference = (found[name].double() - wanted.double()).norm()
        assert difference <= tolerance * wanted.double().norm() + tolerance / 100, name


def _is_seen_by_the_guard(case: Case, results: dict[str, Tensor]) -> bool:
    """Whether a rank knows that the step must not be taken, by its loss as well as by its gradient."""
    found = [results[name] for name, _ in network_of(case).named_parameters()]
    return not (results["loss"].isfinite() or torch.nn.utils.get_total_norm(found).isfinite())


@pytest.fixture(scope="module")
def by_rank(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[dict[str, Tensor]], dict[str, Any]]]:
    return run_ranks(tmp_path_factory.mktemp("ranks"))


def test_ranks_give_the_gradient_of_the_global_mean(
    by_rank: list[tuple[list[dict[str, Tensor]], dict[str, Any]]],
) -> None:
    """The logit scale too: summed over ranks, as other implementations do, it would be too large by their number."""
    for number, case in enumerate(CASES):
        first, *others = (results[number] for results, _ in by_rank[: len(case.shares)])
        if case.poisoned is not None:
            assert all(_is_seen_by_the_guard(case, results) for results in (first, *others)), case
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
def test_shards_are_those_of_the_whole_run(
    by_rank: list[tuple[list[dict[str, Tensor]], dict[str, Any]]],
) -> None:
    """Steps on three ranks that go on with two, all in shards, against one process that has everything."""
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
        held = [found["bytes"][part] for _, found in by_rank[:num_ranks]]
        assert max(held) < bytes_held(second) / num_ranks * 1.2, "a rank has more than its share"
    assert "weights" not in by_rank[1][1]


@pytest.mark.usefixtures("_double_images")
@pytest.mark.parametrize("tower", ["convnext", "resnet"])
@pytest.mark.parametrize("budget_bytes", [10_000, 400_000, 10**9], ids=["few", "some", "all"])
def test_kept_graphs_change_nothing(tower: str, budget_bytes: int) -> None:
    case = Case((SIZE,), 2, tower, budget_bytes=budget_bytes, norm_group_size=3 if tower == "resnet" else None)
    plain = case._replace(budget_bytes=0)
    network, wanted = network_of(case), network_of(plain)
    take_step(case, network, 0, None)
    for _ in range(STEPS):
        take_step(plain, wanted, 0, None)
    assert_same(dict(state_after(network)), dict(state_after(wanted)), 1e-12)


@pytest.mark.parametrize("objective", ["contrastive", "bag", "caption"])
def test_bf16_keeps_the_gradients_direction(objective: Objective) -> None:
    case = Case((SIZE,), 5, objective=objective, dtype=torch.float32)
    network = network_of(case)
    set_gradients(network, Batch(*small_batch(SIZE)), chunk_size=5, bf16=True)
    found, (_, expected) = dict(state_after(network)), plain_step(case)
    first, second = (
        torch.cat([tensors[name].flatten().double() for name in expected]) for tensors in (found, expected)
    )
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    assert torch.nn.functional.cosine_similarity(first, second, dim=0) > 0.99


def test_dropout_is_replayed() -> None:
    """With the graph of each chunk kept instead of a second pass, the same draws give the same gradient."""
    images, tokens, lengths = small_batch(SIZE)
    model = small_clip().train()
    torch.manual_seed(5)
    found = set_gradients(model, Batch(images, tokens, lengths), chunk_size=4, bf16=False)
    after = torch.rand(3)
    gradient = dict(state_after(model))

    torch.manual_seed(5)
    model = small_clip().train()
    torch.manual_seed(5)
    text_features = model.encode_text(tokens, normalize=True)
    image_features = torch.cat([model.encode_image(normalise(chunk), normalize=True) for chunk in images.split(4)])  # type: ignore[no-untyped-call]
    loss = plain_contrastive(image_features, text_features, model.logit_scale)
    loss.backward()  # type: ignore[no-untyped-call]
    assert found.loss == pytest.approx(loss.item(), rel=1e-6)
    assert torch.equal(torch.rand(3), after), "the second pass drew numbers of its own"
    assert_same(gradient, dict(state_after(model)), 2e-5)
    torch.manual_seed(6)
    other = set_gradients(small_clip().train(), Batch(images, tokens, lengths), chunk_size=4, bf16=False)
    assert other.loss != pytest.approx(found.loss, rel=1e-4), "dropout is not active, this test shows nothing"


def test_captions_without_words_leave_a_bag_predictor_as_it_is() -> None:
    network = network_of(Case((2,), 2, objective="bag", dtype=torch.float32))
    images, tokens, lengths = small_batch(2)
    tokens[:] = 0
    tokens[:, :2] = torch.tensor([598, 599])
    result = set_gradients(network, Batch(images, tokens, lengths.fill_(2)), chunk_size=2, bf16=False)
    assert result.loss == 0
    assert all(not p.grad.any() for p in network.parameters() if p.grad is not None)
