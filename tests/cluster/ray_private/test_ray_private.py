"""Check that the private parts of Ray in cluster/ray_private exist in the installed release."""

import logging
from importlib.metadata import version

import pytest
import ray
from ray.data import DataContext

from cluster.ray_private import RAY_RELEASE, core, data, train


def test_the_adapter_fits_the_installed_release() -> None:
    assert version("ray").startswith(f"{RAY_RELEASE}."), "check every name of cluster/ray_private against this release"


def test_every_name_of_ray_train_exists() -> None:
    assert all(getattr(train, name) for name in train.__all__)
    assert issubclass(train.ResizeDecision, train.ScalingDecision)
    assert issubclass(train.NoopDecision, train.ScalingDecision)
    assert {"RAISE", "RETRY"} <= set(train.FailureDecision.__members__)


@pytest.mark.parametrize(
    ("policy", "methods"),
    [
        (train.DefaultFailurePolicy, ["make_decision"]),
        (
            train.ElasticScalingPolicy,
            [
                "make_decision_for_non_running_worker_group",
                "make_decision_for_running_worker_group",
                "_count_possible_workers",
            ],
        ),
        (data.ExecutionCallback, ["on_execution_step"]),
    ],
)
def test_ray_has_every_overridden_method(policy: type, methods: list[str]) -> None:
    assert [name for name in methods if not callable(getattr(policy, name, None))] == []


def test_the_scheduler_of_ray_data_supports_callbacks() -> None:
    assert hasattr(DataContext.get_current(), "custom_execution_callback_classes")


def test_the_console_handlers_of_ray_data_are_found() -> None:
    assert all(isinstance(handler, logging.StreamHandler) for handler in core.console_handlers())
    assert len(core.console_handlers()) == 1


def test_no_token_is_sent_without_authentication(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    core.reload_settings()
    assert not core.sends_token()


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_local")
def test_no_node_of_a_new_ray_is_draining() -> None:
    assert ray.is_initialized()
    assert not core.draining_nodes()


def test_hidden_lines_of_workers_are_not_printed() -> None:
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    before, dispatcher.handlers = dispatcher.handlers, []
    printed: list[str] = []
    try:
        dispatcher.add_handler("printer", lambda batch: printed.extend(batch["lines"]))
        for _ in range(2):
            core.hide_worker_lines("nobody can act on this")
        assert len(dispatcher.handlers) == 2
        dispatcher.emit({"lines": ["loss 1.0", "x: nobody can act on this."]})  # type: ignore[no-untyped-call]
    finally:
        dispatcher.handlers = before
    assert printed == ["loss 1.0"]
